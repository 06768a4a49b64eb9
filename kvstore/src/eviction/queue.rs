//! Queues of block ids, linked through one slab: moving an id from any place to any end is O(1).
//!
//! It owns the order and knows nothing of what the order means.

/// No id. A slab never has that many entries.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    before: u32,
    after: u32,
    /// The queue it is in.
    queue: u32,
}

/// In no queue.
const OFF: u32 = u32::MAX;
const UNLINKED: Link = Link { before: NONE, after: NONE, queue: OFF };

#[derive(Clone, Copy, Debug)]
struct Ends {
    first: u32,
    last: u32,
    len: usize,
}

const EMPTY: Ends = Ends { first: NONE, last: NONE, len: 0 };

/// Queues by number; an id is in one of them at most.
#[derive(Debug)]
pub(super) struct Queues {
    links: Vec<Link>,
    ends: Vec<Ends>,
}

impl Queues {
    pub(super) fn new() -> Queues {
        Queues { links: Vec::new(), ends: Vec::new() }
    }

    /// Has at least `count` queues from here on.
    pub(super) fn have(&mut self, count: usize) {
        self.ends.resize(self.ends.len().max(count), EMPTY);
    }

    pub(super) fn first(&self, queue: usize) -> Option<u32> {
        Some(self.ends[queue].first).filter(|&id| id != NONE)
    }

    pub(super) fn len(&self, queue: usize) -> usize {
        self.ends[queue].len
    }

    /// The queue an id is in.
    pub(super) fn queue_of(&self, id: u32) -> Option<usize> {
        let queue = self.links.get(id as usize)?.queue;
        (queue != OFF).then_some(queue as usize)
    }

    /// Moves an id to the end of a queue, from wherever it is.
    pub(super) fn push_last(&mut self, queue: usize, id: u32) {
        self.take(id);
        self.make_room(id);
        let before = self.ends[queue].last;
        self.join(queue, before, id);
        self.join(queue, id, NONE);
        self.settle(queue, id);
    }

    /// Moves an id to the front of a queue, from wherever it is.
    pub(super) fn push_first(&mut self, queue: usize, id: u32) {
        self.take(id);
        self.make_room(id);
        let after = self.ends[queue].first;
        self.join(queue, id, after);
        self.join(queue, NONE, id);
        self.settle(queue, id);
    }

    /// Takes an id out of its queue, if it is in one.
    pub(super) fn take(&mut self, id: u32) {
        let Some(queue) = self.queue_of(id) else { return };
        let Link { before, after, .. } = self.links[id as usize];
        self.join(queue, before, after);
        self.links[id as usize] = UNLINKED;
        self.ends[queue].len -= 1;
    }

    fn make_room(&mut self, id: u32) {
        if self.links.len() <= id as usize {
            self.links.resize(id as usize + 1, UNLINKED);
        }
    }

    fn settle(&mut self, queue: usize, id: u32) {
        // There are fewer queues than ids.
        self.links[id as usize].queue = queue as u32;
        self.ends[queue].len += 1;
    }

    /// Makes two ids neighbours; no id stands for the end of the queue.
    fn join(&mut self, queue: usize, before: u32, after: u32) {
        match before {
            NONE => self.ends[queue].first = after,
            id => self.links[id as usize].after = after,
        }
        match after {
            NONE => self.ends[queue].last = before,
            id => self.links[id as usize].before = before,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn queues_are_queues(steps in prop::collection::vec((0_u8..3, 0_usize..3, 0_u32..12), 0..200)) {
            let mut queues = Queues::new();
            queues.have(3);
            let mut model = [const { VecDeque::<u32>::new() }; 3];
            for (what, queue, id) in steps {
                model.iter_mut().for_each(|ids| ids.retain(|&other| other != id));
                match what {
                    0 => { queues.push_last(queue, id); model[queue].push_back(id); }
                    1 => { queues.push_first(queue, id); model[queue].push_front(id); }
                    _ => queues.take(id),
                }
                for (at, ids) in model.iter().enumerate() {
                    prop_assert_eq!(queues.first(at), ids.front().copied());
                    prop_assert_eq!(queues.len(at), ids.len());
                    prop_assert!(ids.iter().all(|&id| queues.queue_of(id) == Some(at)));
                }
            }
            for (at, ids) in model.iter_mut().enumerate() {
                while let Some(id) = ids.pop_front() {
                    prop_assert_eq!(queues.first(at), Some(id));
                    queues.take(id);
                }
                prop_assert_eq!(queues.first(at), None);
            }
        }
    }
}
