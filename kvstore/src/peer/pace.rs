//! How fast a peer answers, learned: who is asked first, and when another is asked too.
//!
//! Pure: durations in, decisions out.

use std::time::Duration;

/// Answers remembered: enough for a 95th percentile, few enough to follow a change within a second.
const SAMPLES_MAX: usize = 64;
/// Before so many answers nothing is learned.
const SAMPLES_MIN: usize = 8;
/// The wait before a second peer is asked, while nothing is learned: ten times the wire time of 1 MiB
/// at 1 Gbit/s.
const DELAY_UNLEARNED: Duration = Duration::from_millis(80);
/// Never sooner: below a timer's own grain a second question is wasted.
const DELAY_MIN: Duration = Duration::from_millis(2);
/// Never later: half of what an engine waits for a prefetch at most.
const DELAY_MAX: Duration = Duration::from_millis(500);

/// What is known of one peer's speed.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    samples: Vec<Duration>,
    next: usize,
    mean_us: f64,
    /// Requests that wait for it now.
    pub asked: u32,
    /// What it said last of the requests it answers.
    pub load: u16,
}

impl Pace {
    /// A block took this long since the one before it, or since it was asked for.
    pub fn learn(&mut self, took: Duration) {
        if self.samples.len() < SAMPLES_MAX {
            self.samples.push(took);
        } else {
            self.samples[self.next] = took;
            self.next = (self.next + 1) % SAMPLES_MAX;
        }
        let us = took.as_secs_f64() * 1e6;
        self.mean_us = if self.mean_us == 0.0 { us } else { self.mean_us * 0.9 + us * 0.1 };
    }

    /// How long nothing may come before another peer is asked: the 95th percentile.
    pub fn hedge_delay(&self) -> Duration {
        if self.samples.len() < SAMPLES_MIN {
            return DELAY_UNLEARNED;
        }
        let mut sorted = self.samples.clone();
        sorted.sort_unstable();
        sorted[(sorted.len() * 95 / 100).min(sorted.len() - 1)].clamp(DELAY_MIN, DELAY_MAX)
    }

    /// What asking it costs: its time for a block, times how many wait there. An unknown peer is tried.
    pub fn cost(&self) -> f64 {
        let waiting = f64::from(self.asked.max(u32::from(self.load))) + 1.0;
        self.mean_us.max(1.0) * waiting
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_delay_is_the_95th_percentile_of_the_last(times in proptest::collection::vec(1u64..900, 0..200)) {
            let mut pace = Pace::default();
            times.iter().for_each(|ms| pace.learn(Duration::from_millis(*ms)));
            let mut last: Vec<u64> = times.iter().rev().take(SAMPLES_MAX).copied().collect();
            last.sort_unstable();
            let expected = match last.len() < SAMPLES_MIN {
                true => DELAY_UNLEARNED,
                false => Duration::from_millis(last[last.len() * 95 / 100]).clamp(DELAY_MIN, DELAY_MAX),
            };
            prop_assert_eq!(pace.hedge_delay(), expected);
        }
    }

    #[test]
    fn a_slow_or_a_busy_peer_is_asked_later() {
        let quick = || {
            let mut pace = Pace::default();
            pace.learn(Duration::from_millis(1));
            pace
        };
        let mut slow = Pace::default();
        slow.learn(Duration::from_millis(9));
        assert!(quick().cost() < slow.cost());
        let busy = Pace { asked: 20, ..quick() };
        assert!(slow.cost() < busy.cost());
        let loaded = Pace { load: 20, ..quick() };
        assert!(slow.cost() < loaded.cost());
    }
}
