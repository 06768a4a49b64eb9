//! The NVMe tier: blocks appended to segments, found by an index, verified when they are read.
//!
//! [`start::start`] runs once and hands out what the devices hold; then each shard has a [`Disk`] of its
//! own, on a [`thread`] beside the shard's, which it asks through a [`client`]. Any shard reads any segment; each writes to one of its own. A shard's index in RAM says where a
//! block is; [`Event`]s tell it when that changes. The cache may be lost, never wrong: nothing is
//! served that is not what was written for its key, and what is acknowledged is durable.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use foldhash::fast::RandomState;

use crate::arena::Slot;
use crate::block::Lease;
use crate::key::Key;

pub mod admission;
mod bounce;
pub mod cipher;
pub mod cleaner;
pub mod client;
pub mod device;
mod envelope;
pub mod file;
pub mod index;
pub mod key_file;
pub mod ledger;
mod open_segment;
pub mod place;
mod reader;
pub mod record;
pub mod recovery;
pub mod ring;
mod scan;
pub mod seals;
pub mod segment;
pub mod start;
pub mod thread;
pub mod tier;
mod turn;
mod writer;

use cleaner::{Cleaner, Step};
use device::{Buffer, Device};
use place::Place;
use record::{About, PAGE_BYTES};
use tier::{Intent, Tier};
use writer::{Shelf, Writer};

/// How long the cleaner sleeps when there is room. A segment of 1 GiB takes longer to fill than this.
const CLEANER_IDLE: Duration = Duration::from_millis(100);
/// How long it waits for a pause between clients' reads and writes.
const CLEANER_PAUSE: Duration = Duration::from_millis(2);
/// How often it waits for one before it works all the same.
const CLEANER_PAUSES_MAX: u32 = 25;

/// Bytes that a writer moves at most for each of its own, where the cleaner is behind. To free a segment
/// at most half of it is moved, and as much as was moved and written meanwhile is taken elsewhere: at 1
/// the one is the other, and nothing is gained; at 2 a quarter of a segment is.
const MOVED_PER_WRITTEN_MAX: u64 = 2;

/// What a shard is told of blocks on disk. The block may belong to any shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The block at `place` was given up to make room.
    Dropped {
        /// Its key.
        key: Key,
        /// Where it was.
        place: Place,
    },
    /// The block is at `to` now. If the index has the key elsewhere than at `from`, or not at all, it
    /// answers with [`Disk::forget`] of `to`.
    Moved {
        /// Its key.
        key: Key,
        /// Where it was.
        from: Place,
        /// Where it is.
        to: Place,
    },
}

/// Why the disk does not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The bytes are not those of the key. They are forgotten.
    #[error("the block on disk is damaged")]
    Corrupt,
    /// No segment can be had: all are being written or cleaned.
    #[error("the disk has no segment to write to; raise kv.ssd_gib")]
    Full,
    /// The place is in another use by now: the block was given up or moved.
    #[error("the block is not at this place any more")]
    Gone,
    /// The device failed.
    #[error("the disk failed: {0}")]
    Io(#[from] io::Error),
    /// The label or the namespace's name does not fit a record.
    #[error("the label is too long for the disk")]
    LabelTooLong,
    /// A block does not fit a segment.
    #[error("a block of {span} bytes does not fit the {max} of a segment")]
    TooLarge {
        /// Bytes of its pages and its record's.
        span: u64,
        /// Bytes a segment has for records.
        max: u64,
    },
    /// The memory to read into is not the block's length.
    #[error("a block of {place} bytes is read into memory for {slot}")]
    WrongLength {
        /// Bytes of the block.
        place: u64,
        /// Bytes of the memory.
        slot: u64,
    },
}

/// What a shard may do with the disk.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Which shard this is.
    pub shard: usize,
    /// Of how many.
    pub shards: usize,
    /// Segments that the cleaner keeps free, over all shards.
    pub free_segments_min: usize,
    /// Bytes per second this shard may write but for promised blocks; none: no limit.
    pub write_bytes_per_s: Option<u64>,
}

