//! A real `cgn-agent` against real engine processes and a gRPC server in the place of control.
//!
//! Times in here only keep a broken test from hanging; none is asserted.
#![expect(clippy::unwrap_used, reason = "a test that meets the unexpected has failed")]

use std::path::PathBuf;
use std::time::Duration;

use control::api::engine::State;
use control::api::{DesiredEngine, Engine, EngineSpec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[path = "supervise_engines/agent_process.rs"]
mod agent_process;
#[path = "supervise_engines/control_side.rs"]
mod control_side;
#[path = "supervise_engines/held_truth.rs"]
mod held_truth;
#[path = "supervise_engines/kv_feed.rs"]
mod kv_feed;
#[path = "supervise_engines/router_end.rs"]
mod router_end;

use agent_process::{Home, Streaming, eventually, gone, is_running, processes_with};
use control_side::ControlSide;

/// Guards against a hang; no test depends on its length.
const PATIENCE: Duration = Duration::from_secs(120);
const MODEL: &str = "sim-model";

fn sim(extra_args: &[&str]) -> EngineSpec {
    EngineSpec {
        model: MODEL.into(),
        kind: "sim".into(),
        slots: 2,
        context_length_tokens: 4096,
        extra_args: extra_args.iter().map(ToString::to_string).collect(),
        startup_timeout_s: 110,
        drain_timeout_s: 600,
        ..EngineSpec::default()
    }
}

fn replica(replica: u32, spec: EngineSpec) -> DesiredEngine {
    DesiredEngine { deployment: "sim/test".into(), replica, spec: Some(spec) }
}

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

async fn ready_again(control: &ControlSide, before: &Engine) -> Engine {
    let report = control
        .until("ready again with a higher epoch", |report| {
            let ready = |engine: &&Engine| engine.state() == State::Ready;
            report.engines.iter().filter(ready).any(|engine| engine.epoch > before.epoch)
        })
        .await;
    report.engines[0].clone()
}

#[tokio::test]
async fn an_engine_becomes_ready_and_comes_back_after_sigkill() {
    let (home, control) = (Home::new(), ControlSide::start());
    let _agent = home.agent(control.address, "", "");
    control.desire(vec![replica(0, sim(&["--cache-blocks", "100", "--block-tokens", "16"]))]);
    let engine = control.until_state(State::Ready).await;
    assert_eq!(engine.worker_id, "n/sim/test/0");
    assert_eq!((engine.kind.as_str(), engine.model.as_str()), ("vllm", MODEL));
    assert_eq!((engine.slots, engine.context_length_tokens), (2, 4096));
    assert_eq!(engine.kv_cache_tokens, 1600);
    assert_eq!(engine.capabilities, ["chat", "completions", "embeddings"]);
    assert_eq!((engine.running_requests, engine.restarts), (Some(0), 0));
    assert!(is_running(engine.pid));
    let metrics = home.metrics();
    assert!(metrics.contains("cgn_agent_engine_ready{worker=\"n/sim/test/0\"} 1"), "{metrics}");
    assert!(metrics.contains("cgn_agent_control_connected 1"), "{metrics}");
    assert!(metrics.contains("cgn_agent_engine_start_seconds_count 1"), "{metrics}");

    send(engine.pid, Signal::SIGKILL);
    let again = ready_again(&control, &engine).await;
    assert!(again.restarts >= 1 && again.pid != engine.pid);
    let metrics = home.metrics();
    assert!(metrics.contains("cgn_agent_engine_restarts_total{worker=\"n/sim/test/0\"} 1"));
}

#[tokio::test]
async fn a_simulated_llama_cpp_is_probed_as_llama_cpp() {
    let (home, control) = (Home::new(), ControlSide::start());
    let _agent = home.agent(control.address, "", "");
    control.desire(vec![replica(0, sim(&["--mimic", "llama_cpp", "--embeddings", "off"]))]);
    let engine = control.until_state(State::Ready).await;
    assert_eq!(engine.kind, "llama_cpp");
    assert_eq!((engine.slots, engine.context_length_tokens), (2, 4096));
    assert_eq!(engine.capabilities, ["chat", "completions"]);
    assert_eq!(engine.running_requests, Some(0));
}

#[tokio::test]
async fn a_hung_engine_is_killed_and_started_again() {
    let (home, control) = (Home::new(), ControlSide::start());
    let quick = "probe_timeout_ms = 500\nprobe_failures_max = 2";
    let _agent = home.agent(control.address, quick, "");
    control.desire(vec![replica(0, sim(&[]))]);
    let engine = control.until_state(State::Ready).await;
    send(engine.pid, Signal::SIGSTOP);
    let again = ready_again(&control, &engine).await;
    assert_ne!(again.pid, engine.pid);
    assert!(!is_running(engine.pid));
}

#[tokio::test]
async fn no_engine_outlives_a_killed_agent() {
    let (home, control) = (Home::new(), ControlSide::start());
    let mut agent = home.agent(control.address, "", "");
    control.desire(vec![replica(0, sim(&[])), replica(1, sim(&[]))]);
    let report = control
        .until("two ready engines", |report| {
            report.engines.iter().filter(|engine| engine.state() == State::Ready).count() == 2
        })
        .await;
    assert_ne!(report.engines[0].url, report.engines[1].url);
    agent.signal(Signal::SIGKILL);
    let _ = agent.end();
    for engine in &report.engines {
        gone(engine.pid).await;
    }
}

#[tokio::test]
async fn what_cannot_start_says_why_and_starts_once_that_is_cured() {
    let (home, control) = (Home::new(), ControlSide::start());
    let binary = home.path("llama-server");
    let _agent = home.agent(control.address, "", &format!("llama_cpp = {binary:?}"));
    let llama = EngineSpec {
        kind: "llama_cpp".into(),
        model_file: "m.gguf".into(),
        model_file_bytes: 64,
        ..sim(&[])
    };
    control.desire(vec![replica(0, llama.clone())]);
    let message = control.until_state(State::Failed).await.message;
    assert!(message.contains("llama-server not found: set [engines] llama_cpp in "), "{message}");
    assert!(message.ends_with("agent.toml or put it on PATH"), "{message}");

    std::fs::create_dir(home.path("models")).unwrap();
    std::fs::write(home.path("models/m.gguf"), "GGUF and too little").unwrap();
    home.script("llama-server", "exec sleep 1000");
    let truncated =
        |message: &str| message.contains("m.gguf is truncated (19 of 64 bytes): fetch it again");
    control.until("truncated", |report| truncated(&report.engines[0].message)).await;

    std::fs::write(home.path("models/m.gguf"), [b"GGUF".as_slice(), &[0; 60]].concat()).unwrap();
    let engine = control.until_state(State::Starting).await;
    assert!(engine.pid > 0 && is_running(engine.pid));

    control.desire(vec![replica(0, EngineSpec { kind: "trt".into(), ..llama })]);
    let message = control.until_state(State::Failed).await.message;
    assert!(message.contains("known: llama_cpp, vllm, sglang, sim"), "{message}");
    gone(engine.pid).await;
}

#[tokio::test]
async fn an_engine_never_ready_is_given_up_and_leaves_no_process() {
    let (home, control) = (Home::new(), ControlSide::start());
    let _agent = home.agent(control.address, "start_attempts_max = 2", "");
    // A word by which its processes are found.
    let mark = home.path("mark").display().to_string();
    let args = ["--startup-ms", "600000", "--kv-events-topic", &mark];
    let slow = EngineSpec { startup_timeout_s: 1, ..sim(&args) };
    control.desire(vec![replica(0, slow)]);
    eventually("it runs", || !processes_with(&mark).is_empty()).await;
    let engine = control.until_state(State::Failed).await;
    assert!(
        engine.message.starts_with("given up after 2 attempts: not ready within 1 s"),
        "{}",
        engine.message
    );
    assert!(engine.message.contains(&format!("log: {}", engine.log_path)), "{}", engine.message);
    assert!(PathBuf::from(&engine.log_path).is_file());
    assert_eq!((engine.pid, engine.restarts), (0, 1));
    assert!(processes_with(&mark).is_empty());
}

#[tokio::test]
async fn a_removed_engine_finishes_its_stream_first() {
    let (home, control) = (Home::new(), ControlSide::start());
    let _agent = home.agent(control.address, "", "");
    control.desire(vec![replica(0, sim(&["--mimic", "llama_cpp"]))]);
    let engine = control.until_state(State::Ready).await;
    let url = engine.url.clone();
    let stream = tokio::task::spawn_blocking(move || Streaming::begin(&url, MODEL, 300));
    let stream = stream.await.unwrap();
    control.desire(vec![]);
    control.until_state(State::Draining).await;
    let ended_well = tokio::task::spawn_blocking(|| stream.ends_well()).await.unwrap();
    assert!(ended_well, "the stream was cut");
    control.until("gone", |report| report.engines.is_empty()).await;
    gone(engine.pid).await;
    assert!(!home.metrics().contains("sim/test"));
}

#[tokio::test]
async fn engines_stay_while_control_is_away_and_come_back_from_the_saved_state() {
    let (home, control) = (Home::new(), ControlSide::start());
    let address = control.address;
    let mut agent = home.agent(address, "", "");
    control.desire(vec![replica(0, sim(&[]))]);
    let engine = control.until_state(State::Ready).await;
    drop(control);
    let noticed = || home.metrics().contains("cgn_agent_control_connected 0");
    eventually("the agent notices", noticed).await;
    assert!(is_running(engine.pid));
    let control = ControlSide::start_at(address);
    assert_eq!(control.until_state(State::Ready).await.pid, engine.pid);

    drop(control);
    agent.signal(Signal::SIGTERM);
    assert!(agent.end().0.success());
    assert!(!is_running(engine.pid));
    let _agent = home.agent(address, "", "");
    let ready = "cgn_agent_engine_ready{worker=\"n/sim/test/0\"} 1";
    eventually("ready without control", || home.metrics().contains(ready)).await;
    let control = ControlSide::start_at(address);
    let later = control.until_state(State::Ready).await;
    assert!(later.epoch > engine.epoch, "epochs rise over restarts of the agent");
}

#[tokio::test]
async fn sigterm_drains_and_leaves_nothing() {
    let (home, control) = (Home::new(), ControlSide::start());
    let mut agent = home.agent(control.address, "shutdown_timeout_s = 600", "");
    control.desire(vec![replica(0, sim(&["--mimic", "llama_cpp"])), replica(1, sim(&[]))]);
    let report = control
        .until("two ready engines", |report| {
            report.engines.iter().filter(|engine| engine.state() == State::Ready).count() == 2
        })
        .await;
    let url = report.engines[0].url.clone();
    let stream = tokio::task::spawn_blocking(move || Streaming::begin(&url, MODEL, 200));
    let stream = stream.await.unwrap();
    agent.signal(Signal::SIGTERM);
    control
        .until("draining", |report| {
            report.engines.iter().any(|engine| engine.state() == State::Draining)
        })
        .await;
    assert!(tokio::task::spawn_blocking(|| stream.ends_well()).await.unwrap());
    let (status, _) = tokio::task::spawn_blocking(move || agent.end()).await.unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(report.engines.iter().all(|engine| !is_running(engine.pid)));
}

#[tokio::test]
async fn a_second_signal_hurries() {
    let (home, control) = (Home::new(), ControlSide::start());
    let mut agent = home.agent(control.address, "shutdown_timeout_s = 3600", "");
    let long = EngineSpec { drain_timeout_s: 3600, ..sim(&["--mimic", "llama_cpp"]) };
    control.desire(vec![replica(0, long)]);
    let engine = control.until_state(State::Ready).await;
    let url = engine.url.clone();
    let stream = tokio::task::spawn_blocking(move || Streaming::begin(&url, MODEL, 4000));
    let _stream = stream.await.unwrap();
    agent.signal(Signal::SIGTERM);
    control.until_state(State::Draining).await;
    agent.signal(Signal::SIGINT);
    let (status, _) = tokio::task::spawn_blocking(move || agent.end()).await.unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(!is_running(engine.pid));
}

#[tokio::test]
async fn logs_are_rotated_within_their_limits() {
    let (home, control) = (Home::new(), ControlSide::start());
    let noisy = home.script("noisy", "while :; do echo 'a line of this engine'; done");
    let limits = "log_bytes_max = 4096\nlog_files_max = 3";
    let _agent = home.agent(control.address, limits, &format!("sim = {noisy:?}"));
    control.desire(vec![replica(0, sim(&[]))]);
    let engine = control
        .until("running", |report| report.engines.first().is_some_and(|engine| engine.pid > 0));
    let log = PathBuf::from(&engine.await.engines[0].log_path);
    eventually("two rotations", || log.with_extension("log.2").exists()).await;
    control.desire(vec![]);
    control.until("gone", |report| report.engines.is_empty()).await;
    let files: Vec<_> = std::fs::read_dir(home.path("logs")).unwrap().flatten().collect();
    assert_eq!(files.len(), 3, "{files:?}");
    assert!(files.iter().all(|file| file.metadata().unwrap().len() <= 4096));
}

#[tokio::test]
async fn bad_configuration_ends_with_one_clear_line() {
    let (home, control) = (Home::new(), ControlSide::start());
    let mut agent = home.agent(control.address, "bakoff_max_ms = 1", "");
    let (status, said) = agent.end();
    assert_eq!(status.code(), Some(2));
    assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
    assert!(
        said.contains(
            "agent.toml:15: unknown key `bakoff_max_ms`; the nearest known key is `backoff_max_ms`"
        ),
        "{said}"
    );

    let _taken = std::net::TcpListener::bind(home.metrics).unwrap();
    let (status, said) = home.agent(control.address, "", "").end();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("error: metrics_listen ") && said.contains("in use"), "{said}");
}

