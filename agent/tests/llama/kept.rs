//! What one llama.cpp computed is taken over by another, out of the KV daemon; and when the daemon is dead,
//! nothing is lost but time.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::client::{Answer, post};
use crate::house::{Engine, House};
use crate::process::{eventually, send};
use crate::smollm2::{self, MODEL, Size, up};

/// Without a prompt cache in host memory: what an engine has is in its slots.
const SIZE: Size = Size { replicas: 2, slots: 2, cache_ram_mib: 0 };
/// Tokens in a block, of which whole ones are known.
const BLOCK_TOKENS: u64 = 16;

const SAVED: &str = "cgn_agent_slot_saves_total";
const RESTORED: &str = "cgn_agent_slot_restores_total";

/// A conversation's messages so far: a long system prompt, so that there is something to keep.
fn begin() -> Vec<Value> {
    let facts = (1..=40).map(|n| format!("Box {n} holds {} red marbles.", n * 7 % 31));
    let system = format!("You count marbles. {}", facts.collect::<Vec<_>>().join(" "));
    vec![
        json!({ "role": "system", "content": system }),
        json!({ "role": "user", "content": "How many red marbles are in box 3?" }),
    ]
}

fn body(messages: &[Value]) -> Value {
    json!({ "model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 24 })
}

fn go_on(messages: &mut Vec<Value>, answer: &Answer) {
    messages.push(json!({ "role": "assistant", "content": text(answer) }));
    messages.push(json!({ "role": "user", "content": "And in box 9? Say it in one sentence." }));
}

fn text(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

fn usage(answer: &Answer, field: &str) -> u64 {
    answer.json().pointer(&format!("/usage/{field}")).and_then(Value::as_u64).unwrap()
}

/// To the engine itself.
fn ask_engine(engine: &Engine, body: &Value) -> Answer {
    let address = engine.url.strip_prefix("http://").unwrap().parse().unwrap();
    post(address, "/v1/chat/completions", body)
}

fn engine_of<'a>(engines: &'a [Engine], answer: &Answer) -> &'a Engine {
    engines.iter().find(|engine| engine.worker == answer.worker()).unwrap()
}

/// Holds the first turn; gives the second one's request, and the engine that has the first.
fn first_turn<'a>(house: &House, engines: &'a [Engine]) -> (Value, &'a Engine, u64) {
    let mut messages = begin();
    let answer = house.chat(&body(&messages));
    let computed = usage(&answer, "total_tokens");
    go_on(&mut messages, &answer);
    eventually("the slot is saved", || house.agent_metric(SAVED) > 0.0);
    (body(&messages), engine_of(engines, &answer), computed)
}

/// What the engine itself says to the request; then it is no more.
fn last_words(engine: &Engine, request: &Value) -> String {
    let said = text(&ask_engine(engine, request));
    send(engine.pid, Signal::SIGKILL);
    said
}

#[test]
fn a_turn_goes_on_at_another_worker_with_what_the_first_one_computed() {
    let Some(parts) = smollm2::find() else { return };
    let house = parts.keeping_house();
    let engines = up(&house, SIZE);
    let (request, first, computed) = first_turn(&house, &engines);
    let wanted = last_words(first, &request);

    let answer = house.chat(&request);
    assert_ne!(answer.worker(), first.worker, "{answer:?}");
    assert_eq!(text(&answer), wanted);
    // But for the last token of an answer, whose KV nobody has, and what fills no block.
    let least = (computed - 1) / BLOCK_TOKENS * BLOCK_TOKENS;
    let cached = usage(&answer, "prompt_tokens_details/cached_tokens");
    println!("{cached} of {} tokens from the daemon", usage(&answer, "prompt_tokens"));
    let ended = ["warmed", "nothing", "late", "busy", "given_up"].map(|result| {
        (result, house.metric(&format!("cgn_router_warms_total{{result=\"{result}\"}}")))
    });
    assert!(cached >= least, "{cached} cached, {computed} computed before; {ended:?}: {answer:?}");
    assert_eq!(house.agent_metric(RESTORED), 1.0);
    assert_eq!(house.metric("cgn_router_warms_total{result=\"warmed\"}"), 1.0);
    assert!(house.metric("cgn_router_warm_tokens_total") >= least as f64 - BLOCK_TOKENS as f64);
    nothing_is_left_behind(&house);
}

/// States are files for some ms only.
fn nothing_is_left_behind(house: &House) {
    let slots = house.dir.path().join("state/run/slots");
    let files = || {
        let folders = std::fs::read_dir(&slots).unwrap().flatten();
        folders.flat_map(|folder| std::fs::read_dir(folder.path()).unwrap().flatten()).count()
    };
    eventually("no file is left in the slot folders", || files() == 0);
}

#[test]
fn without_its_daemon_a_node_computes_again_and_keeps_again_once_it_is_back() {
    let Some(parts) = smollm2::find() else { return };
    let mut house = parts.keeping_house();
    let engines = up(&house, SIZE);
    let (request, first, _) = first_turn(&house, &engines);
    house.kvcached.as_mut().unwrap().crash();
    send(first.pid, Signal::SIGKILL);

    let answer = house.chat(&request);
    assert_eq!(house.agent_metric(RESTORED), 0.0);
    // An engine that knows nothing of it computes the same from nothing.
    let back = || {
        let engine = house.engines().into_iter().find(|one| one.worker == first.worker)?;
        (engine.state == "ready" && engine.epoch > first.epoch).then_some(engine)
    };
    let mut again = None;
    eventually("the first engine is back", || {
        again = back();
        again.is_some()
    });
    let fresh = ask_engine(&again.unwrap(), &request);
    assert_eq!(text(&answer), text(&fresh));
    assert_eq!(usage(&fresh, "prompt_tokens_details/cached_tokens"), 0);

    let saved = house.agent_metric(SAVED);
    house.kvcached = Some(house.process("cgn-kvcached"));
    eventually("slots are saved again", || house.agent_metric(SAVED) > saved);
}
