//! Outlier ejection over the workers of one model: who answers much worse than its peers rests a while.
//!
//! [`WorkerWindow`] owns the counts of one worker, shared by the cores without a lock. [`eject`] is the
//! pure decision over all of them. The breaker sees a worker that fails; this also sees one that is slow
//! or fails half of its requests, which only the comparison with its peers tells from a hard load.
//!
//! Sources: Envoy's outlier detection (ejection time times the number of ejections, a share that may be
//! ejected at most); the comparison with the median of the others is robust against one bad peer.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

/// Half of the window: counts live in two halves, the elder one is dropped as a whole.
pub const HALF_WINDOW_MS: u64 = 5_000;
/// A worker that was not ejected for this long starts with a short ejection again.
pub const FORGIVEN_MS: u64 = 600_000;
/// The multiple of `eject_ms` ends here.
pub const TIMES_MAX: u32 = 10;

/// `[router.breaker.outlier]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutlierConfig {
    /// A worker that fails more than this share of its requests is ejected.
    pub error_share_max: f64,
    /// Once it had so many requests within ten seconds.
    pub error_requests_min: u32,
    /// A worker whose latency is more than so many times the median of the others is ejected.
    pub latency_ratio_max: f64,
    /// Once it had so many requests.
    pub latency_requests_min: u32,
    /// At most this share of the ready workers of a model is ejected at a time.
    pub ejected_share_max: f64,
    /// For so long, times the number of its ejections (10 at most).
    pub eject_ms: u64,
}

impl Default for OutlierConfig {
    fn default() -> Self {
        OutlierConfig {
            error_share_max: 0.5,
            error_requests_min: 10,
            latency_ratio_max: 5.0,
            latency_requests_min: 20,
            ejected_share_max: 0.5,
            eject_ms: 10_000,
        }
    }
}

impl OutlierConfig {
    /// The first key that makes no sense, and what it must be.
    pub fn invalid(&self) -> Option<(&'static str, &'static str)> {
        let share = |value: f64| (0.0..=1.0).contains(&value);
        if !share(self.error_share_max) {
            return Some(("outlier.error_share_max", "must be between 0 and 1"));
        }
        if !share(self.ejected_share_max) {
            return Some(("outlier.ejected_share_max", "must be between 0 and 1"));
        }
        if !self.latency_ratio_max.is_finite() || self.latency_ratio_max <= 1.0 {
            return Some(("outlier.latency_ratio_max", "must be above 1"));
        }
        None
    }
}

/// One worker as the decision sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// Requests within the window.
    pub requests: u32,
    /// How many of them failed.
    pub errors: u32,
    /// Its usual latency (time to first token, or between tokens), where measured.
    pub latency_ms: Option<f64>,
    /// Requests that the latency rests on.
    pub latency_requests: u32,
    /// Until when it is ejected; in the past, or 0, when it is not.
    pub ejected_until_ms: u64,
    /// How often it was ejected lately.
    pub times_ejected: u32,
}

/// Why a worker is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It failed too many requests.
    Errors,
    /// It is much slower than the others.
    Slow,
}

impl Cause {
    /// For a metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Errors => "errors",
            Cause::Slow => "slow",
        }
    }
}

/// One worker to eject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejected {
    /// Its place in the list given.
    pub at: usize,
    /// Until when.
    pub until_ms: u64,
    /// Why.
    pub cause: Cause,
}

/// Who of the ready workers of one model is to be ejected now, the worst first.
pub fn eject(workers: &[Seen], now_ms: u64, config: &OutlierConfig) -> Vec<Ejected> {
    let is_out = |seen: &Seen| seen.ejected_until_ms > now_ms;
    let out = workers.iter().filter(|seen| is_out(seen)).count();
    let most = (config.ejected_share_max.clamp(0.0, 1.0) * workers.len() as f64) as usize;
    let mut found: Vec<(f64, usize, Cause)> = (0..workers.len())
        .filter(|&at| !is_out(&workers[at]))
        .filter_map(|at| badness(workers, at, config).map(|(how_bad, cause)| (how_bad, at, cause)))
        .collect();
    // Stable: the first of the list among equals.
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.truncate(most.saturating_sub(out));
    let until = |at: usize| {
        let times = workers[at].times_ejected.saturating_add(1).min(TIMES_MAX);
        now_ms.saturating_add(config.eject_ms.saturating_mul(u64::from(times)))
    };
    found.into_iter().map(|(_, at, cause)| Ejected { at, until_ms: until(at), cause }).collect()
}

