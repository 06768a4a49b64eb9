//! The numbers of an engine's batches: what is next, what was heard before, what is missing.
//!
//! Numbers begin at 0 with each publisher and rise by one. What is missing can be asked for again for
//! a while ([`super::subscribe`] does); a number that goes back is a publisher that began anew. Pure.

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
}

impl Sequence {
    /// The number of the next batch to take.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// A batch came live.
    pub fn live(&mut self, number: u64) -> Verdict {
        if self.live_last.is_some_and(|last| number <= last) {
            self.restart();
            return Verdict::Restart;
        }
        self.live_last = Some(number);
        match number {
            _ if number < self.next => Verdict::Known,
            _ if number == self.next => self.take(number),
            _ => Verdict::Gap,
        }
    }

    /// A batch came from the replay. Older ones come first there.
    pub fn replayed(&mut self, number: u64) -> Verdict {
        self.settle(number)
    }

    /// Whatever was to be had before `number` has come.
    pub fn settle(&mut self, number: u64) -> Verdict {
        match number {
            _ if number < self.next => Verdict::Known,
            _ if number == self.next => self.take(number),
            _ => {
                self.take(number);
                Verdict::Lost
            }
        }
    }

    /// The publisher began anew.
    pub fn restart(&mut self) {
        *self = Sequence::default();
    }

    fn take(&mut self, number: u64) -> Verdict {
        self.next = number.saturating_add(1);
        Verdict::Take
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A subscriber that asks for a replay at every gap; `kept` is the first number still replayable.
    fn hear(sequence: &mut Sequence, number: u64, kept: u64, taken: &mut Vec<u64>) {
        let verdict = match sequence.live(number) {
            Verdict::Gap => {
                for old in sequence.next().max(kept)..number {
                    note(sequence.replayed(old), old, taken);
                }
                sequence.settle(number)
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
            Verdict::Gap | Verdict::Restart => panic!("settled above, and numbers rise here"),
        }
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
    fn a_number_that_goes_back_is_a_new_publisher() {
        let mut sequence = Sequence::default();
        assert_eq!(sequence.live(0), Verdict::Take);
        assert_eq!(sequence.live(1), Verdict::Take);
        assert_eq!(sequence.live(0), Verdict::Restart);
        assert_eq!(sequence.live(0), Verdict::Take);
        assert_eq!(sequence.live(0), Verdict::Restart, "twice the same is none that rises");
        assert_eq!(sequence.live(5), Verdict::Gap);
        assert_eq!(sequence.settle(5), Verdict::Lost);
    }

    #[test]
    fn what_a_replay_was_ahead_with_is_known_when_it_comes_live() {
        let mut sequence = Sequence::default();
        for number in 0..5 {
            assert_eq!(sequence.replayed(number), Verdict::Take);
        }
        assert_eq!(sequence.live(3), Verdict::Known);
        assert_eq!(sequence.live(4), Verdict::Known);
        assert_eq!(sequence.live(5), Verdict::Take);
        assert_eq!(sequence.live(u64::MAX), Verdict::Gap);
        assert_eq!(sequence.settle(u64::MAX), Verdict::Lost);
    }
}
