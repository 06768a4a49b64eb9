//! Two routers and three engines agree on the index, whatever the lines between them do to the batches,
//! over the death of a router and of an engine.
//!
//! Every line, engine to agent and agent to router, drops, doubles or delays some batches. The truth is
//! what an engine published, all of it; a router's view is what its admin listener says of its index.
//! `CGN_KV_FEED_SECONDS` makes it long, with 1 % of trouble; else it is short, with more.

#[path = "agree/asking.rs"]
mod asking;
#[path = "agree/events_line.rs"]
mod events_line;
#[path = "agree/feed_line.rs"]
mod feed_line;
#[path = "agree/trouble.rs"]
mod trouble;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::client;
use crate::house::{Engine, House};
use crate::process::{Process, binary, eventually, eventually_after, is_running, send};
use crate::recipe::{MODEL, NAME, text};
use asking::Asking;
use events_line::EventsLine;
use feed_line::Troubles;

/// Small enough that a few prompts fill it.
const CACHE: &str = "\"--cache-blocks\", \"64\", \"--speedup-ratio\", \"0\"";
/// Of a hundred batches, so many are dropped, doubled or late: in the short run more than any line does.
const PERCENT_SHORT: u64 = 20;
const PERCENT_LONG: u64 = 1;
/// Requests of each client in each half of the three parts of the run, at least.
const REQUESTS: u64 = 20;

/// The node, the second router, and the lines between all.
struct Scene {
    runtime: Runtime,
    house: House,
    second: Option<Process>,
    second_http: SocketAddr,
    engines: Vec<Engine>,
    lines: Vec<EventsLine>,
    feed: Troubles,
    percent: u64,
    half_part: Duration,
    /// Batches and harmed ones of lines that are no more.
    passed: (u64, u64),
    _folder: TempDir,
}

impl Scene {
    fn start(percent: u64, half_part: Duration) -> Scene {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let script = events_line::engine_beside(folder.path(), &binary("cgn-sim-engine"));
        let house = House::start(&format!("sim = {script:?}"));
        let feed = feed_line::take_over(&runtime, &house.dir.path().join("kv.sock"), percent);
        let recipe = text(3, 4, CACHE).replace("_tokens = 8192", "_tokens = 512");
        house.recipe(NAME, &recipe);
        let up = house.ctl(&["recipe", "up", NAME]);
        assert_eq!((&up["state"], &up["ready"]), (&json!("ready"), &json!(3)), "{up}");
        let engines: Vec<_> = up["workers"].as_array().unwrap().iter().map(Engine::of).collect();
        house.ready();
        let (second, second_http) = house.second_router();
        let mut scene = Scene {
            runtime,
            house,
            second: Some(second),
            second_http,
            lines: Vec::new(),
            engines,
            feed,
            percent,
            half_part,
            passed: (0, 0),
            _folder: folder,
        };
        scene.lines = scene.engines.iter().map(|engine| scene.line(engine)).collect();
        scene.second_is_ready();
        scene
    }

    fn line(&self, engine: &Engine) -> EventsLine {
        let run = self.house.dir.path().join("state/run");
        let live: PathBuf = run.join(format!("{}.kv", address(engine).port()));
        EventsLine::start(&self.runtime, &live, engine.epoch, self.percent)
    }

    fn second_is_ready(&self) {
        let readyz = || client::get(self.second_http, "/readyz");
        let is_ready = || readyz().is_some_and(|answer| answer.status == 200);
        eventually("the second router is ready", is_ready);
    }

    /// Has the clients ask for one part of the run, with `meanwhile` in its middle; then all agree.
    fn part(&mut self, meanwhile: impl FnOnce(&mut Scene)) {
        let routers = [self.house.http(), self.second_http];
        let engines: Vec<_> = self.engines.iter().map(address).collect();
        let asking = Asking::start(&[&routers[..], &routers, &engines].concat());
        self.go_on(&asking);
        meanwhile(self);
        self.go_on(&asking);
        let answered = asking.end();
        self.agree();
        println!("all agree after {answered:?} answers");
    }

    /// Waits for requests of all clients, and in a long run for half the time of a part.
    fn go_on(&self, asking: &Asking) {
        let (begun, before) = (Instant::now(), asking.answered());
        eventually_after(self.half_part, "all clients are answered", || {
            let now = asking.answered();
            let mut both = now.iter().zip(&before);
            begun.elapsed() >= self.half_part && both.all(|(now, old)| *now >= old + REQUESTS)
        });
    }

    fn counts(&self) -> Option<[Value; 2]> {
        let count = |admin| {
            let answer = client::get(admin, "/kv")?;
            (answer.status == 200).then(|| answer.json())
        };
        let [one, two] = self.house.admins();
        Some([count(one)?, count(two)?])
    }

