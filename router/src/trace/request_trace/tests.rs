//! What a recorded request tells, and that one that is not sampled tells nothing.

use std::collections::HashSet;

use proptest::prelude::*;

use super::super::context::{Ids, Sampler, TRACEPARENT_BYTES};
use super::*;

const T0: u64 = 1_700_000_000_000_000_000;
const INCOMING: Incoming<'static> = Incoming {
    method: "POST",
    path: "/v1/chat/completions",
    address: "127.0.0.1",
    port: 8080,
    tracestate: Some("a=b"),
};
const WORKER: Upstream<'static> =
    Upstream { worker: "m@127.0.0.1:9", provider: "vllm", address: "127.0.0.1", port: 9 };

fn trace(ratio: f64, started: Instant) -> RequestTrace {
    let begun = Begun::of(None, Sampler::new(ratio), &Ids::new([1, 2]));
    RequestTrace::begin(begun, &INCOMING, started, T0)
}

fn attribute<'a>(span: &'a Span, key: &str) -> Option<&'a Value> {
    let mut found = span.attributes.iter().filter(|attribute| attribute.key == key);
    let value = found.next().map(|attribute| &attribute.value);
    assert!(found.next().is_none(), "{key} is given twice");
    value
}

fn at(started: Instant, ms: u64) -> Instant {
    started + Duration::from_millis(ms)
}

#[test]
fn a_request_that_is_not_sampled_gives_nothing() {
    let now = Instant::now();
    let mut trace = trace(0.0, now);
    assert!(!trace.is_recorded());
    let context = trace.context();
    trace.call(Endpoint::Chat, "m", None);
    let queue = trace.enter(Step::Queue, now);
    trace.leave(queue, now);
    let (sent, attempt) = trace.attempt(&WORKER, now);
    assert_eq!(sent, context);
    trace.attempt_ended(attempt, Ok(200), now);
    trace.first_token(now);
    assert_eq!(trace.finish(&Outcome::default(), now), None);
}

/// Context, tag and a pointer: nothing else travels with every request.
#[test]
fn a_trace_is_small() {
    assert!(size_of::<RequestTrace>() <= TRACEPARENT_BYTES + 1);
}

#[test]
fn a_request_with_a_retry_is_told_in_order() {
    let t = Instant::now();
    let mut trace = trace(1.0, t);
    trace.call(Endpoint::Chat, "llama", Some(64));
    trace.tenant("acme");
    let queue = trace.enter(Step::Queue, at(t, 1));
    trace.leave(queue, at(t, 6));
    let tokenize = trace.enter(Step::Tokenize, at(t, 6));
    trace.leave(tokenize, at(t, 8));
    let (first, attempt) = trace.attempt(&WORKER, at(t, 8));
    trace.attempt_ended(attempt, Err("connect"), at(t, 9));
    let (second, attempt) = trace.attempt(&WORKER, at(t, 9));
    trace.first_token(at(t, 40));
    trace.first_token(at(t, 50));
    trace.attempt_ended(attempt, Ok(200), at(t, 90));
    let context = trace.context();
    let outcome = Outcome {
        status: 200,
        upstream: Some(WORKER),
        input_tokens: Some(10),
        output_tokens: Some(5),
        prefix_tokens: 32,
        ..Outcome::default()
    };
    let spans = trace.finish(&outcome, at(t, 100)).unwrap();
    let names: Vec<_> = spans.iter().map(|span| (span.name.as_str(), span.kind)).collect();
    assert_eq!(
        names,
        [
            ("chat llama", Kind::Server),
            ("queue", Kind::Internal),
            ("tokenize", Kind::Internal),
            ("chat llama", Kind::Client),
            ("chat llama", Kind::Client),
        ]
    );
    let root = &spans[0];
    assert_eq!((root.span_id, root.parent), (context.span_id, None));
    assert_eq!((root.start_unix_ns, root.end_unix_ns), (T0, T0 + 100_000_000));
    assert!(spans[1..].iter().all(|span| span.parent == Some(root.span_id)));
    assert!(spans.iter().all(|span| span.trace_id == context.trace_id));
    assert!(spans.iter().all(|span| span.tracestate.as_deref() == Some("a=b")));
    assert_eq!((spans[3].span_id, spans[4].span_id), (first.span_id, second.span_id));
    assert_ne!(first.span_id, second.span_id);
    assert_eq!(spans[1].start_unix_ns, T0 + 1_000_000);
    assert_eq!(root.events, [Event { name: "first_token", unix_ns: T0 + 40_000_000 }]);
    assert_eq!(attribute(root, "cgn.queue_ms"), Some(&Value::Double(5.0)));
    assert_eq!(attribute(root, "cgn.ttft_ms"), Some(&Value::Double(40.0)));
    assert_eq!(attribute(root, "cgn.retries"), Some(&Value::Int(1)));
    assert_eq!(attribute(root, "cgn.resumed"), Some(&Value::Bool(false)));
    assert_eq!(attribute(root, "cgn.tenant"), Some(&Value::Text("acme".into())));
    assert_eq!(attribute(root, "gen_ai.operation.name"), Some(&Value::Word("chat")));
    assert_eq!(attribute(root, "gen_ai.request.max_tokens"), Some(&Value::Int(64)));
    assert_eq!(attribute(root, "gen_ai.usage.input_tokens"), Some(&Value::Int(10)));
    assert_eq!(attribute(root, "http.response.status_code"), Some(&Value::Int(200)));
    assert_eq!(attribute(root, "gen_ai.provider.name"), Some(&Value::Word("vllm")));
    assert_eq!(root.failure, None);
    assert_eq!(spans[3].failure.as_deref(), Some("connect"));
    assert_eq!(attribute(&spans[3], "error.type"), Some(&Value::Text("connect".into())));
    assert_eq!(attribute(&spans[3], "http.request.resend_count"), None);
    assert_eq!(attribute(&spans[4], "http.request.resend_count"), Some(&Value::Int(1)));
    assert_eq!(spans[4].failure, None);
}

