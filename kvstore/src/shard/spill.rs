//! From RAM to disk: because the client wants it durable, because room is needed, or before the end.
//!
//! What is worth writing is decided by [`disk::admission`](crate::disk::admission).

use std::rc::Rc;
use std::time::Instant;

use super::{Place, Shard, State};
use crate::block::Lease;
use crate::disk::{DiskError, Event};
use crate::executor::spawn;
use crate::index::Entry;
use crate::key::Key;
use crate::namespace::WritePolicy;
use crate::store::StoreError;

/// Blocks on their way to disk at once because they leave RAM: enough to keep a device busy, few
/// enough that a write which waits for room does not wait long.
pub(super) const SPILLS_MAX: usize = 32;

/// The right to write one key to disk, given back when it is dropped.
struct Turn {
    shard: Rc<Shard>,
    key: Key,
}

/// What a block finds that reached the disk.
enum Reached {
    /// It is the one its key means; the place is where an older copy lies.
    Known(Option<Place>),
    /// It was removed or replaced meanwhile.
    Late,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.shard.turns.borrow_mut().remove(&self.key);
        self.shard.turn_over.ring();
    }
}

impl Shard {
    /// Writes the block to disk and returns when it is durable.
    ///
    /// # Errors
    /// [`StoreError::NoDisk`] and [`StoreError::Disk`].
    pub(super) async fn write_down(self: &Rc<Self>, block: Lease) -> Result<(), StoreError> {
        let Some(disk) = self.disk() else { return Err(StoreError::NoDisk) };
        let shard = self.clone();
        // A task of its own: a client that hangs up must not leave half a record.
        let task = spawn(async move {
            let key = block.key();
            let _turn = shard.turn(key).await;
            let place = disk.write(block.clone()).await?;
            match shard.reached_disk(&block, place) {
                Reached::Known(None) => {}
                Reached::Known(Some(old)) => disk.forget(key, old).await,
                // What was written must not come back after a crash.
                Reached::Late => disk.remove(key, place).await?,
            }
            Ok::<_, DiskError>(())
        });
        task.await.map_err(|error| StoreError::Disk(error.to_string()))
    }

    /// Notes on disk that the block at `place` is gone, and returns when that is durable.
    ///
    /// # Errors
    /// [`StoreError::Disk`].
    pub(super) async fn erase(self: &Rc<Self>, key: Key, place: Place) -> Result<(), StoreError> {
        let Some(disk) = self.disk() else { return Ok(()) };
        let shard = self.clone();
        let task = spawn(async move {
            let _turn = shard.turn(key).await;
            disk.remove(key, place).await
        });
        task.await.map_err(|error| StoreError::Disk(error.to_string()))
    }

    /// Waits until nobody else writes this key to disk. One at a time, or a tombstone meant for an old
    /// value could come behind a new one and take it along.
    async fn turn(self: &Rc<Self>, key: Key) -> Turn {
        loop {
            let rings = self.turn_over.rings();
            if self.turns.borrow_mut().insert(key) {
                return Turn { shard: self.clone(), key };
            }
            self.turn_over.rung_since(rings).await;
        }
    }

    /// Notes where the block lies on disk.
    fn reached_disk(&self, block: &Lease, place: Place) -> Reached {
        let state = &mut *self.state.borrow_mut();
        let is_same = |entry: &Entry<Place>| {
            entry.ram.as_ref().is_some_and(|ram| ram.offset() == block.offset())
        };
        let known = state.index.find(&block.key()).filter(|(_, entry)| is_same(entry));
        let Some((id, _)) = known else { return Reached::Late };
        Reached::Known(self.alter(state, id, |entry| entry.disk.replace(place)).flatten())
    }

    /// Whether the victim should be written before it leaves RAM.
    pub(super) fn is_worth_writing(&self, entry: &Entry<Place>) -> bool {
        let (Some(disk), Some(block), None) = (self.disk(), &entry.ram, entry.disk) else {
            return false;
        };
        // Children on disk would never be found again without this one.
        let is_promised = entry.children > 0;
        block.namespace().rules().write != WritePolicy::RamOnly
            && disk.admits(block, entry.touches, is_promised, Instant::now())
    }

