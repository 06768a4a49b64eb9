//! Chat, completions and embeddings, streamed and not, and how requests are refused.

use serde_json::{Value, json};

use super::process::Engine;

const FAST: [&str; 2] = ["--speedup-ratio", "0"];

fn llama_cpp() -> Engine {
    Engine::start(&["--mimic", "llama_cpp", FAST[0], FAST[1]])
}

fn vllm() -> Engine {
    Engine::start(&["--mimic", "vllm", "--model", "m", FAST[0], FAST[1]])
}

fn chat(text: &str, extra: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": text}]});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn joined(events: &[Value], choice: u64, pointer: &str) -> String {
    events
        .iter()
        .flat_map(|event| event["choices"].as_array().unwrap())
        .filter(|one| one["index"] == choice)
        .filter_map(|one| one.pointer(pointer).and_then(Value::as_str))
        .collect()
}

#[tokio::test]
async fn a_stream_says_the_same_as_the_whole_answer() {
    for engine in [llama_cpp(), vllm()] {
        for seed in 0..10 {
            let request = chat("hi", json!({"seed": seed, "max_tokens": 100, "n": 2}));
            let whole = engine.ok("/v1/chat/completions", request.clone()).await;
            let mut streamed = request;
            streamed["stream"] = json!(true);
            let events = engine.stream("/v1/chat/completions", streamed).await;
            for choice in 0..2 {
                let text = whole["choices"][choice]["message"]["content"].as_str().unwrap();
                assert!(text.len() > 100);
                assert_eq!(joined(&events, choice as u64, "/delta/content"), text);
            }
            assert_ne!(whole["choices"][0]["message"], whole["choices"][1]["message"]);
        }
    }
}

#[tokio::test]
async fn one_token_is_one_event() {
    for engine in [llama_cpp(), vllm()] {
        let request = json!({"prompt": "hi", "max_tokens": 20, "stream": true});
        let events = engine.stream("/v1/completions", request).await;
        let shown = events.iter().filter(|event| event["choices"][0]["text"] != "").count();
        assert!((18..=20).contains(&shown), "{shown}: a character cut in two shows with its end");
    }
}

#[tokio::test]
async fn llama_cpps_stream_has_its_shape() {
    let engine = llama_cpp();
    let request = chat("hi", json!({"max_tokens": 3, "stream": true}));
    let events = engine.stream("/v1/chat/completions", request).await;
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": null}));
    let last = events.last().unwrap();
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(last["timings"]["predicted_n"], 3);
    assert!(last.get("usage").is_none());

    let usage = json!({"max_tokens": 3, "stream": true, "stream_options": {"include_usage": true}});
    let events = engine.stream("/v1/chat/completions", chat("hi", usage)).await;
    let last = events.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 3);
    assert!(last.get("timings").is_some());
}

#[tokio::test]
async fn vllms_stream_has_its_shape() {
    let engine = vllm();
    let usage = json!({"max_tokens": 3, "stream": true, "return_token_ids": true,
                       "stream_options": {"include_usage": true}});
    let events = engine.stream("/v1/chat/completions", chat("hi", usage.clone())).await;
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let prompt = &events[0]["prompt_token_ids"];
    let tokens = engine.ok("/tokenize", chat("hi", json!({}))).await;
    assert_eq!(prompt, &tokens["tokens"]);
    let finish = &events[events.len() - 2]["choices"][0];
    assert_eq!(
        (&finish["finish_reason"], &finish["stop_reason"]),
        (&json!("length"), &Value::Null)
    );
    let ids: Vec<Value> = events
        .iter()
        .filter_map(|event| event["choices"][0]["token_ids"].as_array())
        .flatten()
        .cloned()
        .collect();
    let whole = json!({"max_tokens": 3, "return_token_ids": true});
    let whole = engine.ok("/v1/chat/completions", chat("hi", whole)).await;
    assert_eq!(whole["choices"][0]["token_ids"], json!(ids));
    assert_eq!(&whole["prompt_token_ids"], prompt);
    let last = events.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(
        last["usage"],
        whole["usage"]
            .as_object()
            .map(|usage| {
                let mut usage = usage.clone();
                // The repeat found the first one's blocks.
                usage["prompt_tokens_details"] = last["usage"]["prompt_tokens_details"].clone();
                Value::Object(usage)
            })
            .unwrap()
    );
}

