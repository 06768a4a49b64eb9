//! The process under load, with clients that leave, and at its end.

use std::time::Duration;

use http_body_util::BodyExt;
use nix::sys::signal::Signal;
use serde_json::json;

use super::client::{connect, read, send};
use super::process::{Engine, PATIENCE, command};

/// A request that would take minutes.
fn endless() -> String {
    json!({"prompt": "a", "max_tokens": 20_000, "stream": true}).to_string()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_frees_its_slot_and_blocks() {
    let engine = Engine::start(&[]);
    let running = "vllm:num_requests_running";
    // One client reads a stream, the other waits for a whole answer.
    let mut streaming = connect(engine.address).await;
    let mut stream = send(&mut streaming, "POST", "/v1/completions", endless()).await;
    assert!(stream.body_mut().frame().await.unwrap().is_ok());
    let address = engine.address;
    let whole = tokio::spawn(async move {
        let body = json!({"prompt": "b", "max_tokens": 20_000}).to_string();
        send(&mut connect(address).await, "POST", "/v1/completions", body).await;
    });
    until("both run", async || engine.metric(running).await == 2.0).await;
    assert!(engine.metric("vllm:kv_cache_usage_perc").await > 0.0);
    drop((stream, streaming));
    until("one is gone", async || engine.metric(running).await == 1.0).await;
    whole.abort();
    until("both are gone", async || engine.metric(running).await == 0.0).await;
    assert_eq!(engine.metric("vllm:kv_cache_usage_perc").await, 0.0);
}

#[tokio::test]
async fn a_full_queue_is_refused_with_a_clear_error() {
    for (dialect, waiting) in
        [("vllm", "vllm:num_requests_waiting"), ("llama_cpp", "llamacpp:requests_deferred")]
    {
        let engine = Engine::start(&["--mimic", dialect, "--slots", "1", "--queue-max", "1"]);
        let mut first = connect(engine.address).await;
        let mut stream = send(&mut first, "POST", "/v1/completions", endless()).await;
        assert!(stream.body_mut().frame().await.unwrap().is_ok());
        let address = engine.address;
        let second = tokio::spawn(async move {
            let mut sender = connect(address).await;
            let answer = send(&mut sender, "POST", "/v1/completions", endless()).await;
            (answer.into_body().frame().await, sender)
        });
        until("one waits", async || engine.metric(waiting).await == 1.0).await;
        let refused = engine.post_text("/v1/completions", endless()).await;
        assert_eq!(refused.status, 503);
        assert_eq!(refused.headers["retry-after"], "1");
        assert!(refused.text.contains("the queue is full"), "{}", refused.text);
        // With the first gone the second gets the slot.
        drop((stream, first));
        until("nobody waits", async || engine.metric(waiting).await == 0.0).await;
        assert!(second.await.unwrap().0.unwrap().is_ok());
    }
}

#[tokio::test]
async fn many_clients_at_once_all_get_their_own_answer() {
    let args = [
        "--slots",
        "8",
        "--cache-blocks",
        "60",
        "--speedup-ratio",
        "0",
        "--context-length",
        "2048",
    ];
    let engine = Engine::start(&args);
    let alone = Engine::start(&["--speedup-ratio", "0"]);
    let address = engine.address;
    let tasks: Vec<_> = (0..64)
        .map(|index| {
            tokio::spawn(async move {
                let body = json!({"prompt": format!("client {index} {}", "x ".repeat(index)),
                                  "max_tokens": 200});
                let mut sender = connect(address).await;
                (
                    body.clone(),
                    read(send(&mut sender, "POST", "/v1/completions", body.to_string()).await)
                        .await,
                )
            })
        })
        .collect();
    for task in tasks {
        let (body, answer) = task.await.unwrap();
        let expected = alone.ok("/v1/completions", body).await;
        assert_eq!(answer.json()["choices"], expected["choices"], "load changes no text");
    }
    assert!(
        engine.metric("vllm:num_preemptions_total").await > 0.0,
        "60 blocks are too few for 8 such requests"
    );
}

#[tokio::test]
async fn sigterm_ends_it_cleanly_even_in_the_middle_of_a_stream() {
    let mut engine = Engine::start(&[]);
    let mut sender = connect(engine.address).await;
    let mut stream = send(&mut sender, "POST", "/v1/completions", endless()).await;
    assert!(stream.body_mut().frame().await.unwrap().is_ok());
    engine.signal(Signal::SIGTERM);
    assert_eq!(engine.wait().code(), Some(0));
}

#[tokio::test]
async fn it_can_be_told_to_fail_after_some_requests() {
    let mut engine = Engine::start(&["--fail-after", "2", "--speedup-ratio", "0"]);
    for _ in 0..2 {
        engine.ok("/v1/completions", json!({"prompt": "a", "max_tokens": 1})).await;
    }
    let mut sender = connect(engine.address).await;
    let request = hyper::Request::post("/v1/completions")
        .header("host", "sim")
        .body(http_body_util::Full::from(r#"{"prompt":"a"}"#))
        .unwrap();
    assert!(sender.send_request(request).await.is_err());
    assert_eq!(engine.wait().code(), Some(86));
}

#[tokio::test]
async fn llama_cpps_connections_end_after_a_hundred_requests() {
    let engine = Engine::start(&["--mimic", "llama_cpp"]);
    let mut sender = connect(engine.address).await;
    for number in 1..=100 {
        let answer = read(send(&mut sender, "GET", "/health", "").await).await;
        let closes = answer.headers.get("connection").is_some_and(|value| value == "close");
        assert_eq!(closes, number == 100);
        if number < 100 {
            sender.ready().await.expect("the connection is still open");
        }
    }
}

#[tokio::test]
async fn a_start_that_cannot_be_is_one_clear_line() {
    let engine = Engine::start(&[]);
    let taken = engine.address.to_string();
    for (args, code, said) in [
        (&["--listen", taken.as_str()][..], 1, "error: cannot listen on"),
        (&["--listen", "0.0.0.0:0"], 2, "error: --listen: 0.0.0.0:0 is not a loopback address"),
        (&["--slots", "0"], 2, "error: --slots: 0 is not in 1..="),
        (&["--kv-events-endpoint", "udp://x"], 2, "error: --kv-events-endpoint: cannot use"),
        (&["--slotz", "1"], 2, "error: unexpected argument '--slotz'"),
    ] {
        let output = command(args).stderr(std::process::Stdio::piped()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.starts_with(said), "{stderr}");
        assert!(output.stdout.is_empty());
    }
}
