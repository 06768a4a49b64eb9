//! The breaker, one state after the other, and against a naive one under random steps.

use proptest::prelude::*;

use super::*;

fn fail(breaker: &Breaker, now_ms: u64) {
    breaker.on_failure(FailureKind::Answer, now_ms, 0);
}

fn opened_at(now_ms: u64, config: BreakerConfig) -> Breaker {
    let breaker = Breaker::new(config);
    breaker.on_failure(FailureKind::Connect, now_ms, 0);
    assert_eq!(breaker.state(), State::Open);
    breaker
}

#[test]
fn five_failures_within_ten_seconds_open_it_and_four_do_not() {
    let breaker = Breaker::new(BreakerConfig::default());
    (0..4).for_each(|at| fail(&breaker, at * 2_500));
    assert_eq!((breaker.state(), breaker.permit(7_500)), (State::Closed, Permit::Yes));
    fail(&breaker, 10_000);
    assert_eq!(breaker.state(), State::Closed, "the first is out of the window");
    fail(&breaker, 10_001);
    assert_eq!(breaker.permit(10_001), Permit::No { until_ms: 11_001 });
    assert_eq!((breaker.state(), breaker.opened()), (State::Open, 1));
}

#[test]
fn a_busy_worker_with_few_errors_stays_in() {
    let breaker = Breaker::new(BreakerConfig::default());
    for at in 0..2_000 {
        breaker.on_success(at);
        if at % 100 == 0 {
            fail(&breaker, at);
        }
    }
    assert_eq!(breaker.state(), State::Closed, "one of a hundred");
    (0..5).for_each(|_| fail(&breaker, 2_000));
    assert_eq!(breaker.state(), State::Open, "five in a row");
}

#[test]
fn a_dead_port_opens_it_at_once_and_its_dying_streams_do_not_prolong_it() {
    let breaker = opened_at(100, BreakerConfig::default());
    (0..64).for_each(|_| fail(&breaker, 150));
    breaker.on_success(160);
    assert_eq!(breaker.permit(1_099), Permit::No { until_ms: 1_100 });
    assert_eq!(breaker.permit(1_100), Permit::Probe);
    assert_eq!(breaker.opened(), 1);
}

#[test]
fn a_success_between_two_refused_connections_starts_the_count_anew() {
    let config = BreakerConfig { connect_failures_max: 2, ..BreakerConfig::default() };
    let breaker = Breaker::new(config);
    breaker.on_failure(FailureKind::Connect, 0, 0);
    breaker.on_success(1);
    breaker.on_failure(FailureKind::Connect, 2, 0);
    assert_eq!(breaker.state(), State::Closed);
    breaker.on_failure(FailureKind::Connect, 3, 0);
    assert_eq!(breaker.state(), State::Open);
}

#[test]
fn one_probe_at_a_time_and_two_successes_close_it() {
    let breaker = opened_at(0, BreakerConfig::default());
    assert!(!breaker.would_permit(999) && breaker.would_permit(1_000));
    assert_eq!(breaker.permit(1_000), Permit::Probe);
    assert_eq!(breaker.permit(1_001), Permit::No { until_ms: 31_000 });
    assert!(!breaker.would_permit(1_001));
    breaker.on_success(1_200);
    assert_eq!((breaker.state(), breaker.permit(1_200)), (State::HalfOpen, Permit::Probe));
    breaker.on_success(1_300);
    assert_eq!((breaker.state(), breaker.permit(1_300)), (State::Closed, Permit::Yes));
}

#[test]
fn the_pause_doubles_while_probes_fail_up_to_its_limit_and_is_short_again_after_closing() {
    let breaker = opened_at(0, BreakerConfig::default());
    let mut now_ms = 0;
    for pause_ms in [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
        let until_ms = now_ms + pause_ms;
        assert_eq!(breaker.permit(now_ms), Permit::No { until_ms });
        now_ms = until_ms;
        assert_eq!(breaker.permit(now_ms), Permit::Probe);
        fail(&breaker, now_ms);
    }
    now_ms += 30_000;
    for _ in 0..2 {
        assert_eq!(breaker.permit(now_ms), Permit::Probe);
        breaker.on_success(now_ms);
    }
    breaker.on_failure(FailureKind::Connect, now_ms, 0);
    assert_eq!(breaker.permit(now_ms), Permit::No { until_ms: now_ms + 1_000 });
}

#[test]
fn a_probe_without_an_outcome_gives_its_place_back() {
    let breaker = opened_at(0, BreakerConfig::default());
    assert_eq!(breaker.permit(1_000), Permit::Probe);
    breaker.on_unknown();
    assert_eq!(breaker.permit(1_001), Permit::Probe);
    assert_eq!(breaker.permit(31_000), Permit::No { until_ms: 31_001 });
    assert_eq!(breaker.permit(31_001), Permit::Probe, "lost without a word");
}

