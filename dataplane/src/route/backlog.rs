//! The prefill work in front of a worker, as far as its router can know it: what it gave, less what first
//! tokens say is done. [`Backlog`] is what a decision reads, one value; [`Line`] is the order behind it,
//! which whoever gives and takes keeps.

use std::collections::VecDeque;

/// Works of one worker that are remembered one by one. More than so many prefills in front of one engine
/// are seconds of work at least, and then which of them runs no longer decides anything.
const LINE_MAX: usize = 256;
/// Of the prefill that runs, so much counts as done at most: an engine slower than expected has not
/// finished because it should have.
const DONE_MAX: f64 = 0.95;

/// Work given to a worker whose first tokens have not come. Times are ms of one clock.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    /// Requests that wait for their first token.
    pub waiting: u32,
    /// What their prefills were expected to take when they were given, in ms.
    pub given_ms: f64,
    /// Of that, the prefill that runs: the one given first. 0: not known.
    pub first_ms: f64,
    /// Since when the first of them can be at work: the last first token there, or when it came to a
    /// worker that had nothing to do.
    pub since_ms: f64,
}

impl Backlog {
    /// Work that is left, in ms.
    ///
    /// Engines prefill in the order in which requests came, so the first runs. Where it is not known it
    /// is taken to be as long as they are on average, and to be at most half done.
    pub fn left_ms(&self, now_ms: f64) -> f64 {
        if self.waiting == 0 {
            return 0.0;
        }
        let done_ms_max = match self.first_ms > 0.0 {
            true => self.first_ms * DONE_MAX,
            false => self.given_ms / f64::from(self.waiting) / 2.0,
        };
        let done_ms = (now_ms - self.since_ms).clamp(0.0, done_ms_max.max(0.0));
        (self.given_ms - done_ms).max(0.0)
    }
}

/// Who waits at one worker, in order, in µs of prefill. Remembers the first [`LINE_MAX`] and counts all.
#[derive(Clone, Debug, Default)]
pub struct Line {
    works_us: VecDeque<u64>,
    waiting: u32,
    given_us: u64,
    since_ms: u64,
}

impl Line {
    /// A request is given to the worker.
    pub fn give(&mut self, now_ms: u64, prefill_us: u64) {
        if self.waiting == 0 {
            self.since_ms = now_ms;
        }
        // A line with a gap has lost its order: until those behind it are gone, nobody joins.
        if self.works_us.len() < LINE_MAX && self.works_us.len() == self.waiting as usize {
            self.works_us.push_back(prefill_us);
        }
        self.waiting = self.waiting.saturating_add(1);
        self.given_us = self.given_us.saturating_add(prefill_us);
    }

    /// Its first token came, or it went away without one.
    pub fn take(&mut self, now_ms: u64, prefill_us: u64) {
        // Two of one length are the same work, whichever it was.
        if let Some(at) = self.works_us.iter().position(|work_us| *work_us == prefill_us) {
            self.works_us.remove(at);
        }
        self.waiting = self.waiting.saturating_sub(1);
        self.given_us = self.given_us.saturating_sub(prefill_us);
        self.since_ms = now_ms;
    }

    /// Requests that wait for their first token.
    pub fn waiting(&self) -> u32 {
        self.waiting
    }

    /// What their prefills were expected to take, in µs.
    pub fn given_us(&self) -> u64 {
        self.given_us
    }

    /// Since when the first can be at work, in ms.
    pub fn since_ms(&self) -> u64 {
        self.since_ms
    }

    /// The prefill that runs, in µs; 0 when nobody knows.
    pub fn first_us(&self) -> u64 {
        self.works_us.front().copied().unwrap_or(0)
    }