#[tokio::test]
async fn a_second_agent_on_the_same_state_is_refused() {
    let (home, control) = (Home::new(), ControlSide::start());
    let _agent = home.agent(control.address, "", "");
    eventually("the first is up", || !home.metrics().is_empty()).await;
    let mut other = Home::new();
    other.share_state_of(&home);
    let (status, said) = other.agent(control.address, "", "").end();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("is in use by another cgn-agent"), "{said}");
}

/// `llama-server` and SmolLM2, where they have been built and fetched.
fn llama_cpp() -> Option<(PathBuf, PathBuf)> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let cache = variable("CGN_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("cognitora")))
        .or_else(|| Some(variable("HOME")?.join(".cache/cognitora")))?;
    let server = cache.join("engines/llama.cpp-0.3.36/llama-server");
    let model = cache.join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    (server.is_file() && model.is_file()).then_some((server, model))
}

#[tokio::test]
async fn llama_server_becomes_ready_and_says_what_it_has() {
    let Some((server, model)) = llama_cpp() else {
        eprintln!("skipped: no llama-server and SmolLM2 in the cache folder (cargo xtask up)");
        return;
    };
    let (home, control) = (Home::new(), ControlSide::start());
    let _agent = home.agent(control.address, "", &format!("llama_cpp = {server:?}"));
    let spec = EngineSpec {
        kind: "llama_cpp".into(),
        model_file: model.display().to_string(),
        model_file_bytes: 98_362_432,
        context_length_tokens: 1024,
        ..sim(&["--cache-ram", "64"])
    };
    control.desire(vec![replica(0, spec)]);
    let engine = control.until_state(State::Ready).await;
    assert_eq!((engine.slots, engine.context_length_tokens), (2, 1024));
    // 64 MiB at 22.5 KiB a token, beside two slots.
    assert_eq!(engine.kv_cache_tokens, 2048 + (64 << 20) / 23_040);
    assert_eq!(engine.capabilities, ["chat", "completions"]);
    let url = engine.url.clone();
    let stream = tokio::task::spawn_blocking(move || Streaming::begin(&url, MODEL, 200));
    let stream = stream.await.unwrap();
    control.until("busy", |report| report.engines[0].running_requests == Some(1)).await;
    control.desire(vec![]);
    assert!(tokio::task::spawn_blocking(|| stream.ends_well()).await.unwrap());
    control.until("gone", |report| report.engines.is_empty()).await;
    gone(engine.pid).await;
}
