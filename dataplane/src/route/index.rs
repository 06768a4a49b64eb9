//! The true prefix index: which worker holds which block, and where, from the engines' own events.
//!
//! An entry is a digest's first 16 bytes and the set of its holders; a holder has one *effective* level,
//! the fastest at which it has the block. The feed guarantees that a block's parent is at the same worker
//! at the same level or a faster one, so depth can be searched instead of walked. Where a feed breaks
//! that, an answer may be wrong by the blocks that are missing in between; memory, time and safety hold.
//!
//! Readers take no lock and never wait: [`Index::lookup`] reads atomics and looks again at the little
//! that the writer changed under it. Changes take a lock that only writers take.
//!
//! A false match needs two prefixes with the same 128 bits of BLAKE3. By accident: below 2^-68 with 2^30
//! blocks, see [`crate::digest`]. By design: about 2^64 hashes for somebody's own two prompts, and 2^128
//! for another's. It would cost a recompute at the worker, never a wrong answer.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard};

use self::arena::Words;
use self::search::Source;
use self::slots::Owners;
use self::table::Table;
use self::writer::Writer;
use crate::digest::Digest;

mod arena;
mod pages;
mod search;
mod sets;
mod slots;
mod table;
mod visit;
mod writer;

pub use self::search::{Depths, WorkerDepth};
pub use self::visit::Bookmark;

/// What one block costs at most while few sets are shared oddly: its part of the table. Sets and slots
/// come on top, at most [`SET_BYTES_PER_BLOCK_MAX`] and some kilobytes a worker.
pub const BYTES_PER_BLOCK: f64 = 32.0;
/// What the sets may cost at most for each block of `blocks_max`, without the list that finds them.
pub const SET_BYTES_PER_BLOCK_MAX: usize = 8;
/// An index can know at most so many workers: the largest set must fit in a chunk of the arena.
pub const WORKERS_MAX: usize = 16_384;
/// And so many blocks: 64 times the largest cluster that was ever planned with, 100 GB of index.
pub const BLOCKS_MAX: usize = 1 << 32;

/// A worker's number in the index, chosen by its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerNumber(pub u32);

/// Where a worker has a block, from fast to slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// In the memory of its GPU.
    Gpu,
    /// In the memory of its host.
    Host,
    /// On its disk, or anywhere slower that it reaches by itself.
    Disk,
}

impl Level {
    /// All, from fast to slow.
    pub const ALL: [Level; 3] = [Level::Gpu, Level::Host, Level::Disk];

    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Gpu => "gpu",
            Level::Host => "host",
            Level::Disk => "disk",
        }
    }
}

/// The size of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Blocks, counted once however many workers hold them.
    pub blocks_max: usize,
    /// Workers known at one time.
    pub workers_max: usize,
}

/// Limits that no index can have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// No blocks or too many.
    #[error("blocks_max is {0}; use 1 to {BLOCKS_MAX}")]
    Blocks(usize),
    /// No workers or too many.
    #[error("workers_max is {0}; use 1 to {WORKERS_MAX}")]
    Workers(usize),
}

/// The index. Shared by all cores.
pub struct Index {
    table: Table,
    words: Words,
    owners: Owners,
    writer: Mutex<Writer>,
    blocks: AtomicUsize,
    refused: AtomicUsize,
    gave_up: AtomicUsize,
}

impl Index {
    /// An empty index; its table is allocated whole. `key` should be random: it keeps tenants from
    /// choosing prompts whose blocks crowd one place of the table.
    pub fn new(limits: Limits, key: u64) -> Result<Self, LimitsError> {
        let Limits { blocks_max, workers_max } = limits;
        if !(1..=BLOCKS_MAX).contains(&blocks_max) {
            return Err(LimitsError::Blocks(blocks_max));
        }
        if !(1..=WORKERS_MAX).contains(&workers_max) {
            return Err(LimitsError::Workers(workers_max));
        }
        let (writer, owners) = Writer::new(limits);
        Ok(Index {
            table: Table::new(blocks_max, key),
            words: Words::new(blocks_max * SET_BYTES_PER_BLOCK_MAX / 8),
            owners,
            writer: Mutex::new(writer),
            blocks: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            gave_up: AtomicUsize::new(0),
        })
    }

    /// How deep each worker matches a prompt, into `depths`.
    pub fn lookup(&self, digests: &[Digest], depths: &mut Depths) {
        self.search(&digests, depths);
    }

    /// [`Index::lookup`] of digests cut to what the index keeps.
    pub fn lookup_short(&self, digests: &[u128], depths: &mut Depths) {
        self.search(&digests, depths);
    }

    fn search(&self, chain: &impl search::Chain, depths: &mut Depths) {
        let source = Source { table: &self.table, words: &self.words, owners: &self.owners };
        if !depths.search(&source, chain) {
            self.gave_up.fetch_add(1, Relaxed);
        }
    }

    /// `worker` has these blocks, parents first, at `level`: new ones or ones that moved there. When
    /// one is refused so are those behind it, its children most likely.
    pub fn set(&self, worker: WorkerNumber, level: Level, digests: &[u128]) {
        self.write(|writer, table, arena, owners| {
            let kept = writer.set(table, arena, owners, worker, level, digests);
            self.refused.fetch_add(digests.len() - kept, Relaxed);
        });
    }

    /// `worker` no longer has these blocks at any level.
    pub fn remove(&self, worker: WorkerNumber, digests: &[u128]) {
        self.write(|writer, table, arena, owners| {
            let shed = writer.remove(table, arena, owners, worker, digests);
            self.refused.fetch_add(shed, Relaxed);
        });
    }

    /// `worker` restarted: it has nothing. Takes effect at once and costs a part of a pass over the
    /// table, one in `workers_max`.
    pub fn clear(&self, worker: WorkerNumber) {
        self.write(|writer, table, arena, owners| {
            let shed = writer.retire(table, arena, owners, worker);
            self.refused.fetch_add(shed, Relaxed);
        });
    }

    /// `worker` is gone and has nothing. Its number may be used again.
    pub fn remove_worker(&self, worker: WorkerNumber) {
        self.clear(worker);
    }

    fn write<T>(&self, change: impl FnOnce(&mut Writer, &Table, &Words, &Owners) -> T) -> T {
        let mut writer = self.lock();
        let done = change(&mut writer, &self.table, &self.words, &self.owners);
        self.blocks.store(writer.blocks(), Relaxed);
        done
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        // A panic while the lock is held ends the process, so poison is never seen.
        self.writer.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Blocks known, those of lost workers included until they are swept.
    pub fn len(&self) -> usize {
        self.blocks.load(Relaxed)
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Blocks that were not taken for want of room, counted once for each worker and attempt.
    pub fn refused(&self) -> usize {
        self.refused.load(Relaxed)
    }

    /// Lookups that found the writer in their way each time they tried and answered as if nothing
    /// matched.
    pub fn gave_up(&self) -> usize {
        self.gave_up.load(Relaxed)
    }

    /// Memory in bytes, without the allocator's own.
    pub fn bytes(&self) -> usize {
        self.table.bytes() + self.words.bytes() + self.owners.len() * 8 + self.lock().bytes()
    }
}

impl search::Chain for &[Digest] {
    fn len(&self) -> usize {
        <[Digest]>::len(self)
    }

    fn at(&self, position: usize) -> u128 {
        self[position].short()
    }
}

impl search::Chain for &[u128] {
    fn len(&self) -> usize {
        <[u128]>::len(self)
    }

    fn at(&self, position: usize) -> u128 {
        self[position]
    }
}

#[cfg(test)]
mod tests;
