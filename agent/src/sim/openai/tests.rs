//! Requests as clients send them, good and bad.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn chat(extra: Value) -> Result<Call, Refusal> {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    parse_call(Endpoint::Chat, body.to_string().as_bytes())
}

fn refused_field(result: Result<Call, Refusal>) -> String {
    match result {
        Err(Refusal::Field { field, .. }) => field,
        other => panic!("expected a refused field, got {other:?}"),
    }
}

#[test]
fn a_chat_has_its_defaults() {
    let call = chat(json!({"model": "m", "stop": null, "unknown": {"deep": 1}})).unwrap();
    assert_eq!((call.choices, call.tokens_max, call.stream), (1, None, false));
    assert_eq!(call.prompts, [encode("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")]);
}

#[test]
fn the_newer_name_of_max_tokens_wins() {
    let call = chat(json!({"max_tokens": 3, "max_completion_tokens": 4})).unwrap();
    assert_eq!(call.tokens_max, Some(4));
    assert_eq!(chat(json!({"max_tokens": -1})).unwrap().tokens_max, None);
}

#[test]
fn wrong_types_are_refused_by_name() {
    for (extra, name) in [
        (json!({"max_tokens": "x"}), "max_tokens"),
        (json!({"max_tokens": -2}), "max_tokens"),
        (json!({"stream": 1}), "stream"),
        (json!({"n": 0}), "n"),
        (json!({"n": 1000}), "n"),
        (json!({"stop": 5}), "stop"),
        (json!({"stop": [5]}), "stop"),
        (json!({"seed": "x"}), "seed"),
        (json!({"model": 5}), "model"),
        (json!({"stream_options": true}), "stream_options"),
        (json!({"tools": 1}), "tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"messages": "x"}), "messages"),
        (json!({"messages": []}), "messages"),
    ] {
        assert_eq!(refused_field(chat(extra)), name);
    }
}

#[test]
fn what_is_missing_or_broken_is_said() {
    assert_eq!(parse_call(Endpoint::Chat, b"{}"), Err(Refusal::Missing("messages")));
    assert_eq!(parse_call(Endpoint::Completion, b"{}"), Err(Refusal::Missing("prompt")));
    assert!(matches!(parse_call(Endpoint::Chat, b"{\"a\":"), Err(Refusal::Json(_))));
    assert!(matches!(parse_call(Endpoint::Chat, b"[]"), Err(Refusal::Field { .. })));
}

#[test]
fn prompts_come_as_text_or_token_ids_one_or_many() {
    let parse = |prompt: Value| {
        parse_call(Endpoint::Completion, json!({"prompt": prompt}).to_string().as_bytes())
            .map(|call| call.prompts)
    };
    let (a, b) = (encode("a"), encode("bc"));
    assert_eq!(parse(json!("a")).unwrap(), std::slice::from_ref(&a));
    assert_eq!(parse(json!(["a", "bc"])).unwrap(), [a.clone(), b.clone()]);
    assert_eq!(parse(json!(b)).unwrap(), std::slice::from_ref(&b));
    assert_eq!(parse(json!([a, b])).unwrap(), [a, b]);
    for bad in [json!(""), json!([]), json!([[]]), json!([3]), json!([1.5]), json!({"a": 1})] {
        assert!(parse(bad).is_err());
    }
}

#[test]
fn a_named_or_required_function_is_called() {
    let tools = json!([
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
        {"type": "function", "function": {"name": "g"}},
    ]);
    let name = |choice: Value| match chat(json!({"tools": tools, "tool_choice": choice}))?.shape {
        Shape::ToolCall { name, .. } => Ok::<_, Refusal>(name),
        other => panic!("{other:?}"),
    };
    assert_eq!(name(json!("required")).unwrap(), "f");
    assert_eq!(name(json!({"type": "function", "function": {"name": "g"}})).unwrap(), "g");
    assert!(name(json!({"type": "function", "function": {"name": "h"}})).is_err());
    assert_eq!(chat(json!({"tools": tools, "tool_choice": "auto"})).unwrap().shape, Shape::Words);
}

proptest! {
    #[test]
    fn hostile_bodies_never_panic(body in "[\\[\\]{}\":,a-z0-9 -]{0,60}") {
        let _ = parse_call(Endpoint::Chat, body.as_bytes());
        let _ = parse_call(Endpoint::Completion, body.as_bytes());
        let _ = parse_embedding(body.as_bytes());
        let wrapped = format!("{{\"messages\":{body},\"prompt\":{body},\"input\":{body}}}");
        let _ = parse_call(Endpoint::Chat, wrapped.as_bytes());
        let _ = parse_embedding(wrapped.as_bytes());
    }
}