/// How far it is beyond a limit, if it is; any error share is worse than any latency.
fn badness(workers: &[Seen], at: usize, config: &OutlierConfig) -> Option<(f64, Cause)> {
    let seen = &workers[at];
    let share = f64::from(seen.errors) / f64::from(seen.requests.max(1));
    if seen.requests >= config.error_requests_min.max(1) && share > config.error_share_max {
        return Some((f64::MAX * share.min(1.0), Cause::Errors));
    }
    let own = measured(seen, config)?;
    let others = workers.iter().enumerate().filter(|(other, _)| *other != at);
    let mut others: Vec<f64> = others.filter_map(|(_, seen)| measured(seen, config)).collect();
    others.sort_by(f64::total_cmp);
    // The upper of two: two peers that differ are no reason to eject the third.
    let median = others.get(others.len() / 2)?;
    let ratio = own / median.max(f64::MIN_POSITIVE);
    (ratio > config.latency_ratio_max).then_some((ratio.min(1e100), Cause::Slow))
}

/// Its latency, where it rests on enough requests.
fn measured(seen: &Seen, config: &OutlierConfig) -> Option<f64> {
    let enough = seen.latency_requests >= config.latency_requests_min;
    seen.latency_ms.filter(|ms| enough && ms.is_finite() && *ms >= 0.0)
}

/// A latency moves this part of the way to each new value: about the last 16 requests count.
const LATENCY_PART: f32 = 1.0 / 16.0;

/// The counts of one worker. Every field is written without a lock; a count lost to a race at the
/// turn of a window is one of many.
#[derive(Debug, Default)]
pub struct WorkerWindow {
    /// Two halves: its number in the upper 24 bits, then requests and errors with 20 bits each.
    halves: [AtomicU64; 2],
    /// Bits of an `f32`.
    latency_ms: AtomicU32,
    latency_requests: AtomicU32,
    ejected_until_ms: AtomicU64,
    times_ejected: AtomicU32,
}

const COUNT_MAX: u64 = (1 << 20) - 1;

fn unpack(word: u64) -> (u64, u64, u64) {
    (word >> 40, (word >> 20) & COUNT_MAX, word & COUNT_MAX)
}

fn half(now_ms: u64) -> u64 {
    (now_ms / HALF_WINDOW_MS) & ((1 << 24) - 1)
}

impl WorkerWindow {
    /// Counts one request that ended, or failed.
    pub fn record(&self, failed: bool, now_ms: u64) {
        let now = half(now_ms);
        let _ = self.halves[(now % 2) as usize].fetch_update(Relaxed, Relaxed, |word| {
            let (number, requests, errors) = unpack(word);
            let (requests, errors) = if number == now { (requests, errors) } else { (0, 0) };
            let requests = (requests + 1).min(COUNT_MAX);
            let errors = (errors + u64::from(failed)).min(COUNT_MAX);
            Some(now << 40 | requests << 20 | errors)
        });
    }

    /// Notes the latency of one request.
    pub fn record_latency(&self, ms: f64) {
        if !(ms.is_finite() && ms >= 0.0) {
            return;
        }
        let count = self.latency_requests.load(Relaxed);
        let old = f32::from_bits(self.latency_ms.load(Relaxed));
        let new = if count == 0 { ms as f32 } else { old + (ms as f32 - old) * LATENCY_PART };
        self.latency_ms.store(new.to_bits(), Relaxed);
        self.latency_requests.store(count.saturating_add(1), Relaxed);
    }

    /// The engine is another one than it was: what was counted does not hold for it.
    pub fn reset(&self, now_ms: u64) {
        self.call_back(now_ms);
        self.halves.iter().for_each(|half| half.store(0, Relaxed));
        self.latency_requests.store(0, Relaxed);
    }

