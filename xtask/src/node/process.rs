//! The processes of a node: started in a session of their own, found again by a mark.
//!
//! Each gets `CGN_XTASK_NODE=<run folder>` in its environment, and hands it on to what it starts. So
//! whatever a crash left behind is still known as ours, and nothing without the mark is ever
//! signalled.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::cache::Cache;
use crate::failure::Failure;
use crate::step;

/// The environment variable that marks a process as part of a node.
const MARK: &str = "CGN_XTASK_NODE";
/// Lines shown of the log of a process that ended.
const TAIL_LINES: usize = 20;

/// A living process with the mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// Its process id.
    pub pid: u32,
    /// The file name of its program.
    pub name: String,
    /// Its command line.
    pub command: String,
}

/// Starts one of our binaries, detached, with `<run>/<name>.toml` and its output in a log.
pub fn start(cache: &Cache, name: &str) -> Result<Child, Failure> {
    let path = log(cache, name);
    let file = File::create(&path).map_err(|error| Failure::at(&path, "create", &error))?;
    let mut command = Command::new("setsid");
    command
        .arg(cache.binary(name))
        .arg("--config")
        .arg(cache.run.join(format!("{}.toml", name.trim_start_matches("cgn-"))))
        .current_dir(&cache.run);
    spawn(&cache.run, &mut command, file)
}

/// Starts `command` with the mark of `run`, its output in `log`.
pub fn spawn(run: &Path, command: &mut Command, log: File) -> Result<Child, Failure> {
    let errors = log
        .try_clone()
        .map_err(|error| Failure::new(format!("cannot open a log twice: {error}")))?;
    command.env(MARK, run).stdin(Stdio::null()).stdout(log).stderr(errors);
    command.spawn().map_err(|error| step::start_failure(command, &error))
}

/// The log of one of our processes.
pub fn log(cache: &Cache, name: &str) -> PathBuf {
    cache.run.join("logs").join(format!("{name}.log"))
}

/// The last lines of a log, each on a line of its own.
pub fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    shown.iter().map(|line| format!("\n    {line}")).collect()
}

/// All living processes with the mark of `run` that this user may look at.
pub fn marked(run: &Path) -> Vec<Marked> {
    let wanted = format!("{MARK}={}", run.display());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        if let Some(one) = look_at(pid, &wanted) {
            found.push(one);
        }
    }
    found
}

/// Process `pid`, if it has the mark and is not merely waiting to be reaped.
fn look_at(pid: u32, wanted: &str) -> Option<Marked> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let environment = fs::read(folder.join("environ")).ok()?;
    if !environment.split(|&byte| byte == 0).any(|entry| entry == wanted.as_bytes()) {
        return None;
    }
    let arguments = fs::read(folder.join("cmdline")).ok()?;
    let words: Vec<String> = arguments
        .split(|&byte| byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .filter(|word| !word.is_empty())
        .collect();
    let name = Path::new(words.first()?).file_name()?.to_string_lossy().into_owned();
    Some(Marked { pid, name, command: words.join(" ") })
}

/// Sends `signal` to each process with the mark that `is_it` picks. One that is gone is no error.
pub fn signal(run: &Path, signal: &str, is_it: &dyn Fn(&Marked) -> bool) -> Result<(), Failure> {
    for one in marked(run).iter().filter(|one| is_it(one)) {
        // The shell's own `kill`: the program of that name is missing on a small Debian.
        let mut command = Command::new("sh");
        command.args(["-c", "kill -s \"$1\" \"$2\"", "sh", signal, &one.pid.to_string()]);
        command
            .stderr(Stdio::null())
            .status()
            .map_err(|error| step::start_failure(&command, &error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_marked_processes_are_found_and_ended() {
        let run = std::env::temp_dir().join(format!("xtask-mark-{}", std::process::id()));
        let null = || File::create("/dev/null").unwrap();
        let mut ours = spawn(&run, Command::new("sleep").arg("600"), null()).unwrap();
        let other_run = run.join("other");
        let mut other = spawn(&other_run, Command::new("sleep").arg("600"), null()).unwrap();
        // Until exec is through, the child still shows the environment of this test.
        while marked(&run).is_empty() || marked(&other_run).is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let found = marked(&run);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].pid, found[0].name.as_str()), (ours.id(), "sleep"));
        signal(&run, "KILL", &|_| true).unwrap();
        ours.wait().unwrap();
        assert!(marked(&run).is_empty());
        assert!(other.try_wait().unwrap().is_none(), "the other node's process lives");
        signal(&other_run, "TERM", &|one| one.name == "sleep").unwrap();
        other.wait().unwrap();
    }
}
