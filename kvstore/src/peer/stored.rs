//! The daemon's store as peers see it.

use bytes::Bytes;

use super::blocks::{Blocks, Held, NotHad, NotKept};
use super::wire::BlockHead;
use crate::arena::Slot;
use crate::block::Lease;
use crate::key::Key;
use crate::store::{About, Claim, Store};

/// Memory of the arena that a peer's block is written to.
#[derive(Debug)]
pub struct PeerSlot(Slot);

impl AsMut<[u8]> for PeerSlot {
    fn as_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }
}

/// A lease whose bytes quinn sends without a copy.
struct Sent(Lease);

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl Held for Lease {
    fn head(&self) -> BlockHead {
        BlockHead {
            len: self.len() as u64,
            hash: self.hash(),
            parent: self.parent(),
            namespace: self.namespace().name.clone(),
            label: self.label().into(),
        }
    }

    fn into_bytes(self) -> Bytes {
        Bytes::from_owner(Sent(self))
    }
}

impl Blocks for Store {
    type Held = Lease;
    type Slot = PeerSlot;

    async fn held(&self, key: Key) -> Result<Option<Lease>, NotHad> {
        self.get_here(key).await.map_err(|_| NotHad)
    }

    async fn welcomes(&self, key: Key, bytes: u64) -> bool {
        let Ok(len) = usize::try_from(bytes) else { return false };
        Store::welcomes(self, key, len).await.unwrap_or(false)
    }

    async fn reserve(&self, key: Key, head: &BlockHead, claim: Claim) -> Result<PeerSlot, NotKept> {
        let len = usize::try_from(head.len).map_err(|_| NotKept)?;
        let reserved = match claim {
            Claim::Asked => {
                self.namespace(&head.namespace).map_err(|_| NotKept)?;
                Store::reserve(self, key, len).await
            }
            Claim::Offered => self.reserve_offered(key, len).await,
        };
        reserved.map(PeerSlot).map_err(|_| NotKept)
    }

    async fn commit(&self, slot: PeerSlot, key: Key, head: BlockHead) -> Result<(), NotKept> {
        // Somebody asked for this very block: it is of use even where its prefix is not here.
        let parent = match head.parent {
            Some(parent) => {
                self.lookup(&[parent]).await.ok().and_then(|tiers| tiers[0]).and(head.parent)
            }
            None => None,
        };
        let (label, hash) = (head.label, Some(head.hash));
        let about = About { key, parent, label, is_durable: false, hash };
        Store::commit(self, slot.0, about).await.map_err(|_| NotKept)
    }
}
