//! One external command as a step: its output goes to a log, each line to the progress shown.
//!
//! A step that fails says the last lines of its log and where the rest is.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use crate::cache;
use crate::failure::Failure;
use crate::progress::Progress;

/// Lines of a failed step that are shown.
const TAIL_LINES: usize = 20;
/// Lines in flight between the readers and the log.
const LINES_QUEUED_MAX: usize = 256;
/// Between two ticks of the progress while the command says nothing.
const TICK_INTERVAL: Duration = Duration::from_secs(1);

/// Where a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// Sees each line of a step, and `None` about once a second; answers whether the line is logged.
pub type Watch<'a> = dyn FnMut(&mut Progress, Option<(Source, &str)>) -> bool + 'a;

/// Runs `command` to its end. A failure shows the end of its log.
pub fn run(
    command: &mut Command,
    log: &Path,
    progress: &mut Progress,
    watch: &mut Watch<'_>,
) -> Result<(), Failure> {
    if let Some(folder) = log.parent() {
        cache::make(folder)?;
    }
    let mut file = File::create(log).map_err(|error| Failure::at(log, "create", &error))?;
    let mut tail = VecDeque::new();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| start_failure(command, &error))?;
    let (sender, lines) = sync_channel(LINES_QUEUED_MAX);
    let readers = [
        child.stdout.take().map(|pipe| read(Source::Out, pipe, sender.clone())),
        child.stderr.take().map(|pipe| read(Source::Err, pipe, sender.clone())),
    ];
    drop(sender);
    loop {
        match lines.recv_timeout(TICK_INTERVAL) {
            Ok((source, line)) => {
                if watch(progress, Some((source, &line))) {
                    // A full disk must not hide the command's own failure.
                    let _ = writeln!(file, "{line}");
                    tail.push_back(line);
                    if tail.len() > TAIL_LINES {
                        tail.pop_front();
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                watch(progress, None);
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
        progress.tick();
    }
    for reader in readers.into_iter().flatten() {
        // A reader ends with its pipe; it has nothing to report.
        let _ = reader.join();
    }
    let status = child.wait().map_err(|error| start_failure(command, &error))?;
    if status.success() {
        return Ok(());
    }
    let mut shown = String::new();
    for line in tail {
        shown.push_str("\n    ");
        shown.push_str(&line);
    }
    Err(Failure::new(format!(
        "{} failed ({status}); its last lines:{shown}\n  the whole log: {}",
        name(command),
        log.display()
    )))
}

/// [`run`] for a command whose lines are only logged; the last one is shown.
pub fn run_quietly(
    command: &mut Command,
    log: &Path,
    progress: &mut Progress,
) -> Result<(), Failure> {
    run(command, log, progress, &mut |progress, line| {
        if let Some((_, line)) = line {
            progress.say(line.trim());
        }
        true
    })
}

/// The standard output of a short command, or `None` when it fails.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What to say when a command cannot be started at all.
pub fn start_failure(command: &Command, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot run {}: {error}; is it installed?", name(command)))
}

fn name(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for argument in command.get_args().take(2) {
        name.push(' ');
        name.push_str(&argument.to_string_lossy());
    }
    name
}

fn read(
    source: Source,
    pipe: impl Read + Send + 'static,
    lines: SyncSender<(Source, String)>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut bytes = Vec::new();
        while matches!(pipe.read_until(b'\n', &mut bytes), Ok(count) if count > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            if lines.send((source, line)).is_err() {
                return;
            }
            bytes.clear();
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_shows_its_last_lines_and_its_log() {
        let log = std::env::temp_dir().join(format!("xtask-step-{}.log", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", "for i in $(seq 30); do echo line $i; done; echo end >&2; exit 3"]);
        let mut progress = Progress::start("step test");
        let said = run_quietly(&mut command, &log, &mut progress).unwrap_err().to_string();
        assert!(said.contains("exit status: 3") && said.contains("line 30"), "{said}");
        assert!(!said.contains("line 9\n") && said.contains(&*log.to_string_lossy()), "{said}");
        assert!(std::fs::read_to_string(&log).unwrap().contains("line 1\n"));
        std::fs::remove_file(&log).unwrap();
    }

    #[test]
    fn a_missing_program_is_named() {
        let mut command = Command::new("/nonexistent/cgn-nothing");
        let log = std::env::temp_dir().join(format!("xtask-none-{}.log", std::process::id()));
        let mut progress = Progress::start("step test");
        let said = run_quietly(&mut command, &log, &mut progress).unwrap_err().to_string();
        assert!(said.contains("cgn-nothing"), "{said}");
        std::fs::remove_file(&log).unwrap();
    }
}
