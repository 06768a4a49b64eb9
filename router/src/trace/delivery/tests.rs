//! The state machine, step by step and against any order of events.

use proptest::prelude::*;

use super::super::outbox::tests::spans;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn config() -> TraceConfig {
    TraceConfig {
        batch_spans_max: 4,
        queue_spans_max: 100,
        interval_ms: 5_000,
        ..TraceConfig::default()
    }
}

fn delivery() -> Delivery {
    let resource = Resource { version: "1".into(), instance: "i".into() };
    Delivery::new(&config(), resource, 7)
}

fn count(body: &Bytes) -> usize {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap();
    json["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().len()
}

#[test]
fn a_full_batch_leaves_at_once_and_a_part_of_one_after_the_interval() {
    let (mut delivery, outbox, t) = (delivery(), Outbox::new(100), Instant::now());
    assert!(!delivery.wants_send(t, 0));
    outbox.put(spans(0..6));
    let body = delivery.next_body(t, &outbox).unwrap();
    assert_eq!(count(&body), 4);
    assert_eq!(delivery.next_body(t, &outbox), None, "one at a time");
    assert_eq!(delivery.sent(t, 200, None, b"{}"), Settled { sent: 4, lost: 0 });
    assert_eq!(delivery.next_body(t, &outbox), None);
    assert_eq!(delivery.next_body(t + 4 * SECOND, &outbox), None);
    assert_eq!(count(&delivery.next_body(t + 5 * SECOND, &outbox).unwrap()), 2);
}

#[test]
fn a_partial_success_is_counted_and_not_sent_again() {
    let (mut delivery, outbox, t) = (delivery(), Outbox::new(100), Instant::now());
    outbox.put(spans(0..4));
    delivery.next_body(t, &outbox).unwrap();
    let answer = br#"{"partialSuccess":{"rejectedSpans":"3"}}"#;
    assert_eq!(delivery.sent(t, 200, None, answer), Settled { sent: 1, lost: 3 });
    assert_eq!(delivery.next_body(t + 100 * SECOND, &outbox), None);
    outbox.put(spans(0..4));
    delivery.next_body(t, &outbox).unwrap();
    let lie = br#"{"partialSuccess":{"rejectedSpans":"300"}}"#;
    assert_eq!(delivery.sent(t, 200, None, lie), Settled { sent: 0, lost: 4 });
}

#[test]
fn a_failure_is_tried_again_with_the_same_bytes_and_a_growing_delay() {
    let (mut delivery, outbox, mut t) = (delivery(), Outbox::new(100), Instant::now());
    outbox.put(spans(0..4));
    let first = delivery.next_body(t, &outbox).unwrap();
    outbox.put(spans(4..8));
    let mut delay = BACKOFF_MIN;
    for _ in 1..TRIES_MAX {
        assert_eq!(delivery.failed(t), Settled::default());
        assert_eq!(delivery.next_body(t + delay * 3 / 4 - SECOND / 1000, &outbox), None);
        t += delay * 5 / 4;
        assert_eq!(delivery.next_body(t, &outbox).as_ref(), Some(&first));
        delay = (delay * 2).min(BACKOFF_MAX);
    }
    assert_eq!(delivery.failed(t), Settled { sent: 0, lost: 4 });
    // The next batch waits its turn too.
    assert_eq!(delivery.next_body(t, &outbox), None);
    let next = delivery.next_body(t + BACKOFF_MAX * 5 / 4, &outbox).unwrap();
    assert_ne!(next, first);
}

#[test]
fn a_busy_collector_is_left_alone_for_as_long_as_it_asks() {
    for (asked, kept) in [(20, 20 * SECOND), (u64::MAX, RETRY_AFTER_MAX)] {
        let (mut delivery, outbox, t) = (delivery(), Outbox::new(100), Instant::now());
        outbox.put(spans(0..4));
        delivery.next_body(t, &outbox).unwrap();
        assert_eq!(delivery.sent(t, 503, Some(asked), b""), Settled::default());
        assert_eq!(delivery.next_body(t + kept - SECOND, &outbox), None);
        assert!(delivery.next_body(t + kept, &outbox).is_some());
    }
}

#[test]
fn what_is_refused_for_good_is_not_sent_again() {
    for status in [400, 404, 413, 500, 301] {
        let (mut delivery, outbox, t) = (delivery(), Outbox::new(100), Instant::now());
        outbox.put(spans(0..4));
        delivery.next_body(t, &outbox).unwrap();
        assert_eq!(delivery.sent(t, status, None, b""), Settled { sent: 0, lost: 4 });
        assert_eq!(delivery.next_body(t + 60 * SECOND, &outbox), None);
    }
}

#[test]
fn at_the_end_nothing_is_waited_for() {
    let (mut delivery, outbox, t) = (delivery(), Outbox::new(100), Instant::now());
    outbox.put(spans(0..1));
    assert_eq!(delivery.next_body(t, &outbox), None);
    delivery.close();
    assert!(delivery.next_body(t, &outbox).is_some());
    assert_eq!(delivery.failed(t), Settled { sent: 0, lost: 1 });
}

proptest! {
    /// Whatever the collector does, each span put in is sent, lost, dropped, waiting or under way.
    #[test]
    fn no_span_is_counted_twice_or_forgotten(
        steps in prop::collection::vec((0_u8..5, 0_u64..40, 0_usize..9), 1..200),
    ) {
        let (mut delivery, outbox, mut now) = (delivery(), Outbox::new(20), Instant::now());
        let (mut put, mut settled) = (0, Settled::default());
        let mut add = |one: Settled| {
            settled.sent += one.sent;
            settled.lost += one.lost;
            settled
        };
        let mut total = Settled::default();
        for (step, seconds, number) in steps {
            now += Duration::from_secs(seconds);
            let statuses = [200, 429, 503, 400, 202, 504, 500, 200, 200];
            match step {
                0 | 1 => { outbox.put(spans(0..number)); put += number as u64; }
                2 => { let _ = delivery.next_body(now, &outbox); }
                3 if delivery.is_under_way => {
                    total = add(delivery.sent(now, statuses[number], Some(seconds), b"{}"));
                }
                4 if delivery.is_under_way => total = add(delivery.failed(now)),
                _ => {}
            }
            let held = delivery.batch.as_ref().map_or(0, |batch| batch.spans);
            let known = total.sent + total.lost + outbox.dropped() + outbox.len() as u64 + held;
            prop_assert_eq!(known, put);
            prop_assert!(outbox.len() <= 20);
        }
    }
}
