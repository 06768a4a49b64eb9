//! What the router believes of the caches: events as they arrive, and what was just routed.
//!
//! [`Belief`] is all that policies see, so that the router's own index can stand behind it; [`Mirror`] is
//! the naive one, a map for each worker.

use super::cache::{BlockMap, Change};

/// Which worker holds how much of a prompt.
pub trait Belief {
    /// For each worker, leading blocks believed to be there.
    fn depths(&self, blocks: &[u32], now_ms: f64, depths: &mut Vec<usize>);
    /// A change of a worker's cache, in its order.
    fn apply(&mut self, worker: usize, change: Change);
    /// Counts a prompt as present until `until_ms`, whatever events say.
    fn predict(&mut self, worker: usize, blocks: &[u32], until_ms: f64);
    /// Blocks that events say are there.
    fn held_blocks(&self, worker: usize) -> usize;
}

#[derive(Clone, Copy, Default)]
struct Entry {
    held: bool,
    until_ms: f64,
}

#[derive(Default)]
struct Worker {
    entries: BlockMap<Entry>,
    held_blocks: usize,
}

/// The naive belief.
pub struct Mirror {
    workers: Vec<Worker>,
}

impl Mirror {
    /// Of so many workers with empty caches.
    pub fn new(workers: usize) -> Self {
        Mirror { workers: (0..workers).map(|_| Worker::default()).collect() }
    }
}

impl Belief for Mirror {
    fn depths(&self, blocks: &[u32], now_ms: f64, depths: &mut Vec<usize>) {
        depths.clear();
        depths.extend(self.workers.iter().map(|worker| {
            // A block is never there without those before it, so the end can be searched for.
            blocks.partition_point(|block| {
                worker.entries.get(block).is_some_and(|entry| entry.held || entry.until_ms > now_ms)
            })
        }));
    }

    fn apply(&mut self, worker: usize, change: Change) {
        let worker = &mut self.workers[worker];
        match change {
            Change::Stored(block) => {
                let entry = worker.entries.entry(block).or_default();
                worker.held_blocks += usize::from(!entry.held);
                *entry = Entry { held: true, until_ms: 0.0 };
            }
            Change::Removed(block) => {
                if let Some(entry) = worker.entries.remove(&block) {
                    worker.held_blocks -= usize::from(entry.held);
                }
            }
        }
    }

    fn predict(&mut self, worker: usize, blocks: &[u32], until_ms: f64) {
        for block in blocks {
            let entry = self.workers[worker].entries.entry(*block).or_default();
            entry.until_ms = entry.until_ms.max(until_ms);
        }
    }

    fn held_blocks(&self, worker: usize) -> usize {
        self.workers[worker].held_blocks
    }
}
