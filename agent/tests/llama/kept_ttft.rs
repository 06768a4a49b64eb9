//! Time to first token of a prompt whose state is in the KV daemon, through the router, beside computing it at
//! the engine itself. In the test suite one short prompt, once; `CGN_WARM_TTFT_REPEATS=3` measures
//! (`docs/BENCHMARKS.md`). No time is asserted.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{self, Exchange};
use crate::house::House;
use crate::process::eventually;
use crate::smollm2::{self, MODEL, Size, up_with};

/// Lengths of prompts, in tokens, about.
const TOKENS: [usize; 4] = [500, 1_000, 2_000, 4_000];
const CONTEXT_TOKENS: u32 = 4_608;
const SAVED: &str = "cgn_agent_slot_saves_total";
/// An agent looks at its slots so often.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
const SIZE: Size = Size { replicas: 1, slots: 2, cache_ram_mib: 0 };

/// A prompt of about so many tokens that begins like no other: a number a word, and a token for each digit and
/// each blank.
fn prompt(number: usize, tokens: usize) -> Value {
    let words: Vec<String> =
        (0..tokens / 4).map(|at| format!("{}", 100 + (at * 7 + number) % 900)).collect();
    let content = format!("List {number}: {}", words.join(" "));
    json!({
        "model": MODEL, "temperature": 0, "max_tokens": 4, "stream": true,
        "messages": [{ "role": "user", "content": content }],
        "stream_options": { "include_usage": true },
    })
}

/// What one prompt took, and what the engine says it had of it.
struct Taken {
    ttft: Duration,
    prompt_tokens: u64,
    cached_tokens: u64,
}

fn ask(address: SocketAddr, body: &Value) -> Taken {
    let begun = Instant::now();
    let path = "/v1/chat/completions";
    let mut exchange = Exchange::begin(address, "POST", path, &body.to_string()).unwrap();
    exchange.streams();
    let ttft = begun.elapsed();
    let answer = exchange.end().unwrap();
    assert!(answer.status == 200 && answer.is_done(), "{answer:?}");
    let usage = answer.events().last().unwrap()["usage"].clone();
    Taken {
        ttft,
        prompt_tokens: usage["prompt_tokens"].as_u64().unwrap(),
        cached_tokens: usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0),
    }
}

fn erase_slots(engine: SocketAddr) {
    for slot in 0..SIZE.slots {
        let erased = client::post(engine, &format!("/slots/{slot}?action=erase"), &json!({}));
        assert_eq!(erased.status, 200, "{erased:?}");
    }
}

/// States saved, when nothing more is on its way: the prompt before may have been seen at rest.
fn saves(house: &House) -> f64 {
    let mut last = f64::NAN;
    eventually("no slot is being saved", || {
        let saved = house.agent_metric(SAVED);
        let is_settled = std::mem::replace(&mut last, saved) == saved;
        std::thread::sleep(2 * LOOK_INTERVAL);
        is_settled
    });
    last
}

/// The prompt once at the engine itself, of which the router hears nothing: computed, saved and forgotten.
fn compute(house: &House, engine: SocketAddr, body: &Value) -> Taken {
    let saved = saves(house);
    let taken = ask(engine, body);
    eventually("the slot is saved", || house.agent_metric(SAVED) > saved);
    erase_slots(engine);
    taken
}

fn median_ms(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1_000.0
}

#[test]
fn time_to_first_token_of_a_kept_prompt_beside_a_new_one() {
    let Some(parts) = smollm2::find() else { return };
    let repeats = std::env::var("CGN_WARM_TTFT_REPEATS").ok().and_then(|text| text.parse().ok());
    let lengths = if repeats.is_some() { &TOKENS[..] } else { &TOKENS[..1] };
    let house = parts.keeping_house();
    let engine = up_with(&house, SIZE, CONTEXT_TOKENS).remove(0);
    let engine: SocketAddr = engine.url.strip_prefix("http://").unwrap().parse().unwrap();
    let mut number = 0;
    for tokens in lengths {
        let (mut computed, mut restored, mut prompt_tokens) = (Vec::new(), Vec::new(), 0);
        for _ in 0..repeats.unwrap_or(1) {
            number += 1;
            let body = prompt(number, *tokens);
            let new = compute(&house, engine, &body);
            let taken = ask(house.http(), &body);
            erase_slots(engine);
            // All but a block that is not full, and the last token of a prompt.
            assert!(taken.cached_tokens + 32 >= taken.prompt_tokens, "{}", taken.cached_tokens);
            assert!(new.cached_tokens < 64, "{} of a new prompt", new.cached_tokens);
            computed.push(new.ttft);
            restored.push(taken.ttft);
            prompt_tokens = taken.prompt_tokens;
        }
        let (computed, restored) = (median_ms(computed), median_ms(restored));
        println!(
            "{prompt_tokens:>5} tokens: first token after {computed:>8.1} ms computed, {restored:>7.1} ms restored, {:.1} times",
            computed / restored
        );
    }
    let restores = house.agent_metric("cgn_agent_slot_restores_total");
    assert_eq!(restores, (lengths.len() * repeats.unwrap_or(1)) as f64);
}
