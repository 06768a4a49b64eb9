//! What peers fetch often: fetches of each block within a window, counted in a table of fixed size.
//!
//! Pure; time comes in. It decides that a block is hot, not what becomes of it: that is [`offer`](super::offer).
//!
//! The table is a count-min sketch. A table of keys would be full within a second at what one wire carries
//! (10,000 blocks of 256 KiB), and a hot block that came after that would not be seen. The sketch may count a
//! block too high, never too low: at worst one copy is offered that nobody needed.

use std::time::{Duration, Instant};

use super::wire::{HOT_BLOCKS_MAX, Offered};
use crate::key::Key;

/// Within this time fetches of one block are counted.
const WINDOW: Duration = Duration::from_secs(10);
/// Counters for each block; the lowest is believed.
const ROWS: usize = 4;
/// Counters of a row. 100,000 blocks fetched once within a window put 1.5 into each: that all four of
/// another block have the 8 of `hot_fetches` by that happens once in 10^13.
const COLUMNS: usize = 1 << 16;

/// Counts what peers fetch from here.
#[derive(Debug)]
pub struct Heat {
    fetches: u32,
    counts: Box<[u8]>,
    began: Instant,
    hot: Vec<Offered>,
}

impl Heat {
    /// A block is hot when fetched `fetches` times within 10 s; 0: none ever is. Beyond 255 nothing is
    /// counted: more is as 255.
    pub fn new(fetches: u32, now: Instant) -> Heat {
        let counts = vec![0; ROWS * COLUMNS].into_boxed_slice();
        Heat { fetches: fetches.min(u32::from(u8::MAX)), counts, began: now, hot: Vec::new() }
    }

    /// From here on a block is hot at another number of fetches.
    pub fn set_fetches(&mut self, fetches: u32) {
        self.fetches = fetches.min(u32::from(u8::MAX));
    }

    /// A peer fetched `key`, a block of so many bytes.
    pub fn count(&mut self, key: Key, bytes: u64, now: Instant) {
        if self.fetches == 0 {
            return;
        }
        if now.saturating_duration_since(self.began) >= WINDOW {
            self.counts.fill(0);
            self.began = now;
        }
        let cells = cells(key.fingerprint());
        let lowest = cells.iter().map(|&cell| self.counts[cell]).min().unwrap_or(0);
        // Only the lowest grow: what others put into the rest is not made larger.
        for cell in cells {
            self.counts[cell] = self.counts[cell].max(lowest.saturating_add(1));
        }
        // Exactly once a window, and no more than one frame tells of.
        let is_hot = u32::from(lowest) + 1 == self.fetches;
        if is_hot && lowest < u8::MAX && self.hot.len() < HOT_BLOCKS_MAX {
            self.hot.push(Offered { key, bytes });
        }
    }

    /// What became hot since this was asked last.
    pub fn take(&mut self) -> Vec<Offered> {
        std::mem::take(&mut self.hot)
    }
}

/// One counter in each row. A fingerprint is uniform already: each row takes other bits of it.
fn cells(print: u64) -> [usize; ROWS] {
    std::array::from_fn(|row| row * COLUMNS + (print >> (row * 16)) as usize % COLUMNS)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::key::{Name, NamespaceId};

    fn key(number: u64) -> Key {
        Key::new(NamespaceId::of("n"), Name::of(&number.to_le_bytes()))
    }

    proptest! {
        #[test]
        fn a_block_is_hot_exactly_once_a_window_when_fetched_often_enough(
            fetched in proptest::collection::vec(0u64..12, 0..200),
            fetches in 1u32..9,
        ) {
            let now = Instant::now();
            let mut heat = Heat::new(fetches, now);
            let mut counts: HashMap<u64, u32> = HashMap::new();
            for number in fetched {
                heat.count(key(number), number, now);
                let count = counts.entry(number).or_default();
                *count += 1;
                let expected: &[Offered] = match *count == fetches {
                    true => &[Offered { key: key(number), bytes: number }],
                    false => &[],
                };
                prop_assert_eq!(heat.take(), expected);
            }
        }
    }

    #[test]
    fn windows_do_not_add_up_and_zero_is_never() {
        let now = Instant::now();
        let mut heat = Heat::new(3, now);
        (0..2).for_each(|_| heat.count(key(1), 7, now));
        heat.count(key(1), 7, now + WINDOW);
        assert_eq!(heat.take(), []);
        (0..9).for_each(|_| heat.count(key(1), 7, now + WINDOW));
        assert_eq!(heat.take(), [Offered { key: key(1), bytes: 7 }]);
        heat.set_fetches(0);
        (0..9).for_each(|_| heat.count(key(2), 7, now + WINDOW));
        assert_eq!(heat.take(), []);
    }

    #[test]
    fn a_scan_of_a_whole_window_neither_hides_a_hot_block_nor_makes_one() {
        let now = Instant::now();
        let mut heat = Heat::new(8, now);
        for number in 0..100_000 {
            heat.count(key(number), 1, now);
        }
        assert_eq!(heat.take(), []);
        (0..8).for_each(|_| heat.count(key(1_000_000), 1, now));
        assert_eq!(heat.take().len(), 1);
        for number in 0..1_000 {
            (0..255).for_each(|_| heat.count(key(number), 1, now));
        }
        assert_eq!(heat.take().len(), HOT_BLOCKS_MAX);
    }
}
