//! What each peer is still to be told: which blocks came, which went.
//!
//! Pure. One log for all peers, bounded; each peer reads it at its own pace with a cursor. Who is new, or
//! has fallen behind the log, is told all blocks again, piece by piece, from the end of a list: a block
//! that leaves the list is replaced by its last one, which was told before or is told again.

use std::collections::{HashMap, VecDeque};

use super::wire::{FRAME_PRINTS_MAX, Frame};

/// Changes remembered for peers that are behind.
const CHANGES_MAX: usize = 65_536;

/// What this daemon holds and what changed.
#[derive(Debug)]
pub struct Log {
    held_max: usize,
    held: Vec<u64>,
    places: HashMap<u64, usize, foldhash::fast::RandomState>,
    changes: VecDeque<(u64, bool)>,
    /// The number of the first of `changes`.
    first: u64,
}

/// How far one peer has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Blocks before this place of the list are still to be told.
    untold: usize,
    /// The number of the next change to be told.
    next: u64,
}

impl Log {
    /// A log that tells of at most `held_max` blocks.
    pub fn new(held_max: usize) -> Log {
        Log {
            held_max,
            held: Vec::new(),
            places: HashMap::default(),
            changes: VecDeque::new(),
            first: 0,
        }
    }

    /// A cursor of one who knows nothing.
    pub fn cursor(&self) -> Cursor {
        Cursor { untold: self.held.len(), next: self.first + self.changes.len() as u64 }
    }

    /// Whether a block is held here.
    pub fn holds(&self, print: u64) -> bool {
        self.places.contains_key(&print)
    }

    /// A block came or went.
    pub fn note(&mut self, print: u64, is_added: bool) {
        if is_added == self.holds(print) || (is_added && self.held.len() >= self.held_max) {
            return;
        }
        if is_added {
            self.places.insert(print, self.held.len());
            self.held.push(print);
        } else if let Some(place) = self.places.remove(&print) {
            self.held.swap_remove(place);
            if let Some(moved) = self.held.get(place) {
                self.places.insert(*moved, place);
            }
        }
        if self.changes.len() >= CHANGES_MAX {
            self.changes.pop_front();
            self.first += 1;
        }
        self.changes.push_back((print, is_added));
    }

    /// The next thing to tell one peer, of at most one frame's size; none if it knows all.
    pub fn next(&self, cursor: &mut Cursor) -> Option<Frame> {
        if cursor.next < self.first {
            *cursor = self.cursor();
        }
        if cursor.untold > 0 {
            let end = cursor.untold.min(self.held.len());
            cursor.untold = end.saturating_sub(FRAME_PRINTS_MAX);
            return Some(Frame::Added(self.held[cursor.untold..end].to_vec()));
        }
        let from = (cursor.next - self.first) as usize;
        let is_added = self.changes.get(from)?.1;
        let same = self.changes.iter().skip(from).take(FRAME_PRINTS_MAX);
        let prints: Vec<u64> =
            same.take_while(|change| change.1 == is_added).map(|change| change.0).collect();
        cursor.next += prints.len() as u64;
        Some(if is_added { Frame::Added(prints) } else { Frame::Removed(prints) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn told(log: &Log, cursor: &mut Cursor, known: &mut BTreeSet<u64>, frames: usize) {
        for _ in 0..frames {
            match log.next(cursor) {
                Some(Frame::Added(prints)) => known.extend(prints),
                Some(Frame::Removed(prints)) => known.retain(|print| !prints.contains(print)),
                _ => return,
            }
        }
    }

    proptest! {
        #[test]
        fn who_is_told_all_knows_what_is_held(
            changes in vec((0u64..30, any::<bool>(), 0usize..3), 0..200),
            joins in 0usize..200,
        ) {
            let mut log = Log::new(30);
            let (mut model, mut known) = (BTreeSet::new(), BTreeSet::new());
            let mut cursor = None;
            for (number, (print, is_added, frames)) in changes.into_iter().enumerate() {
                log.note(print, is_added);
                if is_added { model.insert(print); } else { model.remove(&print); }
                if number == joins {
                    cursor = Some(log.cursor());
                }
                if let Some(cursor) = &mut cursor {
                    told(&log, cursor, &mut known, frames);
                }
            }
            let mut cursor = cursor.unwrap_or_else(|| log.cursor());
            told(&log, &mut cursor, &mut known, 1_000);
            prop_assert_eq!(known, model);
        }
    }

    #[test]
    fn who_falls_behind_is_told_all_again() {
        let mut log = Log::new(10);
        let mut cursor = log.cursor();
        log.note(1, true);
        for _ in 0..CHANGES_MAX {
            log.note(2, true);
            log.note(2, false);
        }
        assert_eq!(log.changes.len(), CHANGES_MAX);
        let mut known = BTreeSet::new();
        told(&log, &mut cursor, &mut known, 1_000);
        assert_eq!(known, BTreeSet::from([1]));
    }
}
