//! The daemon's order, driven as its shards drive it: blocks of one size, spread over shards by their
//! names, each with a part of the memory and an order of its own; parents and children known across shards.
use std::collections::HashMap;

use kvstore::eviction::Eviction;
use kvstore::key::NamespaceId;

use super::Cache;

/// Any size will do.
const BLOCK_BYTES: u64 = 1 << 20;
const MODEL: NamespaceId = NamespaceId([1; 16]);

struct Block {
    id: u32,
    parent: Option<u64>,
    children: u32,
}

struct Shard {
    eviction: Eviction,
    /// The block of each id.
    names: Vec<u64>,
    free_ids: Vec<u32>,
}

pub struct Ours {
    capacity_bytes: u64,
    shards: Vec<Shard>,
    blocks: HashMap<u64, Block>,
    /// Who was asked last to let a block go for another.
    turn: usize,
}

impl Ours {
    pub fn new(capacity: usize, shards: usize) -> Ours {
        let capacity_bytes = capacity as u64 / shards as u64 * BLOCK_BYTES;
        let shard = |_| Shard {
            eviction: Eviction::new(capacity_bytes),
            names: Vec::new(),
            free_ids: Vec::new(),
        };
        let shards = (0..shards).map(shard).collect();
        Ours { capacity_bytes, shards, blocks: HashMap::new(), turn: 0 }
    }

    fn shard(&self, name: u64) -> usize {
        ((u128::from(name.wrapping_mul(0x9E37_79B9_7F4A_7C15)) * self.shards.len() as u128) >> 64)
            as usize
    }

    /// Makes room in a shard. As long as it has no leaf, others let leaves go, by turns: their parents may
    /// be here. In caches of few blocks that happens.
    fn make_room(&mut self, at: usize) {
        while self.shards[at].eviction.bytes() + BLOCK_BYTES > self.capacity_bytes {
            if !self.evict(at) {
                self.turn += 1;
                let other = self.turn % self.shards.len();
                self.evict(other);
            }
        }
    }

    /// Lets the next block of a shard go; false if none is a leaf.
    fn evict(&mut self, at: usize) -> bool {
        let shard = &mut self.shards[at];
        let Some(id) = shard.eviction.victim_thorough(None, |_| true) else { return false };
        let gone = self.blocks.remove(&shard.names[id as usize]).unwrap();
        assert_eq!(gone.children, 0);
        shard.free_ids.push(id);
        let Some(parent) = gone.parent else { return true };
        let home = self.shard(parent);
        let parent = self.blocks.get_mut(&parent).unwrap();
        parent.children -= 1;
        if parent.children == 0 {
            self.shards[home].eviction.unpark(parent.id);
        }
        true
    }

    fn store(&mut self, name: u64, parent: Option<u64>) {
        let at = self.shard(name);
        let shard = &mut self.shards[at];
        let id = shard.free_ids.pop().unwrap_or(shard.names.len() as u32);
        shard.names.resize(shard.names.len().max(id as usize + 1), name);
        shard.names[id as usize] = name;
        shard.eviction.insert(id, MODEL, name, BLOCK_BYTES);
        self.blocks.insert(name, Block { id, parent, children: 0 });
        let Some(parent) = parent else { return };
        let home = self.shard(parent);
        let parent = self.blocks.get_mut(&parent).unwrap();
        parent.children += 1;
        if parent.children == 1 {
            self.shards[home].eviction.park(parent.id);
        }
    }
}

impl Cache for Ours {
    fn has(&self, block: u64) -> bool {
        self.blocks.contains_key(&block)
    }

    fn serve(&mut self, request: &[u64], found: usize) {
        for &block in &request[..found] {
            let at = self.shard(block);
            self.shards[at].eviction.touch(self.blocks[&block].id);
        }
        for at in found..request.len() {
            let parent = at.checked_sub(1).map(|above| request[above]);
            self.make_room(self.shard(request[at]));
            // What was let go for it may have been the parent; a shard refuses the child then.
            if parent.is_some_and(|parent| !self.blocks.contains_key(&parent)) {
                return;
            }
            self.store(request[at], parent);
        }
    }
}
