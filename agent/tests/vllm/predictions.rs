//! Fifty prompts of conversations that grow, more than the cache holds: what the engine's events say is
//! cached is what it then finds, and what the router predicts is that too.

use serde_json::{Value, json};

use crate::conversation::{Conversation, order};
use crate::feed::Feed;
use crate::held::Held;
use crate::process::{eventually, send};
use crate::real::{BLOCK_TOKENS, Real, ask, usage};
use nix::sys::signal::Signal;

/// Whether the router's predictions follow the engine's events and are asserted. Until they do they are
/// only printed.
const ROUTER_READS_EVENTS: bool = true;

const SEED: u64 = 7;
const CONVERSATIONS: usize = 10;
const TURNS: usize = 5;

/// What was predicted, what was found.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    prompt: usize,
    cached: usize,
    predicted: usize,
    off: usize,
}

#[test]
#[ignore = "takes minutes and needs vLLM: cargo xtask test --only vllm"]
fn what_is_predicted_to_be_cached_is_what_the_engine_finds() {
    let Some(real) = Real::up() else { return };
    let mut talk: Vec<Conversation> =
        (0..CONVERSATIONS).map(|number| Conversation::new(SEED, number)).collect();
    let (feed, mut held, mut sums) = (Feed::of(&real), Held::default(), Sums::default());
    for number in order(SEED, CONVERSATIONS, TURNS) {
        let messages = talk[number].question();
        let answer = turn(&real, &feed, &mut held, &messages, &mut sums);
        talk[number].answered(&answer);
    }
    println!("{} blocks stored, {} removed; {sums:?}", held.stored, held.removed);
    assert!(held.removed > 0, "the cache was never full");
    assert!(sums.cached > 0, "nothing was ever found");

    let engine = real.engine();
    send(engine.pid, Signal::SIGKILL);
    real.back_after(engine.epoch);
    let (feed, mut held, mut sums) = (Feed::of(&real), Held::default(), Sums::default());
    for conversation in &mut talk {
        turn(&real, &feed, &mut held, &conversation.question(), &mut sums);
    }
    assert_eq!(sums.cached, 0, "a new process has nothing");
    if ROUTER_READS_EVENTS {
        assert_eq!(sums.predicted, 0, "nor is it believed to");
    }
}

/// One prompt: asked about, asked, and its blocks waited for.
fn turn(real: &Real, feed: &Feed, held: &mut Held, messages: &Value, sums: &mut Sums) -> Value {
    let tokens = real.tokens(messages);
    held.catch_up(feed);
    let expected = held.cached(&tokens);
    let body = ask(messages, &json!({}));
    if ROUTER_READS_EVENTS {
        // Events take their time to the router, and nothing else is asked meanwhile.
        let is_known = || explained(real, &body).abs_diff(expected) <= BLOCK_TOKENS;
        eventually("the router knows what the engine holds", is_known);
    }
    let answer = real.house.chat(&body);
    assert_eq!(answer.status, 200, "{answer:?}");
    let predicted: usize = answer.field("x-cgn-prefix-tokens").unwrap().parse().unwrap();
    let answer = answer.json();
    let (prompt, cached) = usage(&answer);
    assert_eq!((prompt, cached), (tokens.len(), expected), "the events say what is cached");
    let off = predicted.abs_diff(cached);
    if ROUTER_READS_EVENTS {
        assert!(off <= BLOCK_TOKENS, "predicted {predicted}, found {cached} of {prompt}");
    }
    sums.prompt += prompt;
    sums.cached += cached;
    sums.predicted += predicted;
    sums.off += usize::from(off > BLOCK_TOKENS);
    eventually("the prompt's blocks are announced", || {
        held.catch_up(feed);
        held.prefix(&tokens) == tokens.len() / BLOCK_TOKENS * BLOCK_TOKENS
    });
    answer
}

/// What the router would predict, without asking the engine for an answer.
fn explained(real: &Real, body: &Value) -> usize {
    let file = real.house.dir.path().join("body.json");
    std::fs::write(&file, body.to_string()).unwrap();
    let explanation = real.house.ctl(&["route", "explain", "--body", file.to_str().unwrap()]);
    let tokens = explanation["candidates"][0]["prefix_tokens"].as_u64().unwrap();
    usize::try_from(tokens).unwrap()
}
