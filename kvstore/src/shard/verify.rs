//! Comparing a block with the hash it was stored with, in every tier of this daemon. Nothing is brought into
//! RAM for it, and it counts as no use.

use std::rc::Rc;

use super::{Place, Shard};
use crate::block::Block;
use crate::disk::DiskError;
use crate::executor::breath;
use crate::key::Key;
use crate::store::StoreError;

/// Hashed at once: a few hundred microseconds, then others have their turn.
const PIECE_BYTES: usize = 1 << 20;

impl Shard {
    /// Whether the block's bytes are those it was stored with; none if no tier has it. What is wrong is
    /// dropped.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn verify(self: &Rc<Self>, key: Key) -> Result<Option<bool>, StoreError> {
        let tiers = self.state.borrow().index.find(&key).map(|(_, entry)| {
            let ram = entry.ram.clone();
            (ram, entry.disk)
        });
        let Some((ram, disk)) = tiers else { return Ok(None) };
        if ram.is_none() && disk.is_none() {
            return Ok(None);
        }
        if let Some(block) = ram
            && !is_right(&block).await
        {
            tracing::error!(%key, "a block in RAM is not what was stored; it is dropped");
            // The lease goes first: the memory is free at once.
            drop(block);
            self.remove(key).await?;
            return Ok(Some(false));
        }
        match disk {
            Some(place) => self.verify_on_disk(key, place).await.map(Some),
            None => Ok(Some(true)),
        }
    }

    async fn verify_on_disk(self: &Rc<Self>, key: Key, place: Place) -> Result<bool, StoreError> {
        let Some(disk) = self.disk() else { return Ok(true) };
        let slot = self.reserve(key, place.len as usize).await?;
        match disk.read(key, place, slot).await {
            // Given up or moved meanwhile: no fault of the block's.
            Ok(_) | Err(DiskError::Gone) => Ok(true),
            Err(error) => {
                tracing::warn!(%key, %error, "a block on disk could not be read; it is dropped");
                self.left_disk(key, place);
                Ok(false)
            }
        }
    }
}

/// A block that nobody asked the hash of has none to differ from; from here on it has.
async fn is_right(block: &Block) -> bool {
    let mut hasher = blake3::Hasher::new();
    for piece in block.bytes().chunks(PIECE_BYTES) {
        hasher.update(piece);
        breath().await;
    }
    let hash = *hasher.finalize().as_bytes();
    *block.known_hash().get_or_init(|| hash) == hash
}
