//! The same as a client and an engine see it.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dataplane::wire::{
    Capability, Decoder, EngineKind, Explanation, FromPlane, Snapshot, ToPlane, Worker,
    WorkerState, encode,
};
use router::openai::Endpoint;
use router::parse::json_call;
use router::tokenizer::ModelTokenizer;

use super::client::Answer;
use super::engine::{Engine, json};
use super::models;
use super::process::{Router, run, worker};

const CHAT: &str = "/v1/chat/completions";

/// An engine like vLLM that tokenizes as `answer` says.
fn vllm(tokenize: impl Fn(&serde_json::Value) -> Vec<u32> + Send + Sync + 'static) -> Engine {
    let tokenize = Arc::new(Mutex::new(tokenize));
    Engine::start(move |asked, stream| {
        let body: serde_json::Value = serde_json::from_slice(&asked.body).unwrap();
        let answer = match asked.line().contains("/tokenize") {
            true => serde_json::json!({ "tokens": (tokenize.lock().unwrap())(&body) }),
            false => serde_json::json!({ "usage": { "prompt_tokens": 100 } }),
        };
        stream.write_all(&json(&answer.to_string())).is_ok()
    })
}

fn workers(engine: &Engine, folder: &Path) -> String {
    let worker = worker(engine, 4).replace("openai_compat", "vllm");
    format!("{worker}\n[[models]]\nname = \"m\"\nfiles = \"{}\"\n", folder.display())
}

fn body(messages: &[(&str, String)]) -> String {
    let messages: Vec<_> = messages
        .iter()
        .map(|(role, content)| serde_json::json!({"role": role, "content": content}))
        .collect();
    serde_json::json!({"model": "m", "messages": messages}).to_string()
}

fn prefix_tokens(answer: &Answer) -> u64 {
    answer.field("x-cgn-prefix-tokens").unwrap().parse().unwrap()
}

