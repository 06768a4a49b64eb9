//! A block in RAM, and a lease on it.
//!
//! A lease is a reference count: while one is held, on whatever thread, the block's memory is not
//! given to another. The index holds one lease of each block it knows.

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

/// A share of a block. Its memory is reused when the last one is dropped.
pub type Lease = Arc<Block>;

impl Block {
    /// Ends the writing of `slot`: from here on the block is read only.
    pub fn seal(slot: Slot, key: Key, parent: Option<Key>, label: Box<[u8]>) -> Lease {
        let (region, len) = slot.into_parts();
        Arc::new(Block { region, len, key, parent, label, hash: OnceLock::new() })
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

    /// BLAKE3 of its bytes, computed when it is first asked for: before the block leaves RAM.
    pub fn hash(&self) -> [u8; 32] {
        *self.hash.get_or_init(|| *blake3::hash(self.bytes()).as_bytes())
    }
}
