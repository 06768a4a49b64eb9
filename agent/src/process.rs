//! One engine process: spawned in its own process group, signalled as a group, reaped.
//!
//! No engine outlives the agent, not even one that was killed with SIGKILL: the kernel sends the
//! engine SIGKILL when the *thread* that spawned it dies (`PR_SET_PDEATHSIG`). So [`spawn`] must be
//! called from the thread the agent lives on: the one of its current-thread runtime, which is the
//! main thread. That covers the process spawned; processes *it* forks stay in its group and are
//! killed with it by [`Process::try_reap`] and on drop, but not by the kernel.
// UNSAFETY: `pre_exec` is the only way to run `prctl` between fork and exec.
#![expect(unsafe_code, reason = "CommandExt::pre_exec is unsafe: it runs between fork and exec")]

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpid, getppid};
use tokio::net::unix::pipe::Receiver;

/// What to run.
#[derive(Debug)]
pub struct Invocation<'a> {
    /// The binary.
    pub program: &'a Path,
    /// Its arguments.
    pub args: &'a [String],
    /// Environment variables that are set, after the next rule.
    pub env: &'a [(String, String)],
    /// Environment variables beginning with this are not passed on.
    pub env_prefix_removed: Option<&'a str>,
}

/// A process group whose leader has not been reaped yet.
#[derive(Debug)]
pub struct Process {
    child: Child,
    group: Pid,
    reaped: bool,
}

/// Starts `invocation`. The receiver carries stdout and stderr together.
///
/// # Errors
/// What the system says: the binary cannot be executed, or no process can be made.
pub fn spawn(invocation: &Invocation<'_>) -> io::Result<(Process, Receiver)> {
    let (reader, writer) = io::pipe()?;
    let output = Receiver::from_owned_fd(reader.into())?;
    let mut command = Command::new(invocation.program);
    command
        .args(invocation.args)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0);
    if let Some(prefix) = invocation.env_prefix_removed {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with(prefix) {
                command.env_remove(name);
            }
        }
    }
    command.envs(invocation.env.iter().map(|(name, value)| (name, value)));
    let agent = getpid();
    // SAFETY: between fork and exec of a possibly threaded process only async-signal-safe calls are
    // allowed. `die_with` makes two plain system calls, prctl(2) and getppid(2), and allocates
    // nothing, also when it fails: `io::Error::from_raw_os_error` holds an integer.
    unsafe {
        command.pre_exec(move || die_with(agent));
    }
    let child = command.spawn()?;
    let group = Pid::from_raw(child.id().cast_signed());
    Ok((Process { child, group, reaped: false }, output))
}

/// Runs in the child: SIGKILL when the spawning thread dies, also if it died just before.
fn die_with(agent: Pid) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() == agent { Ok(()) } else { Err(io::Error::from_raw_os_error(Errno::ESRCH as i32)) }
}

impl Process {
    /// The leader's process id, which names the group too.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Signals the whole group. One that is gone already is no error.
    pub fn signal(&self, signal: Signal) {
        // Before the leader is reaped its id cannot be given to anybody else.
        if !self.reaped
            && let Err(error) = killpg(self.group, signal)
            && error != Errno::ESRCH
        {
            tracing::warn!(pid = self.pid(), %signal, %error, "cannot signal an engine");
        }
    }

    /// Whether the leader has exited. Then what is left of its group is killed and the leader
    /// reaped; the second call after that gives nothing.
    pub fn try_reap(&mut self) -> Option<ExitStatus> {
        if self.reaped {
            return None;
        }
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(self.group), flags) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => None,
            // Exited, or somebody else took its status: `reap` tells which.
            Ok(_) | Err(_) => self.reap(),
        }
    }

    fn reap(&mut self) -> Option<ExitStatus> {
        self.signal(Signal::SIGKILL);
        self.reaped = true;
        match self.child.wait() {
            Ok(status) => Some(status),
            Err(error) => {
                tracing::warn!(pid = self.pid(), %error, "an engine's exit status is lost");
                Some(ExitStatus::from_raw(0))
            }
        }
    }
}

impl Drop for Process {
    /// Nothing is left running, whatever way the agent ends.
    fn drop(&mut self) {
        if !self.reaped {
            self.signal(Signal::SIGKILL);
            self.reap();
        }
    }
}

/// An exit status in words: "exited with status 1", "was ended by SIGKILL".
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("was ended by {signal}"),
            Err(_) => format!("was ended by signal {number}"),
        },
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt;

    use super::*;

    fn sh(script: &str) -> (Process, Receiver) {
        let args = ["-c".to_owned(), script.to_owned()];
        let program = Path::new("/bin/sh");
        spawn(&Invocation { program, args: &args, env: &[], env_prefix_removed: Some("CARGO") })
            .unwrap()
    }

    async fn ended(process: &mut Process) -> String {
        loop {
            if let Some(status) = process.try_reap() {
                return describe(status);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn text(mut output: Receiver) -> String {
        let mut text = String::new();
        output.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn variables_are_set_after_those_of_the_prefix_are_removed() {
        let args = ["-c".to_owned(), "echo \"$CARGO_PKG_NAME,$CARGO_OURS\"".to_owned()];
        let env = [("CARGO_OURS".to_owned(), "x=1".to_owned())];
        let program = Path::new("/bin/sh");
        let env_prefix_removed = Some("CARGO");
        let (mut process, output) =
            spawn(&Invocation { program, args: &args, env: &env, env_prefix_removed }).unwrap();
        assert_eq!(text(output).await, ",x=1\n");
        assert_eq!(ended(&mut process).await, "exited with status 0");
    }

    #[tokio::test]
    async fn stdout_and_stderr_come_in_order_and_the_status_in_words() {
        let (mut process, output) = sh("echo one; echo two >&2; echo three; exit 3");
        assert_eq!(text(output).await, "one\ntwo\nthree\n");
        assert_eq!(ended(&mut process).await, "exited with status 3");
        assert!(process.try_reap().is_none());
    }

    #[tokio::test]
    async fn the_whole_group_ends_with_its_leader() {
        // The pipe ends only when the grandchild, which holds it too, is gone.
        let (mut process, output) = sh("sleep 1000 & echo started; wait");
        let mut output = tokio::io::BufReader::new(output);
        let mut line = String::new();
        tokio::io::AsyncBufReadExt::read_line(&mut output, &mut line).await.unwrap();
        assert_eq!(line, "started\n");
        process.signal(Signal::SIGTERM);
        assert_eq!(ended(&mut process).await, "was ended by SIGTERM");
        assert_eq!(output.read_to_string(&mut line).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_dropped_process_is_killed() {
        let (process, output) = sh("sleep 1000 & wait");
        drop(process);
        assert_eq!(text(output).await, "");
    }

    #[tokio::test]
    async fn the_environment_prefix_is_removed() {
        let (_process, output) = sh("env | grep -c ^CARGO; true");
        assert_eq!(text(output).await, "0\n");
    }

    #[tokio::test]
    async fn a_program_that_cannot_be_executed_is_an_error() {
        let plain = tempfile::NamedTempFile::new().unwrap();
        let program = plain.path();
        let refused = spawn(&Invocation { program, args: &[], env: &[], env_prefix_removed: None });
        assert!(refused.is_err());
    }
}
