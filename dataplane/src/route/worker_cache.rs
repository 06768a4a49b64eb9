//! What is believed of one worker's KV cache: a clock of new blocks, and how many it keeps.
//!
//! A worker keeps what is younger than its capacity. The capacity starts at what the engine reports and
//! follows the evidence of its answers. Which blocks were used when is kept by whoever learns of them; a
//! worker whose engine tells of its blocks has its clock moved too, so that it is known how full it is.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A worker's believed capacity never falls below this many blocks.
pub const WORKER_BLOCKS_MIN: u64 = 64;

/// What is believed of one worker's cache. Shared by the cores; all counts are in blocks.
#[derive(Debug)]
pub struct WorkerCache {
    /// The worker's number in the index; never used again for another worker.
    number: u32,
    clock: AtomicU64,
    floor: AtomicU64,
    capacity: AtomicU64,
    capacity_max: u64,
}

impl WorkerCache {
    /// A worker of which nothing is known but its size.
    pub fn new(number: u32, capacity_blocks: u64) -> Self {
        let capacity = capacity_blocks.max(WORKER_BLOCKS_MIN);
        WorkerCache {
            number,
            clock: AtomicU64::new(1),
            floor: AtomicU64::new(1),
            capacity: AtomicU64::new(capacity),
            capacity_max: capacity.saturating_mul(64),
        }
    }

    /// Its number in the index.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Forgets everything: the engine was started anew.
    pub fn clear(&self) {
        self.floor.store(self.clock.fetch_add(1, Relaxed) + 1, Relaxed);
    }

    /// The time on its clock.
    pub fn now(&self) -> u64 {
        self.clock.load(Relaxed)
    }

    /// So many blocks are new to the worker. Gives the time after them.
    pub fn pass(&self, blocks: u64) -> u64 {
        self.clock.fetch_add(blocks, Relaxed) + blocks
    }

    /// Share of the capacity not used yet, 0 to 1.
    pub fn free_share(&self) -> f64 {
        let used = self.clock.load(Relaxed).saturating_sub(self.floor.load(Relaxed));
        1.0 - (used as f64 / self.capacity.load(Relaxed) as f64).min(1.0)
    }

    /// Believed capacity.
    pub fn capacity_blocks(&self) -> u64 {
        self.capacity.load(Relaxed)
    }

    /// The age of a block used at `used_at`, if it is believed to be there still.
    pub fn age_if_believed(&self, used_at: u64) -> Option<u64> {
        let age = self.clock.load(Relaxed).saturating_sub(used_at);
        let is_there = used_at > self.floor.load(Relaxed) && age <= self.capacity.load(Relaxed);
        is_there.then_some(age)
    }

    /// The length of an epoch as a power of two: 2^n blocks, at most an eighth of the capacity, so
    /// that it moves rarely while the capacity is learned.
    pub fn epoch_log2(&self) -> u32 {
        (self.capacity.load(Relaxed) / 8).max(1).ilog2()
    }

    /// Learns from one answer: blocks of age `age_blocks` were predicted, `held` says whether the
    /// engine still had them.
    ///
    /// A hit lets the belief grow by 1/64. A miss moves it an eighth of the way down to the age that
    /// was missed, not all of it: the blocks may have been there, but in a busy slot.
    pub fn correct(&self, age_blocks: u64, held: bool) {
        let capacity = self.capacity.load(Relaxed);
        let next = if held {
            (capacity + (capacity / 64).max(1)).min(self.capacity_max)
        } else {
            capacity - capacity.saturating_sub(age_blocks) / 8
        };
        self.capacity.store(next.max(WORKER_BLOCKS_MIN), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_fills_the_capacity_until_a_restart() {
        let worker = WorkerCache::new(0, 100);
        worker.pass(40);
        assert_eq!(worker.free_share(), 0.6);
        worker.pass(400);
        assert_eq!(worker.free_share(), 0.0);
        worker.clear();
        assert_eq!(worker.free_share(), 1.0);
    }

    #[test]
    fn evidence_moves_the_capacity_both_ways_within_its_bounds() {
        let worker = WorkerCache::new(0, 6_400);
        worker.correct(0, true);
        assert_eq!(worker.capacity_blocks(), 6_500);
        worker.correct(100, false);
        assert_eq!(worker.capacity_blocks(), 6_500 - 800);
        for _ in 0..1_000 {
            worker.correct(0, false);
        }
        assert_eq!(worker.capacity_blocks(), WORKER_BLOCKS_MIN);
    }
}
