//! From the cores to the file: nothing torn, nothing waited for, everything counted.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Barrier, Mutex};

use dataplane::route::decision::{Decision, RulesFrom};
use dataplane::route::pick::{Request, Rules};

use super::*;
use crate::cluster::View;

/// Longer than any test takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn made(rows: usize) -> Made {
    let candidate = dataplane::route::pick::Candidate {
        excluded: None,
        held: dataplane::route::speeds::Held::default(),
        queued_ms: 0.1,
        decoding: 0,
        inflight: 0,
        slots: 1,
        picked: 0,
        power_watts: None,
        cache_free: 1.0,
    };
    Made {
        time_unix_ms: 1,
        request_id: "r".into(),
        trace_id: TraceId::new(1),
        view: Arc::new(View { version: 1, models: HashMap::new(), weights: None }),
        model: "m".into(),
        tried: 0,
        rules_from: RulesFrom::Configuration,
        request: Request::default(),
        rules: Rules::default(),
        seed: u64::MAX,
        candidates: vec![candidate; rows],
        sources: Vec::new(),
        picked: None,
    }
}

fn config(path: &Path) -> DecisionConfig {
    DecisionConfig { file: Some(path.to_owned()), sample_ratio: 1.0, ..DecisionConfig::default() }
}

#[test]
fn no_file_means_no_log_and_one_that_cannot_be_is_an_error() {
    assert!(DecisionLog::start(&DecisionConfig::default()).unwrap().is_none());
    assert!(DecisionLog::start(&config(Path::new("/nowhere/at/all"))).is_err());
}

#[test]
fn every_decision_of_every_core_is_a_whole_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("decisions.jsonl");
    let log = DecisionLog::start(&config(&path)).unwrap().unwrap();
    let cores: Vec<_> = (0..4)
        .map(|_| {
            let sender = log.sender();
            // Fewer than may wait: none is dropped however slow the disk is.
            thread::spawn(move || (0..200).for_each(|_| sender.put(made(3))))
        })
        .collect();
    cores.into_iter().for_each(|core| core.join().unwrap());
    let sender = log.sender();
    assert!(log.close(PATIENCE));
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = text.lines().map(|line| Decision::from_line(line.as_bytes())).collect();
    assert_eq!(lines.len(), 800);
    assert!(lines.iter().all(|line| line.as_ref().is_ok_and(|one| one.seed == u64::MAX)));
    let counts = sender.counts();
    assert_eq!((counts.written.load(Relaxed), counts.dropped.load(Relaxed)), (800, 0));
}

/// A log whose thread waits at its first write: until it is there, and until it may go on.
fn held_at_its_first_write() -> (DecisionLog, Arc<Barrier>, Arc<Barrier>) {
    let gate = Arc::new(Barrier::new(2));
    let entered = Arc::new(Barrier::new(2));
    let (inside, passed) = (Arc::clone(&entered), Arc::clone(&gate));
    let mut is_first = true;
    let write = move |_: &[u8]| {
        if std::mem::replace(&mut is_first, false) {
            inside.wait();
            passed.wait();
        }
        Ok(())
    };
    let log = DecisionLog::with(write, 1.0).unwrap();
    (log, entered, gate)
}

#[test]
fn what_finds_no_room_is_dropped_and_counted_and_nobody_waits() {
    let (log, entered, gate) = held_at_its_first_write();
    let sender = log.sender();
    sender.put(made(1));
    // The thread is at its first write, and takes nothing more.
    entered.wait();
    (0..DECISIONS_WAITING_MAX + 5).for_each(|_| sender.put(made(1)));
    assert_eq!(sender.counts().dropped.load(Relaxed), 5);
    gate.wait();
    assert!(log.close(PATIENCE));
    let written = sender.counts().written.load(Relaxed);
    assert_eq!(written, DECISIONS_WAITING_MAX as u64 + 1);
    sender.put(made(1));
    assert_eq!(sender.counts().dropped.load(Relaxed), 6, "the thread is gone");
}

#[test]
fn candidates_that_wait_are_bounded_whatever_their_number() {
    let (log, entered, gate) = held_at_its_first_write();
    let sender = log.sender();
    sender.put(made(1));
    entered.wait();
    let half = ROWS_WAITING_MAX / 2;
    (0..3).for_each(|_| sender.put(made(half)));
    assert_eq!(sender.counts().dropped.load(Relaxed), 1);
    assert!(sender.rows_waiting.load(Relaxed) <= ROWS_WAITING_MAX);
    gate.wait();
    assert!(log.close(PATIENCE));
    assert_eq!(sender.rows_waiting.load(Relaxed), 0);
}

#[test]
fn a_disk_that_fails_costs_lines_and_the_next_one_begins_anew() {
    let written = Arc::new(Mutex::new(Vec::new()));
    let (disk, mut calls) = (Arc::clone(&written), 0);
    let write = move |lines: &[u8]| {
        calls += 1;
        let part = if calls == 1 { &lines[..10] } else { lines };
        disk.lock().unwrap().extend_from_slice(part);
        if calls == 1 { Err(io::Error::from(io::ErrorKind::StorageFull)) } else { Ok(()) }
    };
    let log = DecisionLog::with(write, 1.0).unwrap();
    let sender = log.sender();
    sender.put(made(1));
    while sender.counts().failed.load(Relaxed) == 0 {
        thread::sleep(CLOSE_POLL);
    }
    sender.put(made(1));
    assert!(log.close(PATIENCE));
    let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
    let whole = text.lines().filter(|line| Decision::from_line(line.as_bytes()).is_ok());
    assert_eq!((whole.count(), sender.counts().written.load(Relaxed)), (1, 1));
}
