//! The retry budget: retries are at most a share of the requests, or a bad minute becomes an outage.
//!
//! It owns the counts of the last ten seconds, shared by the cores without a lock. It does not decide
//! whether a failure may be tried again, nor where.
//!
//! Source: Finagle's `RetryBudget` and linkerd's: a share of the requests over a window, plus a small
//! rate so that a quiet gateway can retry at all. A fixed number of attempts per request would multiply
//! the load on a cluster that fails because of load.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

/// The window, in slots of one second.
pub const WINDOW_S: u64 = 10;
/// One slot more than the window: the one being filled does not push out a whole one.
const SLOTS: usize = WINDOW_S as usize + 1;

/// `[router.retry]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryConfig {
    /// Retries per request, over ten seconds.
    pub ratio: f64,
    /// Retries a second allowed on top, so that a quiet gateway can retry too.
    pub min_per_s: u32,
}

impl Default for RetryConfig {
    fn default() -> Self {
        RetryConfig { ratio: 0.2, min_per_s: 10 }
    }
}

impl RetryConfig {
    /// The first key that makes no sense, and what it must be.
    pub fn invalid(&self) -> Option<(&'static str, &'static str)> {
        (!(0.0..=10.0).contains(&self.ratio)).then_some(("ratio", "must be between 0 and 10"))
    }
}

/// A count of events over the last [`WINDOW_S`] seconds, lock-free.
///
/// A slot holds its second in the upper half and the count in the lower: one word, so that a slot that
/// is taken for a new second cannot keep counts of the old one.
#[derive(Debug, Default)]
struct Window {
    slots: [AtomicU64; SLOTS],
}

impl Window {
    /// Counts one event at second `now_s`.
    fn add(&self, now_s: u32) {
        let slot = &self.slots[now_s as usize % SLOTS];
        // A clock read before another core's may name a second that is already gone: counted there.
        let _ = slot.fetch_update(Relaxed, Relaxed, |word| {
            let newest = second(word).max(now_s);
            let count = if second(word) == newest { word as u32 } else { 0 };
            Some(u64::from(newest) << 32 | u64::from(count.saturating_add(1)))
        });
    }

    /// Takes one event back that was counted at `now_s`.
    fn undo(&self, now_s: u32) {
        let slot = &self.slots[now_s as usize % SLOTS];
        let _ = slot.fetch_update(Relaxed, Relaxed, |word| {
            (second(word) == now_s && word as u32 > 0).then(|| word - 1)
        });
    }

    /// Events in the second `now_s` and the `WINDOW_S - 1` before it.
    fn sum(&self, now_s: u32) -> u64 {
        let recent = |word: &u64| u64::from(now_s.saturating_sub(second(*word))) < WINDOW_S;
        let words = self.slots.iter().map(|slot| slot.load(Relaxed));
        words.filter(recent).map(|word| u64::from(word as u32)).sum()
    }
}

fn second(word: u64) -> u32 {
    (word >> 32) as u32
}

fn seconds(now_ms: u64) -> u32 {
    u32::try_from(now_ms / 1_000).unwrap_or(u32::MAX)
}

/// How many retries may still be made. One for the whole router, or one per model.
#[derive(Debug)]
pub struct RetryBudget {
    ratio: f64,
    reserve: f64,
    requests: Window,
    retries: Window,
}

impl RetryBudget {
    /// Nothing was asked or retried yet.
    pub fn new(config: &RetryConfig) -> Self {
        RetryBudget {
            // NaN becomes 0.
            ratio: config.ratio.max(0.0),
            reserve: f64::from(config.min_per_s) * WINDOW_S as f64,
            requests: Window::default(),
            retries: Window::default(),
        }
    }

    /// A request came in (its first attempt, not its retries).
    pub fn deposit(&self, now_ms: u64) {
        self.requests.add(seconds(now_ms));
    }

