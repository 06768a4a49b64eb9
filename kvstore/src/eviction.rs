//! First in, first out: stands in until the real one is merged.
use std::collections::{HashMap, VecDeque};
#[derive(Debug)]
pub struct Eviction {
    queue: VecDeque<u32>,
    state: HashMap<u32, bool>,
}
#[expect(missing_docs, reason = "replaced before it lands")]
impl Eviction {
    pub fn new(_capacity_bytes: u64) -> Self {
        Self { queue: VecDeque::new(), state: HashMap::new() }
    }
    pub fn insert(&mut self, id: u32, _fingerprint: u64, _bytes: u64) {
        self.queue.push_back(id);
        self.state.insert(id, false);
    }
    pub fn touch(&mut self, _id: u32) {}
    pub fn remove(&mut self, id: u32) {
        self.state.remove(&id);
        self.queue.retain(|&x| x != id);
    }
    pub fn park(&mut self, id: u32) {
        if let Some(s) = self.state.get_mut(&id) {
            *s = true;
        }
    }
    pub fn unpark(&mut self, id: u32) {
        if let Some(s) = self.state.get_mut(&id) {
            *s = false;
        }
    }
    pub fn victim(&mut self, mut may_go: impl FnMut(u32) -> bool) -> Option<u32> {
        let at = self.queue.iter().position(|id| !self.state[id] && may_go(*id))?;
        let id = self.queue.remove(at)?;
        self.state.remove(&id);
        Some(id)
    }
    pub fn victim_thorough(&mut self, may_go: impl FnMut(u32) -> bool) -> Option<u32> {
        self.victim(may_go)
    }
}
