//! One engine's cache of blocks: least recently used goes first, and of one prompt the leaf.
//!
//! Counts blocks only; knows no tokens and no time. What came and went is told to the caller, in order.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// No slot.
const NONE: u32 = u32::MAX;

/// Block numbers are small and dense: one multiplication spreads them (Fibonacci hashing).
#[derive(Default)]
pub struct BlockHasher(u64);

impl Hasher for BlockHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, block: u32) {
        let mixed = (self.0 ^ u64::from(block)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

/// A map by block.
pub type BlockMap<T> = HashMap<u32, T, BuildHasherDefault<BlockHasher>>;

/// What happened to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is there now.
    Stored(u32),
    /// It is gone.
    Removed(u32),
}

struct Node {
    block: u32,
    newer: u32,
    older: u32,
}

/// An LRU of blocks.
pub struct Cache {
    capacity_blocks: usize,
    slots: BlockMap<u32>,
    nodes: Vec<Node>,
    newest: u32,
    oldest: u32,
}

impl Cache {
    /// Room for `capacity_blocks`, at least one.
    pub fn new(capacity_blocks: usize) -> Self {
        let capacity_blocks = capacity_blocks.clamp(1, NONE as usize - 1);
        Cache {
            capacity_blocks,
            slots: BlockMap::default(),
            nodes: Vec::new(),
            newest: NONE,
            oldest: NONE,
        }
    }

    /// Leading blocks that are there.
    pub fn depth(&self, blocks: &[u32]) -> usize {
        blocks.iter().take_while(|block| self.slots.contains_key(block)).count()
    }

    /// Uses all of a prompt's blocks: those that miss are stored, in place of the oldest.
    ///
    /// From the deepest up, so that a block is never older than what stands on it.
    pub fn use_all(&mut self, blocks: &[u32], mut changed: impl FnMut(Change)) {
        for &block in blocks.iter().rev() {
            if let Some(&slot) = self.slots.get(&block) {
                self.unlink(slot);
                self.push_newest(slot);
                continue;
            }
            let slot = self.free_slot(&mut changed);
            self.nodes[slot as usize].block = block;
            self.slots.insert(block, slot);
            self.push_newest(slot);
            changed(Change::Stored(block));
        }
    }

    fn free_slot(&mut self, changed: &mut impl FnMut(Change)) -> u32 {
        if self.nodes.len() < self.capacity_blocks {
            self.nodes.push(Node { block: 0, newer: NONE, older: NONE });
            return self.nodes.len() as u32 - 1;
        }
        let slot = self.oldest;
        let block = self.nodes[slot as usize].block;
        self.unlink(slot);
        self.slots.remove(&block);
        changed(Change::Removed(block));
        slot
    }

    fn unlink(&mut self, slot: u32) {
        let Node { newer, older, .. } = self.nodes[slot as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.nodes[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.nodes[older as usize].newer = newer,
        }
    }

    fn push_newest(&mut self, slot: u32) {
        let older = self.newest;
        let node = &mut self.nodes[slot as usize];
        (node.newer, node.older) = (NONE, older);
        match older {
            NONE => self.oldest = slot,
            older => self.nodes[older as usize].newer = slot,
        }
        self.newest = slot;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_list_with_the_newest_in_front(
            capacity in 1usize..12, uses in prop::collection::vec(prop::collection::vec(0u32..20, 0..6), 0..40),
        ) {
            let mut cache = Cache::new(capacity);
            let mut naive: Vec<u32> = Vec::new();
            let mut told: Vec<u32> = Vec::new();
            for blocks in &uses {
                let depth = blocks.iter().take_while(|block| naive.contains(block)).count();
                prop_assert_eq!(cache.depth(blocks), depth);
                cache.use_all(blocks, |change| match change {
                    Change::Stored(block) => told.push(block),
                    Change::Removed(block) => told.retain(|held| *held != block),
                });
                for block in blocks.iter().rev() {
                    naive.retain(|held| held != block);
                    naive.insert(0, *block);
                    naive.truncate(capacity);
                }
                let mut held = naive.clone();
                held.sort_unstable();
                told.sort_unstable();
                prop_assert_eq!(&told, &held, "what was told is what is there");
            }
        }
    }

    #[test]
    fn of_one_prompt_the_leaf_goes_first() {
        let mut cache = Cache::new(3);
        cache.use_all(&[1, 2, 3], |_| {});
        cache.use_all(&[9], |_| {});
        assert_eq!(cache.depth(&[1, 2, 3]), 2);
    }
}