    /// Writes the block to disk; then it leaves RAM, unless somebody used it meanwhile.
    pub(super) fn spill(self: &Rc<Self>, state: &mut State, id: u32) {
        let Some(entry) = state.index.get_mut(id) else { return };
        let Some(block) = entry.ram.clone() else { return };
        entry.is_leaving = true;
        let touches = entry.touches;
        self.spills.set(self.spills.get() + 1);
        let shard = self.clone();
        spawn(async move {
            let key = block.key();
            let written = shard.write_down(block.clone()).await;
            if let Err(error) = &written {
                tracing::warn!(%key, %error, "a block could not be kept on disk");
            }
            let offset = block.offset();
            drop(block);
            shard.leave_ram(key, offset, touches);
            shard.spills.set(shard.spills.get() - 1);
            shard.room.ring();
        });
    }

    /// Ends a spill. A block that was used meanwhile goes back into the eviction's order.
    fn leave_ram(&self, key: Key, offset: u64, touches: u8) {
        let state = &mut *self.state.borrow_mut();
        let Some(id) = state.index.id(&key) else { return };
        self.alter(state, id, |entry| {
            entry.is_leaving = false;
            let is_same = entry.ram.as_ref().is_some_and(|ram| ram.offset() == offset);
            if is_same && entry.touches == touches && entry.children_in_ram == 0 {
                entry.ram = None;
            }
        });
        let ram = state.index.get(id).and_then(|entry| entry.ram.as_ref());
        if ram.is_some_and(|ram| ram.offset() == offset) {
            state.rank(id);
        }
    }

    /// What the disk says of a block of this shard.
    pub fn disk_event(&self, event: Event) {
        match event {
            Event::Dropped { key, place } => self.left_disk(key, place),
            Event::Moved { key, from, to } => {
                let state = &mut *self.state.borrow_mut();
                let known = state.index.find(&key).filter(|(_, entry)| entry.disk == Some(from));
                match known.map(|(id, _)| id) {
                    Some(id) => {
                        self.alter(state, id, |entry| entry.disk = Some(to));
                    }
                    None => {
                        if let Some(disk) = self.disk() {
                            spawn(async move { disk.forget(key, to).await });
                        }
                    }
                }
            }
        }
    }

    /// The block is not at `place` any more.
    pub(super) fn left_disk(&self, key: Key, place: Place) {
        let state = &mut *self.state.borrow_mut();
        let known = state.index.find(&key).filter(|(_, entry)| entry.disk == Some(place));
        if let Some(id) = known.map(|(id, _)| id) {
            self.alter(state, id, |entry| entry.disk = None);
        }
    }

    /// A block that a start found on disk, where `children` follow it.
    pub fn restore(&self, key: Key, parent: Option<Key>, place: Place, children: u32) {
        let state = &mut *self.state.borrow_mut();
        let Some(id) = state.index.enter(key) else { return };
        if let Some(entry) = state.index.get_mut(id) {
            entry.disk = Some(place);
            entry.parent = parent;
            entry.children = children;
        }
        if let Some(peers) = self.house.peers.get() {
            peers.added(&key);
        }
    }

    /// Before the end: writes down what was used and is in RAM only, until `deadline`. Says how many.
    pub async fn keep_warm(self: &Rc<Self>, deadline: Instant) -> usize {
        let Some(disk) = self.disk() else { return 0 };
        let is_worth = |entry: &Entry<Place>| entry.touches > 0 && self.is_worth_writing(entry);
        let worth: Vec<Lease> = {
            let state = self.state.borrow();
            let entries = state.index.from(0).filter(|(_, entry)| is_worth(entry));
            entries.filter_map(|(_, entry)| entry.ram.clone()).collect()
        };
        let mut kept = 0;
        for blocks in worth.chunks(SPILLS_MAX) {
            if Instant::now() >= deadline {
                break;
            }
            let writes = blocks.iter().map(|block| {
                let (shard, block) = (self.clone(), block.clone());
                spawn(async move { shard.write_down(block).await.is_ok() })
            });
            for write in writes.collect::<Vec<_>>() {
                kept += usize::from(write.await);
            }
        }
        disk.close().await;
        kept
    }
}
