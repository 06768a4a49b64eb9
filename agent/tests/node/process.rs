//! The shipped binaries as processes: found beside this test, logged to a file, ended with their
//! owner. And questions about processes by id.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Guards against a hang; no test depends on its length.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at something that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Lines of a log that a failed test shows.
const LOG_LINES: usize = 40;

/// The binary of that name that was built with this test.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(path.is_file(), "build the binaries first: cargo build --release --bins");
    path
}

/// A running process. SIGTERM, then SIGKILL, when it is dropped.
pub struct Process {
    child: Child,
    name: &'static str,
    log: PathBuf,
}

impl Process {
    /// Starts `name` with `--config`; what it says goes to a log in `folder`.
    pub fn start(name: &'static str, config: &Path, folder: &Path) -> Process {
        let log = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let child = Command::new(binary(name))
            .arg("--config")
            .arg(config)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        Process { child, name, log }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    /// As a crash ends it.
    pub fn crash(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().unwrap();
    }

    /// As an operator ends it.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        let mut status = None;
        eventually("a process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Fails the test if it has ended by itself.
    pub fn is_alive(&mut self) -> bool {
        let status = self.child.try_wait().unwrap();
        assert!(status.is_none(), "{} ended: {status:?}\n{}", self.name, self.tail());
        true
    }

    fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- end of the log of {}\n{}", self.name, self.tail());
        }
        let is_running = matches!(self.child.try_wait(), Ok(None));
        if is_running && !std::thread::panicking() {
            self.stop();
        }
        // Whatever is left: a test that failed does not wait.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process.
pub fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

/// Whether `pid` runs. A zombie does not.
pub fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

/// Waits until `holds`.
pub fn eventually(what: &str, holds: impl FnMut() -> bool) {
    eventually_after(Duration::ZERO, what, holds);
}

/// Waits until `holds`, which takes `least` in any case.
pub fn eventually_after(least: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < least + PATIENCE, "waited in vain until {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}