#[test]
fn a_refusal_is_no_failure_and_a_bad_gateway_is_one() {
    let now = Instant::now();
    for (status, error, failure) in [
        (429, Some("busy"), None),
        (404, None, None),
        (503, Some("none_ready"), Some("none_ready")),
        (502, None, Some("502")),
        // The answer had begun.
        (200, Some("client_gone"), Some("client_gone")),
    ] {
        let outcome = Outcome { status, error, ..Outcome::default() };
        let spans = trace(1.0, now).finish(&outcome, now).unwrap();
        assert_eq!(spans[0].failure.as_deref(), failure, "{status}");
        assert_eq!(spans[0].name, "POST");
    }
}

#[test]
fn what_is_open_at_the_end_ends_with_the_request() {
    let t = Instant::now();
    let mut trace = trace(1.0, t);
    trace.call(Endpoint::Embeddings, "e", None);
    let (_, attempt) = trace.attempt(&WORKER, t);
    let resume = trace.enter(Step::Resume, at(t, 10));
    let outcome = Outcome { status: 200, error: Some("client_gone"), ..Outcome::default() };
    let spans = trace.finish(&outcome, at(t, 30)).unwrap();
    assert!(spans.iter().all(|span| span.end_unix_ns == T0 + 30_000_000));
    assert_eq!(attribute(&spans[1], "error.type"), Some(&Value::Text("client_gone".into())));
    assert_eq!(attribute(&spans[0], "cgn.resumed"), Some(&Value::Bool(true)));
    drop((attempt, resume));
}

#[test]
fn children_and_texts_are_bounded() {
    let t = Instant::now();
    let mut trace = trace(1.0, t);
    trace.call(Endpoint::Chat, &"m".repeat(10_000), None);
    for _ in 0..100 {
        let (context, open) = trace.attempt(&WORKER, t);
        assert_eq!(context.trace_id, trace.context().trace_id);
        trace.attempt_ended(open, Err("connect"), t);
    }
    let spans = trace.finish(&Outcome::default(), t).unwrap();
    assert_eq!(spans.len(), 1 + CHILDREN_MAX);
    assert_eq!(attribute(&spans[0], "cgn.retries"), Some(&Value::Int(99)));
    assert!(spans.iter().all(|span| span.name.len() < 300));
}

proptest! {
    /// In whatever order a request calls, its spans lie within it, below it, and each once.
    #[test]
    fn any_order_of_calls_makes_a_tree(
        calls in prop::collection::vec((0_u8..7, 0_u64..50, 0_u16..600), 0..80),
        status in 0_u16..600,
    ) {
        let start = Instant::now();
        let (mut trace, mut now) = (trace(1.0, start), start);
        let mut open = Vec::new();
        for (call, later, number) in calls {
            now += Duration::from_millis(later);
            let last = open.pop();
            match (call, last) {
                (0, last) => { open.extend(last); open.push(trace.enter(Step::Queue, now)); }
                (1, last) => { open.extend(last); open.push(trace.enter(Step::Resume, now)); }
                (2, last) => { open.extend(last); open.push(trace.attempt(&WORKER, now).1); }
                (3, Some(last)) => trace.attempt_ended(last, Ok(number), now),
                (4, Some(last)) => trace.attempt_ended(last, Err("connect"), now),
                (5, Some(last)) => trace.leave(last, now),
                (_, last) => { open.extend(last); trace.first_token(now); }
            }
        }
        let spans = trace.finish(&Outcome { status, ..Outcome::default() }, now).unwrap();
        let root = &spans[0];
        prop_assert!(spans.len() <= 1 + CHILDREN_MAX && root.events.len() <= 1);
        let ids: HashSet<SpanId> = spans.iter().map(|span| span.span_id).collect();
        prop_assert_eq!(ids.len(), spans.len());
        for span in &spans {
            prop_assert!(root.start_unix_ns <= span.start_unix_ns);
            prop_assert!(span.start_unix_ns <= span.end_unix_ns);
            prop_assert!(span.end_unix_ns <= root.end_unix_ns);
            let keys: HashSet<&str> = span.attributes.iter().map(|a| a.key).collect();
            prop_assert_eq!(keys.len(), span.attributes.len());
        }
        prop_assert!(spans[1..].iter().all(|span| span.parent == Some(root.span_id)));
    }
}
