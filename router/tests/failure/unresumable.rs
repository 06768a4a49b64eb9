//! Where going on would be unsafe the client is told, at once and well formed; and what a dead engine had
//! half said is never seen.

use serde_json::{Value, json};

use super::ask::{CHAT, chat, raw, resumed, start, with, workers};
use super::heard::{Heard, payload};
use super::speaker::{Fault, Speaker, Turn};

/// The error event of a stream that cannot go on, and why it could not.
fn refused(body: &Value, reason: &str) {
    for fault in [Fault::HalfEvent, Fault::Dies] {
        let engines = Speaker::group(2, move |number, _| match number {
            0 => Turn::fails(fault, 6),
            _ => Turn::well(),
        });
        let router = start("[router.resume]\nwait_ms_max = 600000\n", &workers(&engines));
        let response = raw(&router, CHAT, body);
        let heard = Heard::of(&payload(&response).expect("framed to its end"));
        assert!(heard.is_ended_by_error(), "{reason}: {heard:?}");
        assert_eq!(heard.errors[0]["code"], "engine_failed");
        assert_eq!(resumed(&router, reason), 1.0, "{reason}");
        let asked: usize = engines.iter().map(|engine| engine.asked().len()).sum();
        assert_eq!(asked, 1, "{reason}: nobody else is asked");
        assert_eq!(router.metric("cgn_router_streams_broken_total"), 1.0);
    }
}

#[test]
fn several_choices() {
    refused(&with(chat("x"), json!({ "n": 2 })), "several_choices");
}

#[test]
fn logprobs() {
    refused(&with(chat("x"), json!({ "logprobs": true, "top_logprobs": 2 })), "logprobs");
}

#[test]
fn a_half_sent_tool_call() {
    let tools = json!([{ "type": "function", "function": { "name": "f" } }]);
    refused(&with(chat("x"), json!({ "tools": tools })), "tool_calls");
}

#[test]
fn a_grammar_without_a_seed() {
    let format = json!({ "type": "json_schema", "json_schema": { "schema": {} } });
    let body = with(chat("x"), json!({ "response_format": format, "temperature": 0.7 }));
    refused(&body, "structured");
}

/// Unsafe or not, whether or not anybody is left: it does not wait for a worker that could not help.
#[test]
fn the_only_worker_is_not_waited_for() {
    let engine = Speaker::one(|_, _| Turn::fails(Fault::Dies, 6));
    let router = start("[router.resume]\nwait_ms_max = 600000\n", &workers([&engine]));
    let response = raw(&router, CHAT, &with(chat("x"), json!({ "n": 2 })));
    let heard = Heard::of(&payload(&response).expect("framed to its end"));
    assert!(heard.is_ended_by_error(), "{heard:?}");
}
