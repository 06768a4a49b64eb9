//! Tests of the meter, most of them against a model that remembers every event.

use proptest::prelude::*;

use super::*;

/// A minute boundary that is not a day boundary.
const START_MS: u64 = 20_000 * DAY_MS + 600 * WINDOW_MS;

fn meter(requests: u64, tokens: u64, concurrent: u32, day: u64) -> Meter {
    Meter::new(Limits {
        requests_per_minute: requests,
        tokens_per_minute: tokens,
        concurrent_requests_max: concurrent,
        tokens_per_day: day,
    })
}

fn usage(minute: u64, requests: u64, tokens: u64, running: u32) -> TenantUsage {
    let day = minute * WINDOW_MS / DAY_MS;
    let (tenant, day_tokens) = ("t".into(), tokens);
    let none = TenantUsage::default();
    TenantUsage { tenant, minute, requests, tokens, day, day_tokens, running, ..none }
}

/// Remembers each event as (when, how many) and adds them up anew for every question.
#[derive(Default)]
struct Model(Vec<(u64, u64)>);

impl Model {
    fn in_minute(&self, minute: u64) -> u64 {
        self.0.iter().filter(|(at, _)| at / WINDOW_MS == minute).map(|(_, n)| n).sum()
    }

    fn in_last_minute(&self, now: u64) -> u64 {
        self.0.iter().filter(|(at, _)| *at + WINDOW_MS > now).map(|(_, n)| n).sum()
    }

    /// The documented estimate, in exact fractions of a minute.
    fn estimate(&self, now: u64) -> u128 {
        let (minute, elapsed) = (now / WINDOW_MS, now % WINDOW_MS);
        u128::from(self.in_minute(minute)) * u128::from(WINDOW_MS)
            + u128::from(self.in_minute(minute - 1)) * u128::from(WINDOW_MS - elapsed)
    }

    fn has_room(&self, now: u64, limit: u64) -> bool {
        self.estimate(now) + u128::from(WINDOW_MS) <= u128::from(limit) * u128::from(WINDOW_MS)
    }
}

