//! Putting a block in its place: from here on others find it.

use std::rc::Rc;

use super::Shard;
use crate::arena::Slot;
use crate::block::{Block, Lease};
use crate::key::Key;
use crate::mesh::reply;
use crate::request::Request;
use crate::store::{About, StoreError};

impl Shard {
    /// Stores the block written to `slot`. One that has the same key is replaced.
    ///
    /// # Errors
    /// [`StoreError`]: the parent is not there, or there are too many blocks.
    pub async fn commit(self: &Rc<Self>, slot: Slot, about: About) -> Result<Lease, StoreError> {
        if let Some(parent) = about.parent
            && !self.adopted(parent).await?
        {
            return Err(StoreError::ParentMissing);
        }
        let block = Block::seal(slot, about.key, about.parent, about.label);
        let parent = about.parent;
        self.install(block).inspect_err(|_| {
            if let Some(parent) = parent {
                self.tell_disowned(parent);
            }
        })
    }

    /// Asks the parent's shard to count a child. A key cannot be its own ancestor: digests are chained.
    async fn adopted(self: &Rc<Self>, parent: Key) -> Result<bool, StoreError> {
        let inboxes = &self.house.inboxes;
        let shard = parent.shard(inboxes.len());
        if shard == self.number {
            return Ok(self.adopt(parent));
        }
        let (reply, waiting) = reply();
        inboxes[shard].send(Request::Adopt { parent, reply }).map_err(|_| StoreError::Busy)?;
        waiting.answer().await.ok_or(StoreError::Draining)
    }

    fn install(&self, block: Lease) -> Result<Lease, StoreError> {
        let state = &mut *self.state.borrow_mut();
        let Some(id) = state.index.enter(block.key()) else { return Err(StoreError::Busy) };
        let Some(entry) = state.index.get_mut(id) else { return Err(StoreError::Busy) };
        let had_children = entry.children > 0;
        let old_parent = std::mem::replace(&mut entry.parent, block.parent());
        let old = entry.ram.replace(block.clone());
        entry.touches = 0;
        if old.is_some() {
            state.eviction.remove(id);
        }
        state.eviction.insert(id, block.key().fingerprint(), block.charged_bytes());
        if had_children {
            state.eviction.park(id);
        }
        if let Some(parent) = old_parent {
            self.tell_disowned(parent);
        }
        Ok(block)
    }
}
