//! Chaos: four real engines that are killed, stalled and slowed at random under 64 clients, for three
//! minutes. No client may see a 200 that is not whole, and what is whole says what an undisturbed engine
//! says.
//!
//! The engines run with one slot, one thread and no reuse of their cache (`cache_prompt: false`): a
//! batch of several requests, or a prompt of which a part was there, changes the last bits of the numbers
//! and so now and then a word, with or without a router. The router gives each of them up to sixteen
//! requests at once, which wait there; so all 64 are in flight, and the text is exact.
//!
//! `CGN_CHAOS_SECONDS` sets the time, `CGN_CHAOS_SEED` repeats the order of faults. Skipped where the
//! engine or the model is not there; `cargo xtask up` builds and fetches both.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "chaos/client.rs"]
mod chaos_client;
#[expect(dead_code, reason = "shared with other tests")]
#[path = "contract/client.rs"]
mod client;
#[expect(dead_code, reason = "shared with other tests")]
#[path = "contract/engine.rs"]
mod engine;
#[path = "failure/heard.rs"]
mod heard;
#[path = "chaos/killer.rs"]
mod killer;
#[path = "chaos/llama.rs"]
mod llama;
#[expect(dead_code, reason = "shared with other tests")]
#[path = "contract/process.rs"]
mod process;
#[path = "chaos/tally.rs"]
mod tally;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use chaos_client::exchange;
use killer::{Dice, disturb};
use llama::Llama;
use process::Router;
use tally::Tally;

const WORKERS: usize = 4;
const CLIENTS: u64 = 64;
const SECONDS: u64 = 180;
/// One of so many requests is not streamed.
const WHOLE_PART: u64 = 6;

const PROMPTS: [&str; 12] = [
    "Name three rivers.",
    "Write one sentence about the sea.",
    "What is a compiler?",
    "Count from one to ten.",
    "Name four colours.",
    "Who wrote Hamlet?",
    "Give a short recipe for tea.",
    "What is the capital of France?",
    "Say hello in five languages.",
    "Why is the sky blue?",
    "Write a Python function that adds two numbers.",
    "Name three planets and say which is the largest.",
];

fn body(prompt: &str, stream: bool) -> Value {
    json!({ "model": "m", "messages": [{ "role": "user", "content": prompt }], "stream": stream,
            "temperature": 0, "max_tokens": 32, "cache_prompt": false })
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn router(engines: &[Llama]) -> Router {
    let keys = "[router.limits]\nrequests_per_slot_max = 16\nfirst_byte_s_max = 90\n\
                inter_token_s_max = 2\nprobe_interval_ms = 250\nprobe_timeout_ms = 1000\n";
    let entry = |engine: &Llama| {
        format!(
            "[[workers]]\nurl = \"http://{}\"\nmodel = \"m\"\nkind = \"llama_cpp\"\nslots = 1\n",
            engine.address
        )
    };
    Router::start(keys, &engines.iter().map(entry).collect::<String>())
}

/// What an undisturbed engine says to each prompt.
fn references(engine: &Llama) -> Vec<String> {
    let say = |prompt: &&str| {
        let response = exchange(engine.address, &body(prompt, true)).unwrap();
        let heard = heard::Heard::of(&heard::payload(&response).unwrap());
        assert!(heard.is_whole() && !heard.text.is_empty(), "{heard:?}");
        heard.text
    };
    PROMPTS.iter().map(say).collect()
}

#[test]
fn no_answer_is_cut_short_and_what_goes_on_elsewhere_says_the_same() {
    let Some(found) = llama::find() else {
        println!("skipped: llama-server is not built: cargo xtask up");
        return;
    };
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("CGN_CHAOS_SEED").unwrap_or(clock.as_secs());
    let time = Duration::from_secs(number("CGN_CHAOS_SECONDS").unwrap_or(SECONDS));
    println!("CGN_CHAOS_SEED={seed} CGN_CHAOS_SECONDS={}", time.as_secs());
    let engines: Vec<Llama> = (0..WORKERS).map(|_| Llama::start(&found)).collect();
    let references = references(&engines[0]);
    let router = router(&engines);
    let tally = Tally::default();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (router, tally, references, over) = (&router, &tally, &references, &over);
            let mut dice = Dice::new(seed.wrapping_add(1_000 + client));
            scope.spawn(move || {
                while !over.load(Relaxed) {
                    let at = dice.below(PROMPTS.len() as u64) as usize;
                    let stream = dice.below(WHOLE_PART) > 0;
                    let response = exchange(router.http, &body(PROMPTS[at], stream));
                    tally.judge(&response, stream, &references[at]);
                }
            });
        }
        // Two at once, on two engines each: now and then half of the cluster is away.
        let begun = Instant::now();
        let killers: Vec<_> = engines
            .chunks(WORKERS / 2)
            .enumerate()
            .map(|(at, engines)| {
                let dice = Dice::new(seed.wrapping_add(at as u64));
                scope.spawn(move || disturb(engines, dice, begun + time))
            })
            .collect();
        let done: Vec<_> = killers.into_iter().map(|killer| killer.join().unwrap()).collect();
        over.store(true, Relaxed);
        println!("faults: {done:?}");
    });
    let asked =
        |result| router.metric(&format!("cgn_router_streams_resumed_total{{result=\"{result}\"}}"));
    println!("{tally}");
    let results = ["resumed", "failed_again", "attempts", "no_worker", "too_late"]
        .map(|name| (name, asked(name)));
    println!("streams whose worker failed: {results:?}");
    let causes = ["engine_failed", "engine_503", "stale_connection"].map(|cause| {
        (cause, router.metric(&format!("cgn_router_retries_total{{cause=\"{cause}\"}}")))
    });
    println!("retries: {causes:?}, refused {}", router.metric("cgn_router_retries_refused_total"));
    tally.assert_good();
    let broken = router.metric("cgn_router_streams_broken_total");
    let allowed: f64 = results[1..].iter().map(|(_, count)| count).sum();
    assert_eq!(broken, allowed, "a stream that could go on did not");
    assert!(results[0].1 >= 1.0 || time < Duration::from_secs(60), "nothing was resumed");
}