fn asked_to_tokenize(engine: &Engine) -> usize {
    engine.asked().iter().filter(|asked| asked.line().contains("/tokenize")).count()
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_second_turn_is_not_tokenized_whole_and_no_engine_is_asked() {
    let folder = models::small();
    let engine = vllm(|_| Vec::new());
    let keys = "[router.kv]\ntokenize_check_share = 0.0\n";
    let router = Router::start(keys, &workers(&engine, folder.path()));
    let mut messages =
        vec![("system", "you are brief ".repeat(200)), ("user", "what ".repeat(100))];
    assert_eq!(router.client().post(CHAT, "", &body(&messages)).status, 200);
    let tokens = |source: &str| {
        router.metric(&format!("cgn_router_tokenizer_tokens_total{{source=\"{source}\"}}"))
    };
    let first = tokens("fresh");
    assert_eq!(tokens("cached"), 0.0);
    messages.push(("assistant", "because ".repeat(100)));
    messages.push(("user", "and then".to_owned()));
    // Another connection, perhaps another core.
    let answer = router.client().post(CHAT, "", &body(&messages));
    let known = tokens("cached");
    assert!(known + 10.0 >= first, "{known} of {first}");
    assert!(prefix_tokens(&answer) as f64 + 32.0 >= first, "routed by them");
    assert_eq!(router.metric("cgn_router_tokenize_total{path=\"exact\"}"), 1.0);
    assert_eq!(router.metric("cgn_router_tokenize_total{path=\"exact_cached\"}"), 1.0);
    assert!(router.metric("cgn_router_tokenizer_cache_bytes") > 1_000.0);
    assert_eq!(asked_to_tokenize(&engine), 0);
}

#[test]
fn an_engine_that_counts_otherwise_is_believed() {
    let folder = models::small();
    let engine = vllm(|_| (0..64).collect());
    let router = Router::start("", &workers(&engine, folder.path()));
    let trusted = || router.metric("cgn_router_tokenizer_trusted{model=\"m\"}");
    assert_eq!(trusted(), 1.0);
    router.client().post(CHAT, "", &body(&[("user", "hello".to_owned())]));
    wait_for("the first prompt is checked", || trusted() == 0.0);
    let different = "cgn_router_tokenizer_checks_total{result=\"different\"}";
    assert_eq!(router.metric(different), 1.0);
    let asked = asked_to_tokenize(&engine);
    router.client().post(CHAT, "", &body(&[("user", "hello again".to_owned())]));
    assert_eq!(asked_to_tokenize(&engine), asked + 1);
    assert_eq!(router.metric("cgn_router_tokenize_total{path=\"engine\"}"), 1.0);
    assert_eq!(router.metric("cgn_router_tokenize_total{path=\"exact\"}"), 1.0);
}

#[test]
fn an_engine_that_counts_alike_confirms() {
    let folder = models::small();
    let tokenizer = ModelTokenizer::load(folder.path()).unwrap();
    let engine = vllm(move |body| {
        let content = body["messages"][0]["content"].as_str().unwrap();
        let text = format!("<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n");
        tokenizer.encode(&text, false).unwrap().to_vec()
    });
    let keys = "[router.kv]\ntokenize_check_share = 1.0\n";
    let router = Router::start(keys, &workers(&engine, folder.path()));
    for content in ["hello", "<|im_end|> inside", "Äpfel 東京 e\u{301}", ""] {
        router.client().post(CHAT, "", &body(&[("user", content.to_owned())]));
    }
    let equal = || router.metric("cgn_router_tokenizer_checks_total{result=\"equal\"}");
    wait_for("all are checked", || equal() == 4.0);
    assert_eq!(router.metric("cgn_router_tokenizer_trusted{model=\"m\"}"), 1.0);
}

#[test]
fn what_cannot_be_rendered_here_is_asked_of_the_engine() {
    let folder = models::small();
    models::write(
        folder.path(),
        "chat_template.jinja",
        "{{ raise_exception('no ' + messages[0].role) }}",
    );
    let engine = vllm(|_| (0..64).collect());
    let router = Router::start("", &workers(&engine, folder.path()));
    assert_eq!(router.client().post(CHAT, "", &body(&[("user", "hello".to_owned())])).status, 200);
    let raised = "cgn_router_tokenizer_fallbacks_total{reason=\"template_raised\"}";
    assert_eq!(router.metric(raised), 1.0);
    assert_eq!(router.metric("cgn_router_tokenize_total{path=\"engine\"}"), 1.0);
}

#[test]
fn a_long_prompt_is_tokenized_beside_the_core_and_one_too_long_not_at_all() {
    let folder = models::small();
    let engine = vllm(|_| (0..64).collect());
    let keys = "[router.kv]\ntokenize_check_share = 0.0\ntokenize_timeout_ms = 20000\n";
    let router = Router::start(keys, &workers(&engine, folder.path()));
    let long = body(&[("user", "what ".repeat(20_000))]);
    assert_eq!(router.client().post(CHAT, "", &long).status, 200);
    assert_eq!(router.metric("cgn_router_tokenize_total{path=\"exact\"}"), 1.0);
    let longer = body(&[("user", "what ".repeat(300_000))]);
    assert_eq!(router.client().post(CHAT, "", &longer).status, 200);
    assert_eq!(router.metric("cgn_router_tokenize_total{path=\"exact\"}"), 2.0);
    let too_long = body(&[("user", "what ".repeat(2 << 20))]);
    assert_eq!(router.client().post(CHAT, "", &too_long).status, 200);
    assert_eq!(router.metric("cgn_router_tokenizer_fallbacks_total{reason=\"too_long\"}"), 1.0);
}

#[test]
fn files_that_cannot_be_used_stop_the_start() {
    let folder = models::small();
    models::write(folder.path(), "tokenizer.json", "{}");
    let engine = Engine::ok();
    let output = run(&format!(
        "[router]\nlisten_http = \"127.0.0.1:0\"\nlisten_admin = \"127.0.0.1:0\"\n{}",
        workers(&engine, folder.path())
    ));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("tokenizer.json"), "{said}");
}

/// A router that control has told of one worker, and control's end of the connection.
fn told(folder: &Path, engine: &Engine, model_files: &Path) -> (Router, Control) {
    told_checking(folder, engine, model_files, 0.0)
}

