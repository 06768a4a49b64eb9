//! Power cuts at any moment of any work, with the index kept, stale or lost.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures_lite::future::{self, block_on};
use kvstore::disk::cipher::DiskKey;
use kvstore::key::Key;
use proptest::prelude::*;

use crate::fault_device::FaultDevice;
use crate::shelf::{Shelf, device, key, key_of, value};

#[derive(Clone, Debug)]
enum Work {
    Put(u32),
    Remove,
    Get,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum IndexAfter {
    Kept,
    /// As it was when the daemon started.
    Stale,
    Lost,
}

/// What a key may be after a cut: what was acknowledged last, or what was under way.
#[derive(Clone, Debug, Default)]
struct Allowed {
    values: Vec<Option<u32>>,
}

type Book = Rc<RefCell<HashMap<Key, Allowed>>>;

#[derive(Clone, Debug)]
struct Life {
    /// What each of some keys is put through, in order.
    work: Vec<Vec<Work>>,
    /// Turns until the power goes.
    turns: usize,
    after: IndexAfter,
}

fn lives() -> impl Strategy<Value = Vec<Life>> {
    let work = prop_oneof![
        5 => any::<u32>().prop_map(Work::Put),
        1 => Just(Work::Remove),
        3 => Just(Work::Get),
    ];
    let after =
        prop_oneof![Just(IndexAfter::Kept), Just(IndexAfter::Stale), Just(IndexAfter::Lost)];
    let keys = proptest::collection::vec(proptest::collection::vec(work, 0..12), 8);
    let life =
        (keys, 0usize..1500, after).prop_map(|(work, turns, after)| Life { work, turns, after });
    proptest::collection::vec(life, 1..5)
}

async fn drive(shelf: &Shelf, book: &Book, key: Key, work: &[Work]) {
    let allow = |values: Vec<Option<u32>>| {
        book.borrow_mut().insert(key, Allowed { values });
    };
    let before = || book.borrow().get(&key).cloned().unwrap_or(Allowed { values: vec![None] });
    for work in work {
        let mut values = before().values;
        match work {
            Work::Put(seed) => {
                values.push(Some(*seed));
                allow(values);
                shelf.put(key, &value(*seed)).await.unwrap();
                allow(vec![Some(*seed)]);
            }
            Work::Remove => {
                values.push(None);
                allow(values);
                shelf.remove(key).await.unwrap();
                allow(vec![None]);
            }
            Work::Get => {
                let found = shelf.get(key).await;
                check(shelf, &before(), key, found);
            }
        }
        future::yield_now().await;
    }
}

/// `found` is a value the key may have; nothing is found only where that is allowed, or the block was
/// given up to make room.
fn check(shelf: &Shelf, allowed: &Allowed, key: Key, found: Option<Vec<u8>>) {
    let is_allowed = allowed.values.iter().any(|seed| seed.map(value) == found);
    let is_dropped = found.is_none() && shelf.known.borrow().dropped.contains(&key);
    assert!(is_allowed || is_dropped, "{key}: {:?} bytes", found.map(|found| found.len()));
}

/// Runs the work and the cleaner for so many turns, or to the end.
async fn live(shelf: &Shelf, book: &Book, life: &Life) {
    let mut tasks: Vec<Pin<Box<dyn Future<Output = ()> + '_>>> = Vec::new();
    for (number, work) in life.work.iter().enumerate() {
        tasks.push(Box::pin(drive(shelf, book, key(number as u8), work)));
    }
    let mut cleaner = pin!(async {
        loop {
            shelf.disk.clean_step().await.unwrap();
            future::yield_now().await;
        }
    });
    let mut turns = 0;
    poll_fn(|context| {
        turns += 1;
        let is_cleaning: Poll<()> = cleaner.as_mut().poll(context);
        assert!(is_cleaning.is_pending());
        tasks.retain_mut(|task| task.as_mut().poll(context).is_pending());
        if tasks.is_empty() || turns > life.turns {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn copy_index(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).into_iter().flatten() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Every other case is on an encrypted disk.
fn mode(seed: u64) -> Option<DiskKey> {
    key_of((seed % 2 == 1).then_some(1))
}

fn survive(lives: &[Life], seed: u64) {
    let folder = tempfile::tempdir().unwrap();
    let devices: Vec<FaultDevice> = vec![device(8, seed), device(6, seed ^ 99)];
    let book = Book::default();
    let mut index = folder.path().join("index");
    for (number, life) in lives.iter().enumerate() {
        let stale = folder.path().join(format!("stale{number}"));
        copy_index(&index, &stale);
        let shelf = block_on(Shelf::keeping_free(2, &devices, &index, mode(seed)));
        // Everything acknowledged before the last cut is there, and nothing else.
        for number in 0..life.work.len() as u8 {
            let allowed = book.borrow().get(&key(number)).cloned();
            let allowed = allowed.unwrap_or(Allowed { values: vec![None] });
            let found = block_on(shelf.get(key(number)));
            check(&shelf, &allowed, key(number), found.clone());
            let values =
                vec![allowed.values.into_iter().find(|seed| seed.map(value) == found).flatten()];
            book.borrow_mut().insert(key(number), Allowed { values });
        }
        block_on(live(&shelf, &book, life));
        // What was given up to make room may be gone from here on.
        for key in &shelf.known.borrow().dropped {
            book.borrow_mut().entry(*key).or_default().values.push(None);
        }
        // So may what was about to be: its segment goes before anybody is told.
        let given_up = shelf.tier.ledger.given_up();
        for (key, place) in &shelf.known.borrow().places {
            if place.sequence <= given_up {
                book.borrow_mut().entry(*key).or_default().values.push(None);
            }
        }
        devices.iter().for_each(FaultDevice::cut);
        shelf.end();
        match life.after {
            IndexAfter::Kept => {}
            IndexAfter::Stale => index = stale,
            IndexAfter::Lost => index = folder.path().join(format!("lost{number}")),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn what_is_acknowledged_survives_power_cuts_and_nothing_is_wrong(
        lives in lives(), seed in any::<u64>(),
    ) {
        survive(&lives, seed);
    }
}

/// Polls so often, then gives it up, as a cut does.
fn give_up_after(polls: usize, work: impl Future) {
    let mut work = pin!(work);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..polls {
        if work.as_mut().poll(&mut context).is_ready() {
            return;
        }
    }
}

/// Polls that a write to a new segment takes at most, with room to spare.
const POLLS: usize = 40;

/// Puts `count` values that fill a segment by fives.
fn fill(shelf: &Shelf, first: u8, count: u8) {
    for number in first..first + count {
        block_on(shelf.put(key(number), &value(1))).unwrap();
    }
}

#[test]
fn what_was_removed_stays_so_when_the_next_use_of_its_segment_is_lost() {
    for polls in 0..POLLS {
        let folder = tempfile::tempdir().unwrap();
        let devices = [device(4, polls as u64)];
        let shelf = block_on(Shelf::start(&devices, folder.path(), mode(polls as u64)));
        // Its value in the first segment, its tombstone in the second, which the index knows.
        block_on(shelf.put(key(0), &value(1))).unwrap();
        fill(&shelf, 1, 4);
        block_on(shelf.remove(key(0))).unwrap();
        fill(&shelf, 5, 14);
        assert_eq!(shelf.tier.ledger.free_segments(|_| true), 0);
        give_up_after(polls, shelf.put(key(100), &value(1)));
        devices[0].cut_all(false);
        shelf.end();
        let shelf = block_on(Shelf::start(&devices, folder.path(), mode(polls as u64)));
        assert!(block_on(shelf.get(key(0))).is_none(), "{polls}");
        assert_eq!(block_on(shelf.get(key(18))), Some(value(1)));
        shelf.stop();
    }
}

#[test]
fn what_was_given_up_and_then_removed_stays_so() {
    for polls in 0..POLLS {
        let folder = tempfile::tempdir().unwrap();
        let devices = [device(4, polls as u64)];
        let shelf = block_on(Shelf::start(&devices, folder.path(), mode(polls as u64)));
        fill(&shelf, 0, 20);
        give_up_after(polls, shelf.put(key(100), &value(1)));
        let is_dropped = shelf.known.borrow().dropped.contains(&key(0));
        devices[0].cut_all(false);
        shelf.end();
        // There was no place that a tombstone could have been for.
        let shelf =
            block_on(Shelf::start(&devices, &folder.path().join("lost"), mode(polls as u64)));
        assert!(!is_dropped || block_on(shelf.get(key(0))).is_none(), "{polls}");
        shelf.stop();
    }
}

#[test]
fn an_unacknowledged_write_is_found_by_the_first_start_or_never() {
    for polls in 0..POLLS {
        let folder = tempfile::tempdir().unwrap();
        let devices = [device(4, polls as u64)];
        let shelf = block_on(Shelf::start(&devices, folder.path(), mode(polls as u64)));
        block_on(shelf.put(key(0), &value(1))).unwrap();
        give_up_after(polls, shelf.put(key(0), &value(2)));
        devices[0].cut_all(true);
        shelf.end();
        let shelf = block_on(Shelf::start(&devices, folder.path(), mode(polls as u64)));
        let first = block_on(shelf.get(key(0)));
        assert!(first.is_some());
        shelf.stop();
        let shelf =
            block_on(Shelf::start(&devices, &folder.path().join("lost"), mode(polls as u64)));
        assert_eq!(block_on(shelf.get(key(0))), first, "{polls}");
        shelf.stop();
    }
}
