//! From a core's buffer to the file: nothing torn, nothing waited for, everything counted.

use std::sync::Barrier;

use super::super::tests::line;
use super::*;

/// Longer than any test takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn config(path: &Path) -> AccessConfig {
    AccessConfig { path: path.to_str().unwrap().into(), ..AccessConfig::default() }
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn no_path_means_no_log() {
    assert!(AccessLog::start(&AccessConfig::default()).unwrap().is_none());
    assert!(AccessLog::start(&config(Path::new("/nowhere/at/all"))).is_err());
}

#[test]
fn every_line_of_every_core_is_written_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.jsonl");
    let log = AccessLog::start(&config(&path)).unwrap().unwrap();
    let cores: Vec<_> = (0..4)
        .map(|_| {
            let buffer = log.buffer();
            thread::spawn(move || (0..1_000).for_each(|_| buffer.put(&line())))
        })
        .collect();
    cores.into_iter().for_each(|core| core.join().unwrap());
    let counts = log.counts();
    assert!(log.close(PATIENCE));
    let lines = lines(&path);
    assert_eq!(lines.len(), 4_000);
    assert!(lines.iter().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    assert_eq!((counts.written.load(Relaxed), counts.dropped.load(Relaxed)), (4_000, 0));
}

/// A disk that takes nothing until it is let go.
struct Stuck(Arc<Barrier>, bool);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !std::mem::replace(&mut self.1, true) {
            self.0.wait();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stuck_disk_costs_lines_and_nobody_waits() {
    let barrier = Arc::new(Barrier::new(2));
    let sink = Sink::Test(Box::new(Stuck(Arc::clone(&barrier), false)));
    let log = AccessLog::with(sink, 1.0).unwrap();
    let buffer = log.buffer();
    // One batch may be with the thread, the channel holds its limit, the rest is dropped.
    let sent = BATCHES_MAX as u64 + 10;
    for _ in 0..sent {
        buffer.put(&line());
        buffer.flush();
    }
    let counts = log.counts();
    let dropped = counts.dropped.load(Relaxed);
    assert!((9..=10).contains(&dropped), "{dropped}");
    barrier.wait();
    assert!(log.close(PATIENCE));
    assert_eq!(counts.written.load(Relaxed), sent - dropped);
    buffer.put(&line());
    drop(buffer);
    assert_eq!(counts.dropped.load(Relaxed), dropped + 1, "the log is closed");
}

#[test]
fn a_stuck_disk_does_not_keep_the_process() {
    let barrier = Arc::new(Barrier::new(2));
    let log =
        AccessLog::with(Sink::Test(Box::new(Stuck(Arc::clone(&barrier), false))), 1.0).unwrap();
    log.buffer().put(&line());
    assert!(!log.close(Duration::from_millis(20)));
    barrier.wait();
}

#[test]
fn a_full_disk_is_counted() {
    let log = AccessLog::start(&config(Path::new("/dev/full"))).unwrap().unwrap();
    let buffer = log.buffer();
    buffer.put(&line());
    drop(buffer);
    let counts = log.counts();
    assert!(log.close(PATIENCE));
    assert_eq!((counts.failed.load(Relaxed), counts.written.load(Relaxed)), (1, 0));
}

#[test]
fn the_file_and_its_predecessor_stay_within_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.jsonl");
    let older = folder.path().join("access.jsonl.1");
    let mut file = Rotating::open(&path, 25).unwrap();
    for n in 0..10 {
        file.write(format!("line {n:04}\n").as_bytes()).unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() <= 25);
    }
    assert_eq!(lines(&older), ["line 0006", "line 0007"]);
    assert_eq!(lines(&path), ["line 0008", "line 0009"]);
    // A later process goes on where this one was.
    let mut file = Rotating::open(&path, 25).unwrap();
    file.write(b"line 0010\n").unwrap();
    assert_eq!(lines(&older), ["line 0008", "line 0009"]);
    assert_eq!(lines(&path), ["line 0010"]);
    // A file that somebody else took away is no loss.
    std::fs::remove_file(&path).unwrap();
    file.write(b"line 0011\nline 0012\n").unwrap();
    assert_eq!(lines(&path), ["line 0011", "line 0012"]);
    // Lines that fit no file are still whole.
    file.write(&[b'x'; 100]).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 100);
}

#[test]
fn a_share_of_the_requests_gets_a_line() {
    let log = AccessLog::with(Sink::Test(Box::new(io::sink())), 0.5).unwrap();
    let buffer = log.buffer();
    assert!(buffer.wants(TraceId::new(1)));
    assert!(!buffer.wants(TraceId::new(u128::MAX)));
    drop(buffer);
    assert!(log.close(PATIENCE));
}
