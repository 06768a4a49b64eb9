//! What comes back from the real engine through the router: sensible text, streamed and not, and the
//! fields that are passed through.

use serde_json::{Value, json};

use crate::client::Answer;
use crate::house::House;
use crate::smollm2::{self, MODEL, Size, up};

const SIZE: Size = Size { replicas: 2, slots: 4, cache_ram_mib: 512 };

fn ask(content: &str, tokens: u32, more: Value) -> Value {
    let mut body = json!({
        "model": MODEL, "temperature": 0, "max_tokens": tokens,
        "messages": [{ "role": "user", "content": content }],
    });
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    body
}

fn whole(house: &House, body: &Value) -> Answer {
    let answer = house.chat(body);
    assert!(answer.status == 200 && answer.is_whole, "{answer:?}");
    assert!(answer.worker().starts_with("n/smollm2-135m/llama-cpp/test/"), "{answer:?}");
    answer
}

fn text(answer: &Answer) -> String {
    answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[test]
fn chat_streamed_and_not_json_schema_and_logprobs_come_from_the_real_engine() {
    let Some(parts) = smollm2::find() else { return };
    let house = parts.house();
    up(&house, SIZE);
    the_sky_is_blue_streamed_and_not(&house);
    a_schema_is_kept_to(&house);
    logprobs_are_there(&house);
    a_completion_goes_on(&house);
    embeddings_are_refused(&house);
}

fn the_sky_is_blue_streamed_and_not(house: &House) {
    let question = "Why is the sky blue?";
    let answer = whole(house, &ask(question, 100, json!({})));
    println!("{question} {}", text(&answer));
    assert!(text(&answer).contains("scatter"), "{answer:?}");
    assert_eq!(answer.json()["choices"][0]["message"]["role"], "assistant");

    let more = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let stream = whole(house, &ask(question, 100, more));
    assert!(stream.is_done(), "{stream:?}");
    assert_eq!(stream.field("content-type"), Some("text/event-stream"));
    let events = stream.events();
    let parts = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    let parts: Vec<&str> = parts.collect();
    assert!(parts.len() > 20, "it came in one piece: {parts:?}");
    assert!(parts.concat().contains("scatter"), "{parts:?}");
    let usage = &events.last().unwrap()["usage"];
    assert_eq!(usage["prompt_tokens"], answer.json()["usage"]["prompt_tokens"]);
}

fn a_schema_is_kept_to(house: &House) {
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["city", "is_capital"],
        "properties": {
            "city": { "type": "string", "maxLength": 20 }, "is_capital": { "type": "boolean" },
        },
    });
    let format =
        json!({ "type": "json_schema", "json_schema": { "name": "city", "schema": schema } });
    let question = "Which city is the capital of France?";
    let answer = whole(house, &ask(question, 60, json!({ "response_format": format })));
    let value: Value = serde_json::from_str(&text(&answer)).unwrap();
    assert_eq!(value.as_object().unwrap().len(), 2, "{value}");
    assert!(value["city"].is_string() && value["is_capital"].is_boolean(), "{value}");
}

fn logprobs_are_there(house: &House) {
    let more = json!({ "logprobs": true, "top_logprobs": 3 });
    let answer = whole(house, &ask("Say yes.", 4, more)).json();
    let tokens = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let generated = answer["usage"]["completion_tokens"].as_u64().unwrap();
    assert!(!tokens.is_empty() && tokens.len() as u64 <= generated, "{answer}");
    for token in tokens {
        assert!(token["logprob"].as_f64().unwrap() <= 0.0, "{token}");
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 3, "{token}");
    }
}

fn a_completion_goes_on(house: &House) {
    let body = json!({
        "model": MODEL, "prompt": "The capital of France is", "max_tokens": 6, "temperature": 0,
    });
    let answer = crate::client::post(house.http(), "/v1/completions", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    let text = answer.json()["choices"][0]["text"].as_str().unwrap().to_owned();
    assert!(text.contains("Paris"), "{text}");
}

fn embeddings_are_refused(house: &House) {
    let body = json!({ "model": MODEL, "input": "hello" });
    let answer = crate::client::post(house.http(), "/v1/embeddings", &body);
    assert_eq!(answer.status, 400, "{answer:?}");
    assert_eq!(answer.json()["error"]["code"], "endpoint_not_supported");
}
