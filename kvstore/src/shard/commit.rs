//! Putting a block in its place, and taking it out: from here on others find it, or do not.

use std::rc::Rc;

use super::{Place, Shard};
use crate::arena::Slot;
use crate::block::{Block, Lease};
use crate::key::Key;
use crate::namespace::WritePolicy;
use crate::store::{About, StoreError};

impl Shard {
    /// Stores the block written to `slot`. One that has the same key is replaced, on disk too.
    ///
    /// # Errors
    /// [`StoreError`]: the parent is not there, there are too many blocks, or the block could not be
    /// made durable where that was asked for; then it is in RAM all the same.
    pub async fn commit(self: &Rc<Self>, slot: Slot, about: About) -> Result<(), StoreError> {
        if about.is_durable && self.disk().is_none() {
            return Err(StoreError::NoDisk);
        }
        if let Some(parent) = about.parent
            && !self.adopted(parent).await?
        {
            return Err(StoreError::ParentMissing);
        }
        let mut block = Block::seal(slot, about.key, about.parent, about.label);
        if let Some(hash) = about.hash {
            block = block.with_hash(hash);
        }
        self.house.stats.stored(block.len() as u64);
        let is_through = block.namespace().rules().write == WritePolicy::Through;
        let old_place =
            self.install(&block).inspect_err(|_| self.tell_parent(about.parent, -1, -1))?;
        if about.is_durable || is_through {
            self.write_down(block).await
        } else if let Some(place) = old_place {
            // The old value must not come back after a crash in place of the one acknowledged now.
            self.erase(about.key, place).await
        } else {
            Ok(())
        }
    }

    /// Takes the block out of every tier. False if none had it.
    ///
    /// # Errors
    /// [`StoreError::Disk`] if the disk could not note that it is gone.
    pub async fn remove(self: &Rc<Self>, key: Key) -> Result<bool, StoreError> {
        let (was_present, place) = {
            let state = &mut *self.state.borrow_mut();
            let Some(id) = state.index.id(&key) else { return Ok(false) };
            let taken = self.alter(state, id, |entry| {
                let was_present = entry.is_present();
                entry.ram = None;
                (was_present, entry.disk.take())
            });
            taken.unwrap_or((false, None))
        };
        self.room.ring();
        if let Some(place) = place {
            self.erase(key, place).await?;
        }
        Ok(was_present)
    }

    /// Puts the block into the index. Says where the one it replaces lay on disk.
    fn install(&self, block: &Lease) -> Result<Option<Place>, StoreError> {
        let state = &mut *self.state.borrow_mut();
        let Some(id) = state.index.enter(block.key()) else { return Err(StoreError::Busy) };
        let old_place = self.alter(state, id, |entry| {
            entry.parent = block.parent();
            entry.ram = Some(block.clone());
            entry.touches = 0;
            entry.disk.take()
        });
        Ok(old_place.flatten())
    }
}
