//! The text against a golden one, against the registry, and against the classical form.

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry,
    TextEncoder,
};
use proptest::prelude::*;

use super::*;
use crate::trace::context::{SpanId, TraceContext, TraceId};

/// A registry with one family of each kind, and its exemplars.
fn registry() -> (Registry, Exemplars) {
    let registry = Registry::new();
    let exemplars = Exemplars::default();
    let tokens = IntCounter::new("cgn_router_prompt_tokens_total", "Prompt tokens.").unwrap();
    tokens.inc_by(3_000_000);
    registry.register(Box::new(tokens)).unwrap();
    let help = "Say \"hi\"\\\nthen go.";
    let requests =
        IntCounterVec::new(Opts::new("cgn_router_requests_total", help), &["path"]).unwrap();
    requests.with_label_values(&["a\"b\\c\nd"]).inc();
    registry.register(Box::new(requests)).unwrap();
    let ready = GaugeVec::new(Opts::new("cgn_router_worker_ready", "Ready."), &["worker"]).unwrap();
    ready.with_label_values(&["w"]).set(0.5);
    registry.register(Box::new(ready)).unwrap();
    let bounds = [0.000_001, 0.5, 1.0];
    let name = "cgn_router_decision_seconds";
    let options = HistogramOpts::new(name, "Decision.").buckets(bounds.to_vec());
    let decision = Histogram::with_opts(options).unwrap();
    let series = exemplars.declare(name, &[], &bounds);
    for (value, unix_ms) in [(0.25, 1_700_000_000_012), (3.0, 1_700_000_001_000)] {
        decision.observe(value);
        let context = TraceContext {
            trace_id: TraceId::new(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736),
            span_id: SpanId::new(0x00f0_67aa_0ba9_02b7),
            sampled: true,
        };
        series.note(context, value, unix_ms);
    }
    registry.register(Box::new(decision)).unwrap();
    (registry, exemplars)
}

const GOLDEN: &str = r##"# TYPE cgn_router_decision_seconds histogram
# UNIT cgn_router_decision_seconds seconds
# HELP cgn_router_decision_seconds Decision.
cgn_router_decision_seconds_bucket{le="1e-06"} 0
cgn_router_decision_seconds_bucket{le="0.5"} 1 # {trace_id="4bf92f3577b34da6a3ce929d0e0e4736",span_id="00f067aa0ba902b7"} 0.25 1700000000.012
cgn_router_decision_seconds_bucket{le="1.0"} 1
cgn_router_decision_seconds_bucket{le="+Inf"} 2 # {trace_id="4bf92f3577b34da6a3ce929d0e0e4736",span_id="00f067aa0ba902b7"} 3.0 1700000001.000
cgn_router_decision_seconds_count 2
cgn_router_decision_seconds_sum 3.25
# TYPE cgn_router_prompt_tokens counter
# UNIT cgn_router_prompt_tokens tokens
# HELP cgn_router_prompt_tokens Prompt tokens.
cgn_router_prompt_tokens_total 3e+06
# TYPE cgn_router_requests counter
# HELP cgn_router_requests Say \"hi\"\\\nthen go.
cgn_router_requests_total{path="a\"b\\c\nd"} 1.0
# TYPE cgn_router_worker_ready gauge
# HELP cgn_router_worker_ready Ready.
cgn_router_worker_ready{worker="w"} 0.5
# EOF
"##;

#[test]
fn the_text_is_openmetrics() {
    let (registry, exemplars) = registry();
    assert_eq!(render(&registry.gather(), &exemplars), GOLDEN);
}

#[test]
fn nothing_is_still_a_complete_text() {
    assert_eq!(render(&[], &Exemplars::default()), "# EOF\n");
}

/// Whatever form a scraper asks for, it finds the same samples.
#[test]
fn both_forms_have_the_same_samples() {
    let (registry, _) = registry();
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text).unwrap();
    let classical = String::from_utf8(text).unwrap();
    let names = |text: &str| -> Vec<String> {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let mut names: Vec<_> =
            samples.filter_map(|l| l.split(['{', ' ']).next()).map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(names(&classical), names(GOLDEN));
}

#[test]
fn numbers_are_written_as_go_does() {
    for (value, text) in [
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (1.0, "1.0"),
        (120.0, "120.0"),
        (0.001, "0.001"),
        (0.000_1, "0.0001"),
        (0.000_05, "5e-05"),
        (0.000_001_5, "1.5e-06"),
        (100_000.0, "100000.0"),
        (1_000_000.0, "1e+06"),
        (1_234_567.0, "1.234567e+06"),
        (1e21, "1e+21"),
        (-2.5e-300, "-2.5e-300"),
        (f64::INFINITY, "+Inf"),
        (f64::NEG_INFINITY, "-Inf"),
        (f64::NAN, "NaN"),
    ] {
        assert_eq!(number(value), text);
    }
}

#[test]
fn a_scraper_gets_the_form_it_asks_for() {
    // What Prometheus 2 and 3 send.
    let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    for (accept, wants) in [
        (prometheus, true),
        ("application/openmetrics-text", true),
        ("Application/OpenMetrics-Text; version=1.0.0; charset=utf-8", true),
        ("text/plain, application/openmetrics-text", true),
        ("text/plain;q=0.5, application/openmetrics-text;q=0.4", false),
        ("text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;q=0.7", true),
        ("application/openmetrics-text;q=0", false),
        ("application/openmetrics-text;q=0.000", false),
        ("application/openmetrics-text;q=banana", false),
        ("application/openmetrics-textual", false),
        ("text/plain", false),
        ("*/*", false),
        ("", false),
    ] {
        assert_eq!(wants_openmetrics(accept.as_bytes()), wants, "{accept}");
    }
    assert!(!wants_openmetrics(b"application/openmetrics-text;\xff"));
}

proptest! {
    #[test]
    fn any_number_is_read_again(value: f64) {
        let text = number(value);
        prop_assert_eq!(text.parse::<f64>().unwrap().to_bits(), value.to_bits());
        prop_assert!(text.contains(['.', 'e']));
    }

    #[test]
    fn any_label_stays_on_its_line(value in "(.|[\r\n\"\\\\]){0,30}") {
        let registry = Registry::new();
        let gauge = GaugeVec::new(Opts::new("g", "h"), &["l"]).unwrap();
        gauge.with_label_values(&[value.as_str()]).set(1.0);
        registry.register(Box::new(gauge)).unwrap();
        let text = render(&registry.gather(), &Exemplars::default());
        let line = text.split('\n').nth(2).unwrap();
        let quoted = line.strip_prefix("g{l=\"").and_then(|l| l.strip_suffix("\"} 1.0")).unwrap();
        let mut read = String::new();
        let mut rest = quoted.chars();
        while let Some(c) = rest.next() {
            prop_assert!(c != '"');
            read.push(match c {
                '\\' => match rest.next() { Some('n') => '\n', other => other.unwrap() },
                c => c,
            });
        }
        prop_assert_eq!(read, value);
    }

    #[test]
    fn hostile_accepts_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = wants_openmetrics(&bytes);
    }
}
