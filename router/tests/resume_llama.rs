//! Streams that go on elsewhere, on the real engine: SmolLM2 on two `llama-server` processes. Wherever
//! the first is cut off, what the client reads is what it would have read undisturbed.
//!
//! Skipped where the engine or the model is not there; `cargo xtask up` builds and fetches both.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "resume_llama/engine.rs"]
mod engine;
#[path = "resume_llama/heard.rs"]
mod heard;

use dataplane::wire::EngineKind;
use router::openai::Endpoint;
use router::resume::{Plan, Rewriter, Tape, Transcript, Way, plan};
use serde_json::{Value, json};

use engine::Pair;
use heard::Heard;

const PROMPTS: [&str; 6] = [
    "Name three rivers and say one sentence about each.",
    "Write a short poem about the sea.",
    "Write a Python function that reverses a string, with a docstring.",
    "Give a JSON object with name, age, city and three hobbies.",
    "Schreibe zwei Sätze über München und die schönen Brücken.",
    "Reply only with ten emoji about food, then the word done.",
];

fn chat(prompt: &str) -> Vec<u8> {
    json!({ "model": "m", "messages": [{ "role": "user", "content": prompt }], "stream": true,
            "stream_options": { "include_usage": true }, "temperature": 0, "max_tokens": 60 })
    .to_string()
    .into_bytes()
}

fn completion(prompt: &Value) -> Vec<u8> {
    json!({ "model": "m", "prompt": prompt, "stream": true, "temperature": 0, "max_tokens": 40 })
        .to_string()
        .into_bytes()
}

fn path(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Chat => "/v1/chat/completions",
        _ => "/v1/completions",
    }
}

/// What of `sent` ends with an event, as a relay passes it on, and what it says.
fn cut(endpoint: Endpoint, sent: &[u8]) -> (Vec<u8>, Transcript) {
    let mut tape = Tape::default();
    tape.push(sent);
    let whole = tape.complete_prefix_bytes(sent.len());
    (sent[..whole].to_vec(), Transcript::read(endpoint, &tape).unwrap())
}

/// The ways to go on from `said`.
fn ways(endpoint: Endpoint, body: &[u8], said: &Transcript) -> Vec<(Way, Vec<u8>, Rewriter)> {
    match plan(endpoint, EngineKind::LlamaCpp, body, said).unwrap() {
        Plan::Ask(asks) => {
            asks.into_iter().map(|ask| (ask.way, ask.body.into_owned(), ask.rewriter)).collect()
        }
        Plan::Finish(_) => panic!("the answer was not complete"),
    }
}

/// Where an answer may be cut without its end being sent: behind each event, and within some.
fn cuts(whole: &[u8]) -> Vec<usize> {
    let end = memchr::memmem::rfind(whole, b"\"finish_reason\":\"").unwrap();
    let last = memchr::memmem::rfind(&whole[..end], b"data: ").unwrap();
    let events = memchr::memmem::find_iter(&whole[..last], b"\n\n").map(|at| at + 2);
    events.chain((0..last).step_by(97)).collect()
}

/// Replays at every event: the one answer of the second engine serves for all cuts, because a replay
/// asks the same wherever the first engine died.
#[test]
fn greedy_answers_go_on_with_the_same_words_wherever_they_were_cut() {
    let Some(pair) = Pair::start() else { return };
    let tokens = json!([1, 4093, 198, 20, 3]);
    let completions = [json!("The three largest rivers of Europe are"), tokens];
    let asked = PROMPTS
        .iter()
        .map(|prompt| (Endpoint::Chat, chat(prompt)))
        .chain(completions.iter().map(|prompt| (Endpoint::Completions, completion(prompt))));
    let mut resumed = 0;
    for (endpoint, body) in asked {
        let first = pair.first.ask(path(endpoint), &body);
        let second = pair.second.ask(path(endpoint), &body);
        let undisturbed = Heard::of(&first);
        for at in cuts(&first) {
            let (mut client, said) = cut(endpoint, &first[..at]);
            let (way, asked_again, mut rewriter) = ways(endpoint, &body, &said).remove(0);
            assert_eq!((way, &asked_again), (Way::Replay, &body));
            rewriter.push(&second, &mut client).unwrap();
            assert!(rewriter.is_done());
            let heard = Heard::of(&client);
            assert_eq!(heard.essence(), undisturbed.essence(), "cut at {at}");
            assert!(heard.is_one_stream(), "cut at {at}: {}", String::from_utf8_lossy(&client));
            resumed += 1;
        }
    }
    assert!(resumed > 400, "{resumed} cuts");
}

/// An engine killed while it speaks. The text is compared with an undisturbed run of the other.
#[test]
fn a_killed_engine_is_replaced_in_the_middle_of_its_sentence() {
    let Some(mut pair) = Pair::start() else { return };
    let body = chat(PROMPTS[0]);
    let undisturbed = Heard::of(&pair.second.ask(path(Endpoint::Chat), &body));
    let mut stream = pair.first.begin(path(Endpoint::Chat), &body);
    let mut sent = Vec::new();
    while memchr::memmem::find_iter(&sent, b"\n\n").count() < 12 {
        assert!(stream.read(&mut sent), "ended early");
    }
    pair.first.kill();
    while stream.read(&mut sent) {}
    let (mut client, said) = cut(Endpoint::Chat, &sent);
    assert!(!said.finished && said.text_events >= 11, "{said:?}");
    let (_, asked, mut rewriter) = ways(Endpoint::Chat, &body, &said).remove(0);
    rewriter.push(&pair.second.ask(path(Endpoint::Chat), &asked), &mut client).unwrap();
    assert_eq!(Heard::of(&client).essence(), undisturbed.essence());
}

/// The engine takes a continuation, does not repeat what it was given, and ends it itself. The words
/// are not compared: they are not always those of an undisturbed run.
#[test]
fn a_continuation_is_taken_by_the_engine() {
    let Some(pair) = Pair::start() else { return };
    let token_prompt = json!([1, 4093, 198, 20, 3]);
    for (endpoint, body) in [
        (Endpoint::Chat, chat(PROMPTS[0])),
        (Endpoint::Chat, chat(PROMPTS[4])),
        (Endpoint::Completions, completion(&json!("The three largest rivers of Europe are"))),
        (Endpoint::Completions, completion(&token_prompt)),
    ] {
        let first = pair.first.ask(path(endpoint), &body);
        let ends: Vec<usize> = cuts(&first);
        let (mut client, said) = cut(endpoint, &first[..ends[12]]);
        let begun = Heard::of(&client).text;
        assert!(!begun.is_empty());
        let (_, asked, mut rewriter) = ways(endpoint, &body, &said).pop().unwrap();
        rewriter.push(&pair.second.ask(path(endpoint), &asked), &mut client).unwrap();
        assert!(rewriter.is_done());
        let heard = Heard::of(&client);
        assert!(heard.is_one_stream(), "{}", String::from_utf8_lossy(&client));
        let new = heard.text.strip_prefix(&begun).unwrap();
        // Short words may well come twice.
        assert!(!new.is_empty() && (begun.len() < 16 || !new.starts_with(&begun)), "{new:?}");
        assert!(heard.finish_reason.is_some());
    }
}