/// One shard's disk.
pub struct Disk<D> {
    shelf: Rc<Shelf<D>>,
    writer: Writer<D>,
    cleaner: Cleaner<D>,
    limits: Limits,
    /// Reads of clients that are under way.
    reads: Rc<()>,
    /// Keys that clients' writes under way are for, and how many.
    writes: RefCell<HashMap<Key, u32, RandomState>>,
}

impl<D: Device> Disk<D> {
    /// The disk of one shard. `devices` are this thread's own handles, in the order of the start's.
    pub fn new(
        tier: Arc<Tier>,
        devices: Vec<D>,
        limits: Limits,
        events: impl Fn(Event) + 'static,
    ) -> Disk<D> {
        let shelf = Rc::new(Shelf { tier, devices, events: Box::new(events) });
        Disk {
            writer: Writer::new(shelf.clone()),
            cleaner: Cleaner::new(shelf.clone(), limits.free_segments_min),
            limits,
            reads: Rc::new(()),
            writes: RefCell::default(),
            shelf,
        }
    }

    /// Writes a block and returns when it is durable. To be run in a task of its own: when it is
    /// dropped in the middle, its segment takes no more.
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn write(&self, block: Lease) -> Result<Place, DiskError> {
        let about = About {
            len: block.len() as u64,
            hash: [0; 32],
            parent: block.parent(),
            namespace: block.namespace().name.as_str().into(),
            label: block.label().into(),
        };
        let source = || Buffer::Lease(block.clone());
        self.write_hashed(block.key(), about, block.known_hash(), &source).await
    }

    /// As [`Disk::write`], from other memory: whole pages, `about.len` bytes and zeros. The hash in
    /// `about` is filled in. `source` gives the memory once for each attempt.
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn write_buffer(
        &self,
        key: Key,
        about: About,
        source: &dyn Fn() -> Buffer,
    ) -> Result<Place, DiskError> {
        self.write_hashed(key, about, &OnceLock::new(), source).await
    }

    /// `hash` is that of the bytes, or where it goes.
    async fn write_hashed(
        &self,
        key: Key,
        about: About,
        hash: &OnceLock<[u8; 32]>,
        source: &dyn Fn() -> Buffer,
    ) -> Result<Place, DiskError> {
        let writing = self.begin_write(key).await;
        let place = self.writer.write(key, about, hash, source).await?;
        drop(writing);
        self.keep_room(record::span_bytes(place.len)).await;
        Ok(place)
    }

    /// After `written` bytes: where the cleaner is behind, its work is done here before the writer goes on,
    /// or writers would outrun it and then give up the oldest segment with all that is read from it.
    /// Nobody pays for a whole segment.
    async fn keep_room(&self, written: u64) {
        let mut moved = 0;
        while moved < written * MOVED_PER_WRITTEN_MAX && self.cleaner.is_behind() {
            match self.clean_step().await {
                Ok(Step::Moved(bytes)) => moved += bytes,
                Ok(Step::Freed) => {}
                // The oldest segment is another shard's to clean, or none is complete.
                Ok(Step::Idle) => return,
                Err(error) => return not_moved(&error),
            }
        }
    }

    /// Reads a block into its memory, which must be of the block's length.
    ///
    /// # Errors
    /// [`DiskError`]; after all but [`DiskError::WrongLength`] the block is not on disk any more, or not
    /// there.
    pub async fn read(
        &self,
        key: Key,
        place: &Place,
        slot: Slot,
    ) -> Result<(About, Slot), DiskError> {
        if slot.len() as u64 != place.len {
            return Err(DiskError::WrongLength { place: place.len, slot: slot.len() as u64 });
        }
        match self.read_buffer(key, place, Buffer::Slot(slot)).await? {
            (about, Buffer::Slot(slot)) => Ok((about, slot)),
            _ => Err(DiskError::Gone),
        }
    }

