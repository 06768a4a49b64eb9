//! Which namespaces have blocks in the order, by a small number each, so that each has queues of its own.
//!
//! A number is given back with the last block; there are never more than namespaces with blocks.
use foldhash::{HashMap, HashMapExt};

use crate::key::NamespaceId;

#[derive(Debug)]
pub(super) struct Groups {
    numbers: HashMap<NamespaceId, usize>,
    /// Blocks of each number, and whose they are.
    blocks: Vec<(NamespaceId, usize)>,
    free: Vec<usize>,
}

impl Groups {
    pub(super) fn new() -> Groups {
        Groups { numbers: HashMap::new(), blocks: Vec::new(), free: Vec::new() }
    }

    /// Counts a block and says its namespace's number.
    pub(super) fn enter(&mut self, namespace: NamespaceId) -> usize {
        let number = *self.numbers.entry(namespace).or_insert_with(|| {
            self.free.pop().unwrap_or_else(|| {
                self.blocks.push((namespace, 0));
                self.blocks.len() - 1
            })
        });
        let (of, blocks) = &mut self.blocks[number];
        *of = namespace;
        *blocks += 1;
        number
    }

    /// Counts a block less.
    pub(super) fn leave(&mut self, number: usize) {
        let (namespace, blocks) = &mut self.blocks[number];
        *blocks -= 1;
        if *blocks == 0 {
            self.numbers.remove(namespace);
            self.free.push(number);
        }
    }

    /// The number of a namespace that has blocks.
    pub(super) fn number(&self, namespace: NamespaceId) -> Option<usize> {
        self.numbers.get(&namespace).copied()
    }

    /// Numbers given up to now; some may be free.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        let mut groups = Groups::new();
        let [one, two, three] = [1, 2, 3].map(|byte| NamespaceId([byte; 16]));
        assert_eq!([one, two, one].map(|of| groups.enter(of)), [0, 1, 0]);
        groups.leave(0);
        assert_eq!((groups.number(one), groups.number(two)), (Some(0), Some(1)));
        groups.leave(0);
        assert_eq!((groups.number(one), groups.enter(three)), (None, 0));
        assert_eq!((groups.number(three), groups.len()), (Some(0), 2));
        for round in 0..50 {
            let number = groups.enter(NamespaceId([round + 10; 16]));
            groups.leave(number);
        }
        assert_eq!(groups.len(), 3);
    }
}
