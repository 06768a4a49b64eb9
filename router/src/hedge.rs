//! Hedging of the first token: when to ask a second worker because the first is slower than usual. Off
//! by default, since a hedge computes a prompt twice. Pure but for its own counts; time comes in.
//!
//! It owns the distribution of times to first token of a model and the budget of hedges. It does not
//! send the second request or cancel the loser.
//!
//! Source: the hedged requests of Dean and Barroso ("The Tail at Scale", CACM 2013): wait for the 95th
//! percentile, so that about one request of twenty is asked twice. The budget holds this when
//! everything becomes slow at once and the percentile is not true any more. The histogram has buckets of
//! equal ratio, as DDSketch (VLDB 2019), and halves itself to forget.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use crate::retry::{RetryBudget, RetryConfig};

/// Reports of one class of prompts before a delay is told.
pub const SAMPLES_MIN: u64 = 64;
/// Buckets per doubling: a quantile is told at most 19 % too high.
const BUCKETS_PER_DOUBLING: f64 = 4.0;
/// From 1 ms to 2^20 ms, seventeen minutes.
const BUCKETS: usize = 80;
/// Prompts up to so many uncached tokens form a class: short ones must not be judged by long ones.
const CLASS_TOKENS: [u64; 5] = [256, 1_024, 4_096, 16_384, u64::MAX];
/// A class halves its counts when it has so many.
const FORGET_AT: u32 = 4_096;

/// `[router.hedge]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HedgeConfig {
    /// Whether a second worker is ever asked.
    pub enabled: bool,
    /// The share of like requests that had their first token by then.
    pub quantile: f64,
    /// Never earlier than this.
    pub delay_ms_min: u64,
    /// Hedges per request, over ten seconds.
    pub budget_ratio: f64,
    /// Only prompts with at most so many uncached tokens: longer ones cost too much twice.
    pub tokens_max: u64,
}

impl Default for HedgeConfig {
    fn default() -> Self {
        HedgeConfig {
            enabled: false,
            quantile: 0.95,
            delay_ms_min: 50,
            budget_ratio: 0.05,
            tokens_max: 8_192,
        }
    }
}

impl HedgeConfig {
    /// The first key that makes no sense, and what it must be.
    pub fn invalid(&self) -> Option<(&'static str, &'static str)> {
        if !(0.5..1.0).contains(&self.quantile) {
            return Some(("quantile", "must be 0.5 or more and below 1"));
        }
        (!(0.0..=1.0).contains(&self.budget_ratio))
            .then_some(("budget_ratio", "must be between 0 and 1"))
    }
}

/// Counts of one class of prompts.
#[derive(Debug)]
struct Class {
    counts: [AtomicU32; BUCKETS],
    /// Reports since the last halving, and what that left.
    total: AtomicU32,
}

impl Default for Class {
    fn default() -> Self {
        Class { counts: [const { AtomicU32::new(0) }; BUCKETS], total: AtomicU32::new(0) }
    }
}

impl Class {
    fn add(&self, ms: f64) {
        // The cast takes what is below 1 ms to the first bucket.
        let at = (ms.max(1.0).log2() * BUCKETS_PER_DOUBLING) as usize;
        self.counts[at.min(BUCKETS - 1)].fetch_add(1, Relaxed);
        // Exactly one core sees the number reached.
        if self.total.fetch_add(1, Relaxed) + 1 == FORGET_AT {
            self.counts.iter().for_each(|count| {
                let _ = count.fetch_update(Relaxed, Relaxed, |n| Some(n / 2));
            });
            self.total.store(FORGET_AT / 2, Relaxed);
        }
    }

    /// The upper end of the bucket that holds the quantile.
    fn quantile_ms(&self, quantile: f64) -> Option<f64> {
        let counts = self.counts.each_ref().map(|count| u64::from(count.load(Relaxed)));
        let total: u64 = counts.iter().sum();
        if total < SAMPLES_MIN {
            return None;
        }
        let wanted = (quantile * total as f64).ceil();
        let mut below = 0;
        let at = counts.iter().position(|count| {
            below += count;
            below as f64 >= wanted
        });
        at.map(|at| ((at + 1) as f64 / BUCKETS_PER_DOUBLING).exp2())
    }
}

/// The times to first token of one model, by length of the prompt; 1.6 KB, shared by the cores.
#[derive(Debug, Default)]
pub struct TtftStats {
    classes: [Class; CLASS_TOKENS.len()],
}

impl TtftStats {
    /// Nothing was seen.
    pub fn new() -> Self {
        Self::default()
    }

    /// A first token came `ttft_ms` after its request was first sent, whoever won.
    pub fn observe(&self, uncached_tokens: u64, ttft_ms: f64) {
        if ttft_ms.is_finite() && ttft_ms >= 0.0 {
            self.class(uncached_tokens).add(ttft_ms);
        }
    }

    /// The time by which this share of the like requests had their first token. `None` before
    /// [`SAMPLES_MIN`] of them.
    pub fn quantile_ms(&self, uncached_tokens: u64, quantile: f64) -> Option<f64> {
        self.class(uncached_tokens).quantile_ms(quantile)
    }

