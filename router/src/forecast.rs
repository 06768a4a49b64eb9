//! When a request's first token will come, learned from when those before it came. Pure but for its
//! own memory, shared by the cores; time comes in.
//!
//! ```text
//! ttft = wait + base + per_token · uncached tokens          base, per_token: least squares, forgetting
//! wait = max(0, running + ahead + 1 − places) · service / places      ahead = tokens ahead / mean prompt
//! ```
//!
//! Readers load atomics. Those who report take a lock that nobody waits for: a report that finds it
//! taken is dropped, the next one says the same.
//!
//! It would rather admit than refuse: it predicts nothing before [`SAMPLES_MIN`] reports, nor after
//! [`STALE_MS`] without one, or a forecast that refuses everybody would never learn that it is wrong.
//!
//! Sources: prefill time linear in the tokens to compute, as Mooncake's admission predicts it (FAST
//! 2025, §7); the wait as of a queue before `places` equal servers; exponential forgetting is recursive
//! least squares; the fit stays on its non-negative boundary (Lawson and Hanson 1974).

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Reports before anything is predicted.
pub const SAMPLES_MIN: u32 = 16;
/// Without a report for so long the forecast is silent until the next one.
pub const STALE_MS: u64 = 30_000;
/// `Retry-After` is never longer: what is predicted beyond a minute is a guess.
pub const RETRY_AFTER_S_MAX: u64 = 60;
/// Each report makes all earlier ones count this part less: about the last 128 decide.
const FORGET_PART: f64 = 1.0 / 64.0;
/// A report above so many times the prediction counts as so many times: one stall is not the rule.
const OUTLIER_RATIO: f64 = 8.0;
/// Below this prediction nothing is an outlier, in ms: noise of a fast engine.
const OUTLIER_FLOOR_MS: f64 = 10.0;
/// Errors grow with the prompt; from about this length on they count relative to it.
const RELATIVE_FROM_TOKENS: f64 = 256.0;
/// Prompts must differ by this (variance over square) before a slope is read from them.
const SPREAD_MIN: f64 = 1e-3;
/// Longer prompts count as this long.
const TOKENS_MAX: u64 = 1 << 24;
/// A request that took longer, in ms, counts as this long: one day.
const MS_MAX: f64 = 86_400_000.0;

/// How busy the workers of a model are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Uncached tokens of those who would go first, see `WaitingRoom::tokens_ahead_of`.
    pub tokens_ahead: u64,
    /// Requests the ready workers work on at once.
    pub places: u32,
    /// Requests they have.
    pub running: u32,
}

/// Whether a request with a deadline is worth taking.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// It will be in time, or nobody knows.
    Admit,
    /// It will be late.
    Late {
        /// Predicted time to first token.
        ttft_ms: f64,
        /// After this it would be in time, if nobody else came.
        retry_after_s: u64,
    },
}

/// Weighted sums of a straight line through the reports.
#[derive(Debug, Default)]
struct Sums {
    weight: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl Sums {
    fn add(&mut self, x: f64, y: f64) {
        let weight = (1.0 + x / RELATIVE_FROM_TOKENS).powi(-2);
        let keep = 1.0 - FORGET_PART;
        self.weight = self.weight * keep + weight;
        self.x = self.x * keep + weight * x;
        self.y = self.y * keep + weight * y;
        self.xx = self.xx * keep + weight * x * x;
        self.xy = self.xy * keep + weight * x * y;
    }

    /// The best line with neither part below zero. Where the prompts are all alike, the slope stays
    /// what it was and only the base follows.
    fn line(&self, old: Line) -> Line {
        let spread = self.weight * self.xx - self.x * self.x;
        if spread <= SPREAD_MIN * self.weight * self.xx {
            let base = (self.y - f64::from(old.per_token_ms) * self.x) / self.weight;
            if base >= 0.0 {
                return Line { base_ms: base as f32, per_token_ms: old.per_token_ms };
            }
            return self.line_through_origin();
        }
        let slope = (self.weight * self.xy - self.x * self.y) / spread;
        if slope < 0.0 {
            return Line { base_ms: (self.y / self.weight) as f32, per_token_ms: 0.0 };
        }
        let base = (self.y - slope * self.x) / self.weight;
        if base < 0.0 {
            return self.line_through_origin();
        }
        Line { base_ms: base as f32, per_token_ms: slope as f32 }
    }

    fn line_through_origin(&self) -> Line {
        let slope = if self.xx > 0.0 { self.xy / self.xx } else { 0.0 };
        Line { base_ms: 0.0, per_token_ms: slope as f32 }
    }
}

/// What an idle worker takes, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Line {
    base_ms: f32,
    per_token_ms: f32,
}

