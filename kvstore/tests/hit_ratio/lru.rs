//! Blocks by last use, and the cache that throws out the longest unused.
use std::collections::{BTreeMap, HashMap};

use super::Cache;

/// A queue of blocks from which any can be taken.
#[derive(Default)]
pub struct Queue {
    order: BTreeMap<u64, u64>,
    places: HashMap<u64, u64>,
    next: u64,
}

impl Queue {
    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn has(&self, block: u64) -> bool {
        self.places.contains_key(&block)
    }

    /// Puts a block at the end, from wherever it is.
    pub fn push(&mut self, block: u64) {
        self.take(block);
        self.next += 1;
        self.order.insert(self.next, block);
        self.places.insert(block, self.next);
    }

    pub fn take(&mut self, block: u64) -> bool {
        let place = self.places.remove(&block);
        place.is_some_and(|place| self.order.remove(&place).is_some())
    }

    pub fn pop(&mut self) -> Option<u64> {
        let (_, block) = self.order.pop_first()?;
        self.places.remove(&block);
        Some(block)
    }
}

pub struct Lru {
    capacity: usize,
    queue: Queue,
}

impl Lru {
    pub fn new(capacity: usize) -> Lru {
        Lru { capacity, queue: Queue::default() }
    }
}

impl Cache for Lru {
    fn has(&self, block: u64) -> bool {
        self.queue.has(block)
    }

    fn serve(&mut self, request: &[u64], _found: usize) {
        for &block in request {
            self.queue.push(block);
            if self.queue.len() > self.capacity {
                self.queue.pop();
            }
        }
    }
}
