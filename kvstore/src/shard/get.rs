//! Finding a block's bytes: RAM, then slower tiers.

use std::rc::Rc;
use std::time::Instant;

use super::Shard;
use crate::block::Lease;
use crate::key::Key;
use crate::store::StoreError;

impl Shard {
    /// A lease on the block, wherever it lies; none if no tier has it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get(
        self: &Rc<Self>,
        key: Key,
        _deadline: Option<Instant>,
    ) -> Result<Option<Lease>, StoreError> {
        Ok(self.get_from_ram(key))
    }

    /// A lease on the block if it lies in RAM. It counts as a use.
    pub fn get_from_ram(&self, key: Key) -> Option<Lease> {
        let state = &mut *self.state.borrow_mut();
        let id = state.index.id(&key)?;
        let entry = state.index.get_mut(id)?;
        let lease = entry.ram.clone()?;
        entry.touches = entry.touches.saturating_add(1);
        state.eviction.touch(id);
        Some(lease)
    }
}
