//! What the agent tells routers against what its engines say: followers dial the feed, directly or
//! through a line that loses, doubles and delays frames.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Instant;

use dataplane::feed::Known;
use serde_json::json;

use super::*;
use crate::feed_line::{Router, troubled};
use crate::held_truth::Truth;

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

/// Waits until `router` holds of `engine` what that says itself, and gives it.
async fn agreed(home: &Home, router: &Router, engine: &Engine) -> Truth {
    let begun = Instant::now();
    loop {
        let truth = Truth::of(&home.replay(&engine.url), MODEL).await;
        let followed = router.followed(&engine.worker_id);
        let is_whole = followed.known == Known::Whole && followed.epoch == engine.epoch;
        if is_whole && followed.held == truth.held {
            return truth;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{} blocks held by {} of epoch {}, {} followed in epoch {}",
            truth.held.len(),
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

/// Three engines, two routers behind bad lines and one that comes anew: all agree once it is quiet.
///
/// `CGN_KV_FEED_SECONDS` makes it longer.
#[tokio::test]
async fn routers_behind_bad_lines_agree() {
    let seconds = std::env::var("CGN_KV_FEED_SECONDS").ok().and_then(|text| text.parse().ok());
    let (home, control) = (Home::new(), ControlSide::start());
    let _agent = home.agent(control.address, "", "");
    control.desire((0..3).map(|number| replica(number, spec())).collect());
    let report = control
        .until("three are ready", |report| {
            let ready = report.engines.iter().filter(|engine| engine.state() == State::Ready);
            ready.count() == 3
        })
        .await;
    let engines = report.engines;
    // Of a hundred frames, so many are dropped, doubled or late: more than any line, to be short.
    let percent = if seconds.is_some() { 1 } else { 20 };
    let lines: Vec<_> = (1..=2u64)
        .map(|seed| troubled(home.feed(), home.path(&format!("line{seed}")), seed, percent))
        .collect();
    let [one, two] = [0, 1].map(|line| Router::dial(lines[line].path.clone()));
    let mut come_anew = Router::dial(lines[1].path.clone());

    let begun = Instant::now();
    let lasting = Duration::from_secs(seconds.unwrap_or(0));
    let mut number = 0;
    while number < 150 || begun.elapsed() < lasting {
        for engine in &engines {
            assert!(talk(&engine.url, number * 7 + engine.replica));
        }
        if number == 75 {
            come_anew = Router::dial(lines[0].path.clone());
        }
        if number % 50 == 25 {
            assert!(post(&engines[0].url, "/reset_prefix_cache", &json!({})));
        }
        number += 1;
        // Followers live on this thread.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(lines.iter().all(|line| line.harmed() > 0), "the lines were good");
    for engine in &engines {
        for router in [&one, &two, &come_anew] {
            agreed(&home, router, engine).await;
        }
        let of = |router: &Router| router.followed(&engine.worker_id);
        assert_eq!(of(&one).held, of(&two).held);
        assert_eq!(of(&come_anew).known, Known::Whole);
        assert!(!of(&come_anew).held.is_empty());
    }
}