    /// Ends its rest early. The number of its ejections stays.
    pub fn call_back(&self, now_ms: u64) {
        let _ = self.ejected_until_ms.fetch_min(now_ms, Relaxed);
    }

    /// Whether it rests now.
    pub fn is_ejected(&self, now_ms: u64) -> bool {
        now_ms < self.ejected_until_ms.load(Relaxed)
    }

    /// Everything the decision asks for.
    pub fn seen(&self, now_ms: u64) -> Seen {
        let now = half(now_ms);
        let halves = self.halves.iter().map(|half| unpack(half.load(Relaxed)));
        let recent = halves.filter(|(number, ..)| now.wrapping_sub(*number) <= 1);
        let (requests, errors) =
            recent.fold((0, 0), |sum, (_, requests, errors)| (sum.0 + requests, sum.1 + errors));
        let latency_requests = self.latency_requests.load(Relaxed);
        let latency_ms = f64::from(f32::from_bits(self.latency_ms.load(Relaxed)));
        let ejected_until_ms = self.ejected_until_ms.load(Relaxed);
        let forgiven = now_ms.saturating_sub(ejected_until_ms) >= FORGIVEN_MS;
        Seen {
            requests: requests as u32,
            errors: errors as u32,
            latency_ms: (latency_requests > 0).then_some(latency_ms),
            latency_requests,
            ejected_until_ms,
            times_ejected: if forgiven { 0 } else { self.times_ejected.load(Relaxed) },
        }
    }