impl Line {
    fn at(self, tokens: u64) -> f64 {
        let tokens = tokens.min(TOKENS_MAX) as f64;
        f64::from(self.base_ms) + f64::from(self.per_token_ms) * tokens
    }

    /// Both parts in one word, so that no reader sees the base of one fit and the slope of another.
    fn to_bits(self) -> u64 {
        u64::from(self.base_ms.to_bits()) << 32 | u64::from(self.per_token_ms.to_bits())
    }

    fn from_bits(bits: u64) -> Self {
        Line {
            base_ms: f32::from_bits((bits >> 32) as u32),
            per_token_ms: f32::from_bits(bits as u32),
        }
    }
}

/// What was learned of one model (or one worker).
#[derive(Debug, Default)]
pub struct Forecast {
    sums: Mutex<Sums>,
    line: AtomicU64,
    samples: AtomicU32,
    last_ms: AtomicU64,
    /// Bits of `f32`s: moving means.
    tokens_mean: AtomicU32,
    service_ms: AtomicU32,
    services: AtomicU32,
}

impl Forecast {
    /// Knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// A first token came `ttft_ms` after the request was sent to its worker (without the time in the
    /// router's queue), of which the worker had to compute `uncached_tokens`.
    pub fn observe_ttft(&self, uncached_tokens: u64, ttft_ms: f64, now_ms: u64) {
        if !(ttft_ms.is_finite() && ttft_ms >= 0.0) {
            return;
        }
        let Ok(mut sums) = self.sums.try_lock() else {
            return;
        };
        let samples = self.samples.load(Relaxed);
        let old = Line::from_bits(self.line.load(Relaxed));
        let mut y = ttft_ms.min(MS_MAX);
        if samples >= SAMPLES_MIN {
            y = y.min(OUTLIER_RATIO * old.at(uncached_tokens).max(OUTLIER_FLOOR_MS));
        }
        let x = uncached_tokens.min(TOKENS_MAX) as f64;
        sums.add(x, y);
        self.line.store(sums.line(old).to_bits(), Relaxed);
        move_mean(&self.tokens_mean, x, samples);
        self.samples.store(samples.saturating_add(1), Relaxed);
        self.last_ms.fetch_max(now_ms, Relaxed);
    }

    /// A request gave its place at a worker back after `ms`.
    pub fn observe_service(&self, ms: f64) {
        if !(ms.is_finite() && ms >= 0.0) {
            return;
        }
        let seen = self.services.load(Relaxed);
        move_mean(&self.service_ms, ms.min(MS_MAX), seen);
        self.services.store(seen.saturating_add(1), Relaxed);
    }

    /// Base and per-token time in milliseconds, for gauges; `None` before [`SAMPLES_MIN`] reports.
    pub fn learned(&self) -> Option<(f64, f64)> {
        let line = Line::from_bits(self.line.load(Relaxed));
        (self.samples.load(Relaxed) >= SAMPLES_MIN)
            .then(|| (f64::from(line.base_ms), f64::from(line.per_token_ms)))
    }

    /// How long a request that comes now waits for a place. `None` while that is not known.
    pub fn wait_ms(&self, load: Load, now_ms: u64) -> Option<f64> {
        let fresh = now_ms.saturating_sub(self.last_ms.load(Relaxed)) <= STALE_MS;
        if !fresh || self.samples.load(Relaxed) < SAMPLES_MIN || load.places == 0 {
            return None;
        }
        let mean = f64::from(f32::from_bits(self.tokens_mean.load(Relaxed))).max(1.0);
        let ahead = load.tokens_ahead as f64 / mean;
        let places = f64::from(load.places);
        let beyond = f64::from(load.running) + ahead + 1.0 - places;
        if beyond <= 0.0 {
            return Some(0.0);
        }
        let service_ms = f64::from(f32::from_bits(self.service_ms.load(Relaxed)));
        (self.services.load(Relaxed) >= SAMPLES_MIN).then(|| beyond * service_ms / places)
    }

    /// When the first token of a request that comes now will be there. `None` while that is not known:
    /// then nobody is refused.
    pub fn ttft_ms(&self, load: Load, uncached_tokens: u64, now_ms: u64) -> Option<f64> {
        let line = Line::from_bits(self.line.load(Relaxed));
        Some(self.wait_ms(load, now_ms)? + line.at(uncached_tokens))
    }