    fn class(&self, tokens: u64) -> &Class {
        let at = CLASS_TOKENS.iter().position(|most| tokens <= *most);
        &self.classes[at.unwrap_or(CLASS_TOKENS.len() - 1)]
    }
}

/// Who may be hedged, and how many. One for the whole router.
#[derive(Debug)]
pub struct Hedging {
    config: HedgeConfig,
    budget: RetryBudget,
}

impl Hedging {
    /// Nobody was hedged yet.
    pub fn new(config: HedgeConfig) -> Self {
        let budget = RetryBudget::new(&RetryConfig { ratio: config.budget_ratio, min_per_s: 0 });
        Hedging { config, budget }
    }

    /// A request came that may be hedged. Free while hedging is off.
    pub fn deposit(&self, now_ms: u64) {
        if self.config.enabled {
            self.budget.deposit(now_ms);
        }
    }

    /// How long to wait for the first token before a second worker is asked; `None`: never.
    pub fn delay_ms(&self, stats: &TtftStats, uncached_tokens: u64) -> Option<u64> {
        if !self.config.enabled || uncached_tokens > self.config.tokens_max {
            return None;
        }
        let ms = stats.quantile_ms(uncached_tokens, self.config.quantile)?;
        Some((ms.ceil() as u64).max(self.config.delay_ms_min))
    }

    /// The delay is over and no token came: whether the second worker may be asked. Counted if so.
    pub fn withdraw(&self, now_ms: u64) -> bool {
        self.config.enabled && self.budget.withdraw(now_ms)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn on() -> HedgeConfig {
        HedgeConfig { enabled: true, ..HedgeConfig::default() }
    }

    #[test]
    fn it_is_off_by_default() {
        let (hedging, stats) = (Hedging::new(HedgeConfig::default()), TtftStats::new());
        for _ in 0..1_000 {
            stats.observe(10, 100.0);
            hedging.deposit(0);
        }
        assert_eq!(hedging.delay_ms(&stats, 10), None);
        assert!(!hedging.withdraw(0));
    }

    #[test]
    fn a_delay_is_told_for_known_short_prompts_and_the_budget_ends_it() {
        let (hedging, stats) = (Hedging::new(on()), TtftStats::new());
        (0..SAMPLES_MIN - 1).for_each(|_| stats.observe(10, 100.0));
        assert_eq!(hedging.delay_ms(&stats, 10), None, "too few");
        stats.observe(256, 100.0);
        let delay_ms = hedging.delay_ms(&stats, 10).unwrap();
        assert!((100..=119).contains(&delay_ms), "{delay_ms}");
        assert_eq!(hedging.delay_ms(&stats, 257), None, "another class");
        (0..100).for_each(|_| stats.observe(9_000, 100.0));
        assert_eq!(hedging.delay_ms(&stats, 9_000), None, "too long to compute twice");
        (0..100).for_each(|_| stats.observe(500, 3.0));
        assert_eq!(hedging.delay_ms(&stats, 500), Some(50), "the least delay");
        (0..100).for_each(|_| hedging.deposit(0));
        assert_eq!((0..100).filter(|_| hedging.withdraw(1)).count(), 5);
    }

    #[test]
    fn it_forgets_what_is_long_ago() {
        let stats = TtftStats::new();
        (0..20_000).for_each(|_| stats.observe(10, 5_000.0));
        (0..20_000).for_each(|_| stats.observe(10, 100.0));
        let ms = stats.quantile_ms(10, 0.95).unwrap();
        assert!(ms < 120.0, "{ms}");
    }

    #[test]
    fn the_configuration_says_what_is_wrong_with_it() {
        assert_eq!(on().invalid(), None);
        let wrong = HedgeConfig { quantile: f64::NAN, ..on() };
        assert_eq!(wrong.invalid().unwrap().0, "quantile");
        let wrong = HedgeConfig { budget_ratio: 2.0, ..on() };
        assert_eq!(wrong.invalid().unwrap().0, "budget_ratio");
    }

    proptest! {
        #[test]
        fn a_quantile_is_at_most_a_bucket_above_the_sorted_one(
            mut times in prop::collection::vec(1f64..500_000.0, 64..600), quantile in 0.5f64..0.99,
        ) {
            let stats = TtftStats::new();
            times.iter().for_each(|ms| stats.observe(1, *ms));
            times.sort_by(f64::total_cmp);
            let exact = times[(quantile * times.len() as f64).ceil() as usize - 1];
            let told = stats.quantile_ms(1, quantile).unwrap();
            prop_assert!(told >= exact * 0.999 && told <= exact * 1.1893, "{told} {exact}");
        }

        #[test]
        fn no_number_from_outside_breaks_it(tokens: u64, ms: f64) {
            let stats = TtftStats::new();
            (0..SAMPLES_MIN).for_each(|_| stats.observe(tokens, ms));
            let told = stats.quantile_ms(tokens, 0.95);
            prop_assert_eq!(told.is_some(), ms.is_finite() && ms >= 0.0);
        }
    }
}
