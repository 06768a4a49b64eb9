//! A block in RAM, and a lease on it.
//!
//! A lease is a share of the block. The index holds one of each block it knows; when the last of the
//! others is dropped, the shard is told, so that a write that waits for memory may evict the block.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use crate::arena::{Region, Slot};
use crate::key::Key;
use crate::namespace::Namespace;

/// Longest label, in bytes. LMCache's keys are about 100; redis allows more than anybody uses.
pub const LABEL_BYTES_MAX: usize = 1024;

/// A block that is complete and does not change any more.
#[derive(Debug)]
pub struct Block {
    region: Region,
    len: usize,
    key: Key,
    parent: Option<Key>,
    label: Box<[u8]>,
    hash: OnceLock<[u8; 32]>,
}

/// A share of a block: its memory is not given to another while one is held, on whatever thread.
#[derive(Debug)]
pub struct Lease {
    /// Empty only while it is being dropped.
    block: Option<Arc<Block>>,
}

impl Lease {
    /// The same, with a hash that is known already. To be called before the block is shared.
    #[must_use]
    pub fn with_hash(self, hash: [u8; 32]) -> Lease {
        // A second hash would be the same, or the block would have been refused when it was read.
        let _ = self.hash.set(hash);
        self
    }

    /// How many there are of this block, this one included.
    pub fn count(&self) -> usize {
        self.block.as_ref().map_or(0, Arc::strong_count)
    }
}

impl Clone for Lease {
    fn clone(&self) -> Lease {
        Lease { block: self.block.clone() }
    }
}

impl Deref for Lease {
    type Target = Block;

    fn deref(&self) -> &Block {
        // `Drop` alone empties it, and nothing can look at a value after that.
        self.block.as_deref().expect("a lease holds a block")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(block) = self.block.take() else { return };
        let (rest, freed) = (Arc::downgrade(&block), Arc::clone(block.region.freed()));
        drop(block);
        // With one left, it is the index's: who waits for room may evict the block now. Counted after
        // this share is gone, so of several that go at once the last one sees it.
        if rest.strong_count() <= 1 {
            freed.note();
        }
    }
}

impl Block {
    /// Ends the writing of `slot`: from here on the block is read only.
    pub fn seal(slot: Slot, key: Key, parent: Option<Key>, label: Box<[u8]>) -> Lease {
        let (region, len) = slot.into_parts();
        let hash = OnceLock::new();
        Lease { block: Some(Arc::new(Block { region, len, key, parent, label, hash })) }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.region.padded()[..self.len]
    }

    /// Its bytes and zeros up to the next page.
    pub fn padded(&self) -> &[u8] {
        self.region.padded()
    }

    /// Number of its bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory it takes.
    pub fn charged_bytes(&self) -> u64 {
        self.region.padded().len() as u64
    }

    /// Its name.
    pub fn key(&self) -> Key {
        self.key
    }

    /// The block before it in its prefix, where the client said so.
    pub fn parent(&self) -> Option<Key> {
        self.parent
    }

    /// What the client calls it; empty where the client uses digests.
    pub fn label(&self) -> &[u8] {
        &self.label
    }

    /// Whose it is.
    pub fn namespace(&self) -> &Arc<Namespace> {
        self.region.namespace()
    }

    /// Its first byte in the arena's memfd.
    pub fn offset(&self) -> u64 {
        self.region.offset()
    }

    /// BLAKE3 of its bytes, once somebody computed it.
    pub fn known_hash(&self) -> &OnceLock<[u8; 32]> {
        &self.hash
    }

    /// BLAKE3 of its bytes, computed when it is first asked for: before the block leaves RAM.
    pub fn hash(&self) -> [u8; 32] {
        *self.hash.get_or_init(|| *blake3::hash(self.bytes()).as_bytes())
    }
}
