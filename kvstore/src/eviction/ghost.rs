//! Blocks that were evicted lately: their fingerprints and what they were worth, without their bytes.
//!
//! It is bounded by the bytes of the blocks it stands for and by their number. It decides nothing.
use std::collections::VecDeque;

use foldhash::{HashMap, HashMapExt};

use super::CLASSES;

/// Most blocks remembered, about 60 MB: enough for a cache of 256 GiB of the smallest blocks we expect
/// (256 KiB). Of smaller ones a shorter past is known.
pub(super) const ENTRIES_MAX: usize = 1 << 20;

#[derive(Clone, Copy, Debug)]
struct Past {
    bytes: u64,
    /// Tells this eviction from an earlier one of the same block.
    turn: u64,
    class: u8,
}

/// What was evicted, oldest first out.
#[derive(Debug)]
pub(super) struct Ghost {
    past: HashMap<u64, Past>,
    order: VecDeque<(u64, u64)>,
    turn: u64,
    bytes: [u64; CLASSES],
}

impl Ghost {
    pub(super) fn new() -> Ghost {
        Ghost { past: HashMap::new(), order: VecDeque::new(), turn: 0, bytes: [0; CLASSES] }
    }

    /// Bytes of the blocks remembered, by the class they were evicted from.
    pub(super) fn bytes(&self) -> &[u64; CLASSES] {
        &self.bytes
    }

    /// Remembers a block, and forgets the oldest beyond `bytes_max`.
    pub(super) fn put(&mut self, fingerprint: u64, class: usize, bytes: u64, bytes_max: u64) {
        self.turn += 1;
        self.take(fingerprint);
        // There are fewer classes than 256.
        self.past.insert(fingerprint, Past { bytes, turn: self.turn, class: class as u8 });
        self.bytes[class] += bytes;
        self.order.push_back((fingerprint, self.turn));
        while self.order.len() > ENTRIES_MAX || self.bytes.iter().sum::<u64>() > bytes_max {
            let Some((fingerprint, turn)) = self.order.pop_front() else { break };
            if self.past.get(&fingerprint).is_some_and(|past| past.turn == turn) {
                self.take(fingerprint);
            }
        }
    }

    /// The class a block was evicted from, if it is remembered.
    pub(super) fn class_of(&self, fingerprint: u64) -> Option<usize> {
        self.past.get(&fingerprint).map(|past| usize::from(past.class))
    }

    pub(super) fn take(&mut self, fingerprint: u64) {
        if let Some(past) = self.past.remove(&fingerprint) {
            self.bytes[usize::from(past.class)] -= past.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_last_evictions_are_remembered(
            steps in prop::collection::vec((0_u64..20, 0..CLASSES, 1_u64..9, any::<bool>()), 0..200)
        ) {
            let mut ghost = Ghost::new();
            let mut model: Vec<(u64, usize, u64)> = Vec::new();
            for (fingerprint, class, bytes, put) in steps {
                model.retain(|&(other, ..)| other != fingerprint);
                if put {
                    model.push((fingerprint, class, bytes));
                    while model.iter().map(|&(.., bytes)| bytes).sum::<u64>() > 40 {
                        model.remove(0);
                    }
                    ghost.put(fingerprint, class, bytes, 40);
                } else {
                    ghost.take(fingerprint);
                }
                for fingerprint in 0..20 {
                    let known = model.iter().find(|&&(other, ..)| other == fingerprint);
                    prop_assert_eq!(ghost.class_of(fingerprint), known.map(|&(_, class, _)| class));
                }
                for class in 0..CLASSES {
                    let of_class = model.iter().filter(|&&(_, other, _)| other == class);
                    prop_assert_eq!(ghost.bytes()[class], of_class.map(|&(.., bytes)| bytes).sum::<u64>());
                }
            }
        }
    }

    #[test]
    fn the_number_of_blocks_is_bounded_too() {
        let mut ghost = Ghost::new();
        for fingerprint in 0..ENTRIES_MAX as u64 + 10 {
            ghost.put(fingerprint, 1, 1, u64::MAX);
            if fingerprint.is_multiple_of(2) {
                ghost.take(fingerprint);
            }
        }
        assert!(ghost.order.len() <= ENTRIES_MAX && ghost.past.len() <= ENTRIES_MAX);
        assert_eq!((ghost.class_of(1), ghost.class_of(11)), (None, Some(1)));
    }
}
