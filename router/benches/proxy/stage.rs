//! The stage the proxies stand on: bare engines, free ports, pinned cores, processes that end with
//! their owner.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cpu;

/// Load generator and engine.
pub const LOAD_CORE: usize = 0;
/// The proxy.
pub const PROXY_CORE: usize = 1;
/// Our own proxies start in much less; a Python one takes half a minute on a busy machine.
const START_MAX: Duration = Duration::from_secs(90);
/// Between SIGTERM and SIGKILL.
const STOP_MAX: Duration = Duration::from_secs(8);

/// A process that ends with its owner.
pub struct Running {
    child: Option<Child>,
    /// Where the load goes.
    pub port: u16,
}

impl Running {
    /// The process; none for `direct`.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// CPU time so far, of the process and its children; 0 for `direct`.
    pub fn cpu_ns(&self) -> Result<u64, String> {
        self.pid().map_or(Ok(0), cpu::used_ns)
    }

    /// What it holds in memory.
    pub fn memory(&self) -> Result<cpu::Memory, String> {
        cpu::memory(self.pid().ok_or("no process here")?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        // nginx's master takes its worker with it on SIGTERM; SIGKILL would orphan it.
        let _ = Command::new("kill").arg(child.id().to_string()).status();
        let asked = Instant::now();
        while asked.elapsed() < STOP_MAX {
            if child.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Everything a round needs.
pub struct Stage {
    directory: tempfile::TempDir,
    engines: [Running; 2],
}

impl Stage {
    /// Starts the engines.
    pub fn set_up() -> Result<Self, String> {
        for tool in ["nginx", "wrk", "taskset"] {
            if !has_program(tool) {
                return Err(format!(
                    "`{tool}` is missing: apt-get install nginx-light wrk util-linux"
                ));
            }
        }
        let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
        Ok(Stage { directory, engines: [engine()?, engine()?] })
    }

    /// A path in the stage's own folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file into the stage's own folder.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> Result<PathBuf, String> {
        let path = self.path(name);
        std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(path)
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        self.directory.path()
    }

    /// Ports of the bare engines.
    pub fn engine_ports(&self) -> [u16; 2] {
        [self.engines[0].port, self.engines[1].port]
    }

    /// No proxy: the load goes to the first engine.
    pub fn direct(&self) -> Running {
        Running { child: None, port: self.engines[0].port }
    }
}

/// Whether `name` can be run.
pub fn has_program(name: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output();
    found.is_ok_and(|found| found.status.success())
}

fn engine() -> Result<Running, String> {
    let port = free_port()?;
    let this = std::env::current_exe().map_err(|e| e.to_string())?;
    start(pinned(LOAD_CORE, &this.display().to_string()).args(["engine", &port.to_string()]), port)
}

/// A command on one core.
pub fn pinned(core: usize, program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string(), program]).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Starts `command` and waits until it accepts on `port`.
pub fn start(command: &mut Command, port: u16) -> Result<Running, String> {
    let child = command.spawn().map_err(|e| e.to_string())?;
    // `taskset` replaces itself with the program, so the child's pid is the program's.
    let mut running = Running { child: Some(child), port };
    let deadline = Instant::now() + START_MAX;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        let ended = running.child.as_mut().map(Child::try_wait);
        if let Some(Ok(Some(status))) = ended {
            return Err(format!("{} ended at once: {status}", name(command)));
        }
        if Instant::now() > deadline {
            return Err(format!("nothing listens on port {port} after {START_MAX:?}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // A router learns by its first probe that its engine is there.
    std::thread::sleep(Duration::from_millis(300));
    Ok(running)
}

fn name(command: &Command) -> String {
    command.get_args().nth(2).unwrap_or_default().to_string_lossy().into_owned()
}

/// A port nobody listens on now.
pub fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    listener.local_addr().map(|address| address.port()).map_err(|e| e.to_string())
}

/// Raises the limit on open files to what the kernel lets us; children inherit it.
pub fn raise_file_limit() -> Result<u64, String> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| e.to_string())?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(|e| e.to_string())?;
    Ok(hard)
}