#[test]
fn the_seed_spreads_the_next_probe_and_a_new_process_starts_clean() {
    let breaker = Breaker::new(BreakerConfig::default());
    breaker.on_failure(FailureKind::Connect, 0, 100);
    assert_eq!(breaker.permit(0), Permit::No { until_ms: 1_100 });
    breaker.reset();
    assert_eq!((breaker.state(), breaker.permit(0)), (State::Closed, Permit::Yes));
}

#[test]
fn failures_are_forgotten_so_that_success_is_cheap_again() {
    let breaker = Breaker::new(BreakerConfig::default());
    fail(&breaker, 0);
    assert_eq!(breaker.state.load(Relaxed), CLOSED_MARKED);
    breaker.on_success(9_999);
    assert_eq!(breaker.state.load(Relaxed), CLOSED_MARKED);
    breaker.on_success(10_000);
    assert_eq!(breaker.state.load(Relaxed), CLOSED);
}

#[test]
fn the_configuration_says_what_is_wrong_with_it() {
    let defaults = BreakerConfig::default();
    assert_eq!(defaults.invalid(), None);
    let wrong = |change: fn(&mut BreakerConfig)| {
        let mut config = defaults.clone();
        change(&mut config);
        config.invalid().map(|(key, _)| key)
    };
    assert_eq!(wrong(|c| c.half_open_probes = 0), Some("half_open_probes"));
    assert_eq!(wrong(|c| c.failure_share_min = f64::NAN), Some("failure_share_min"));
    assert_eq!(wrong(|c| c.open_ms = 60_000), Some("open_ms"));
    assert_eq!(wrong(|c| c.outlier.ejected_share_max = 2.0), Some("outlier.ejected_share_max"));
}

/// The breaker as the picture draws it, with lists and without shortcuts.
#[derive(Default)]
struct Naive {
    /// Failures and successes since it closed, in order; `true` failed.
    seen: Vec<(u64, bool)>,
    refused: u32,
    open_until: Option<u64>,
    open_ms: u64,
    half_open: bool,
    probes: Vec<u64>,
    successes: u32,
}

impl Naive {
    fn permit(&mut self, now: u64) -> Permit {
        if let Some(until_ms) = self.open_until {
            if now < until_ms {
                return Permit::No { until_ms };
            }
            self.open_until = None;
            self.half_open = true;
            self.successes = 0;
        }
        if !self.half_open {
            return Permit::Yes;
        }
        self.probes.retain(|began| now < began + 30_000);
        if let Some(began) = self.probes.first() {
            return Permit::No { until_ms: began + 30_000 };
        }
        self.probes.push(now);
        Permit::Probe
    }

    fn success(&mut self, now: u64) {
        if self.half_open {
            self.probes.pop();
            self.successes += 1;
            if self.successes == 2 {
                *self = Naive::default();
            }
        } else if self.open_until.is_none() {
            self.refused = 0;
            self.seen.push((now, false));
        }
    }

    fn failure(&mut self, kind: FailureKind, now: u64) {
        if self.open_until.is_some() {
            return;
        }
        self.seen.push((now, true));
        self.refused += u32::from(kind == FailureKind::Connect);
        let recent = |(at, failed): &(u64, bool)| *failed && now - at < 10_000;
        let failures = self.seen.iter().filter(|seen| recent(seen)).count();
        let fifth = self.seen.iter().rev().filter(|seen| recent(seen)).nth(4);
        let since = fifth.map(|fifth| self.seen.iter().position(|seen| seen == fifth).unwrap());
        // Five or more remembered: a breaker that stayed closed had more successes in between.
        let failing = since.is_some_and(|since| {
            let successes = self.seen[since..].iter().filter(|(_, failed)| !failed).count();
            failures >= 5 && 5.0 / (5.0 + successes as f64) >= 0.1
        });
        let connect = kind == FailureKind::Connect && self.refused >= 3;
        if self.half_open || failing || connect {
            let open_ms = (self.open_ms * 2).clamp(1_000, 30_000);
            *self = Naive { open_until: Some(now + open_ms), open_ms, ..Naive::default() };
        }
    }
}

proptest! {
    #[test]
    fn it_does_what_the_naive_breaker_does(
        steps in prop::collection::vec((0u8..8, 1u64..3_000), 1..200),
    ) {
        let config = BreakerConfig { connect_failures_max: 3, ..BreakerConfig::default() };
        let (breaker, mut naive, mut now) = (Breaker::new(config), Naive::default(), 0);
        for (step, wait_ms) in steps {
            now += wait_ms;
            let kind = if step == 0 { FailureKind::Connect } else { FailureKind::Answer };
            match step {
                0..=2 => {
                    breaker.on_failure(kind, now, 0);
                    naive.failure(kind, now);
                }
                3..=4 => {
                    breaker.on_success(now);
                    naive.success(now);
                }
                _ => prop_assert_eq!(breaker.permit(now), naive.permit(now)),
            }
            let open = naive.open_until.is_some();
            let state = match (open, naive.half_open) {
                (true, _) => State::Open,
                (false, true) => State::HalfOpen,
                (false, false) => State::Closed,
            };
            prop_assert_eq!(breaker.state(), state);
        }
    }
}