    /// What a decision needs of it.
    pub fn backlog(&self) -> Backlog {
        Backlog {
            waiting: self.waiting,
            given_ms: self.given_us as f64 / 1_000.0,
            first_ms: self.first_us() as f64 / 1_000.0,
            since_ms: self.since_ms as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_runs_counts_less_as_it_goes_on_but_never_nothing() {
        let mut line = Line::default();
        line.give(1_000, 100_000);
        line.give(1_010, 300_000);
        let left_ms = |line: &Line, now_ms| line.backlog().left_ms(now_ms);
        assert_eq!(left_ms(&line, 1_000.0), 400.0);
        assert_eq!(left_ms(&line, 1_040.0), 360.0);
        assert_eq!(left_ms(&line, 9_000.0), 305.0);
        line.take(1_200, 100_000);
        assert_eq!(left_ms(&line, 1_200.0), 300.0);
        assert_eq!(left_ms(&line, 1_400.0), 100.0, "a long one that is nearly done is known to be");
        line.take(1_500, 300_000);
        assert_eq!(left_ms(&line, 1_500.0), 0.0);
    }

    #[test]
    fn of_an_unknown_order_half_of_the_average_may_be_done() {
        let backlog = Backlog { waiting: 2, given_ms: 400.0, first_ms: 0.0, since_ms: 0.0 };
        assert_eq!(backlog.left_ms(40.0), 360.0);
        assert_eq!(backlog.left_ms(9_000.0), 300.0);
    }

    /// What a line does, with every request in a list of its own.
    fn naive_left_ms(all: &[u64], since_ms: u64, now_ms: u64) -> f64 {
        let Some(first_us) = all.first() else { return 0.0 };
        let sum_ms = all.iter().sum::<u64>() as f64 / 1_000.0;
        let first_ms = *first_us as f64 / 1_000.0;
        sum_ms - ((now_ms - since_ms) as f64).min(first_ms * DONE_MAX)
    }

    proptest! {
        /// Whoever goes, in whatever order.
        #[test]
        fn a_line_is_a_list(
            steps in prop::collection::vec((any::<bool>(), 1u64..400, 0u64..500_000, any::<prop::sample::Index>()), 0..80),
        ) {
            let (mut line, mut all, mut now_ms, mut since_ms) = (Line::default(), Vec::new(), 0, 0);
            for (gives, wait_ms, work, which) in steps {
                now_ms += wait_ms;
                // Of few lengths, so that some are alike; none that take no time.
                let work_us = (work / 100_000 + 1) * 50_000;
                if gives {
                    if all.is_empty() {
                        since_ms = now_ms;
                    }
                    all.push(work_us);
                    line.give(now_ms, work_us);
                } else if !all.is_empty() {
                    let gone = all[which.index(all.len())];
                    all.remove(all.iter().position(|work_us| *work_us == gone).unwrap());
                    since_ms = now_ms;
                    line.take(now_ms, gone);
                }
                let left_ms = line.backlog().left_ms(now_ms as f64 + 30.0);
                let naive_ms = naive_left_ms(&all, since_ms, now_ms + 30);
                prop_assert!((left_ms - naive_ms).abs() < 1e-6, "{} {}", left_ms, naive_ms);
            }
        }

        #[test]
        fn a_line_longer_than_it_remembers_ends_empty_and_is_never_negative(
            works in prop::collection::vec((0u64..1_000, 0u64..1_000_000), LINE_MAX..LINE_MAX + 60),
            backwards: bool,
        ) {
            let mut line = Line::default();
            let mut now_ms = 0;
            for (wait_ms, work_us) in &works {
                now_ms += wait_ms;
                line.give(now_ms, *work_us);
                prop_assert!(line.works_us.len() <= LINE_MAX);
                prop_assert!(line.backlog().left_ms(now_ms as f64 + 5.0) >= 0.0);
            }
            let mut order: Vec<u64> = works.iter().map(|(_, work_us)| *work_us).collect();
            if backwards {
                order.reverse();
            }
            for work_us in order {
                now_ms += 1;
                line.take(now_ms, work_us);
                prop_assert!(line.backlog().left_ms(now_ms as f64) >= 0.0);
            }
            prop_assert_eq!(line.waiting, 0);
            prop_assert!(line.works_us.is_empty());
            prop_assert_eq!(line.backlog().left_ms(now_ms as f64), 0.0);
        }
    }
}
