//! The table of blocks: digest → holders, open addressing over cache lines of atomics.
//!
//! A bucket is one cache line of three entries. An entry never moves while its block is in the table, so a
//! reader that looks for it sees it always: it needs to check only what it found, not what it did not. A
//! digest that finds its home bucket full goes to the other line of the pair, which the processor fetches
//! along, then by strides of its own to others nearby, mostly on the same page. Each bucket counts the
//! entries that passed it, so a search ends at the first that none passed, and removal leaves no
//! tombstones.
//!
//! There is one writer at a time. A bucket's sequence moves whenever a digest in it was replaced; a
//! reader that sees it move looks again. It never waits for a writer that stands still.
//! What the holders mean is not known here.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, fence};

use super::pages::filled;

/// Entries in a bucket: digests of 16 bytes, ids of 4 and the control of 4 fill its 64 bytes.
const SLOTS: usize = 3;
/// Buckets for 100 blocks: two in three entries are full in a full table. Fuller, and the second line that
/// a probe then needs more often costs more than the memory saves.
const BUCKETS_PER_100_BLOCKS: usize = 50;
/// A digest lies at most so many steps from its home. In a full table of honest digests none comes near;
/// what would go further is refused, so no digest that somebody chose makes lookups slow.
const PROBES_MAX: usize = 64;
/// Strides are 1 to so many pairs of buckets.
const STRIDES: u64 = 64;
/// More than a stride, so that a step goes around the table once at most.
const PAIRS_MIN: usize = 65;
/// How often a reader looks again at a bucket in which a digest was replaced under it. Each time needs
/// another digest to be put just there within some nanoseconds; a reader that meets it so often takes
/// the block as absent.
const RETRIES_MAX: usize = 64;
/// The word with the ids of the first two entries; the next has the third id and the control.
const IDS: usize = 2 * SLOTS;
const CONTROL: usize = IDS + 1;
/// Of the control: the low byte counts the entries that passed, the rest is the sequence.
const PASSED_MAX: u64 = 0xff;

/// Who holds a block: 0 for nobody, else what [`super::sets`] made of it.
pub(super) type SetId = u32;

#[derive(Default)]
#[repr(align(64))]
struct Bucket([AtomicU64; 8]);

/// Where a block lies.
#[derive(Clone, Copy)]
pub(super) struct Place {
    bucket: usize,
    slot: usize,
    pub(super) id: SetId,
}

pub(super) struct Table {
    buckets: Box<[Bucket]>,
    key: u64,
}

/// The buckets where a digest may lie, in order.
struct Way {
    at: usize,
    stride: usize,
    left: usize,
    buckets: usize,
}

impl Iterator for Way {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        if self.left % 2 == 1 {
            return Some(self.at);
        }
        let pair = self.at ^ 1;
        self.at += self.stride;
        if self.at >= self.buckets {
            self.at -= self.buckets;
        }
        Some(pair)
    }
}

impl Bucket {
    fn control(&self) -> u64 {
        self.0[CONTROL].load(Acquire) >> 32
    }

    fn id(&self, slot: usize) -> SetId {
        (self.0[IDS + slot / 2].load(Relaxed) >> (slot % 2 * 32)) as SetId
    }

    fn digest(&self, slot: usize) -> u128 {
        let half = |word: usize| u128::from(self.0[word].load(Relaxed));
        half(slot) | half(SLOTS + slot) << 64
    }

    /// The id of an entry if its digest has this upper half, else 0. What was removed keeps its digest,
    /// with the id 0.
    #[inline(always)]
    fn id_if(&self, slot: usize, high: u64) -> SetId {
        let is_high = self.0[SLOTS + slot].load(Relaxed) == high;
        // Who sees a new digest sees no id that was there before it.
        fence(Acquire);
        if is_high { self.id(slot) } else { 0 }
    }

    fn set_id(&self, slot: usize, id: SetId) {
        let (word, shift) = (&self.0[IDS + slot / 2], slot % 2 * 32);
        let others = word.load(Relaxed) & !(u64::from(u32::MAX) << shift);
        word.store(others | u64::from(id) << shift, Release);
    }

    fn set_control(&self, control: u64) {
        let id = self.0[CONTROL].load(Relaxed) & u64::from(u32::MAX);
        self.0[CONTROL].store(id | control << 32, Release);
    }

    /// The sequence moved by one, the count of passed entries kept.
    fn step_sequence(&self) {
        self.set_control((self.control() + PASSED_MAX + 1) & u64::from(u32::MAX));
    }

    /// Fills an entry whose id is 0. The order is what readers rest on: no id, the digest, the sequence,
    /// the id. A reader that took the old digest and then the new id sees that the sequence moved; and a
    /// writer that stops anywhere in between leaves every other entry readable.
    fn put(&self, slot: usize, digest: u128, id: SetId) {
        fence(Release);
        self.0[slot].store(digest as u64, Relaxed);
        self.0[SLOTS + slot].store((digest >> 64) as u64, Relaxed);
        self.step_sequence();
        self.set_id(slot, id);
    }

    /// Counts one more entry that passed, or one less. A full count stays: it can no longer be told.
    fn count_passed(&self, up: bool) {
        let control = self.control();
        match (control & PASSED_MAX, up) {
            (PASSED_MAX, _) | (0, false) => {}
            (_, true) => self.set_control(control + 1),
            (_, false) => self.set_control(control - 1),
        }
    }

