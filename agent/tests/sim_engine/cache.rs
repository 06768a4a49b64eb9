//! The prefix cache as clients and operators see it.

use serde_json::{Value, json};

use super::process::Engine;

const BLOCK_TOKENS: usize = 16;

async fn chat_tokens(engine: &Engine, messages: &Value) -> Vec<Value> {
    let prompt = engine.ok("/apply-template", json!({ "messages": messages })).await;
    let tokens = engine.ok("/tokenize", json!({"content": prompt["prompt"]})).await;
    tokens["tokens"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_second_turn_finds_the_whole_blocks_of_the_first() {
    let engine = Engine::start(&["--mimic", "llama_cpp", "--speedup-ratio", "0"]);
    let mut messages =
        json!([{"role": "user", "content": "Tell me of a tree, please. ".repeat(9)}]);
    let turn_1_prompt = chat_tokens(&engine, &messages).await;
    let request = json!({"messages": messages, "max_tokens": 70});
    let turn_1 = engine.ok("/v1/chat/completions", request).await;
    assert_eq!(turn_1["usage"]["prompt_tokens"], turn_1_prompt.len());
    assert_eq!(turn_1["usage"]["prompt_tokens_details"]["cached_tokens"], 0);

    let all = messages.as_array_mut().unwrap();
    all.push(turn_1["choices"][0]["message"].clone());
    all.push(json!({"role": "user", "content": "And then?"}));
    let turn_2_prompt = chat_tokens(&engine, &messages).await;
    let turn_2 = engine.ok("/v1/chat/completions", json!({"messages": messages})).await;
    // The prompt and 69 of the 70 tokens said were computed; the last one never was.
    let computed = turn_1_prompt.len() + 69;
    assert_eq!(turn_2_prompt[..turn_1_prompt.len()], turn_1_prompt);
    let cached = computed / BLOCK_TOKENS * BLOCK_TOKENS;
    assert!(cached > turn_1_prompt.len(), "the answer itself is part of what is reused");
    assert_eq!(turn_2["usage"]["prompt_tokens_details"]["cached_tokens"], cached);
    assert_eq!(turn_2["timings"]["cache_n"], cached);
    assert_eq!(turn_2["timings"]["prompt_n"], turn_2_prompt.len() - cached);
}

#[tokio::test]
async fn a_whole_prompt_is_never_taken_from_the_cache() {
    let engine = Engine::start(&["--speedup-ratio", "0"]);
    let request = json!({"prompt": "abc".repeat(32), "max_tokens": 1});
    engine.ok("/v1/completions", request.clone()).await;
    let again = engine.ok("/v1/completions", request).await;
    assert_eq!(again["usage"]["prompt_tokens"], 32);
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], 16);
}

#[tokio::test]
async fn metrics_add_up_to_the_usage_of_the_answers() {
    for (dialect, prompts, cached, said) in [
        (
            "vllm",
            "vllm:prompt_tokens_total",
            "vllm:prefix_cache_hits_total",
            "vllm:generation_tokens_total",
        ),
        (
            "llama_cpp",
            "llamacpp:prompt_tokens_total",
            "llamacpp:prompt_tokens_cached_total",
            "llamacpp:tokens_predicted_total",
        ),
    ] {
        let engine = Engine::start(&["--mimic", dialect, "--speedup-ratio", "0"]);
        let mut sums = [0; 3];
        for index in 0..6 {
            let prompt = format!("{}{index}", "The same beginning. ".repeat(10));
            let answer = engine.ok("/v1/completions", json!({"prompt": prompt})).await;
            let usage = &answer["usage"];
            let number = |value: &Value| value.as_u64().unwrap();
            sums[0] += number(&usage["prompt_tokens"]);
            sums[1] += number(&usage["prompt_tokens_details"]["cached_tokens"]);
            sums[2] += number(&usage["completion_tokens"]);
        }
        assert!(sums[1] > 0);
        let computed = if dialect == "llama_cpp" { sums[0] - sums[1] } else { sums[0] };
        assert_eq!(engine.metric(prompts).await, computed as f64);
        assert_eq!(engine.metric(cached).await, sums[1] as f64);
        assert_eq!(engine.metric(said).await, sums[2] as f64);
    }
}

#[tokio::test]
async fn a_salted_cache_is_shared_only_under_the_same_salt() {
    let engine = Engine::start(&["--speedup-ratio", "0"]);
    let mut cached = Vec::new();
    for salt in [Value::Null, json!("a"), json!("b"), json!("a")] {
        let request = json!({"prompt": "abc".repeat(40), "max_tokens": 1, "cache_salt": salt});
        let answer = engine.ok("/v1/completions", request).await;
        cached.push(answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap());
    }
    assert_eq!(cached, [0, 0, 0, 32]);
}
