//! What lies in which segment, for all shards of the daemon.
//!
//! A segment is written by one shard at a time, but its blocks may belong to any after a restart with
//! another number of shards, so each segment's row has a lock of its own. It is held for a few
//! comparisons and never while something is awaited; a row is touched once per block that is written,
//! read or forgotten, against hundreds of microseconds that the device takes.
//!
//! Segments are used again in the order they were written. That order is what makes a rebuilt index
//! right: of several values of one key the older always goes first, and so does a value before its
//! tombstone. One segment is given up at a time, over all shards, so that the order holds on the devices,
//! too: see [`Leaving`].

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use super::place::{Place, Segment};
use super::record::span_bytes;
use crate::key::Key;

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Live,
    Dead,
    Moved(Box<Place>),
}

#[derive(Debug)]
struct Row {
    key: Key,
    page: u32,
    version: u64,
    len: u64,
    reads: u8,
    fate: Fate,
}

#[derive(Debug, Default)]
struct Rows {
    /// Zero: the segment is free.
    sequence: u64,
    live_bytes: u64,
    /// By page, ascending.
    rows: Vec<Row>,
}

impl Rows {
    fn row_mut(&mut self, place: &Place) -> Option<&mut Row> {
        if self.sequence != place.sequence {
            return None;
        }
        let at = self.rows.binary_search_by_key(&place.page, |row| row.page).ok()?;
        self.rows.get_mut(at)
    }
}

/// A record of a segment that is still wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// Its key.
    pub key: Key,
    /// Where it lies.
    pub place: Place,
    /// How often it was read since it was written there, up to 255.
    pub reads: u8,
}

#[derive(Debug, Default)]
struct Order {
    /// Free segments of each device.
    free: Vec<VecDeque<u32>>,
    /// Device to look at first.
    next_device: usize,
    /// Segments that are complete, the oldest first.
    sealed: BTreeMap<u64, Segment>,
    /// A segment is being given up: no other is meanwhile.
    is_leaving: bool,
    /// The highest sequence whose giving up has begun.
    given_up: u64,
    /// Who waits for it to be gone: two tasks of each shard at most.
    waiting: Vec<Waker>,
}

/// What there is to give up.
#[derive(Debug)]
pub enum Oldest<'a> {
    /// The oldest complete segment.
    Taken(Leaving<'a>),
    /// Another is being given up: wait with [`Ledger::settled`].
    Busy,
    /// No segment is complete, or the one asked for is not the oldest.
    None,
}

/// A segment that is being given up. Its owner sees to it that the device has lost it for good, then
/// calls [`Leaving::empty`]. Until then no younger segment is given up, for that may hold the tombstone
/// of what would come back. Dropped before, the segment is the oldest again.
#[derive(Debug)]
pub struct Leaving<'a> {
    ledger: &'a Ledger,
    /// Which segment.
    pub segment: Segment,
    sequence: u64,
    is_gone: bool,
}