proptest! {
    #[test]
    fn requests_are_admitted_as_the_model_says(
        limit in 1_u64..40,
        steps in prop::collection::vec((0_u64..20_000, 1_usize..30), 1..60),
    ) {
        let meter = meter(limit, 0, 0, 0);
        let mut model = Model::default();
        let mut now = START_MS;
        for (wait, burst) in steps {
            now += wait;
            for _ in 0..burst {
                let admitted = meter.begin(now);
                prop_assert_eq!(admitted.is_ok(), model.has_room(now, limit));
                if admitted.is_ok() {
                    model.0.push((now, 1));
                    meter.finish(now, 5);
                }
            }
            // The bound that the head of the file promises.
            let (minute, elapsed) = (now / WINDOW_MS, now % WINDOW_MS);
            let forgotten = model.in_minute(minute - 1) * elapsed / WINDOW_MS;
            prop_assert!(model.in_minute(minute) <= limit);
            prop_assert!(model.in_last_minute(now) <= limit + forgotten);
            let left = meter.headers(now).requests.unwrap();
            prop_assert_eq!(left.remaining == 0, !model.has_room(now, limit));
            prop_assert_eq!(meter.running(), 0);
        }
    }

    #[test]
    fn retry_after_and_reset_are_honest(
        (requests, tokens) in prop_oneof![(1_u64..20, Just(0)), (Just(0), 1_u64..5_000)],
        steps in prop::collection::vec((0_u64..40_000, 1_usize..30, 0_u64..900), 1..40),
    ) {
        let meter = meter(requests, tokens, 0, 0);
        let mut now = START_MS;
        for (wait, burst, cost) in steps {
            now += wait;
            for _ in 0..burst {
                let Err(error) = meter.begin(now) else {
                    meter.finish(now, cost);
                    continue;
                };
                prop_assert!((1..=120).contains(&error.retry_after_s));
                // Honest: a copy of the counts admits after that time, and not 2 s before.
                let counts = |later: u64| {
                    let copy = Meter::new(meter.limits());
                    for back in [WINDOW_MS, 0] {
                        let of = meter.report("t", now - back);
                        copy.counts.own.requests.add(of.minute, of.requests);
                        copy.counts.own.tokens.add(of.minute, of.tokens);
                    }
                    copy.begin(now + later)
                };
                prop_assert_eq!(counts(error.retry_after_s * 1_000), Ok(()));
                if error.retry_after_s > 2 {
                    prop_assert!(counts(error.retry_after_s * 1_000 - 2_000).is_err());
                }
            }
            let view = meter.headers(now);
            let shown = view.requests.or(view.tokens).unwrap();
            let then = meter.headers(now + shown.reset_ms);
            prop_assert_eq!(then.requests.or(then.tokens).unwrap().remaining, shown.limit);
        }
    }

    #[test]
    fn corrected_estimates_leave_the_true_sum(
        costs in prop::collection::vec((0_u64..30_000, 0_i64..2_000, 0_i64..2_000), 1..20),
    ) {
        let meter = meter(0, 1_000_000, 0, 1_000_000);
        let mut now = START_MS;
        let mut truth = 0;
        for (lasts, estimate, real) in costs {
            meter.charge(now, estimate);
            now += lasts;
            meter.charge(now, real - estimate);
            truth += real.unsigned_abs();
        }
        prop_assert_eq!(meter.report("t", now).day_tokens, truth);
    }

    #[test]
    fn two_routers_that_exchange_after_each_request_act_as_one(
        limit in 1_u64..30,
        steps in prop::collection::vec((0_u64..9_000, any::<bool>()), 1..120),
    ) {
        let (a, b) = (meter(limit, 0, 0, 0), meter(limit, 0, 0, 0));
        let mut model = Model::default();
        let mut now = START_MS;
        for (wait, at_a) in steps {
            now += wait;
            let (here, there) = if at_a { (&a, &b) } else { (&b, &a) };
            here.absorb(now, &there.report("t", now));
            let admitted = here.begin(now);
            prop_assert_eq!(admitted.is_ok(), model.has_room(now, limit));
            if admitted.is_ok() {
                model.0.push((now, 1));
                here.release();
            }
            there.absorb(now, &here.report("t", now));
        }
    }
}

#[test]
fn a_refused_request_takes_nothing() {
    let meter = meter(2, 0, 8, 0);
    for _ in 0..2 {
        meter.begin(START_MS).unwrap();
    }
    for _ in 0..10 {
        let error = meter.begin(START_MS + 1).unwrap_err();
        assert_eq!((error.kind, error.limit), (LimitKind::Requests, 2));
    }
    assert_eq!((meter.running(), meter.report("t", START_MS).requests), (2, 2));
    meter.finish(START_MS, 0);
    meter.finish(START_MS, 0);
    meter.release();
    assert_eq!(meter.running(), 0);
}

#[test]
fn concurrency_counts_what_runs_here_and_elsewhere() {
    let meter = meter(0, 0, 3, 0);
    meter.begin(START_MS).unwrap();
    meter.absorb(START_MS, &usage(START_MS / WINDOW_MS, 0, 0, 1));
    meter.begin(START_MS).unwrap();
    let error = meter.begin(START_MS).unwrap_err();
    assert_eq!((error.kind, error.retry_after_s), (LimitKind::Concurrency, 1));
    meter.release();
    meter.begin(START_MS).unwrap();
    // Nothing was heard of the other for too long: it no longer counts.
    assert!(!meter.is_alone(START_MS + OTHERS_FRESH_MS));
    assert!(meter.is_alone(START_MS + OTHERS_FRESH_MS + 1));
    meter.begin(START_MS + OTHERS_FRESH_MS + 1).unwrap();
}

