//! ARC, after Megiddo and Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache" (FAST '03), figure 4.
use super::Cache;
use super::lru::Queue;

pub struct Arc {
    capacity: usize,
    /// What T1 should have.
    target: f64,
    /// In the cache and used once, used more often; evicted from either.
    t1: Queue,
    t2: Queue,
    b1: Queue,
    b2: Queue,
}

impl Arc {
    pub fn new(capacity: usize) -> Arc {
        let [t1, t2, b1, b2] = [(); 4].map(|()| Queue::default());
        Arc { capacity, target: 0.0, t1, t2, b1, b2 }
    }

    fn replace(&mut self, is_in_b2: bool) {
        let t1 = self.t1.len() as f64;
        if self.t1.len() > 0 && (t1 > self.target || (is_in_b2 && t1 == self.target.floor())) {
            self.t1.pop().into_iter().for_each(|block| self.b1.push(block));
        } else {
            self.t2.pop().into_iter().for_each(|block| self.b2.push(block));
        }
    }

    fn ask(&mut self, block: u64) {
        let (b1, b2) = (self.b1.len() as f64, self.b2.len() as f64);
        if self.t1.take(block) || self.t2.has(block) {
            self.t2.push(block);
        } else if self.b1.has(block) {
            self.target = (self.target + (b2 / b1).max(1.0)).min(self.capacity as f64);
            self.replace(false);
            self.b1.take(block);
            self.t2.push(block);
        } else if self.b2.has(block) {
            self.target = (self.target - (b1 / b2).max(1.0)).max(0.0);
            self.replace(true);
            self.b2.take(block);
            self.t2.push(block);
        } else {
            self.make_room();
            self.t1.push(block);
        }
    }

    /// For a block nothing is known of.
    fn make_room(&mut self) {
        let l1 = self.t1.len() + self.b1.len();
        let all = l1 + self.t2.len() + self.b2.len();
        if l1 == self.capacity {
            if self.t1.len() < self.capacity {
                self.b1.pop();
                self.replace(false);
            } else {
                self.t1.pop();
            }
        } else if all >= self.capacity {
            if all == 2 * self.capacity {
                self.b2.pop();
            }
            self.replace(false);
        }
    }
}

impl Cache for Arc {
    fn has(&self, block: u64) -> bool {
        self.t1.has(block) || self.t2.has(block)
    }

    fn serve(&mut self, request: &[u64], _found: usize) {
        request.iter().for_each(|&block| self.ask(block));
    }
}
