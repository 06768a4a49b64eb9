//! What comes back through the router, what the engine says of itself, and that it comes back.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use dataplane::wire::{Decoder, EngineKind, FromPlane, ToPlane, Worker, encode};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::client;
use crate::conversation::Random;
use crate::feed::{Feed, events};
use crate::process::{eventually, is_running, send};
use crate::real::{BLOCK_TOKENS, CACHE_BLOCKS, CONTEXT_TOKENS, MODEL, Real, ask, usage};

#[test]
#[ignore = "takes minutes and needs vLLM: cargo xtask test --only vllm"]
fn a_real_vllm_answers_says_what_it_caches_and_comes_back_when_it_is_killed() {
    let Some(mut real) = Real::up() else { return };
    the_worker_is_described(&real);
    let messages = json!([{ "role": "user", "content": Random(1).words(200) }]);
    the_second_time_the_prompt_is_cached(&real, &messages);
    it_streams(&real, &messages);
    a_completion_goes_on(&real);
    what_is_published_live_can_be_replayed(&real);
    killed_it_comes_back_with_nothing_cached(&real, &messages);
    an_agent_that_is_killed_leaves_nothing_to_the_next(&mut real);
}

/// The worker in the snapshot that a router gets.
fn worker(real: &Real) -> Worker {
    let mut stream = UnixStream::connect(real.house.dir.path().join("control.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let (process, version) = ("test".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    let hello = FromPlane::Hello { process, version, pid: std::process::id() };
    stream.write_all(&encode(&hello).unwrap()).unwrap();
    let mut decoder = Decoder::default();
    loop {
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes).unwrap();
        assert!(read > 0, "control hung up");
        decoder.push(&bytes[..read]);
        if let Some(ToPlane::Snapshot(mut snapshot)) = decoder.poll_message().unwrap() {
            return snapshot.workers.remove(0);
        }
    }
}

fn the_worker_is_described(real: &Real) {
    let worker = worker(real);
    assert_eq!((worker.kind, worker.slots), (EngineKind::Vllm, 4));
    assert_eq!(worker.context_length_tokens as usize, CONTEXT_TOKENS);
    assert_eq!(worker.kv_cache_tokens as usize, CACHE_BLOCKS * BLOCK_TOKENS);
    let folder = worker.model_files.unwrap();
    assert!(std::path::Path::new(&folder).join("tokenizer.json").is_file(), "{folder}");
}

fn chat(real: &Real, messages: &Value, more: &Value) -> client::Answer {
    let answer = real.house.chat(&ask(messages, more));
    assert!(answer.status == 200 && answer.is_whole, "{answer:?}");
    assert_eq!(answer.worker(), format!("n/{MODEL}/vllm/test/0"), "{answer:?}");
    answer
}

fn the_second_time_the_prompt_is_cached(real: &Real, messages: &Value) {
    let first = chat(real, messages, &json!({})).json();
    let (prompt, cached) = usage(&first);
    assert!(prompt > 200 && cached == 0, "{first}");
    assert_eq!(first["choices"][0]["message"]["role"], "assistant");
    assert_eq!(first["usage"]["completion_tokens"], 8);
    let (again, cached) = usage(&chat(real, messages, &json!({})).json());
    assert_eq!((again, cached), (prompt, (prompt - 1) / BLOCK_TOKENS * BLOCK_TOKENS));
}

fn it_streams(real: &Real, messages: &Value) {
    let whole = chat(real, messages, &json!({})).json();
    let more = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let stream = chat(real, messages, &more);
    assert!(stream.is_done(), "{stream:?}");
    assert_eq!(stream.field("content-type"), Some("text/event-stream; charset=utf-8"));
    let events = stream.events();
    let parts = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap_or_default();
    assert_eq!(parts.collect::<String>(), text);
    assert_eq!(usage(events.last().unwrap()), usage(&whole));
}

fn a_completion_goes_on(real: &Real) {
    let body =
        json!({ "model": MODEL, "prompt": "the river", "max_tokens": 5, "ignore_eos": true });
    let answer = client::post(real.house.http(), "/v1/completions", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["usage"]["completion_tokens"], 5);
}

fn what_is_published_live_can_be_replayed(real: &Real) {
    let feed = Feed::of(real);
    let earlier = feed.replayed(0);
    assert_eq!(earlier[0].0, 0, "from its first batch on");
    let stored = |payload: &[u8]| {
        events(payload).iter().filter(|event| event["type"] == "BlockStored").count()
    };
    assert!(earlier.iter().map(|(_, payload)| stored(payload)).sum::<usize>() > 0);
    let mut live = feed.subscribe();
    let mut random = Random(2);
    let mut heard = None;
    eventually("a subscriber hears of a stored block", || {
        let messages = json!([{ "role": "user", "content": random.words(50) }]);
        chat(real, &messages, &json!({}));
        heard = feed.heard(&mut live);
        heard.as_ref().is_some_and(|(_, payload)| stored(payload) > 0)
    });
    let (number, payload) = heard.unwrap();
    assert_eq!(feed.replayed(number)[0], (number, payload), "a replay is the same bytes");
    assert_eq!(feed.replayed(u64::MAX >> 1), [], "nothing is there of the future");
}

fn killed_it_comes_back_with_nothing_cached(real: &Real, messages: &Value) {
    let engine = real.engine();
    let family = group(engine.pid);
    assert!(family.len() > 1, "vLLM is several processes");
    send(engine.pid, Signal::SIGKILL);
    real.back_after(engine.epoch);
    assert!(!family.iter().any(|&pid| is_running(pid)), "nothing is left of it");
    let first = Feed::of(real).replayed(0);
    assert!(first.first().is_none_or(|(number, _)| *number == 0), "its numbers begin again");
    let (_, cached) = usage(&chat(real, messages, &json!({})).json());
    assert_eq!(cached, 0);
}

/// The kernel ends the engine, and not what the engine forked.
fn an_agent_that_is_killed_leaves_nothing_to_the_next(real: &mut Real) {
    let engine = real.engine();
    let family = group(engine.pid);
    let mut agent = real.house.agent.take().unwrap();
    agent.crash();
    drop(agent);
    eventually("the engine is gone", || !is_running(engine.pid));
    real.house.agent = Some(real.house.process("cgn-agent"));
    eventually("all its processes are gone", || !family.iter().any(|&pid| is_running(pid)));
}

/// The processes of a process group.
fn group(leader: u32) -> Vec<u32> {
    let numbers = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let group =
            stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(2)?.parse().ok());
        group == Some(leader)
    })
    .collect()
}
