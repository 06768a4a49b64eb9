//! What engines left behind: processes of an agent that was killed with SIGKILL.
//!
//! The kernel ends an engine with its agent, but not what the engine forked: vLLM's engine core would
//! keep its memory, and its sockets' paths, for ever. Each engine gets a variable that names the agent's
//! `state_dir`, children inherit it, and an agent that starts kills whoever carries its own. It holds
//! the folder's lock, so nobody else's engines do.
//!
//! A process that overwrote its environment cannot be told. One that sets its title (vLLM's do) loses
//! the first variables; ours is the last, since the system hands them on sorted and small letters come
//! after capital ones.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The variable. Small letters are meant: see above.
pub const MARK: &str = "cgn_agent_state_dir";
/// Most of an environment that is read; Linux bounds it by the stack, usually to 2 MiB.
const ENVIRONMENT_BYTES_MAX: u64 = 4 << 20;
/// How long the killed are waited for: their ports and sockets are wanted.
const GONE_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Kills what is left of engines started with `state_dir` (absolute). Says how many processes.
pub fn sweep(state_dir: &Path) -> usize {
    let left = marked(state_dir);
    for &pid in &left {
        if let Err(error) = kill(pid, Signal::SIGKILL) {
            tracing::warn!(%pid, %error, "what an engine left behind could not be killed");
        }
    }
    let begun = Instant::now();
    while left.iter().any(|&pid| is_marked(pid, state_dir)) && begun.elapsed() < GONE_WITHIN {
        std::thread::sleep(LOOK_EVERY);
    }
    left.len()
}

fn marked(state_dir: &Path) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw))
        .filter(|&pid| pid != Pid::this() && is_marked(pid, state_dir))
        .collect()
}

/// A process that is gone, or not ours to read, is not marked; a zombie has no environment.
fn is_marked(pid: Pid, state_dir: &Path) -> bool {
    let mut environment = Vec::new();
    let read = File::open(format!("/proc/{pid}/environ"))
        .and_then(|file| file.take(ENVIRONMENT_BYTES_MAX).read_to_end(&mut environment));
    let wanted = [MARK.as_bytes(), b"=", state_dir.as_os_str().as_encoded_bytes()].concat();
    read.is_ok() && environment.split(|&byte| byte == 0).any(|variable| variable == wanted)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn only_what_carries_the_folder_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("other");
        let sleep = |of: &Path| Command::new("sleep").arg("1000").env(MARK, of).spawn().unwrap();
        let (mut ours, mut others) = (sleep(folder.path()), sleep(&other));
        assert_eq!(sweep(folder.path()), 1);
        assert_eq!(ours.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
        assert!(others.try_wait().unwrap().is_none());
        assert_eq!(sweep(&other), 1);
        others.wait().unwrap();
        assert_eq!(sweep(folder.path()), 0);
    }
}