/// The same; a share of the prompts is tokenized by the engine as well.
fn told_checking(
    folder: &Path,
    engine: &Engine,
    model_files: &Path,
    share: f64,
) -> (Router, Control) {
    let socket = folder.join("control.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let keys = format!(
        "control_socket = \"{}\"\n[router.kv]\ntokenize_check_share = {share:?}\n",
        socket.display()
    );
    let router = Router::spawn(&keys, "");
    let (stream, _) = listener.accept().unwrap();
    let mut control = Control { stream, decoder: Decoder::default() };
    assert!(matches!(control.receive(), FromPlane::Hello { .. }));
    let worker = Worker {
        id: "n/a/0".to_owned(),
        node: "n".to_owned(),
        url: format!("http://{}", engine.address),
        model: "m".to_owned(),
        kind: EngineKind::Vllm,
        slots: 4,
        context_length_tokens: 0,
        kv_cache_tokens: 0,
        capabilities: vec![Capability::Chat],
        state: WorkerState::Ready,
        epoch: 1,
        power_watts: None,
        running_requests: None,
        kv_feed: None,
        kv_events: false,
        kv_block_tokens: 0,
        model_files: Some(model_files.display().to_string()),
    };
    let snapshot = Snapshot { version: 1, workers: vec![worker], weights: None };
    control.send(&ToPlane::Snapshot(snapshot));
    wait_for("the snapshot", || router.metric("cgn_router_snapshot_version") == 1.0);
    (router, control)
}

struct Control {
    stream: UnixStream,
    decoder: Decoder,
}

impl Control {
    fn send(&mut self, message: &ToPlane) {
        self.stream.write_all(&encode(message).unwrap()).unwrap();
    }

    /// Asks why that request goes where it goes.
    fn explain(&mut self, body: &str) -> Explanation {
        let (path, body) = (CHAT.to_owned(), body.to_owned());
        self.send(&ToPlane::Explain { id: 9, path, body, weights: None, temperature: None });
        match self.receive() {
            FromPlane::Explained { id: 9, result: Ok(explanation) } => explanation,
            other => panic!("no answer to the question: {other:?}"),
        }
    }

    fn receive(&mut self) -> FromPlane {
        loop {
            if let Some(message) = self.decoder.poll_message().unwrap() {
                return message;
            }
            let mut part = [0; 4096];
            let read = self.stream.read(&mut part).unwrap();
            assert!(read > 0, "the router hung up");
            self.decoder.push(&part[..read]);
        }
    }
}

#[test]
fn a_workers_files_are_used_and_explain_says_exact_tokens() {
    let folder = models::small();
    let engine = vllm(|_| (0..64).collect());
    let (router, mut control) = told(folder.path(), &engine, folder.path());
    let body = body(&[("user", "what ".repeat(100))]);
    let exact = || router.metric("cgn_router_tokenize_total{path=\"exact\"}");
    // The files are read when the first request asks for them.
    wait_for("they are read", || {
        router.client().post(CHAT, "", &body);
        exact() > 0.0
    });
    let asked = asked_to_tokenize(&engine);
    let explanation = control.explain(&body);
    assert_eq!(explanation.tokenizer, "files");
    let tokenizer = ModelTokenizer::load(folder.path()).unwrap();
    let call = json_call(Endpoint::Chat, body.as_bytes()).unwrap();
    let text = tokenizer.text(EngineKind::Vllm, &call, &body, 0).unwrap();
    let tokens = tokenizer.encode(&text.text, false).unwrap().len() as u64;
    assert_eq!((explanation.unit.as_str(), explanation.prompt_tokens), ("tokens", tokens));
    assert_eq!(explanation.prompt_blocks, tokens / 16);
    assert_eq!(asked_to_tokenize(&engine), asked);
}

#[test]
fn explain_says_when_the_files_are_distrusted() {
    let folder = models::small();
    // Other tokens than the files give.
    let engine = vllm(|_| (0..64).collect());
    let (router, mut control) = told_checking(folder.path(), &engine, folder.path(), 1.0);
    let body = body(&[("user", "what ".repeat(100))]);
    wait_for("they are compared", || {
        router.client().post(CHAT, "", &body);
        router.metric("cgn_router_tokenizer_checks_total{result=\"different\"}") > 0.0
    });
    wait_for("they are distrusted", || control.explain(&body).tokenizer == "distrusted");
    assert_eq!(control.explain(&body).unit, "tokens", "the engine makes them");
}

#[test]
fn a_workers_files_that_are_broken_leave_the_engine_to_be_asked() {
    let folder = models::small();
    models::write(folder.path(), "tokenizer.json", "{\"model\":");
    let engine = vllm(|_| (0..64).collect());
    let (router, _control) = told(folder.path(), &engine, folder.path());
    for content in ["one", "two", "three"] {
        let body = body(&[("user", content.to_owned())]);
        assert_eq!(router.client().post(CHAT, "", &body).status, 200);
    }
    assert_eq!(router.metric("cgn_router_tokenize_total{path=\"exact\"}"), 0.0);
    assert_eq!(router.metric("cgn_router_tokenize_total{path=\"engine\"}"), 3.0);
}
