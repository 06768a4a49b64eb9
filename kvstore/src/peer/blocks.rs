//! What peers need of the store: read what is here, take in what a peer sends.
//!
//! A seam: the daemon's store is behind it when it runs, plain memory in this module's tests.

use bytes::Bytes;

use super::wire::BlockHead;
use crate::key::Key;
use crate::store::Claim;

/// Why a block that a peer sent was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store has no room for it or is stopping")]
pub struct NotKept;

/// Why it is not known whether a block is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store is busy or is stopping")]
pub struct NotHad;

/// The local tiers of one daemon, from the thread of the peers.
#[expect(async_fn_in_trait, reason = "all of it stays on one thread")]
pub trait Blocks: Clone + 'static {
    /// A block that does not change while this is held.
    type Held: Held;
    /// Memory for one block.
    type Slot: AsMut<[u8]> + 'static;

    /// The block from RAM or disk; other peers are not asked, or two could ask each other for ever.
    ///
    /// # Errors
    /// [`NotHad`].
    async fn held(&self, key: Key) -> Result<Option<Self::Held>, NotHad>;

    /// Whether a block of `bytes` that a peer offers would be kept, as far as can be said now.
    async fn welcomes(&self, key: Key, bytes: u64) -> bool;

    /// Memory for a block of `head.len` bytes.
    ///
    /// # Errors
    /// [`NotKept`].
    async fn reserve(
        &self,
        key: Key,
        head: &BlockHead,
        claim: Claim,
    ) -> Result<Self::Slot, NotKept>;

    /// Keeps a block whose bytes are checked.
    ///
    /// # Errors
    /// [`NotKept`].
    async fn commit(&self, slot: Self::Slot, key: Key, head: BlockHead) -> Result<(), NotKept>;
}

/// A block held for sending.
pub trait Held: 'static {
    /// What a peer is told of it. The hash may be computed here, the first time.
    fn head(&self) -> BlockHead;

    /// Its bytes without a copy; the block is let go when the last part of them is.
    fn into_bytes(self) -> Bytes;
}