    /// Seconds until the wait will have fallen to `wait_max_ms`, if nobody else comes; from 1 to
    /// [`RETRY_AFTER_S_MAX`]. For a room that is full, `wait_max_ms` 0 is when all of it has drained.
    pub fn retry_after_s(&self, load: Load, wait_max_ms: f64, now_ms: u64) -> u64 {
        let wait_ms = self.wait_ms(load, now_ms).unwrap_or(0.0);
        // A wait of so many ms falls by 1 ms each ms. The cast takes NaN to 0.
        let over_s = ((wait_ms - wait_max_ms) / 1_000.0).ceil() as u64;
        over_s.clamp(1, RETRY_AFTER_S_MAX)
    }

    /// Whether the first token of a request that comes now will be there within `within_ms`.
    pub fn judge(&self, load: Load, uncached_tokens: u64, within_ms: u64, now_ms: u64) -> Verdict {
        let Some(ttft_ms) = self.ttft_ms(load, uncached_tokens, now_ms) else {
            return Verdict::Admit;
        };
        if ttft_ms <= within_ms as f64 {
            return Verdict::Admit;
        }
        let idle_ms = Line::from_bits(self.line.load(Relaxed)).at(uncached_tokens);
        let retry_after_s = if idle_ms > within_ms as f64 {
            // Late even on an idle worker: to come back soon would not help.
            RETRY_AFTER_S_MAX
        } else {
            self.retry_after_s(load, within_ms as f64 - idle_ms, now_ms)
        };
        Verdict::Late { ttft_ms, retry_after_s }
    }
}