    /// What a reader finds here: `Some(0)` for certainly absent, `None` to look in the next bucket.
    #[inline(always)]
    fn find(&self, low: u64, high: u64) -> Option<SetId> {
        for _ in 0..RETRIES_MAX {
            let control = self.control();
            let is_low = |slot: usize| u32::from(self.0[slot].load(Relaxed) == low) << slot;
            let mut same: u32 = (0..SLOTS).map(is_low).sum();
            let mut id = 0;
            while same != 0 && id == 0 {
                id = self.id_if(same.trailing_zeros() as usize, high);
                same &= same - 1;
            }
            if id == 0 {
                return (control & PASSED_MAX == 0).then_some(0);
            }
            fence(Acquire);
            if (self.control() ^ control) <= PASSED_MAX {
                return Some(id);
            }
        }
        Some(0)
    }
}

impl Table {
    /// A table for `blocks_max` blocks; `key` keeps tenants from choosing who shares a bucket.
    pub(super) fn new(blocks_max: usize, key: u64) -> Self {
        let pairs = (blocks_max.saturating_mul(BUCKETS_PER_100_BLOCKS) / 200).max(PAIRS_MIN);
        let buckets = 2 * pairs;
        Table { buckets: filled(buckets), key }
    }

    pub(super) fn buckets(&self) -> usize {
        self.buckets.len()
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.buckets)
    }

    #[inline]
    fn way(&self, digest: u128) -> Way {
        let (low, high) = (digest as u64 ^ self.key, (digest >> 64) as u64 ^ !self.key);
        let mixed = u128::from(low) * u128::from(high);
        let mixed = (mixed >> 64) as u64 ^ mixed as u64;
        let buckets = self.buckets.len();
        let at = ((u128::from(mixed) * buckets as u128) >> 64) as usize;
        // The high bits chose the home; the low ones say where to go from it.
        Way { at, stride: 2 * (mixed % STRIDES + 1) as usize, left: PROBES_MAX, buckets }
    }

    /// A digest's home bucket.
    #[inline(always)]
    pub(super) fn home(&self, digest: u128) -> u32 {
        self.way(digest).at as u32
    }

    /// Brings buckets near. A loop that does nothing else waits for all of them together, not in turn.
    #[inline(always)]
    pub(super) fn touch(&self, homes: impl Iterator<Item = u32>) {
        let near = |home: u32| {
            self.buckets.get(home as usize).map_or(0, |bucket| bucket.0[CONTROL].load(Relaxed))
        };
        std::hint::black_box(homes.map(near).fold(0, |all, word| all ^ word));
    }

    /// [`Table::find`] by a home that is known already.
    #[inline(always)]
    pub(super) fn look(&self, home: u32, digest: u128) -> SetId {
        let bucket = self.buckets.get(home as usize);
        let found = bucket.and_then(|bucket| bucket.find(digest as u64, (digest >> 64) as u64));
        found.unwrap_or_else(|| self.find(digest))
    }

    /// Who holds a block; 0 for nobody. For readers.
    pub(super) fn find(&self, digest: u128) -> SetId {
        let (low, high) = (digest as u64, (digest >> 64) as u64);
        let mut way = self.way(digest);
        way.find_map(|at| self.buckets[at].find(low, high)).unwrap_or(0)
    }

    /// Where a block lies. For the writer.
    pub(super) fn locate(&self, digest: u128) -> Option<Place> {
        for at in self.way(digest) {
            let bucket = &self.buckets[at];
            let here = |&slot: &usize| bucket.digest(slot) == digest && bucket.id(slot) != 0;
            if let Some(slot) = (0..SLOTS).find(here) {
                return Some(Place { bucket: at, slot, id: bucket.id(slot) });
            }
            if bucket.control() & PASSED_MAX == 0 {
                return None;
            }
        }
        None
    }

    /// Adds a block that is not there. `false` when there is no room near its home.
    pub(super) fn insert(&self, digest: u128, id: SetId) -> bool {
        for at in self.way(digest) {
            let bucket = &self.buckets[at];
            if let Some(slot) = (0..SLOTS).find(|&slot| bucket.id(slot) == 0) {
                // A reader must be led on before there is something to find.
                self.count_passed(digest, at, true);
                bucket.put(slot, digest, id);
                return true;
            }
        }
        false
    }

    /// Counts an entry at `end` in each bucket that it passed on its way there.
    fn count_passed(&self, digest: u128, end: usize, up: bool) {
        for at in self.way(digest).take_while(|&at| at != end) {
            self.buckets[at].count_passed(up);
        }
    }

    /// Gives a block another set.
    pub(super) fn set_id(&self, place: Place, id: SetId) {
        self.buckets[place.bucket].set_id(place.slot, id);
    }

    pub(super) fn remove(&self, place: Place) {
        let bucket = &self.buckets[place.bucket];
        let digest = bucket.digest(place.slot);
        bucket.set_id(place.slot, 0);
        self.count_passed(digest, place.bucket, false);
    }

    /// Which block lies there. For the writer.
    pub(super) fn digest(&self, place: Place) -> u128 {
        self.buckets[place.bucket].digest(place.slot)
    }

    /// The blocks of one bucket. For the writer.
    pub(super) fn places(&self, bucket: usize) -> impl Iterator<Item = Place> + use<> {
        let ids: [SetId; SLOTS] = std::array::from_fn(|slot| self.buckets[bucket].id(slot));
        let all = ids.into_iter().enumerate();
        all.filter(|(_, id)| *id != 0).map(move |(slot, id)| Place { bucket, slot, id })
    }
}
