//! A shard's end of its disk: orders to the disk's thread, and the answers.
//!
//! The shard decides here what is worth writing; everything else is asked for by an [`Order`], which
//! takes its memory along and is carried out whether or not anybody waits for the answer any more. It
//! does no I/O; [`thread`](super::thread) does.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::admission::Admission;
use super::place::Place;
use super::record::{self, About};
use super::tier::{Tier, count};
use super::{DiskError, Limits};
use crate::arena::Slot;
use crate::block::{Block, Lease};
use crate::executor::breath;
use crate::key::Key;
use crate::mesh::{Inbox, Reply, reply};

/// Orders that wait for one disk's thread. More than a shard loads (`kv.limits.loads_max`) and spills at
/// once as a rule; what finds no room waits for it.
pub const ORDERS_MAX: usize = 4096;

/// What a disk's thread is asked. Orders begin in the order they are sent.
#[derive(Debug)]
pub enum Order {
    /// See [`Disk::write`](super::Disk::write).
    Write {
        /// The block.
        block: Lease,
        /// Where it is, once that is durable.
        reply: Reply<Result<Place, DiskError>>,
    },
    /// See [`Disk::read`](super::Disk::read).
    Read {
        /// Of the block.
        key: Key,
        /// Where it is.
        place: Place,
        /// Where its bytes go.
        slot: Slot,
        /// What it is, and its bytes.
        reply: Reply<Result<(About, Slot), DiskError>>,
    },
    /// See [`Disk::remove`](super::Disk::remove).
    Remove {
        /// Of the block.
        key: Key,
        /// Where it is.
        place: Place,
        /// That it is durable.
        reply: Reply<Result<(), DiskError>>,
    },
    /// See [`Disk::forget`](super::Disk::forget).
    Forget {
        /// Of the block.
        key: Key,
        /// Where it is.
        place: Place,
    },
    /// See [`Disk::close`](super::Disk::close).
    Close,
    /// The last: nothing else is under way, and the thread ends.
    End {
        /// That the disk is let go.
        reply: Reply<()>,
    },
}

/// See the head of the file.
#[derive(Debug)]
pub struct DiskClient {
    orders: Arc<Inbox<Order>>,
    tier: Arc<Tier>,
    admission: RefCell<Admission>,
}

impl DiskClient {
    /// The end for the thread that takes `orders`.
    pub fn new(
        orders: Arc<Inbox<Order>>,
        tier: Arc<Tier>,
        limits: &Limits,
        now: Instant,
    ) -> DiskClient {
        let admission = RefCell::new(Admission::new(limits.write_bytes_per_s, now));
        DiskClient { orders, tier, admission }
    }

    /// Whether a block that leaves RAM is worth its writing, and the device has the bytes to spare.
    pub fn admits(&self, block: &Block, touches: u8, is_promised: bool, now: Instant) -> bool {
        let bytes = record::span_bytes(block.len() as u64);
        let is_admitted = self.admission.borrow_mut().admits(bytes, touches, is_promised, now);
        count(&self.tier.counters.spared, u64::from(!is_admitted));
        is_admitted
    }

    /// Another rate for what is not promised, in bytes a second; none: no limit.
    pub fn set_write_rate(&self, bytes_per_s: Option<u64>) {
        self.admission.borrow_mut().set_rate(bytes_per_s);
    }

    /// The block at `place` leaves RAM, where it was used: that counts as a read of it, or the cleaner
    /// would take what is used most, and so never read from disk, for what nobody wants.
    pub fn used(&self, place: &Place) {
        self.tier.ledger.touch(place);
    }

    /// Writes a block and returns when it is durable.
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn write(&self, block: Lease) -> Result<Place, DiskError> {
        self.ask(|reply| Order::Write { block, reply }).await
    }

    /// Reads a block into its memory, which must be of the block's length.
    ///
    /// # Errors
    /// [`DiskError`], as [`Disk::read`](super::Disk::read).
    pub async fn read(
        &self,
        key: Key,
        place: Place,
        slot: Slot,
    ) -> Result<(About, Slot), DiskError> {
        self.ask(|reply| Order::Read { key, place, slot, reply }).await
    }

    /// The block at `place` must not be found again, not even after a crash: returns when that is durable.
    ///
    /// # Errors
    /// [`DiskError`]; the block is forgotten all the same.
    pub async fn remove(&self, key: Key, place: Place) -> Result<(), DiskError> {
        self.ask(|reply| Order::Remove { key, place, reply }).await
    }

    /// The block at `place` is not wanted any more; see [`Disk::forget`](super::Disk::forget). By the
    /// disk's thread, too: its cleaner may be moving that block.
    pub async fn forget(&self, key: Key, place: Place) {
        self.order(Order::Forget { key, place }).await;
    }

    /// Completes the segment that is being written.
    pub async fn close(&self) {
        self.order(Order::Close).await;
    }

    /// Ends the thread, once everything that was asked is answered. Returns when it has let the disk go.
    pub async fn end(&self) {
        let (reply, waiting) = reply();
        self.order(Order::End { reply }).await;
        waiting.answer().await;
    }

    async fn ask<T>(
        &self,
        order: impl FnOnce(Reply<Result<T, DiskError>>) -> Order,
    ) -> Result<T, DiskError> {
        let (reply, waiting) = reply();
        self.order(order(reply)).await;
        let gone = || DiskError::Io(io::Error::other("the disk's thread has ended"));
        waiting.answer().await.unwrap_or_else(|| Err(gone()))
    }

    async fn order(&self, order: Order) {
        self.orders.send_when_room(order, breath).await;
    }
}