    /// As [`Disk::read`], into other memory: as many pages as the value fills.
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub async fn read_buffer(
        &self,
        key: Key,
        place: &Place,
        mut into: Buffer,
    ) -> Result<(About, Buffer), DiskError> {
        let room = into.bytes_mut().map_or(0, |bytes| bytes.len()) as u64;
        // A slot of no bytes has a page all the same.
        if place.len > 0 && room != place.len.next_multiple_of(PAGE_BYTES as u64) {
            return Err(DiskError::WrongLength { place: place.len, slot: room });
        }
        let _reading = self.reads.clone();
        reader::read(&self.shelf, key, place, into).await
    }

    /// The block at `place` is not wanted any more. It may be found again by a start that lost its
    /// index: where that would be wrong, [`Disk::remove`] it.
    pub fn forget(&self, key: Key, place: &Place) {
        self.shelf.tier.forget(key, place);
    }

    /// The block at `place` must not be found again, not even after a crash: returns when that is
    /// durable. For a key that a client removed, or gave another value that is not on disk.
    ///
    /// # Errors
    /// [`DiskError`]; the block is forgotten all the same.
    pub async fn remove(&self, key: Key, place: &Place) -> Result<(), DiskError> {
        let _writing = self.begin_write(key).await;
        self.shelf.tier.forget(key, place);
        let version = self.shelf.tier.ledger.next_version();
        let intent = Intent::Tombstone { of: *place };
        self.writer.append(key, version, intent, None).await.map(|_| ())
    }

    async fn begin_write(&self, key: Key) -> Writing<'_> {
        *self.writes.borrow_mut().entry(key).or_default() += 1;
        let writing = Writing { writes: &self.writes, key };
        self.cleaner.settled(&key).await;
        writing
    }

    fn is_busy(&self) -> bool {
        Rc::strong_count(&self.reads) > 1 || !self.writes.borrow().is_empty()
    }

    /// One step of making room; see [`Cleaner::step`].
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn clean_step(&self) -> Result<Step, DiskError> {
        let Limits { shard, shards, .. } = self.limits;
        let is_mine = |key: &Key| key.shard(shards) == shard;
        let movable = |key: &Key| is_mine(key) && !self.writes.borrow().contains_key(key);
        self.cleaner.step(&self.writer, movable).await
    }

    /// Makes room for ever, between the reads and writes of clients. To be run in a task of the disk's thread.
    pub async fn clean(&self, sleep: impl AsyncFn(Duration)) {
        loop {
            let mut pauses = 0;
            while self.is_busy() && pauses < CLEANER_PAUSES_MAX {
                sleep(CLEANER_PAUSE).await;
                pauses += 1;
            }
            match self.clean_step().await {
                Ok(Step::Moved(_) | Step::Freed) => futures_lite::future::yield_now().await,
                Ok(Step::Idle) => sleep(CLEANER_IDLE).await,
                Err(error) => {
                    not_moved(&error);
                    sleep(CLEANER_PAUSE).await;
                }
            }
        }
    }

    /// Completes the segment that is being written: the next start need not look behind its end. For
    /// a graceful stop, when no write is under way.
    pub fn close(&self) {
        self.writer.close();
    }

    /// What all shards share.
    pub fn tier(&self) -> &Arc<Tier> {
        &self.shelf.tier
    }
}

fn not_moved(error: &DiskError) {
    tracing::warn!(%error, "a block could not be moved; it goes with its segment");
}

/// A write under way.
struct Writing<'a> {
    writes: &'a RefCell<HashMap<Key, u32, RandomState>>,
    key: Key,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let mut writes = self.writes.borrow_mut();
        if let Some(count) = writes.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                writes.remove(&self.key);
            }
        }
    }
}
