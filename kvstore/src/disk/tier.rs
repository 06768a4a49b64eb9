//! What all shards share of the NVMe tier: layouts, books, index, counters and the devices' health.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use ring::rand::{SecureRandom, SystemRandom};

use super::cipher::{Cipher, Salt};
use super::index::{Change, Entry, IndexSender};
use super::ledger::{Leaving, Ledger, Live};
use super::place::{Place, Segment};
use super::record::About;
use super::segment::Layout;
use crate::key::Key;

/// Failures in a row after which a device is written to only when all others fail, too: fewer could be
/// chance, more would make clients wait for each.
const FAILURES_MAX: u32 = 3;

/// Counters of the tier since the start, over all shards.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes of values that clients' blocks brought here.
    pub value_bytes: AtomicU64,
    /// Bytes written to devices, for whatever reason: over `value_bytes` this is write amplification.
    pub written_bytes: AtomicU64,
    /// Blocks written.
    pub writes: AtomicU64,
    /// Calls to make writes durable: fewer than `writes` where writes came together.
    pub syncs: AtomicU64,
    /// Writes that a device refused.
    pub write_errors: AtomicU64,
    /// Blocks read and found right.
    pub reads: AtomicU64,
    /// Their bytes.
    pub read_bytes: AtomicU64,
    /// Reads that a device refused.
    pub read_errors: AtomicU64,
    /// Blocks that were not what was written, and were dropped.
    pub corruptions: AtomicU64,
    /// Live blocks given up to make room.
    pub dropped: AtomicU64,
    /// Live blocks written again to make room.
    pub moved: AtomicU64,
    /// Changes that the index did not take in time: the next start finds them in the segments.
    pub index_lags: AtomicU64,
    /// Writes refused to spare the device.
    pub spared: AtomicU64,
}

/// Adds to a counter.
pub fn count(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Relaxed);
}

/// What a written record is for.
#[derive(Debug)]
pub enum Intent {
    /// A block that was not here.
    Value(About),
    /// A block that was at `from`.
    Copy {
        /// What is known of it.
        about: About,
        /// Where it was.
        from: Place,
    },
    /// The block at `of` is gone, and its record must not be found again.
    Tombstone {
        /// Where it was.
        of: Place,
    },
}

/// See the head of the file.
#[derive(Debug)]
pub struct Tier {
    /// Layout of each device.
    pub layouts: Vec<Layout>,
    /// Where what lies.
    pub ledger: Ledger,
    /// Counters.
    pub counters: Counters,
    index: IndexSender,
    failures: Vec<AtomicU32>,
    random: SystemRandom,
}

impl Tier {
    /// Joins the parts.
    pub fn new(layouts: Vec<Layout>, ledger: Ledger, index: IndexSender) -> Tier {
        let failures = layouts.iter().map(|_| AtomicU32::new(0)).collect();
        Tier {
            layouts,
            ledger,
            counters: Counters::default(),
            index,
            failures,
            random: SystemRandom::new(),
        }
    }

    /// What encrypts values: the same for all devices.
    pub fn cipher(&self) -> Option<&Cipher> {
        self.layouts.first().and_then(|layout| layout.seals.cipher.as_ref())
    }

    /// A salt that no record has.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn salt(&self) -> io::Result<Salt> {
        let mut salt = Salt::default();
        let filled = self.random.fill(&mut salt);
        filled.map_err(|_| io::Error::other("the system gives no randomness"))?;
        Ok(salt)
    }

    /// A record is durable. Says whether the index heard of it.
    pub fn enter(&self, key: Key, place: Place, intent: Intent) -> bool {
        match intent {
            Intent::Value(about) => {
                self.ledger.insert(key, place);
                self.tell(Change::Put { key, entry: Entry { place, about }, is_copy: false })
            }
            Intent::Copy { about, from } => {
                !self.ledger.moved(key, &from, place)
                    || self.tell(Change::Put { key, entry: Entry { place, about }, is_copy: true })
            }
            Intent::Tombstone { of } => self.tell(Change::Delete { key, place: of }),
        }
    }

    /// The block at `place` is not wanted any more.
    pub fn forget(&self, key: Key, place: &Place) {
        if let Some(place) = self.ledger.forget(place) {
            self.tell(Change::Delete { key, place });
        }
    }

    /// Frees a segment: what was live in it is gone.
    pub fn empty(&self, leaving: Leaving<'_>) {
        for Live { key, place, .. } in leaving.empty() {
            count(&self.counters.dropped, 1);
            self.tell(Change::Delete { key, place });
        }
    }

    /// All records of the segment up to page `to` are in the index.
    pub fn mark(&self, segment: Segment, sequence: u64, to: u32) -> bool {
        let version = self.ledger.version_max();
        self.tell(Change::Mark { segment, sequence, to, version })
    }

    fn tell(&self, change: Change) -> bool {
        let is_told = self.index.send(change);
        if !is_told {
            count(&self.counters.index_lags, 1);
        }
        is_told
    }

    /// A write to the device worked.
    pub fn worked(&self, device: u16) {
        if let Some(failures) = self.failures.get(usize::from(device)) {
            failures.store(0, Relaxed);
        }
    }

    /// A write to the device failed.
    pub fn failed(&self, device: u16) {
        count(&self.counters.write_errors, 1);
        if let Some(failures) = self.failures.get(usize::from(device))
            && failures.fetch_add(1, Relaxed) + 1 == FAILURES_MAX
        {
            tracing::error!(device, "the disk fails: it is written to only when all do");
        }
    }

    /// Whether the device failed again and again.
    pub fn is_sick(&self, device: u16) -> bool {
        let failures = self.failures.get(usize::from(device));
        failures.is_some_and(|failures| failures.load(Relaxed) >= FAILURES_MAX)
    }

    /// Whether segments of the device are to be used: it is healthy, or none is.
    pub fn is_usable(&self, device: u16) -> bool {
        !self.is_sick(device) || (0..self.failures.len()).all(|other| self.is_sick(other as u16))
    }

    /// Bytes written to devices per byte of blocks, in thousandths; none before the first block.
    pub fn write_amplification_milli(&self) -> Option<u64> {
        let written = self.counters.written_bytes.load(Relaxed).saturating_mul(1000);
        written.checked_div(self.counters.value_bytes.load(Relaxed))
    }
}
