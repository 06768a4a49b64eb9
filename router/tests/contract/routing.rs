//! Where requests go: evenly without a reason, to the cached prefix with one, and what is said of it.

use std::io::Write;
use std::os::unix::net::UnixListener;

use dataplane::wire::{
    Capability, Decoder, EngineKind, FromPlane, ScoreWeights, Snapshot, ToPlane, Worker,
    WorkerState, encode,
};

use super::client::chat;
use super::engine::{Engine, json};
use super::process::{Router, worker};

const CHAT: &str = "/v1/chat/completions";

fn words(topic: usize, count: usize) -> String {
    (0..count).map(|i| format!("topic{topic}word{i} ")).collect()
}

#[test]
fn distinct_prompts_spread_evenly_over_idle_equal_workers() {
    let engines = [Engine::ok(), Engine::ok(), Engine::ok()];
    let workers: String = engines.iter().map(|engine| worker(engine, 4)).collect();
    let router = Router::start("", &workers);
    let mut client = router.client();
    for i in 0..300 {
        assert_eq!(client.post(CHAT, "", &chat(&words(i, 60))).status, 200);
    }
    for engine in &engines {
        let share = engine.asked().len();
        assert!((85..=115).contains(&share), "{share} of 300");
    }
}

#[test]
fn a_conversation_stays_where_its_prefix_is() {
    let engines = [Engine::ok(), Engine::ok(), Engine::ok()];
    let workers: String = engines.iter().map(|engine| worker(engine, 4)).collect();
    let router = Router::start("", &workers);
    for conversation in 0..6 {
        let mut messages = Vec::new();
        let mut home = None;
        for turn in 0..4 {
            messages.push(format!(
                r#"{{"role":"user","content":"{}"}}"#,
                words(conversation * 10 + turn, 150)
            ));
            let body = format!(r#"{{"model":"m","messages":[{}]}}"#, messages.join(","));
            let answer = router.client().post(CHAT, "", &body);
            let at = answer.field("x-cgn-worker").unwrap().to_owned();
            let prefix: u64 = answer.field("x-cgn-prefix-tokens").unwrap().parse().unwrap();
            match &home {
                None => home = Some(at),
                Some(home) => {
                    assert_eq!(*home, at, "turn {turn} of conversation {conversation}");
                    assert!(prefix > 300, "only {prefix} tokens of a prefix of {turn} turns");
                }
            }
            messages.push(r#"{"role":"assistant","content":"yes"}"#.to_owned());
        }
    }
}

/// Speaks llama.cpp's tokenizer endpoints: a token for each word.
fn llama(cached: u64) -> Engine {
    Engine::start(move |asked, stream| {
        let body: serde_json::Value = serde_json::from_slice(&asked.body).unwrap();
        let answer = match asked.line().split(' ').nth(1).unwrap() {
            "/apply-template" => {
                let content = body["messages"][0]["content"].as_str().unwrap();
                serde_json::json!({ "prompt": format!("<user> {content}") })
            }
            "/tokenize" => {
                let words = body["content"].as_str().unwrap().split_whitespace();
                let id = |word: &str| {
                    word.bytes().fold(7u32, |h, b| h.wrapping_mul(31) + u32::from(b)) % 50_000
                };
                serde_json::json!({ "tokens": words.map(id).collect::<Vec<_>>() })
            }
            _ => serde_json::json!({ "usage": {
                "prompt_tokens": 100, "prompt_tokens_details": { "cached_tokens": cached } } }),
        };
        stream.write_all(&json(&answer.to_string())).is_ok()
    })
}

fn llama_worker(engine: &Engine) -> String {
    worker(engine, 4).replace("openai_compat", "llama_cpp")
}

#[test]
fn llama_cpp_prompts_are_cut_by_their_exact_tokens() {
    let engine = llama(160);
    let router = Router::start("", &llama_worker(&engine));
    let prompt = words(1, 160);
    // One connection: each core remembers the prompts it saw itself.
    let mut client = router.client();
    let mut prefix = |content: &str| {
        let answer = client.post(CHAT, "", &chat(content));
        answer.field("x-cgn-prefix-tokens").unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(prefix(&prompt), 0);
    // 161 tokens with the template's own: ten whole blocks of 16.
    assert_eq!(prefix(&format!("{prompt} and more")), 160);
    assert_eq!(prefix(&words(2, 160)), 0);
    let tokenized = router.metric("cgn_router_tokenize_total{path=\"engine\"}");
    prefix(&prompt);
    assert_eq!(
        router.metric("cgn_router_tokenize_total{path=\"engine\"}"),
        tokenized,
        "seen before"
    );
    assert_eq!(router.metric("cgn_router_tokenize_total{path=\"cached\"}"), 1.0);
}

#[test]
fn an_engine_that_cannot_tokenize_is_routed_by_text() {
    let engine = Engine::start(|asked, stream| {
        let answer = if asked.line().contains("/v1/") {
            json("{}")
        } else {
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec()
        };
        stream.write_all(&answer).is_ok()
    });
    let other = Engine::ok();
    let router = Router::start("", &(llama_worker(&engine) + &worker(&other, 1)));
    for _ in 0..4 {
        assert_eq!(router.client().post(CHAT, "", &chat(&words(1, 200))).status, 200);
    }
    assert!(router.metric("cgn_router_tokenize_total{path=\"text\"}") >= 3.0);
}

#[test]
fn an_engine_that_hangs_up_leaves_the_tokens_to_another_one() {
    let hangs_up = Engine::start(|asked, stream| {
        asked.line().contains("/v1/") && stream.write_all(&json("{}")).is_ok()
    });
    let other = llama(0);
    // Of engines that are equally busy the first is asked first.
    let router = Router::start("", &(llama_worker(&hangs_up) + &llama_worker(&other)));
    assert_eq!(router.client().post(CHAT, "", &chat(&words(1, 200))).status, 200);
    let is_asked = |engine: &Engine| engine.asked().iter().any(|it| it.line().contains("template"));
    assert!(is_asked(&hangs_up) && is_asked(&other));
    assert_eq!(router.metric("cgn_router_tokenize_total{path=\"engine\"}"), 1.0);
}

pub(super) fn live(id: &str, engine: &Engine, state: WorkerState) -> Worker {
    Worker {
        id: id.to_owned(),
        node: "n".to_owned(),
        url: format!("http://{}", engine.address),
        model: "m".to_owned(),
        kind: EngineKind::OpenaiCompat,
        slots: 4,
        context_length_tokens: 0,
        kv_cache_tokens: 0,
        capabilities: vec![Capability::Chat],
        state,
        epoch: 1,
        power_watts: None,
        running_requests: None,
        kv_feed: None,
        kv_events: false,
        kv_block_tokens: 0,
        model_files: None,
    }
}

#[test]
fn snapshots_are_followed_questions_answered_and_control_may_die() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let control = UnixListener::bind(&socket).unwrap();
    let (a, b) = (Engine::ok(), Engine::ok());
    let keys = format!("control_socket = \"{}\"\n", socket.display());
    let router = Router::spawn(&keys, "");
    assert_eq!(router.client().post(CHAT, "", &chat("x")).status, 404);

    let (mut plane, _) = control.accept().unwrap();
    let mut decoder = Decoder::default();
    let hello: FromPlane = receive(&mut plane, &mut decoder);
    assert!(matches!(hello, FromPlane::Hello { process, .. } if process == "cgn-router"));
    let publish = |plane: &mut std::os::unix::net::UnixStream, version, workers| {
        let snapshot = Snapshot { version, workers, weights: None };
        plane.write_all(&encode(&ToPlane::Snapshot(snapshot)).unwrap()).unwrap();
    };
    publish(
        &mut plane,
        1,
        vec![live("n/a/0", &a, WorkerState::Ready), live("n/b/0", &b, WorkerState::NotReady)],
    );
    wait_for(&router, 1.0);
    for _ in 0..3 {
        let answer = router.client().post(CHAT, "", &chat("x"));
        assert_eq!(answer.field("x-cgn-worker"), Some("n/a/0"));
    }
    publish(
        &mut plane,
        2,
        vec![live("n/a/0", &a, WorkerState::Draining), live("n/b/0", &b, WorkerState::Ready)],
    );
    wait_for(&router, 2.0);
    assert_eq!(router.client().post(CHAT, "", &chat("x")).field("x-cgn-worker"), Some("n/b/0"));

    let weights = Some(ScoreWeights { kv: 0.0, load: 1.0, power: 0.0, capacity: 0.0 });
    let (path, body) = (CHAT.to_owned(), chat("why"));
    let question = ToPlane::Explain { id: 9, path, body, weights, temperature: Some(0.5) };
    plane.write_all(&encode(&question).unwrap()).unwrap();
    let FromPlane::Explained { id: 9, result: Ok(explanation) } = receive(&mut plane, &mut decoder)
    else {
        panic!("no answer to the question");
    };
    assert_eq!(explanation.picked, "n/b/0");
    assert_eq!((Some(explanation.weights), explanation.temperature), (weights, 0.5));
    assert!(explanation.candidates.iter().all(|row| row.source == "learned"));
    assert_eq!(explanation.tokenizer, "none");
    let draining = explanation.candidates.iter().find(|row| row.worker == "n/a/0").unwrap();
    assert_eq!((draining.eligible, draining.excluded_because.as_str()), (false, "draining"));

    drop(plane);
    drop(control);
    std::fs::remove_file(&socket).unwrap();
    assert_eq!(router.client().post(CHAT, "", &chat("x")).status, 200, "without control");
}

pub(super) fn wait_for(router: &Router, version: f64) {
    for _ in 0..500 {
        if router.metric("cgn_router_snapshot_version") == version {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("snapshot {version} was not taken");
}

fn receive(plane: &mut std::os::unix::net::UnixStream, decoder: &mut Decoder) -> FromPlane {
    use std::io::Read;
    loop {
        if let Some(message) = decoder.poll_message().unwrap() {
            return message;
        }
        let mut part = [0; 4096];
        let read = plane.read(&mut part).unwrap();
        assert!(read > 0, "the router hung up");
        decoder.push(&part[..read]);
    }
}
