//! S3-FIFO, after Yang and others, "FIFO queues are all you need for cache eviction" (SOSP '23), algorithm 1.
use std::collections::HashMap;

use super::Cache;
use super::lru::Queue;

const USES_MAX: u8 = 3;

pub struct S3Fifo {
    capacity: usize,
    small_max: usize,
    /// Uses after which a block of the small queue goes to the main queue.
    uses_to_stay: u8,
    small: Queue,
    main: Queue,
    ghost: Queue,
    uses: HashMap<u64, u8>,
}

impl S3Fifo {
    pub fn new(capacity: usize, uses_to_stay: u8) -> S3Fifo {
        let small_max = (capacity / 10).max(1);
        let [small, main, ghost] = [(); 3].map(|()| Queue::default());
        S3Fifo { capacity, small_max, uses_to_stay, small, main, ghost, uses: HashMap::new() }
    }

    fn main_max(&self) -> usize {
        self.capacity - self.small_max
    }

    fn evict(&mut self) {
        if self.small.len() < self.small_max && self.main.len() > 0 {
            return self.evict_from_main();
        }
        while let Some(block) = self.small.pop() {
            if self.uses[&block] < self.uses_to_stay {
                self.uses.remove(&block);
                self.ghost.push(block);
                if self.ghost.len() > self.main_max() {
                    self.ghost.pop();
                }
                return;
            }
            self.uses.insert(block, 0);
            self.main.push(block);
            if self.main.len() > self.main_max() {
                return self.evict_from_main();
            }
        }
        self.evict_from_main();
    }

    fn evict_from_main(&mut self) {
        while let Some(block) = self.main.pop() {
            match self.uses[&block] {
                0 => {
                    self.uses.remove(&block);
                    return;
                }
                uses => {
                    self.uses.insert(block, uses - 1);
                    self.main.push(block);
                }
            }
        }
    }

    fn ask(&mut self, block: u64) {
        if let Some(uses) = self.uses.get_mut(&block) {
            *uses = (*uses + 1).min(USES_MAX);
            return;
        }
        while self.uses.len() >= self.capacity {
            self.evict();
        }
        self.uses.insert(block, 0);
        if self.ghost.take(block) { self.main.push(block) } else { self.small.push(block) }
    }
}

impl Cache for S3Fifo {
    fn has(&self, block: u64) -> bool {
        self.uses.contains_key(&block)
    }

    fn serve(&mut self, request: &[u64], _found: usize) {
        request.iter().for_each(|&block| self.ask(block));
    }
}
