//! The numbers of an engine's batches: what is next, what was heard before, what is missing.
//!
//! Numbers begin at 0 with each publisher and rise by one. What is missing can be asked for again for
//! a while ([`super::subscribe`] does). A number that goes back is a batch that came twice or late, if it
//! is one of those taken lately, or else a publisher that began anew. Pure.

use std::collections::VecDeque;

/// Batches remembered, to know them again: a line that brings one later than this after it was replayed
/// looks like a publisher that began anew, which costs a replay of everything.
const RECENT_MAX: usize = 1_024;

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the next: take it.
    Take,
    /// It was taken before: leave it.
    Known,
    /// Batches before it are missing: have them replayed, then ask about this one again with
    /// [`Sequence::settle`].
    Gap,
    /// Batches before it are lost: forget everything, then take it.
    Lost,
    /// The publisher began anew: forget everything, then ask about this one again.
    Restart,
}

/// The numbers of one publisher.
#[derive(Clone, Debug, Default)]
pub struct Sequence {
    next: u64,
    live_last: Option<u64>,
    /// The marks of the last batches taken; the last one is of `next - 1`.
    recent: VecDeque<u64>,
}

impl Sequence {
    /// The number of the next batch to take.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// A batch came live. `mark` is a number that tells its bytes from others.
    pub fn live(&mut self, number: u64, mark: u64) -> Verdict {
        let is_behind = self.live_last.is_some_and(|last| number <= last);
        let is_new_publisher = self.is_taken(number, mark).map_or(is_behind, |is_it| !is_it);
        if is_new_publisher {
            self.restart();
            return Verdict::Restart;
        }
        self.live_last = self.live_last.max(Some(number));
        match number {
            _ if number < self.next => Verdict::Known,
            _ if number == self.next => self.take(number, mark),
            _ => Verdict::Gap,
        }
    }

    /// A batch came from the replay. Older ones come first there. [`Verdict::Restart`] leaves everything
    /// as it was.
    pub fn replayed(&mut self, number: u64, mark: u64) -> Verdict {
        match self.is_taken(number, mark) {
            Some(false) => Verdict::Restart,
            _ => self.settle(number, mark),
        }
    }

    /// Whatever was to be had before `number` has come.
    pub fn settle(&mut self, number: u64, mark: u64) -> Verdict {
        match number {
            _ if number < self.next => Verdict::Known,
            _ if number == self.next => self.take(number, mark),
            _ => {
                self.recent.clear();
                self.take(number, mark);
                Verdict::Lost
            }
        }
    }

    /// The publisher began anew.
    pub fn restart(&mut self) {
        *self = Sequence::default();
    }

    /// Whether the batch of that number was this one; `None` when it was not taken or is forgotten.
    fn is_taken(&self, number: u64, mark: u64) -> Option<bool> {
        let back = usize::try_from(self.next.checked_sub(number)?).ok()?;
        let at = self.recent.len().checked_sub(back)?;
        self.recent.get(at).map(|taken| *taken == mark)
    }