#[test]
fn a_router_that_never_had_others_is_not_alone() {
    let meter = meter(1, 0, 0, 0);
    assert!(!meter.is_alone(START_MS) && !meter.is_alone(START_MS + DAY_MS));
}

#[test]
fn the_budget_ends_at_midnight_utc() {
    let meter = meter(0, 0, 0, 1_000);
    let noon = 20_000 * DAY_MS + DAY_MS / 2;
    meter.begin(noon).unwrap();
    meter.finish(noon, 999);
    meter.begin(noon).unwrap();
    meter.finish(noon, 500);
    let error = meter.begin(noon + 1_500).unwrap_err();
    assert_eq!((error.kind, error.retry_after_s), (LimitKind::Budget, 12 * 3_600 - 1));
    let text = "the limit tokens_per_day = 1000 is reached; try again in 43199 s";
    assert_eq!(error.to_string(), text);
    meter.begin(noon + DAY_MS / 2).unwrap();
}

#[test]
fn usage_of_others_falls_out_with_its_window() {
    let meter = meter(10, 0, 0, 0);
    let minute = START_MS / WINDOW_MS;
    meter.absorb(START_MS, &usage(minute, 10, 0, 0));
    assert_eq!(meter.begin(START_MS).unwrap_err().kind, LimitKind::Requests);
    // Half a minute into the next one, half of it is still inside.
    let later = START_MS + WINDOW_MS + WINDOW_MS / 2;
    let next = TenantUsage { requests_before: 10, ..usage(minute + 1, 0, 0, 0) };
    meter.absorb(later, &next);
    assert_eq!(meter.headers(later).requests.unwrap().remaining, 5);
    // A router whose clock is an hour ahead does not count.
    meter.absorb(later, &usage(minute + 60, 10, 0, 0));
    assert_eq!(meter.headers(later).requests.unwrap().remaining, 5);
}

#[test]
fn counts_outlive_a_change_of_limits() {
    let old = meter(5, 0, 0, 0);
    for _ in 0..3 {
        old.begin(START_MS).unwrap();
    }
    let new = old.with_limits(Limits { requests_per_minute: 4, ..Limits::default() });
    new.begin(START_MS).unwrap();
    assert_eq!(new.begin(START_MS).unwrap_err().limit, 4);
    old.release();
    assert_eq!(new.running(), 3);
}

#[test]
fn without_limits_nothing_is_refused_and_no_header_is_sent() {
    let meter = Meter::new(Limits::default());
    for _ in 0..1_000 {
        meter.begin(START_MS).unwrap();
        meter.charge(START_MS, i64::MAX);
        meter.charge(START_MS, i64::MIN);
    }
    let none = RateLimitView { requests: None, tokens: None };
    assert_eq!(meter.headers(START_MS), none);
}

#[test]
fn what_others_counted_at_the_end_of_a_minute_counts_in_the_next() {
    let minute = START_MS / WINDOW_MS;
    let (a, b) = (meter(10, 10, 0, 0), meter(10, 10, 0, 0));
    for _ in 0..10 {
        a.begin(START_MS + WINDOW_MS - 1).unwrap();
    }
    a.charge(START_MS + WINDOW_MS - 1, 10);
    // Told of only after the minute was over, to a router that was not there before.
    let later = START_MS + WINDOW_MS + WINDOW_MS / 2;
    let told = a.report("t", later);
    assert_eq!((told.minute, told.requests, told.requests_before), (minute + 1, 0, 10));
    assert_eq!((told.tokens, told.tokens_before), (0, 10));
    b.absorb(later, &told);
    let left = b.headers(later);
    assert_eq!((left.requests.unwrap().remaining, left.tokens.unwrap().remaining), (5, 5));
}

#[test]
fn threads_together_admit_exactly_the_limit() {
    let meter = meter(300, 0, 0, 0);
    let admitted: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..200).filter(|_| meter.begin(START_MS).is_ok()).count()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!((admitted, meter.running()), (300, 300));
}