    /// Carries out a decision. What was counted is forgotten, or it would be ejected for it again.
    pub fn set_ejected(&self, ejected: &Ejected, now_ms: u64) {
        let times = self.seen(now_ms).times_ejected;
        self.times_ejected.store(times.saturating_add(1), Relaxed);
        self.ejected_until_ms.store(ejected.until_ms, Relaxed);
        self.halves.iter().for_each(|half| half.store(0, Relaxed));
        self.latency_requests.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn steady(latency_ms: f64) -> Seen {
        Seen { requests: 20, latency_ms: Some(latency_ms), latency_requests: 20, ..Seen::default() }
    }

    fn at(found: &[Ejected]) -> Vec<(usize, Cause)> {
        found.iter().map(|ejected| (ejected.at, ejected.cause)).collect()
    }

    #[test]
    fn who_fails_most_requests_or_is_far_slower_goes_and_few_requests_prove_nothing() {
        let config = OutlierConfig::default();
        let failing = Seen { requests: 10, errors: 6, ..Seen::default() };
        let workers = [steady(10.0), failing, steady(51.0), steady(9.0)];
        assert_eq!(at(&eject(&workers, 0, &config)), [(1, Cause::Errors), (2, Cause::Slow)]);
        let few = Seen { requests: 9, errors: 9, ..Seen::default() };
        let half = Seen { requests: 10, errors: 5, ..Seen::default() };
        let unsure = Seen { latency_requests: 19, ..steady(9_999.0) };
        let workers = [steady(10.0), few, half, unsure, steady(50.0), steady(8.0)];
        assert_eq!(at(&eject(&workers, 0, &config)), []);
        let senseless = Seen { latency_ms: Some(f64::NAN), ..steady(1.0) };
        assert_eq!(at(&eject(&[senseless, steady(1.0)], 0, &config)), []);
    }

    #[test]
    fn the_share_ends_it_and_a_lonely_worker_stays() {
        let config = OutlierConfig::default();
        let bad = Seen { requests: 100, errors: 100, ..Seen::default() };
        let worse_first =
            [Seen { errors: 60, ..bad }, bad, Seen { errors: 70, ..bad }, steady(1.0)];
        assert_eq!(at(&eject(&worse_first, 0, &config)), [(1, Cause::Errors), (2, Cause::Errors)]);
        let out = Seen { ejected_until_ms: 5, ..Seen::default() };
        assert_eq!(at(&eject(&[bad, out, steady(1.0)], 4, &config)), []);
        assert_eq!(at(&eject(&[bad, out, steady(1.0)], 5, &config)), [(0, Cause::Errors)]);
        assert_eq!(at(&eject(&[bad], 0, &config)), []);
    }

    #[test]
    fn ejections_get_longer_and_are_forgiven() {
        let config = OutlierConfig::default();
        let (window, good) = (WorkerWindow::default(), WorkerWindow::default());
        let mut now_ms = 0;
        for times in 1..4 {
            (0..10).for_each(|_| window.record(true, now_ms));
            let found = eject(&[window.seen(now_ms), good.seen(now_ms)], now_ms, &config);
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].until_ms, now_ms + times * 10_000);
            window.set_ejected(&found[0], now_ms);
            assert!(window.is_ejected(found[0].until_ms - 1));
            now_ms = found[0].until_ms;
            assert!(!window.is_ejected(now_ms));
            assert_eq!(window.seen(now_ms).requests, 0, "judged anew");
        }
        assert_eq!(window.seen(now_ms).times_ejected, 3);
        assert_eq!(window.seen(now_ms + FORGIVEN_MS).times_ejected, 0);
    }

    #[test]
    fn a_window_forgets_by_halves_and_follows_the_latency() {
        let window = WorkerWindow::default();
        (0..4).for_each(|at| window.record(at == 0, 4_999));
        window.record(true, 5_000);
        let seen = window.seen(9_999);
        assert_eq!((seen.requests, seen.errors, seen.latency_ms), (5, 2, None));
        let seen = window.seen(10_000);
        assert_eq!((seen.requests, seen.errors), (1, 1));
        (0..200).for_each(|_| window.record_latency(40.0));
        window.record_latency(f64::NAN);
        let seen = window.seen(10_000);
        assert!((seen.latency_ms.unwrap() - 40.0).abs() < 0.1);
        assert_eq!(seen.latency_requests, 200);
    }

    #[test]
    fn who_is_called_back_or_started_anew_serves_again() {
        let window = WorkerWindow::default();
        let out = Ejected { at: 0, until_ms: 60_000, cause: Cause::Errors };
        window.set_ejected(&out, 1_000);
        window.call_back(2_000);
        assert!(!window.is_ejected(2_000));
        window.call_back(9_000);
        assert_eq!(window.seen(2_000).ejected_until_ms, 2_000, "who is in stays in");
        window.set_ejected(&out, 3_000);
        (0..20).for_each(|_| window.record(true, 4_000));
        window.record_latency(9.0);
        window.reset(5_000);
        let seen = window.seen(5_000);
        assert!(!window.is_ejected(5_000));
        assert_eq!((seen.requests, seen.errors, seen.latency_requests), (0, 0, 0));
        assert_eq!(seen.times_ejected, 2, "its history is not forgotten");
    }

    proptest! {
        #[test]
        fn never_more_than_the_share_and_only_who_is_in_and_proven(
            workers in prop::collection::vec(
                (0u32..40, 0u32..40, prop::option::of(0f64..1e6), 0u32..40, 0u64..200), 0..12),
            share in 0f64..1.0,
        ) {
            let config = OutlierConfig { ejected_share_max: share, ..OutlierConfig::default() };
            let workers: Vec<Seen> = workers.into_iter().map(
                |(requests, errors, latency_ms, latency_requests, ejected_until_ms)| Seen {
                    requests, errors: errors.min(requests), latency_ms, latency_requests,
                    ejected_until_ms, times_ejected: 0,
                }).collect();
            let out = workers.iter().filter(|seen| seen.ejected_until_ms > 100).count();
            let found = eject(&workers, 100, &config);
            let most = (share * workers.len() as f64) as usize;
            prop_assert!(found.is_empty() || found.len() + out <= most);
            for ejected in found {
                let seen = workers[ejected.at];
                prop_assert!(seen.ejected_until_ms <= 100);
                match ejected.cause {
                    Cause::Errors => prop_assert!(seen.requests >= 10 && seen.errors * 2 > seen.requests),
                    Cause::Slow => prop_assert!(seen.latency_requests >= 20),
                }
            }
        }
    }
}
