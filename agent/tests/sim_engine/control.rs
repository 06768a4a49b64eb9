//! The control endpoints: health, props, slots, models, tokens.

use serde_json::{Value, json};

use super::process::Engine;

#[tokio::test]
async fn a_loading_engine_says_so_and_then_serves() {
    let engine = Engine::start(&["--mimic", "llama_cpp", "--startup-ms", "1500"]);
    let answer = engine.get("/health").await;
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.json(),
        json!({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}})
    );
    let deadline = std::time::Instant::now() + super::process::PATIENCE;
    while engine.get("/health").await.status != 200 {
        assert!(std::time::Instant::now() < deadline, "never got ready");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(engine.get("/health").await.json(), json!({"status": "ok"}));
}

#[tokio::test]
async fn llama_cpps_control_endpoints_are_there() {
    let args = ["--mimic", "llama_cpp", "--slots", "3", "--context-length", "512", "--model", "m"];
    let engine = Engine::start(&args);
    let props = engine.get("/props").await.json();
    assert_eq!(props["total_slots"], 3);
    assert_eq!(props["default_generation_settings"]["n_ctx"], 512);
    assert_eq!(props["model_alias"], "m");
    let slots = engine.get("/slots").await.json();
    assert_eq!(slots.as_array().unwrap().len(), 3);
    assert_eq!(slots[0]["is_processing"], false);
    let models = engine.get("/v1/models").await;
    assert_eq!(models.json()["data"][0]["id"], "m");
    assert_eq!(models.json()["data"][0]["owned_by"], "llamacpp");
    assert_eq!(models.headers["server"], "llama.cpp");
    assert_eq!(models.headers["keep-alive"], "timeout=5, max=100");
    assert_eq!(engine.get("/version").await.status, 404);
}

#[tokio::test]
async fn vllms_control_endpoints_are_there() {
    let engine = Engine::start(&["--model", "m", "--context-length", "512"]);
    let health = engine.get("/health").await;
    assert_eq!((health.status.as_u16(), health.text.as_str()), (200, ""));
    assert!(engine.get("/version").await.json()["version"].is_string());
    assert_eq!(engine.get("/kv_event_sources").await.json(), json!({}));
    let models = engine.get("/v1/models").await.json();
    assert_eq!(models["data"][0]["max_model_len"], 512);
    assert_eq!(engine.metric("vllm:num_requests_running").await, 0.0);
    assert_eq!(engine.metric("vllm:kv_cache_usage_perc").await, 0.0);
    assert_eq!(engine.get("/props").await.status, 404);
}

#[tokio::test]
async fn tokens_go_out_and_come_back_in_both_dialects() {
    let text = "Zürich \u{1f680}\n<|im_end|> <|im_ \u{0}x";
    let llama_cpp = Engine::start(&["--mimic", "llama_cpp"]);
    let tokens = llama_cpp.ok("/tokenize", json!({"content": text, "add_special": true})).await;
    let back = llama_cpp.ok("/detokenize", tokens.clone()).await;
    assert_eq!(back["content"], text);
    let pieces = llama_cpp.ok("/tokenize", json!({"content": text, "with_pieces": true})).await;
    let ids: Vec<_> =
        pieces["tokens"].as_array().unwrap().iter().map(|piece| piece["id"].clone()).collect();
    assert_eq!(json!(ids), tokens["tokens"]);

    let vllm = Engine::start(&["--mimic", "vllm"]);
    let said = vllm.ok("/tokenize", json!({"prompt": text})).await;
    assert_eq!(said["tokens"], tokens["tokens"]);
    assert_eq!(said["count"], ids.len());
    let back = vllm.ok("/detokenize", json!({"tokens": said["tokens"]})).await;
    assert_eq!(back["prompt"], text);
    let messages = json!([{"role": "user", "content": "hi"}]);
    let chat = vllm.ok("/tokenize", json!({ "messages": messages })).await;
    let rendered = llama_cpp.ok("/apply-template", json!({ "messages": messages })).await;
    let prompt = vllm.ok("/tokenize", json!({"prompt": rendered["prompt"]})).await;
    assert_eq!(chat["tokens"], prompt["tokens"]);

    for bad in [json!({"tokens": [3]}), json!({"tokens": ["x"]}), json!({}), json!({"tokens": 5})] {
        assert_eq!(vllm.post("/detokenize", bad).await.status, 400);
    }
    let usage = json!({"prompt": text, "max_tokens": 1});
    let usage: Value = vllm.ok("/v1/completions", usage).await;
    assert_eq!(usage["usage"]["prompt_tokens"], ids.len());
}
