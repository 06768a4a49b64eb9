//! Traces: the spans a collector gets, the context an engine gets, and exemplars in the metrics.

use std::io::Write;

use serde_json::Value;

use super::client::{Client, chat};
use super::engine::{Engine, json};
use super::process::{Router, worker};
use super::tenants::{CHAT, KeyFile, bearer, get, line, post, tenant, until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// The context of a client that records, or does not.
fn traceparent(sampled: bool) -> String {
    format!("traceparent: 00-{TRACE}-{PARENT}-0{}\r\n", u8::from(sampled))
}

fn section(collector: &Engine, ratio: &str) -> String {
    format!(
        "[router.trace]\notlp_url = \"http://{}/v1/traces\"\nsample_ratio = {ratio}\ninterval_ms = 100\n",
        collector.address
    )
}

/// Every span the collector got.
fn spans(collector: &Engine) -> Vec<Value> {
    let mut spans = Vec::new();
    for asked in collector.asked() {
        assert_eq!(asked.line(), "POST /v1/traces HTTP/1.1");
        assert_eq!(asked.field("content-type"), Some("application/json"));
        let body: Value = serde_json::from_slice(&asked.body).unwrap();
        for resource in body["resourceSpans"].as_array().unwrap() {
            let service = attribute(&resource["resource"], "service.name").unwrap();
            assert_eq!(service, "cgn-router");
            for scope in resource["scopeSpans"].as_array().unwrap() {
                spans.extend(scope["spans"].as_array().unwrap().iter().cloned());
            }
        }
    }
    spans
}

/// An attribute's value, whatever its type, as text.
fn attribute(of: &Value, key: &str) -> Option<String> {
    let all = of["attributes"].as_array()?;
    let value = &all.iter().find(|attribute| attribute["key"] == key)?["value"];
    let (_, value) = value.as_object()?.iter().next()?;
    Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

fn of_trace(collector: &Engine, trace: &str) -> Vec<Value> {
    spans(collector).into_iter().filter(|span| span["traceId"] == trace).collect()
}

fn answering() -> Engine {
    Engine::fixed(json(
        "{\"text\":\"the-secret-answer\",\"usage\":{\"prompt_tokens\":21,\"completion_tokens\":7,\"prompt_tokens_details\":{\"cached_tokens\":16}}}",
    ))
}

#[test]
fn a_request_becomes_spans_below_its_callers() {
    let (collector, engine) = (Engine::ok(), answering());
    let keys = KeyFile::with(&[line("the-secret-key", "tenant=acme")]);
    let sections = section(&collector, "0.0") + &keys.section("required = true");
    let router = Router::start(&sections, &(worker(&engine, 4) + &tenant("acme", "")));
    let fields = traceparent(true) + "tracestate: vendor=1\r\n" + &bearer("the-secret-key");
    assert_eq!(post(&router, &fields, &chat("the-secret-prompt")).status, 200);
    until("the spans came", || !of_trace(&collector, TRACE).is_empty());
    let spans = of_trace(&collector, TRACE);
    let server = spans.iter().find(|span| span["kind"] == 2).expect("a server's span");
    assert_eq!((&server["name"], &server["parentSpanId"]), (&"chat m".into(), &PARENT.into()));
    assert_eq!(server["traceState"], "vendor=1");
    for (key, value) in [
        ("http.request.method", "POST"),
        ("url.path", CHAT),
        ("http.response.status_code", "200"),
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "m"),
        ("gen_ai.response.model", "m"),
        ("gen_ai.usage.input_tokens", "21"),
        ("gen_ai.usage.output_tokens", "7"),
        ("gen_ai.usage.cache_read.input_tokens", "16"),
        ("gen_ai.provider.name", "openai_compat"),
        ("cgn.tenant", "acme"),
        ("cgn.retries", "0"),
    ] {
        assert_eq!(attribute(server, key).as_deref(), Some(value), "{key}");
    }
    assert!(attribute(server, "cgn.ttft_ms").unwrap().parse::<f64>().unwrap() > 0.0);
    let children: Vec<_> =
        spans.iter().filter(|span| span["parentSpanId"] == server["spanId"]).collect();
    assert_eq!(children.len() + 1, spans.len(), "{spans:?}");
    for name in ["queue", "tokenize", "chat m"] {
        assert_eq!(children.iter().filter(|span| span["name"] == name).count(), 1, "{name}");
    }
    let ns = |span: &Value, key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
    for child in &children {
        assert!(ns(child, "startTimeUnixNano") >= ns(server, "startTimeUnixNano"));
        assert!(ns(child, "endTimeUnixNano") <= ns(server, "endTimeUnixNano"));
    }
    // The engine is told the span of the attempt at it.
    let attempt = children.iter().find(|span| span["kind"] == 3).expect("a client's span");
    let told = format!("00-{TRACE}-{}-01", attempt["spanId"].as_str().unwrap());
    let asked = &engine.asked()[0];
    assert_eq!(asked.field("traceparent"), Some(told.as_str()));
    assert_eq!(asked.head.to_ascii_lowercase().matches("traceparent:").count(), 1);
    assert_eq!(asked.field("tracestate"), Some("vendor=1"));
    for asked in collector.asked() {
        let text = String::from_utf8(asked.body).unwrap();
        assert!(!text.contains("the-secret"), "{text}");
    }
}

#[test]
fn what_is_not_sampled_is_not_sent() {
    let (collector, engine) = (Engine::ok(), answering());
    let router = Router::start(&section(&collector, "0.0"), &worker(&engine, 4));
    assert_eq!(post(&router, &traceparent(false), &chat("x")).status, 200);
    assert_eq!(post(&router, "", &chat("x")).status, 200);
    // A malformed context counts as none.
    let odd = "traceparent: 00-00000000000000000000000000000000-00f067aa0ba902b7-01\r\n";
    assert_eq!(post(&router, odd, &chat("x")).status, 200);
    let marker = traceparent(true).replace("4bf9", "aaaa");
    assert_eq!(post(&router, &marker, &chat("x")).status, 200);
    until("the marker came", || !of_trace(&collector, &TRACE.replace("4bf9", "aaaa")).is_empty());
    let traces = spans(&collector);
    assert!(
        traces.iter().all(|span| span["traceId"] == TRACE.replace("4bf9", "aaaa")),
        "{traces:?}"
    );
    // The trace goes on all the same, for whoever samples behind.
    let told = engine.asked()[0].field("traceparent").unwrap().to_owned();
    assert!(told.starts_with(&format!("00-{TRACE}-")) && told.ends_with("-00"), "{told}");
    assert!(!told.contains(PARENT), "the span of the router stands between: {told}");
}

#[test]
fn traces_begin_here_where_the_caller_has_none_and_refusals_are_in_them() {
    let (collector, engine) = (Engine::ok(), answering());
    let router = Router::start(&section(&collector, "1.0"), &worker(&engine, 4));
    assert_eq!(post(&router, "", &chat("x")).status, 200);
    let told = engine.asked()[0].field("traceparent").unwrap().to_owned();
    let trace = told.split('-').nth(1).unwrap().to_owned();
    assert!(told.ends_with("-01"), "{told}");
    let unknown = chat("x").replace("\"m\"", "\"nope\"");
    assert_eq!(post(&router, &traceparent(true), &unknown).status, 404);
    until("both came", || {
        !of_trace(&collector, &trace).is_empty() && !of_trace(&collector, TRACE).is_empty()
    });
    let root = of_trace(&collector, &trace);
    assert!(root.iter().any(|span| span.get("parentSpanId").is_none()), "{root:?}");
    let refused = &of_trace(&collector, TRACE)[0];
    assert_eq!(attribute(refused, "http.response.status_code").as_deref(), Some("404"));
    assert_eq!(attribute(refused, "error.type").as_deref(), Some("model_not_found"));
}

#[test]
fn an_attempt_that_fails_and_its_retry_are_two_spans() {
    let (collector, good) = (Engine::ok(), answering());
    let bad = Engine::start(|_, _| false);
    let router = Router::start(&section(&collector, "0.0"), &(worker(&bad, 4) + &worker(&good, 4)));
    until("the broken one was tried", || {
        assert_eq!(post(&router, &traceparent(true), &chat("x")).status, 200);
        !bad.asked().is_empty()
    });
    let failed = || {
        spans(&collector)
            .into_iter()
            .find(|span| attribute(span, "cgn.retries").as_deref() == Some("1"))
    };
    until("its span came", || failed().is_some());
    let server = failed().unwrap();
    let attempts: Vec<_> = spans(&collector)
        .into_iter()
        .filter(|span| span["kind"] == 3 && span["parentSpanId"] == server["spanId"])
        .collect();
    assert_eq!(attempts.len(), 2, "{attempts:?}");
    let errors = attempts.iter().filter(|span| attribute(span, "error.type").is_some()).count();
    assert_eq!(errors, 1, "{attempts:?}");
}

#[test]
fn a_collector_that_is_away_costs_no_request() {
    let dead = super::process::free_address();
    let keys = format!(
        "[router.trace]\notlp_url = \"http://{dead}/v1/traces\"\nsample_ratio = 1.0\ninterval_ms = 100\nqueue_spans_max = 64\nbatch_spans_max = 16\n"
    );
    let engine = Engine::start(|_, stream| stream.write_all(&json("{}")).is_ok());
    let router = Router::start(&keys, &worker(&engine, 4));
    let mut client = router.client();
    for _ in 0..200 {
        assert_eq!(client.post(CHAT, "", &chat("x")).status, 200);
    }
    until("the drops are counted", || router.metric("cgn_router_trace_spans_dropped_total") > 0.0);
}

#[test]
fn exemplars_lead_from_a_metric_to_a_trace() {
    let (collector, engine) = (Engine::ok(), answering());
    let router = Router::start(&section(&collector, "0.0"), &worker(&engine, 4));
    assert_eq!(post(&router, &traceparent(true), &chat("x")).status, 200);
    let count = "cgn_router_time_to_first_token_seconds_count";
    until("it is counted", || router.metric(count) == 1.0);
    let accept = "Accept: application/openmetrics-text; version=1.0.0\r\n";
    let answer = get(&mut Client::connect(router.admin), "/metrics", accept);
    let kind = answer.field("content-type").unwrap();
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    let text = answer.text();
    assert!(text.ends_with("# EOF\n"));
    let mut exemplars = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (sample, exemplar) = line.split_once(" # ").map_or((line, None), |(s, e)| (s, Some(e)));
        let (name, value) = sample.rsplit_once(' ').unwrap();
        assert!(name.starts_with("cgn_router_") && value.parse::<f64>().is_ok(), "{line}");
        let Some(exemplar) = exemplar else { continue };
        exemplars += 1;
        assert!(name.starts_with("cgn_router_time_to_first_token_seconds_bucket{"), "{line}");
        let (labels, rest) = exemplar.strip_prefix('{').unwrap().split_once("} ").unwrap();
        assert!(labels.starts_with(&format!("trace_id=\"{TRACE}\",span_id=\"")), "{labels}");
        let numbers: Vec<f64> = rest.split(' ').map(|number| number.parse().unwrap()).collect();
        let bound = name.split("le=\"").nth(1).unwrap().trim_end_matches("\"}");
        assert!(numbers[0] <= bound.replace("+Inf", "inf").parse::<f64>().unwrap(), "{line}");
        assert!(numbers.len() == 2 && numbers[1] > 1_600_000_000.0, "{line}");
    }
    assert_eq!(exemplars, 1, "{text}");
    let plain = get(&mut Client::connect(router.admin), "/metrics", "");
    assert!(plain.field("content-type").unwrap().starts_with("text/plain"));
    assert!(!plain.text().contains(TRACE));
}