impl Leaving<'_> {
    /// Forgets all of the segment and frees it, to be the next of its device. What was live in it.
    pub fn empty(mut self) -> Vec<Live> {
        self.is_gone = true;
        let live = self.ledger.live(self.segment);
        self.ledger.set_aside(self.segment);
        live
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let Leaving { segment, sequence, .. } = *self;
        let mut order = lock(&self.ledger.order);
        order.is_leaving = false;
        if !self.is_gone {
            order.sealed.insert(sequence, segment);
        } else if let Some(free) = order.free.get_mut(usize::from(segment.device)) {
            free.push_front(segment.number);
        }
        let waiting = std::mem::take(&mut order.waiting);
        drop(order);
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// The books of the tier.
#[derive(Debug)]
pub struct Ledger {
    rows: Vec<Vec<Mutex<Rows>>>,
    order: Mutex<Order>,
    next_sequence: AtomicU64,
    next_version: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic ends the process, so there is no half-done change to fear.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    /// Books for devices of so many segments, all of them free.
    pub fn new(segments: &[u32]) -> Ledger {
        let rows = segments.iter().map(|&count| (0..count).map(|_| Mutex::default()).collect());
        let free = segments.iter().map(|&count| (0..count).collect()).collect();
        Ledger {
            rows: rows.collect(),
            order: Mutex::new(Order { free, ..Order::default() }),
            next_sequence: AtomicU64::new(1),
            next_version: AtomicU64::new(1),
        }
    }

    fn rows(&self, segment: Segment) -> Option<MutexGuard<'_, Rows>> {
        let rows = self.rows.get(usize::from(segment.device))?.get(segment.number as usize)?;
        Some(lock(rows))
    }

    /// At start: a segment that holds something.
    pub fn restore_segment(&self, segment: Segment, sequence: u64) {
        let Some(mut rows) = self.rows(segment) else { return };
        rows.sequence = sequence;
        let mut order = lock(&self.order);
        if let Some(free) = order.free.get_mut(usize::from(segment.device)) {
            free.retain(|&number| number != segment.number);
        }
        order.sealed.insert(sequence, segment);
        drop(order);
        self.restore_sequence(sequence);
    }

    /// At start: no sequence up to this one is given again.
    pub fn restore_sequence(&self, sequence: u64) {
        self.next_sequence.fetch_max(sequence.saturating_add(1), Relaxed);
    }

    /// At start: no version up to this one is given again.
    pub fn restore_version(&self, version: u64) {
        self.next_version.fetch_max(version.saturating_add(1), Relaxed);
    }

    /// The number of the next value of any key.
    pub fn next_version(&self) -> u64 {
        self.next_version.fetch_add(1, Relaxed)
    }

    /// The highest version given.
    pub fn version_max(&self) -> u64 {
        self.next_version.load(Relaxed).saturating_sub(1)
    }

    /// A free segment of a device that is `usable`, and the number of its new use; devices take turns.
    pub fn take_free(&self, usable: impl Fn(u16) -> bool) -> Option<(Segment, u64)> {
        let mut order = lock(&self.order);
        let devices = order.free.len();
        let mut turns = (0..devices).map(|turn| (order.next_device + turn) % devices.max(1));
        let device =
            turns.find(|&device| usable(device as u16) && !order.free[device].is_empty())?;
        order.next_device = device + 1;
        let number = order.free[device].pop_front()?;
        let segment = Segment { device: device as u16, number };
        let sequence = self.next_sequence.fetch_add(1, Relaxed);
        if let Some(mut rows) = self.rows(segment) {
            *rows = Rows { sequence, ..Rows::default() };
        }
        Some((segment, sequence))
    }

    /// A segment that could not be begun is free again, after the others of its device.
    pub fn put_back(&self, segment: Segment) {
        self.set_aside(segment);
        if let Some(free) = lock(&self.order).free.get_mut(usize::from(segment.device)) {
            free.push_back(segment.number);
        }
    }

    /// A segment that the file system has no room for is not used until the next start.
    pub fn set_aside(&self, segment: Segment) {
        if let Some(mut rows) = self.rows(segment) {
            *rows = Rows::default();
        }
    }

    /// Number of free segments of the devices that are `usable`.
    pub fn free_segments(&self, usable: impl Fn(u16) -> bool) -> usize {
        let order = lock(&self.order);
        let free = order.free.iter().zip(0..).filter(|(_, device)| usable(*device));
        free.map(|(free, _)| free.len()).sum()
    }

    /// Number of all segments.
    pub fn segments(&self) -> usize {
        self.rows.iter().map(Vec::len).sum()
    }

    /// A segment is complete: nothing is written to it any more.
    pub fn seal(&self, segment: Segment, sequence: u64) {
        lock(&self.order).sealed.insert(sequence, segment);
    }

    /// Takes the oldest complete segment, to be given up; none if it is not the one that is `wanted`.
    pub fn take_oldest(&self, wanted: Option<u64>) -> Oldest<'_> {
        let mut order = lock(&self.order);
        if order.is_leaving {
            return Oldest::Busy;
        }
        let oldest = order.sealed.first_entry();
        let oldest =
            oldest.filter(|oldest| wanted.is_none_or(|sequence| sequence == *oldest.key()));
        let Some((sequence, segment)) = oldest.map(|oldest| oldest.remove_entry()) else {
            return Oldest::None;
        };
        order.is_leaving = true;
        order.given_up = order.given_up.max(sequence);
        drop(order);
        Oldest::Taken(Leaving { ledger: self, segment, sequence, is_gone: false })
    }

    /// Waits until no segment is being given up.
    pub async fn settled(&self) {
        poll_fn(|context| {
            let mut order = lock(&self.order);
            if !order.is_leaving {
                return Poll::Ready(());
            }
            if !order.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                order.waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// The highest sequence whose giving up has begun since the start: what lies in complete segments up
    /// to it may be gone by now.
    pub fn given_up(&self) -> u64 {
        lock(&self.order).given_up
    }

    /// The oldest complete segment and its sequence. It stays in the order.
    pub fn oldest(&self) -> Option<(Segment, u64)> {
        lock(&self.order).sealed.first_key_value().map(|(&sequence, &segment)| (segment, sequence))
    }

    /// A record is durable.
    pub fn insert(&self, key: Key, place: Place) {
        let Some(mut rows) = self.rows(place.segment) else { return };
        if rows.sequence != place.sequence {
            return;
        }
        let Place { page, version, len, .. } = place;
        let Err(at) = rows.rows.binary_search_by_key(&page, |row| row.page) else { return };
        rows.rows.insert(at, Row { key, page, version, len, reads: 0, fate: Fate::Live });
        rows.live_bytes += span_bytes(len);
    }

    /// Whether the record at `place` is what the place was given for, and not forgotten.
    pub fn is_live(&self, place: &Place) -> bool {
        let rows = self.rows(place.segment);
        rows.is_some_and(|mut rows| rows.row_mut(place).is_some_and(|row| row.fate == Fate::Live))
    }

    /// Whether the bytes at `place` still are those it was given for.
    pub fn is_there(&self, place: &Place) -> bool {
        self.rows(place.segment).is_some_and(|rows| rows.sequence == place.sequence)
    }

    /// The record at `place` was read.
    pub fn touch(&self, place: &Place) {
        if let Some(mut rows) = self.rows(place.segment)
            && let Some(row) = rows.row_mut(place)
        {
            row.reads = row.reads.saturating_add(1);
        }
    }

    /// The record is not wanted any more, wherever it was moved. Where it lay, if it was there.
    pub fn forget(&self, place: &Place) -> Option<Place> {
        let mut place = *place;
        // A record moves to a later segment, so the chain has an end; it is cut off all the same.
        for _ in 0..self.segments() {
            let mut rows = self.rows(place.segment)?;
            match std::mem::replace(&mut rows.row_mut(&place)?.fate, Fate::Dead) {
                Fate::Live => {
                    rows.live_bytes -= span_bytes(place.len);
                    return Some(place);
                }
                Fate::Dead => return None,
                Fate::Moved(to) => place = *to,
            }
        }
        None
    }

    /// A copy of the record at `from` is durable at `to`. False if `from` was forgotten meanwhile: then
    /// the copy is not wanted.
    pub fn moved(&self, key: Key, from: &Place, to: Place) -> bool {
        // First the copy, so that who follows the move finds it.
        self.insert(key, to);
        let is_wanted = self.rows(from.segment).is_some_and(|mut rows| {
            let Some(row) = rows.row_mut(from).filter(|row| row.fate == Fate::Live) else {
                return false;
            };
            row.fate = Fate::Moved(Box::new(to));
            rows.live_bytes -= span_bytes(from.len);
            true
        });
        if !is_wanted {
            self.forget(&to);
        }
        is_wanted
    }

    /// The live records of a segment.
    pub fn live(&self, segment: Segment) -> Vec<Live> {
        let Some(rows) = self.rows(segment) else { return Vec::new() };
        let sequence = rows.sequence;
        let live = rows.rows.iter().filter(|row| row.fate == Fate::Live);
        live.map(|row| Live {
            key: row.key,
            place: Place { segment, sequence, page: row.page, version: row.version, len: row.len },
            reads: row.reads,
        })
        .collect()
    }

    /// Bytes of live records in a segment, pages and all.
    pub fn live_bytes(&self, segment: Segment) -> u64 {
        self.rows(segment).map_or(0, |rows| rows.live_bytes)
    }

    /// Bytes of live records in all segments.
    pub fn all_live_bytes(&self) -> u64 {
        self.rows.iter().flatten().map(|rows| lock(rows).live_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::key::{Name, NamespaceId};

    fn key(number: u8) -> Key {
        Key::new(NamespaceId([0; 16]), Name([number; 32]))
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u8),
        Forget(u8),
        Move(u8),
        /// Forgets by the place before the last move, as who has not heard of it.
        ForgetLate(u8),
        Recycle,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => any::<u8>().prop_map(|k| Step::Insert(k % 16)),
            1 => any::<u8>().prop_map(|k| Step::Forget(k % 16)),
            1 => any::<u8>().prop_map(|k| Step::Move(k % 16)),
            1 => any::<u8>().prop_map(|k| Step::ForgetLate(k % 16)),
            1 => Just(Step::Recycle),
        ];
        proptest::collection::vec(step, 1..200)
    }

    /// A ledger with one open segment, and what must be live.
    struct Bench {
        ledger: Ledger,
        open: (Segment, u64),
        page: u32,
        live: HashMap<Key, Place>,
    }

    impl Bench {
        fn new() -> Bench {
            let ledger = Ledger::new(&[3, 2]);
            let open = ledger.take_free(|_| true).unwrap();
            Bench { ledger, open, page: 1, live: HashMap::new() }
        }

        fn place(&mut self) -> Place {
            if self.page > 6 {
                self.ledger.seal(self.open.0, self.open.1);
                if self.ledger.free_segments(|_| true) == 0 {
                    self.recycle();
                }
                self.open = self.ledger.take_free(|_| true).unwrap();
                self.page = 1;
            }
            self.page += 2;
            let (segment, sequence) = self.open;
            let version = self.ledger.next_version();
            Place { segment, sequence, page: self.page - 2, version, len: 4096 }
        }

        fn recycle(&mut self) {
            let Oldest::Taken(leaving) = self.ledger.take_oldest(None) else { return };
            let segment = leaving.segment;
            for dropped in leaving.empty() {
                assert_eq!(self.live.remove(&dropped.key), Some(dropped.place));
            }
            assert!(self.live.values().all(|place| place.segment != segment));
        }

        fn take(&mut self, step: Step) {
            match step {
                Step::Insert(number) => {
                    let (key, place) = (key(number), self.place());
                    if let Some(old) = self.live.remove(&key) {
                        assert_eq!(self.ledger.forget(&old), Some(old));
                    }
                    self.ledger.insert(key, place);
                    self.live.insert(key, place);
                }
                Step::Forget(number) => {
                    if let Some(place) = self.live.remove(&key(number)) {
                        assert_eq!(self.ledger.forget(&place), Some(place));
                        assert_eq!(self.ledger.forget(&place), None);
                    }
                }
                Step::Move(number) => {
                    let (key, to) = (key(number), self.place());
                    if let Some(from) = self.live.get(&key).copied() {
                        assert!(self.ledger.moved(key, &from, to));
                        assert!(!self.ledger.moved(key, &from, to), "it is there no more");
                        self.live.remove(&key);
                    }
                }
                Step::ForgetLate(number) => {
                    let (key, to) = (key(number), self.place());
                    if let Some(from) = self.live.remove(&key) {
                        assert!(self.ledger.moved(key, &from, to));
                        assert_eq!(self.ledger.forget(&from), Some(to));
                    }
                }
                Step::Recycle => self.recycle(),
            }
        }

        fn check(&self) {
            for (key, place) in &self.live {
                assert!(self.ledger.is_live(place), "{key}");
            }
            let bytes = self.live.len() as u64 * span_bytes(4096);
            assert_eq!(self.ledger.all_live_bytes(), bytes);
        }
    }

    proptest! {
        #[test]
        fn what_is_live_is_what_was_written_and_neither_forgotten_nor_recycled(steps in steps()) {
            let mut bench = Bench::new();
            for step in steps {
                bench.take(step);
                bench.check();
            }
        }
    }

    #[test]
    fn devices_take_turns_and_a_sick_one_has_none() {
        let ledger = Ledger::new(&[2, 2]);
        let take = |sick| ledger.take_free(|device| device != sick).map(|(at, _)| at.device);
        assert_eq!([take(9), take(9), take(0), take(9)], [Some(0), Some(1), Some(1), Some(0)]);
        assert_eq!(take(9), None);
        ledger.put_back(Segment { device: 1, number: 0 });
        assert_eq!(ledger.free_segments(|device| device != 1), 0);
        assert_eq!([take(1), take(0)], [None, Some(1)]);
    }

    #[test]
    fn one_segment_is_given_up_at_a_time_the_oldest_first() {
        let ledger = Ledger::new(&[3]);
        for _ in 0..3 {
            let (segment, sequence) = ledger.take_free(|_| true).unwrap();
            ledger.seal(segment, sequence);
        }
        assert!(matches!(ledger.take_oldest(Some(2)), Oldest::None), "it is not the oldest");
        let Oldest::Taken(first) = ledger.take_oldest(None) else { panic!("it is complete") };
        assert_eq!((first.segment.number, ledger.given_up()), (0, 1));
        assert!(matches!(ledger.take_oldest(None), Oldest::Busy));
        let mut settled = Box::pin(ledger.settled());
        let mut poll = || {
            let mut context = std::task::Context::from_waker(Waker::noop());
            settled.as_mut().poll(&mut context).is_ready()
        };
        assert!(!poll());
        // Who stopped in the middle leaves it the oldest.
        drop(first);
        assert!(poll());
        assert_eq!(ledger.oldest().map(|(_, sequence)| sequence), Some(1));
        let Oldest::Taken(first) = ledger.take_oldest(Some(1)) else { panic!("it is there") };
        assert_eq!((first.empty(), ledger.free_segments(|_| true)), (Vec::new(), 1));
        assert!(matches!(ledger.take_oldest(Some(2)), Oldest::Taken(_)));
    }
}