/// Moves a mean towards `value`: an exact mean of the first 16, then a sixteenth of the way each time.
/// Two cores at once may lose one of the two.
fn move_mean(mean: &AtomicU32, value: f64, seen: u32) {
    let part = 1.0 / f64::from(seen.saturating_add(1).min(16));
    let old = f64::from(f32::from_bits(mean.load(Relaxed)));
    mean.store(((old + (value - old) * part) as f32).to_bits(), Relaxed);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDLE: Load = Load { tokens_ahead: 0, places: 4, running: 0 };

    /// An engine of 40 ms + 0.1 ms per token whose requests take a second, prompts of 1,000 tokens.
    fn learned() -> Forecast {
        let forecast = Forecast::new();
        for at in 0..400u64 {
            let tokens = 500 + (at * 337) % 1_001;
            forecast.observe_ttft(tokens, 40.0 + 0.1 * tokens as f64, 0);
            forecast.observe_service(1_000.0);
        }
        forecast.tokens_mean.store(1_000f32.to_bits(), Relaxed);
        forecast
    }

    fn near(value: f64, wanted: f64, share: f64) -> bool {
        (value - wanted).abs() <= wanted * share
    }

    #[test]
    fn it_refuses_nothing_before_it_has_learned_and_after_silence() {
        let forecast = Forecast::new();
        let swamped = Load { tokens_ahead: 1 << 40, places: 1, running: 99 };
        for at in 0..SAMPLES_MIN {
            assert_eq!(forecast.judge(swamped, 1 << 20, 1, 0), Verdict::Admit);
            assert_eq!(forecast.retry_after_s(swamped, 0.0, 0), 1);
            assert_eq!(forecast.learned(), None);
            forecast.observe_ttft(100 + u64::from(at), 50.0, 0);
        }
        assert!(forecast.ttft_ms(IDLE, 100, 0).is_some());
        assert_eq!(forecast.ttft_ms(swamped, 100, 0), None, "no request ended yet");
        (0..SAMPLES_MIN).for_each(|_| forecast.observe_service(1_000.0));
        assert!(matches!(forecast.judge(swamped, 1, 1, STALE_MS), Verdict::Late { .. }));
        assert_eq!(forecast.judge(swamped, 1, 1, STALE_MS + 1), Verdict::Admit);
        assert_eq!(forecast.judge(Load { places: 0, ..swamped }, 1, 1, 0), Verdict::Admit);
    }

    #[test]
    fn the_wait_is_that_of_a_queue_before_equal_servers() {
        let forecast = learned();
        let wait = |tokens_ahead, running| {
            forecast.wait_ms(Load { tokens_ahead, places: 4, running }, 0).unwrap()
        };
        assert_eq!((wait(0, 0), wait(0, 3)), (0.0, 0.0));
        assert!(near(wait(0, 4), 250.0, 1e-6));
        assert!(near(wait(10_000, 4), 2_750.0, 1e-6));
        assert!(near(wait(10_000, 2), 2_250.0, 1e-6));
    }

    #[test]
    fn who_would_be_late_hears_when_to_come_back() {
        let forecast = learned();
        let load = Load { tokens_ahead: 39_000, places: 4, running: 4 };
        // 10 s of wait, 140 ms of prefill.
        assert_eq!(forecast.judge(load, 1_000, 10_200, 0), Verdict::Admit);
        let Verdict::Late { ttft_ms, retry_after_s } = forecast.judge(load, 1_000, 3_000, 0) else {
            panic!("admitted");
        };
        assert!(near(ttft_ms, 10_140.0, 0.01), "{ttft_ms}");
        assert_eq!(retry_after_s, 8, "10 s - (3 s - 140 ms), in whole seconds");
        assert_eq!(forecast.retry_after_s(load, 0.0, 0), 10);
        let endless = Load { tokens_ahead: u64::MAX, ..load };
        assert_eq!(forecast.retry_after_s(endless, 0.0, 0), 60);
        assert_eq!(forecast.retry_after_s(load, f64::NAN, 0), 1);
        let never = forecast.judge(IDLE, 100_000, 1_000, 0);
        assert!(matches!(never, Verdict::Late { retry_after_s: 60, .. }), "{never:?}");
    }

    #[test]
    fn prompts_all_alike_teach_the_sum_and_keep_the_slope() {
        let forecast = Forecast::new();
        (0..50).for_each(|_| forecast.observe_ttft(1_000, 90.0, 0));
        assert!(near(forecast.ttft_ms(IDLE, 1_000, 0).unwrap(), 90.0, 0.001));
        let forecast = learned();
        (0..2_000).for_each(|_| forecast.observe_ttft(1_000, 140.0, 0));
        let (base_ms, per_token_ms) = forecast.learned().unwrap();
        assert!(near(base_ms, 40.0, 0.05) && near(per_token_ms, 0.1, 0.05), "{base_ms}");
        // Slower now; whether by base or by token cannot be told from this.
        (0..2_000).for_each(|_| forecast.observe_ttft(1_000, 200.0, 0));
        assert!(near(forecast.ttft_ms(IDLE, 1_000, 0).unwrap(), 200.0, 0.001));
    }

    #[test]
    fn one_stall_moves_little_and_a_slower_engine_is_believed() {
        let forecast = learned();
        forecast.observe_ttft(1_000, 600_000.0, 0);
        assert!(forecast.ttft_ms(IDLE, 1_000, 0).unwrap() < 200.0);
        for at in 0..600u64 {
            let tokens = 500 + (at * 337) % 1_001;
            forecast.observe_ttft(tokens, 20.0 * (40.0 + 0.1 * tokens as f64), 0);
        }
        assert!(near(forecast.ttft_ms(IDLE, 1_000, 0).unwrap(), 2_800.0, 0.05));
    }

    #[test]
    fn a_forecast_is_shared_by_threads_without_waiting() {
        let forecast = Forecast::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for at in 0..2_000u64 {
                        forecast.observe_ttft(at, 10.0 + at as f64, 0);
                    }
                });
            }
        });
        assert!(near(forecast.ttft_ms(IDLE, 1_000, 0).unwrap(), 1_010.0, 0.05));
    }

    proptest! {
        #[test]
        fn it_recovers_an_engine_from_noisy_reports(
            base_ms in 5f64..300.0, per_token_ms in 0.005f64..1.0,
            reports in prop::collection::vec((4f64..13.0, 0.8f64..1.2), 300..400),
        ) {
            let forecast = Forecast::new();
            for (log_tokens, noise) in reports {
                let tokens = log_tokens.exp2() as u64;
                forecast.observe_ttft(tokens, (base_ms + per_token_ms * tokens as f64) * noise, 0);
            }
            for tokens in [100, 1_000, 8_000] {
                let wanted = base_ms + per_token_ms * tokens as f64;
                let told = forecast.ttft_ms(IDLE, tokens, 0).unwrap();
                prop_assert!(near(told, wanted, 0.25), "{tokens}: {told} for {wanted}");
            }
        }

        #[test]
        fn nothing_makes_it_negative_or_not_a_number(
            reports in prop::collection::vec(
                (prop_oneof![0u64..9, any::<u64>()], prop_oneof![any::<f64>(), 0f64..1e4]), 0..60),
            tokens: u64, tokens_ahead: u64, places: u32, running: u32,
        ) {
            let forecast = Forecast::new();
            for (tokens, ms) in reports {
                forecast.observe_ttft(tokens, ms, 0);
                forecast.observe_service(ms);
            }
            let load = Load { tokens_ahead, places, running };
            if let Some(ttft_ms) = forecast.ttft_ms(load, tokens, 0) {
                prop_assert!(ttft_ms.is_finite() && ttft_ms >= 0.0, "{ttft_ms}");
            }
            prop_assert!((1..=60).contains(&forecast.retry_after_s(load, 0.0, 0)));
        }
    }
}
