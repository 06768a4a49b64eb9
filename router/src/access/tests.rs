//! The line against a golden text, and against hostile strings.

use proptest::prelude::*;

use super::*;

pub(super) fn line<'a>() -> AccessLine<'a> {
    AccessLine {
        ts: 1_709_164_800_001,
        request_id: "req-1",
        trace_id: TraceId::new(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736),
        tenant: None,
        subject: None,
        peer: None,
        method: "POST",
        path: "/v1/chat/completions",
        model: None,
        stream: false,
        status: 429,
        worker: None,
        attempts: 0,
        resumed: false,
        queue_ms: None,
        ttft_ms: None,
        duration_ms: Duration::from_micros(1_234),
        prompt_tokens: None,
        cached_tokens: None,
        completion_tokens: None,
        prefix_tokens: 0,
        bytes_in: 512,
        bytes_out: 0,
        end: End::Refused("busy"),
    }
}

fn text(line: &AccessLine<'_>) -> String {
    let mut out = Vec::new();
    line.write_to(&mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn a_line_is_one_object() {
    let full = AccessLine {
        tenant: Some("acme"),
        subject: Some("ci"),
        peer: Some([127, 0, 0, 1].into()),
        model: Some("m"),
        stream: true,
        status: 200,
        worker: Some("m@h:1"),
        attempts: 2,
        resumed: true,
        queue_ms: Some(Duration::from_micros(1_500)),
        ttft_ms: Some(Duration::from_millis(20)),
        prompt_tokens: Some(10),
        cached_tokens: Some(8),
        completion_tokens: Some(5),
        prefix_tokens: 8,
        bytes_out: 900,
        end: End::Complete,
        ..line()
    };
    assert_eq!(
        text(&full),
        concat!(
            r#"{"ts":"2024-02-29T00:00:00.001Z","request_id":"req-1","#,
            r#""trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","tenant":"acme","subject":"ci","#,
            r#""peer":"127.0.0.1","method":"POST","path":"/v1/chat/completions","model":"m","#,
            r#""stream":true,"status":200,"worker":"m@h:1","attempts":2,"resumed":true,"#,
            r#""queue_ms":1.5,"ttft_ms":20.0,"duration_ms":1.234,"prompt_tokens":10,"#,
            r#""cached_tokens":8,"completion_tokens":5,"prefix_tokens":8,"bytes_in":512,"#,
            r#""bytes_out":900,"end":"complete"}"#,
            "\n"
        )
    );
}

#[test]
fn what_has_no_value_is_left_out() {
    assert_eq!(
        text(&line()),
        concat!(
            r#"{"ts":"2024-02-29T00:00:00.001Z","request_id":"req-1","#,
            r#""trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","#,
            r#""method":"POST","path":"/v1/chat/completions","stream":false,"status":429,"#,
            r#""attempts":0,"resumed":false,"duration_ms":1.234,"prefix_tokens":0,"#,
            r#""bytes_in":512,"bytes_out":0,"end":"busy"}"#,
            "\n"
        )
    );
}

#[test]
fn a_file_of_configuration_is_checked() {
    assert_eq!(AccessConfig::default().check(), Ok(()));
    let key = |config: AccessConfig| config.check().unwrap_err().key();
    let base = AccessConfig::default;
    assert_eq!(key(AccessConfig { sample_ratio: f64::NAN, ..base() }), "sample_ratio");
    assert_eq!(key(AccessConfig { sample_ratio: 2.0, ..base() }), "sample_ratio");
    assert_eq!(key(AccessConfig { bytes_max: 1, ..base() }), "bytes_max");
}

proptest! {
    #[test]
    fn any_text_makes_one_line_of_json(
        id in "(.|[\u{0}-\u{1f}]){0,400}",
        model in "(.|[\r\n\"\\\\\u{2028}]){0,40}",
        path in "(.|\n){0,40}",
    ) {
        let line = AccessLine { request_id: &id, model: Some(&model), path: &path, ..line() };
        let text = text(&line);
        prop_assert_eq!(text.matches('\n').count(), 1);
        prop_assert_eq!(text.chars().last(), Some('\n'));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(json["model"].as_str(), Some(model.as_str()));
        prop_assert_eq!(json["path"].as_str(), Some(path.as_str()));
        let kept = json["request_id"].as_str().unwrap();
        prop_assert!(id.starts_with(kept) && kept.len() <= TEXT_BYTES_MAX);
        prop_assert!(kept.len() == id.len() || kept.len() > TEXT_BYTES_MAX - 4);
    }
}