#[tokio::test]
async fn answers_end_at_max_tokens_at_a_stop_string_or_by_themselves() {
    let engine = vllm();
    let natural = engine.ok("/v1/completions", json!({"prompt": "a"})).await;
    assert_eq!(natural["choices"][0]["finish_reason"], "stop");
    let said = natural["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((8..=256).contains(&said));

    let long = json!({"prompt": "a", "max_tokens": 64});
    let long = engine.ok("/v1/completions", long).await;
    assert_eq!(long["choices"][0]["finish_reason"], "length");
    assert_eq!(long["usage"]["completion_tokens"], 64);
    let text = long["choices"][0]["text"].as_str().unwrap();
    let stop: String = text.chars().skip(20).take(3).collect();
    let stopped = json!({"prompt": "a", "max_tokens": 64, "stop": [stop]});
    let stopped = engine.ok("/v1/completions", stopped).await;
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(stopped["choices"][0]["stop_reason"], json!(stop));
    assert_eq!(stopped["choices"][0]["text"], text[..text.find(&stop).unwrap()]);
}

#[tokio::test]
async fn the_seed_decides_the_text_on_every_worker() {
    let text = async |engine: &Engine, seed: Value| {
        let answer = engine.ok("/v1/completions", json!({"prompt": "a", "seed": seed})).await;
        answer["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    let (one, other) = (vllm(), vllm());
    let third = Engine::start(&["--seed", "5", FAST[0], FAST[1]]);
    assert_eq!(text(&one, json!(null)).await, text(&other, json!(null)).await);
    assert_eq!(text(&one, json!(3)).await, text(&other, json!(3)).await);
    assert_ne!(text(&one, json!(3)).await, text(&one, json!(4)).await);
    assert_ne!(text(&one, json!(3)).await, text(&third, json!(3)).await);
}

#[tokio::test]
async fn a_required_tool_is_called() {
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"]}}}]);
    for engine in [llama_cpp(), vllm()] {
        let request = chat("hi", json!({"tools": tools, "tool_choice": "required"}));
        let whole = engine.ok("/v1/chat/completions", request.clone()).await;
        let choice = &whole["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls");
        assert_eq!(choice["message"]["content"], Value::Null);
        let call = &choice["message"]["tool_calls"][0];
        assert_eq!(
            (&call["type"], &call["function"]["name"]),
            (&json!("function"), &json!("weather"))
        );
        let arguments = call["function"]["arguments"].as_str().unwrap();
        let parsed: Value = serde_json::from_str(arguments).unwrap();
        assert!(parsed["city"].is_string() && parsed["days"].is_u64());

        let mut streamed = request;
        streamed["stream"] = json!(true);
        let events = engine.stream("/v1/chat/completions", streamed).await;
        let path = "/delta/tool_calls/0/function";
        assert_eq!(joined(&events, 0, &format!("{path}/name")), "weather");
        assert_eq!(joined(&events, 0, &format!("{path}/arguments")), arguments);
    }
}

#[tokio::test]
async fn embeddings_come_as_floats_and_as_base64() {
    let engine = vllm();
    let floats = engine.ok("/v1/embeddings", json!({"input": ["a b", "c"]})).await;
    assert_eq!(floats["data"].as_array().unwrap().len(), 2);
    assert_eq!(floats["data"][1]["embedding"].as_array().unwrap().len(), 64);
    assert_eq!(floats["usage"]["prompt_tokens"], 3);
    let base64 = json!({"input": "a b", "encoding_format": "base64"});
    let base64 = engine.ok("/v1/embeddings", base64).await;
    assert_eq!(
        base64["data"][0]["embedding"].as_str().unwrap().len(),
        (64 * 4usize).div_ceil(3) * 4
    );
}

#[tokio::test]
async fn embeddings_can_be_off_as_llama_cpps_are() {
    let args = ["--mimic", "llama_cpp", "--embeddings", "off"];
    let answer = Engine::start(&args).post("/v1/embeddings", json!({"input": "a"})).await;
    assert_eq!(answer.status, 501);
    assert_eq!(answer.json()["error"]["type"], "not_supported_error");
}

#[tokio::test]
async fn refusals_are_openai_errors_in_the_words_of_the_dialect() {
    let args = ["--model", "m", "--context-length", "64", "--body-bytes-max", "2000"];
    let llama_cpp = Engine::start(&[&args[..], &["--mimic", "llama_cpp"]].concat());
    let vllm = Engine::start(&[&args[..], &["--mimic", "vllm"]].concat());
    let long = "word ".repeat(100);
    for (body, on_llama_cpp, on_vllm, kind) in [
        ("{\"messages\":[".to_owned(), 500, 400, "Bad Request"),
        ("{}".to_owned(), 400, 400, "BadRequestError"),
        ("{\"messages\":\"x\"}".to_owned(), 400, 400, "BadRequestError"),
        (chat("hi", json!({"max_tokens": "x"})).to_string(), 400, 400, "BadRequestError"),
        (chat(&long, json!({})).to_string(), 400, 400, "BadRequestError"),
        (chat(&"x".repeat(3000), json!({})).to_string(), 413, 413, "BadRequestError"),
    ] {
        let path = "/v1/chat/completions";
        let answer = llama_cpp.post_text(path, body.clone()).await;
        assert_eq!(answer.status, on_llama_cpp, "{body}");
        assert_eq!(answer.json()["error"]["code"], on_llama_cpp);
        assert_eq!(answer.headers["connection"], "close");
        let answer = vllm.post_text(path, body.clone()).await;
        assert_eq!(answer.status, on_vllm, "{body}");
        assert_eq!(answer.json()["error"]["type"], kind);
        assert_eq!(answer.json()["error"]["code"], on_vllm);
    }
    let overflow = llama_cpp.post("/v1/chat/completions", chat(&long, json!({}))).await.json();
    assert_eq!(overflow["error"]["type"], "exceed_context_size_error");
    assert_eq!(overflow["error"]["n_ctx"], 64);

    let other = chat("hi", json!({"model": "other", "max_tokens": 1}));
    let answer = vllm.post("/v1/chat/completions", other.clone()).await;
    assert_eq!(answer.status, 404);
    assert_eq!(answer.json()["error"]["message"], "The model `other` does not exist.");
    assert_eq!(llama_cpp.post("/v1/chat/completions", other).await.status, 200);

    let too_long = chat("hi", json!({"max_tokens": 60}));
    assert_eq!(vllm.post("/v1/chat/completions", too_long.clone()).await.status, 400);
    let cut = llama_cpp.ok("/v1/chat/completions", too_long).await;
    assert_eq!(cut["usage"]["total_tokens"], 64, "llama.cpp answers until the context ends");
    assert_eq!(vllm.get("/nothing").await.status, 404);
    assert_eq!(vllm.get("/v1/chat/completions").await.status, 404);
}