    fn take(&mut self, number: u64, mark: u64) -> Verdict {
        self.next = number.saturating_add(1);
        if self.recent.len() >= RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(mark);
        Verdict::Take
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A subscriber that asks for a replay at every gap; `kept` is the first number still replayable.
    fn hear(sequence: &mut Sequence, number: u64, kept: u64, taken: &mut Vec<u64>) {
        let verdict = match sequence.live(number, mark(number)) {
            Verdict::Gap => {
                for old in sequence.next().max(kept)..number {
                    note(sequence.replayed(old, mark(old)), old, taken);
                }
                sequence.settle(number, mark(number))
            }
            verdict => verdict,
        };
        note(verdict, number, taken);
    }

    fn note(verdict: Verdict, number: u64, taken: &mut Vec<u64>) {
        match verdict {
            Verdict::Take => taken.push(number),
            Verdict::Lost => {
                taken.clear();
                taken.push(number);
            }
            Verdict::Known => {}
            Verdict::Gap | Verdict::Restart => panic!("settled above, and nobody began anew"),
        }
    }

    fn mark(number: u64) -> u64 {
        !number
    }

    /// What a line makes of batches `0..`: some are dropped, some come twice, some late.
    fn disturbed(troubles: &[(u8, usize)]) -> Vec<u64> {
        let mut places: Vec<(usize, u64)> = Vec::new();
        for (at, (trouble, by)) in troubles.iter().enumerate() {
            let number = at as u64;
            match trouble {
                0 => {}
                1 => places.extend([(at, number), (at + by, number)]),
                2 => places.push((at + by, number)),
                _ => places.push((at, number)),
            }
        }
        places.sort_by_key(|(place, _)| *place);
        places.into_iter().map(|(_, number)| number).collect()
    }

    proptest! {
        /// What is taken since the last loss is without gaps, and ends at the last number heard.
        #[test]
        fn nothing_is_taken_twice_or_left_out(
            heard in prop::collection::btree_set(0u64..200, 1..60),
            kept in prop::collection::vec(0u64..200, 60),
        ) {
            let (mut sequence, mut taken) = (Sequence::default(), Vec::new());
            for (number, kept) in heard.iter().zip(kept) {
                hear(&mut sequence, *number, kept, &mut taken);
                prop_assert_eq!(taken.last(), Some(number));
                prop_assert!(taken.windows(2).all(|pair| pair[1] == pair[0] + 1));
            }
        }

        /// Trouble of the line is told from a publisher that begins anew.
        #[test]
        fn a_line_that_drops_doubles_and_delays_costs_nothing_but_replays(
            troubles in prop::collection::vec((0u8..8, 0usize..20), 1..200),
        ) {
            let (mut sequence, mut taken) = (Sequence::default(), Vec::new());
            for number in disturbed(&troubles) {
                hear(&mut sequence, number, 0, &mut taken);
            }
            for number in sequence.next()..troubles.len() as u64 {
                note(sequence.replayed(number, mark(number)), number, &mut taken);
            }
            prop_assert_eq!(taken, (0..troubles.len() as u64).collect::<Vec<_>>());
        }

        /// Another publisher's batches are never taken for those before it.
        #[test]
        fn a_publisher_that_began_anew_is_seen_at_once(
            before in 1u64..3_000,
            number in 0u64..3_000,
            replays in any::<bool>(),
        ) {
            let mut sequence = Sequence::default();
            for number in 0..before {
                prop_assert_eq!(sequence.live(number, mark(number)), Verdict::Take);
            }
            let number = number % before;
            if replays {
                let is_recent = before - number <= RECENT_MAX as u64;
                let verdict = if is_recent { Verdict::Restart } else { Verdict::Known };
                prop_assert_eq!(sequence.replayed(number, 7), verdict);
                prop_assert_eq!(sequence.next(), before);
            } else {
                prop_assert_eq!(sequence.live(number, 7), Verdict::Restart);
                prop_assert_eq!(sequence.next(), 0);
            }
            prop_assert!(sequence.recent.len() <= RECENT_MAX);
        }

        #[test]
        fn with_everything_replayable_nothing_is_lost(
            heard in prop::collection::btree_set(0u64..200, 1..60),
        ) {
            let (mut sequence, mut taken) = (Sequence::default(), Vec::new());
            for number in &heard {
                hear(&mut sequence, *number, 0, &mut taken);
            }
            prop_assert_eq!(taken, (0..=*heard.last().unwrap()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_number_that_goes_back_is_a_new_publisher_unless_it_is_known() {
        let mut sequence = Sequence::default();
        assert_eq!(sequence.live(0, 10), Verdict::Take);
        assert_eq!(sequence.live(1, 11), Verdict::Take);
        assert_eq!(sequence.live(0, 10), Verdict::Known, "it came twice");
        assert_eq!(sequence.live(0, 20), Verdict::Restart);
        assert_eq!(sequence.live(0, 20), Verdict::Take);
        assert_eq!(sequence.live(5, 25), Verdict::Gap);
        assert_eq!(sequence.settle(5, 25), Verdict::Lost);
        assert_eq!(sequence.live(4, 24), Verdict::Restart, "it was never taken: all is asked for");
    }

    #[test]
    fn what_a_replay_was_ahead_with_is_known_when_it_comes_live() {
        let mut sequence = Sequence::default();
        for number in 0..5 {
            assert_eq!(sequence.replayed(number, mark(number)), Verdict::Take);
        }
        assert_eq!(sequence.live(3, mark(3)), Verdict::Known);
        assert_eq!(sequence.live(4, mark(4)), Verdict::Known);
        assert_eq!(sequence.live(5, mark(5)), Verdict::Take);
        assert_eq!(sequence.live(u64::MAX, 0), Verdict::Gap);
        assert_eq!(sequence.settle(u64::MAX, 0), Verdict::Lost);
    }
}