    /// Whether one retry may be made now; it is counted if so. Two cores that ask at the same moment
    /// for the last one may both be refused; both allowed they can only be while their clocks stand in
    /// different seconds.
    pub fn withdraw(&self, now_ms: u64) -> bool {
        let now_s = seconds(now_ms);
        // Taken before looking: what all cores took is in the sum that each of them reads.
        self.retries.add(now_s);
        let allowed = self.ratio * self.requests.sum(now_s) as f64 + self.reserve;
        let fits = self.retries.sum(now_s) as f64 <= allowed;
        if !fits {
            self.retries.undo(now_s);
        }
        fits
    }

    /// Retries left at this moment, for a gauge.
    pub fn left(&self, now_ms: u64) -> u64 {
        let now_s = seconds(now_ms);
        let allowed = self.ratio * self.requests.sum(now_s) as f64 + self.reserve;
        (allowed - self.retries.sum(now_s) as f64).max(0.0) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use proptest::prelude::*;

    use super::*;

    fn budget(ratio: f64, min_per_s: u32) -> RetryBudget {
        RetryBudget::new(&RetryConfig { ratio, min_per_s })
    }

    #[test]
    fn a_fifth_of_the_requests_may_be_retried_while_they_are_recent() {
        let budget = budget(0.2, 0);
        assert!(!budget.withdraw(0), "nothing was asked yet");
        (0..50).for_each(|_| budget.deposit(5_000));
        assert_eq!(budget.left(5_000), 10);
        assert_eq!((0..50).filter(|_| budget.withdraw(6_000)).count(), 10);
        assert!(!budget.withdraw(14_999));
        (0..5).for_each(|_| budget.deposit(15_000));
        assert!(!budget.withdraw(15_999), "the requests are forgotten before the retries");
        assert!(budget.withdraw(16_000));
        assert!(!budget.withdraw(16_000));
    }

    #[test]
    fn a_quiet_gateway_can_retry_and_senseless_ratios_allow_nothing() {
        let quiet = budget(0.2, 1);
        assert_eq!((0..99).filter(|_| quiet.withdraw(1)).count(), 10);
        let odd = budget(f64::NAN, 0);
        odd.deposit(1);
        assert!(!odd.withdraw(1));
        assert!(RetryConfig { ratio: f64::NAN, min_per_s: 0 }.invalid().is_some());
        assert!(RetryConfig::default().invalid().is_none());
    }

    #[test]
    fn cores_together_never_take_more_than_there_is() {
        let budget = budget(0.5, 0);
        (0..1_000).for_each(|_| budget.deposit(0));
        let taken = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        taken.fetch_add(u32::from(budget.withdraw(0)), Relaxed);
                    }
                });
            }
        });
        assert!((1..=500).contains(&taken.load(Relaxed)), "{taken:?}");
        // What was refused left nothing behind.
        assert_eq!(budget.left(0), u64::from(500 - taken.load(Relaxed)));
    }

    proptest! {
        #[test]
        fn it_counts_like_a_list_of_times(
            steps in prop::collection::vec((any::<bool>(), 0u64..2_500), 1..300),
            ratio in 0f64..1.0, min_per_s in 0u32..2,
        ) {
            let budget = budget(ratio, min_per_s);
            let (mut requests, mut retries, mut now_ms) = (Vec::new(), Vec::new(), 0u64);
            for (asks, wait_ms) in steps {
                now_ms += wait_ms;
                let now_s = now_ms / 1_000;
                if asks {
                    budget.deposit(now_ms);
                    requests.push(now_s);
                    continue;
                }
                let recent = |times: &[u64]| {
                    times.iter().filter(|&&at| now_s - at < WINDOW_S).count() as f64
                };
                let allowed = ratio * recent(&requests) + f64::from(min_per_s) * WINDOW_S as f64;
                let fits = recent(&retries) + 1.0 <= allowed;
                prop_assert_eq!(budget.withdraw(now_ms), fits);
                if fits {
                    retries.push(now_s);
                }
            }
        }
    }
}
