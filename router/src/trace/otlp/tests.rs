//! The encoding against a golden text, and hostile answers.

use std::sync::Arc;

use proptest::prelude::*;

use super::super::context::{SpanId, TraceId};
use super::super::span::Kind;
use super::*;

fn resource() -> Resource {
    Resource { version: "0.1.0".into(), instance: "host-7".into() }
}

fn span() -> Span {
    Span {
        trace_id: TraceId::new(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736),
        span_id: SpanId::new(0x00f0_67aa_0ba9_02b7),
        parent: None,
        parent_is_remote: false,
        tracestate: None,
        name: "chat m".into(),
        kind: Kind::Server,
        start_unix_ns: 1_700_000_000_000_000_001,
        end_unix_ns: 1_700_000_000_000_000_002,
        attributes: Vec::new(),
        events: Vec::new(),
        failure: None,
    }
}

/// Field names and forms as in opentelemetry-proto's `trace.proto` and its JSON example.
#[test]
fn the_encoding_is_the_protos_json_mapping() {
    let root = Span {
        parent: Some(SpanId::new(0xb7)),
        parent_is_remote: true,
        tracestate: Some(Arc::from("a=b")),
        attributes: vec![
            Attribute { key: "s", value: "a\"b\n".into() },
            Attribute { key: "w", value: Value::Word("vllm") },
            Attribute { key: "i", value: 9_007_199_254_740_993_u64.into() },
            Attribute { key: "d", value: 1.5.into() },
            Attribute { key: "n", value: f64::NAN.into() },
            Attribute { key: "b", value: true.into() },
            Attribute { key: "t", value: Value::Texts(vec!["x".into(), "y".into()]) },
        ],
        events: vec![Event { name: "first_token", unix_ns: 1_700_000_000_000_000_001 }],
        failure: Some("engine_failed".into()),
        ..span()
    };
    let child = Span { parent: Some(root.span_id), kind: Kind::Client, ..span() };
    let text = String::from_utf8(encode(&resource(), &[root, child])).unwrap();
    let golden = concat!(
        r#"{"resourceSpans":[{"resource":{"attributes":["#,
        r#"{"key":"service.name","value":{"stringValue":"cgn-router"}},"#,
        r#"{"key":"service.version","value":{"stringValue":"0.1.0"}},"#,
        r#"{"key":"service.instance.id","value":{"stringValue":"host-7"}}]},"#,
        r#""scopeSpans":[{"scope":{"name":"cgn-router","version":"0.1.0"},"spans":["#,
        r#"{"traceId":"4bf92f3577b34da6a3ce929d0e0e4736","spanId":"00f067aa0ba902b7","#,
        r#""traceState":"a=b","parentSpanId":"00000000000000b7","flags":769,"name":"chat m","#,
        r#""kind":2,"startTimeUnixNano":"1700000000000000001","#,
        r#""endTimeUnixNano":"1700000000000000002","attributes":["#,
        r#"{"key":"s","value":{"stringValue":"a\"b\n"}},"#,
        r#"{"key":"w","value":{"stringValue":"vllm"}},"#,
        r#"{"key":"i","value":{"intValue":"9007199254740993"}},"#,
        r#"{"key":"d","value":{"doubleValue":1.5}},"#,
        r#"{"key":"n","value":{"doubleValue":"NaN"}},"#,
        r#"{"key":"b","value":{"boolValue":true}},"#,
        r#"{"key":"t","value":{"arrayValue":{"values":[{"stringValue":"x"},{"stringValue":"y"}]}}}],"#,
        r#""events":[{"timeUnixNano":"1700000000000000001","name":"first_token"}],"#,
        r#""status":{"code":2,"message":"engine_failed"}},"#,
        r#"{"traceId":"4bf92f3577b34da6a3ce929d0e0e4736","spanId":"00f067aa0ba902b7","#,
        r#""parentSpanId":"00f067aa0ba902b7","flags":257,"name":"chat m","kind":3,"#,
        r#""startTimeUnixNano":"1700000000000000001","endTimeUnixNano":"1700000000000000002","#,
        r#""attributes":[],"status":{}}]}]}]}"#,
    );
    assert_eq!(text, golden);
}

#[test]
fn a_partial_success_is_read() {
    assert_eq!(rejected(b"{}"), 0);
    assert_eq!(rejected(b""), 0);
    assert_eq!(rejected(br#"{"partialSuccess":{}}"#), 0);
    assert_eq!(rejected(br#"{"partialSuccess":null}"#), 0);
    let said = br#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"no"}}"#;
    assert_eq!(rejected(said), 3);
    assert_eq!(rejected(br#"{"partialSuccess":{"rejectedSpans":4}}"#), 4);
    assert_eq!(rejected(br#"{"partialSuccess":{"rejectedSpans":-4}}"#), 0);
    assert_eq!(rejected(br#"{"partialSuccess":{"rejectedSpans":"x"}}"#), 0);
}

proptest! {
    #[test]
    fn any_text_is_carried(name in ".*", text in ".{0,60}") {
        let span = Span {
            name: name.clone(),
            attributes: vec![Attribute { key: "k", value: text.as_str().into() }],
            ..span()
        };
        let json: serde_json::Value =
            serde_json::from_slice(&encode(&resource(), &[span])).unwrap();
        let wire = &json["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        prop_assert_eq!(wire["name"].as_str(), Some(name.as_str()));
        prop_assert_eq!(wire["attributes"][0]["value"]["stringValue"].as_str(), Some(text.as_str()));
    }

    #[test]
    fn any_number_is_carried(int: u64, double: f64) {
        let attributes = vec![
            Attribute { key: "i", value: int.into() },
            Attribute { key: "d", value: double.into() },
        ];
        let body = encode(&resource(), &[Span { attributes, ..span() }]);
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let wire = &json["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["attributes"];
        let expected = i64::try_from(int).unwrap_or(i64::MAX).to_string();
        prop_assert_eq!(wire[0]["value"]["intValue"].as_str(), Some(expected.as_str()));
        let read = &wire[1]["value"]["doubleValue"];
        prop_assert_eq!(read.is_string(), !double.is_finite());
    }

    #[test]
    fn a_hostile_answer_is_no_answer(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = rejected(&body);
    }
}