    /// An engine drops everything at once.
    fn reset_engine(&mut self) {
        let answer = client::post(address(&self.engines[1]), "/reset_prefix_cache", &json!({}));
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    /// The second router dies and comes back with nothing.
    fn restart_router(&mut self) {
        self.second.as_mut().unwrap().crash();
        // The kernel takes a killed process's ring down, and what it listens on, a moment later.
        for address in [self.second_http, self.house.admins()[1]] {
            eventually("its port is free", || TcpListener::bind(address).is_ok());
        }
        self.second = Some(self.house.second_router().0);
        self.second_is_ready();
    }

    /// An engine dies, and its line with it; the agent starts it again.
    fn restart_engine(&mut self) {
        let victim = self.engines[0].clone();
        let line = self.lines.remove(0);
        let passed = line.passed();
        self.passed = (self.passed.0 + passed.0, self.passed.1 + passed.1);
        drop(line);
        send(victim.pid, Signal::SIGKILL);
        eventually("the engine is gone", || !is_running(victim.pid));
        let mut back = None;
        eventually("the agent has started it again", || {
            let mut engines = self.house.engines().into_iter();
            back = engines.find(|engine| engine.worker == victim.worker);
            back.as_ref().is_some_and(|back| back.state == "ready" && back.epoch > victim.epoch)
        });
        let back = back.unwrap();
        assert_eq!(back.url, victim.url, "it keeps its port");
        self.lines.insert(0, self.line(&back));
        self.engines[0] = back;
    }

    /// What `GET /kv` should say of each engine, by worker.
    fn truths(&self) -> Vec<Value> {
        let of = |(engine, line): (&Engine, &EventsLine)| {
            let held = line.truth(&self.runtime, |truth| {
                assert!(truth.removed > 0, "the cache was too small for all");
                truth.held(MODEL)
            });
            let sum = held.iter().fold(0u128, |sum, digest| sum.wrapping_add(*digest));
            let none = json!({ "blocks": 0, "fingerprint": format!("{:032x}", 0) });
            json!({
                "worker": engine.worker, "known": "whole", "epoch": engine.epoch,
                "block_tokens": 16, "moved": false,
                "gpu": { "blocks": held.len(), "fingerprint": format!("{sum:032x}") },
                "host": none, "disk": none,
            })
        };
        let mut truths: Vec<Value> = self.engines.iter().zip(&self.lines).map(of).collect();
        truths.sort_by_key(|truth| truth["worker"].to_string());
        truths
    }

    /// Waits until both routers say what the engines say, and the same batch.
    fn agree(&self) {
        let mut said = Value::Null;
        let without_batch = |census: &Value| {
            let mut rows = census["workers"].as_array().unwrap().clone();
            rows.iter_mut().for_each(|row| drop(row.as_object_mut().unwrap().remove("batch")));
            rows
        };
        let began = Instant::now();
        loop {
            let truths = self.truths();
            if let Some(both) = self.counts() {
                let are_true = both.iter().all(|census| without_batch(census) == truths);
                if are_true && both[0]["workers"] == both[1]["workers"] {
                    return;
                }
                said = json!(both);
            }
            let is_patient = began.elapsed() < crate::process::PATIENCE;
            assert!(is_patient, "the engines say {truths:#?}, the routers {said:#}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn report(&self) {
        let (mut batches, mut harmed) = self.passed;
        for (more, bad) in self.lines.iter().map(EventsLine::passed) {
            (batches, harmed) = (batches + more, harmed + bad);
        }
        let feeds = self.feed.lock().unwrap();
        let feeds = feeds.iter().map(|one| one.lock().unwrap());
        let feeds: Vec<_> = feeds.map(|feed| (feed.harmed, feed.seen)).collect();
        println!("{harmed} of {batches} batches harmed, frames {feeds:?}");
        let gaps = self.house.agent_metric("cgn_agent_kv_gaps_total");
        let resyncs = self.house.metric("cgn_router_kv_feed_resyncs_total");
        println!("{gaps} gaps of the agent, {resyncs} snapshots for the first router");
        assert!(harmed > 0 && feeds.iter().any(|(harmed, _)| *harmed > 0), "the lines were good");
        assert!(feeds.len() >= 3, "two routers, one of them twice");
        let clears = self.house.agent_metric("cgn_agent_kv_clears_total");
        assert!(clears < 1.0, "trouble of a line was taken for a new engine {clears} times");
    }
}

fn address(engine: &Engine) -> SocketAddr {
    engine.url.strip_prefix("http://").unwrap().parse().unwrap()
}

#[test]
fn two_routers_and_three_engines_agree_over_bad_lines_and_deaths() {
    let seconds: Option<u64> = std::env::var("CGN_KV_FEED_SECONDS")
        .ok()
        .map(|text| text.parse().expect("CGN_KV_FEED_SECONDS is a number of seconds"));
    let percent = if seconds.is_some() { PERCENT_LONG } else { PERCENT_SHORT };
    let half_part = Duration::from_secs(seconds.unwrap_or(0)) / 6;
    let mut scene = Scene::start(percent, half_part);
    scene.part(Scene::reset_engine);
    scene.part(Scene::restart_router);
    scene.part(Scene::restart_engine);
    scene.report();
}
