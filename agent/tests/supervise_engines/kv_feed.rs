//! What the agent tells routers against what its engines say. Real routers behind bad lines are in the
//! tests of a whole node.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Instant;

use dataplane::feed::Known;
use serde_json::json;

use super::*;
use crate::held_truth::Truth;
use crate::router_end::Router;

/// Small enough that a few prompts fill it.
const CACHE: [&str; 4] = ["--cache-blocks", "48", "--speedup-ratio", "0"];

impl Home {
    fn feed(&self) -> PathBuf {
        self.path("kv.sock")
    }

    /// Where the engine at `url` answers with earlier events.
    fn replay(&self, url: &str) -> String {
        let port = url.rsplit(':').next().unwrap();
        format!("ipc://{}", self.path(&format!("state/run/{port}.kvr")).display())
    }
}

fn spec() -> EngineSpec {
    EngineSpec { context_length_tokens: 512, ..sim(&CACHE) }
}

/// Posts and reads to the end; an engine that was just killed may not answer.
fn post(url: &str, path: &str, body: &serde_json::Value) -> bool {
    let exchange = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap())?;
        let body = body.to_string();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    exchange().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// One of a few conversations, so long that it fills some blocks.
fn talk(url: &str, number: u32) -> bool {
    let turns = "and then they went on for a while. ".repeat(3 + number as usize % 7);
    let prompt = format!("story {} {turns}", number % 11);
    post(url, "/v1/completions", &json!({"prompt": prompt, "max_tokens": 4}))
}

/// What the engine holds by its own word.
struct Said {
    held: BTreeSet<u128>,
    removed: usize,
}

/// Waits until `router` holds of `engine` what that says itself, and gives it.
async fn agreed(home: &Home, router: &Router, engine: &Engine) -> Said {
    let begun = Instant::now();
    let mut truth = Truth::default();
    loop {
        truth.catch_up(&home.replay(&engine.url)).await;
        let held = truth.held(MODEL);
        let followed = router.followed(&engine.worker_id);
        let is_whole = followed.known == Known::Whole && followed.epoch == engine.epoch;
        if is_whole && followed.held == held {
            return Said { held, removed: truth.removed };
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{} blocks held by {} of epoch {}, {} followed in epoch {}",
            held.len(),
            engine.worker_id,
            engine.epoch,
            followed.held.len(),
            followed.epoch
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_router_holds_what_the_engine_says_it_holds() {
    let (home, control) = (Home::new(), ControlSide::start());
    let _agent = home.agent(control.address, "", "");
    control.desire(vec![replica(0, spec())]);
    let engine = control.until_state(State::Ready).await;
    assert_eq!(engine.kv_feed, format!("unix:{}", home.feed().display()));
    let router = Router::dial(home.feed());

    assert!(talk(&engine.url, 0));
    let first = agreed(&home, &router, &engine).await;
    assert!(!first.held.is_empty() && first.removed == 0);
    let followed = router.followed(&engine.worker_id);
    assert_eq!((followed.known, followed.block_tokens), (Known::Whole, 16));
    let size = |report: &control::api::AgentReport| report.engines[0].kv_block_tokens == 16;
    control.until("the size of a block is reported", size).await;

    assert!((1..40).all(|number| talk(&engine.url, number)));
    let full = agreed(&home, &router, &engine).await;
    assert!(full.removed > 0, "the cache was too small for all");
    let late = Router::dial(home.feed());
    agreed(&home, &late, &engine).await;

    assert!(post(&engine.url, "/reset_prefix_cache", &json!({})));
    assert!(agreed(&home, &router, &engine).await.held.is_empty());

    assert!(talk(&engine.url, 1));
    assert!(!agreed(&home, &router, &engine).await.held.is_empty());
    send(engine.pid, Signal::SIGKILL);
    let again = ready_again(&control, &engine).await;
    assert!(agreed(&home, &router, &again).await.held.is_empty(), "a new process holds nothing");
    assert!(talk(&again.url, 2));
    assert!(!agreed(&home, &late, &again).await.held.is_empty());

    control.desire(vec![]);
    eventually("an engine that is gone holds nothing", || {
        router.followed(&again.worker_id).held.is_empty()
    })
    .await;
    let metrics = home.metrics();
    for line in [
        "cgn_agent_kv_feed_routers 2",
        "cgn_agent_kv_events_total{worker=\"n/sim/test/0\"}",
        "cgn_agent_kv_feed_overflows_total 0",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}
