//! Engines that say what they hold: an agent tells, the router believes it, and only it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use dataplane::digest::{Unit, of_tokens, seed};
use dataplane::feed::{Decoder, Known, Level, Op, ToAgent, ToRouter, VERSION, encode};
use dataplane::wire::{self, Capability, Snapshot, ToPlane, Worker, WorkerState};
use serde_json::{Value, json};

use super::client::Client;
use super::engine::{self, Engine};
use super::process::Router;
use super::routing::live;

/// Not the router's default: the engine's word counts.
const BLOCK_TOKENS: u32 = 32;
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
pub(super) const A: &str = "n/a/0";
pub(super) const B: &str = "n/b/0";

/// An agent: what it was asked for, and what it says.
pub(super) struct Agent {
    pub stream: TcpStream,
    decoder: Decoder,
}

impl Agent {
    pub fn accept(listener: &TcpListener) -> Agent {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut agent = Agent { stream, decoder: Decoder::default() };
        assert!(matches!(agent.hear(), ToAgent::Hello { version: VERSION, .. }));
        agent.say(&ToRouter::Hello { version: VERSION, process: "cgn-agent".to_owned() });
        agent
    }

    /// What it is asked for. What the router tells of its load is no question.
    fn hear(&mut self) -> ToAgent {
        loop {
            match self.hear_all() {
                ToAgent::Load { .. } => {}
                asked => return asked,
            }
        }
    }

    /// The next word of the router, whatever it is about.
    pub fn hear_all(&mut self) -> ToAgent {
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

    pub fn say(&mut self, message: &ToRouter) {
        self.stream.write_all(&encode(message)).unwrap();
    }

    fn state(&mut self, worker: &str, epoch: u64, seq: u64) {
        self.say(&ToRouter::State {
            worker: worker.to_owned(),
            epoch,
            seq,
            known: Known::Whole,
            block_tokens: BLOCK_TOKENS,
        });
    }

    fn batch(&mut self, worker: &str, epoch: u64, seq: u64, op: Op) {
        let worker = worker.to_owned();
        self.say(&ToRouter::Batch { worker, epoch, seq, ops: vec![op] });
    }
}

/// Two engines, control and an agent around a router.
pub(super) struct House {
    pub router: Router,
    pub listener: TcpListener,
    pub engines: [Engine; 2],
    _plane: UnixStream,
    _folder: tempfile::TempDir,
}

impl House {
    fn start(keys: &str) -> House {
        let cached = r#"{"usage":{"prompt_tokens":2049,"completion_tokens":1,"total_tokens":2050,"prompt_tokens_details":{"cached_tokens":2048}}}"#;
        let engine = || Engine::fixed(engine::json(cached));
        House::around([engine(), engine()], keys)
    }

    /// The same with engines of the test's own.
    pub fn around(engines: [Engine; 2], keys: &str) -> House {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let control = UnixListener::bind(&socket).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let keys = format!("control_socket = \"{}\"\n{keys}", socket.display());
        let router = Router::spawn(&keys, "");
        let (mut plane, _) = control.accept().unwrap();
        let feed = listener.local_addr().unwrap().to_string();
        let worker = |id: &str, engine: &Engine| Worker {
            capabilities: vec![Capability::Completions],
            kv_feed: Some(feed.clone()),
            kv_events: true,
            ..live(id, engine, WorkerState::Ready)
        };
        let workers = vec![worker(A, &engines[0]), worker(B, &engines[1])];
        let snapshot = Snapshot { version: 1, workers, weights: None };
        plane.write_all(&wire::encode(&ToPlane::Snapshot(snapshot)).unwrap()).unwrap();
        House { router, listener, engines, _plane: plane, _folder: folder }
    }

    /// Both workers are followed from the start of their engines.
    pub fn with_agent(keys: &str) -> (House, Agent) {
        let house = House::start(keys);
        let mut agent = Agent::accept(&house.listener);
        agent.state(A, 1, 0);
        agent.state(B, 1, 0);
        house.wait("cgn_router_kv_known{worker=\"n/b/0\"}", 2.0);
        (house, agent)
    }

    pub fn wait(&self, metric: &str, value: f64) {
        let deadline = Instant::now() + PATIENCE;
        while self.router.metric(metric) != value {
            assert!(Instant::now() < deadline, "{metric} is {}", self.router.metric(metric));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends token ids; who got them, and how many were expected to be there.
    pub fn ask(&self, tokens: &[u32]) -> (String, u64) {
        let body = format!(r#"{{"model":"m","prompt":{tokens:?},"max_tokens":1}}"#);
        let answer = self.router.client().post("/v1/completions", "", &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let prefix = answer.field("x-cgn-prefix-tokens").unwrap().parse().unwrap();
        (answer.field("x-cgn-worker").unwrap().to_owned(), prefix)
    }
}

pub(super) fn tokens(first: u32, count: u32) -> Vec<u32> {
    (first..first + count).collect()
}

fn digests(tokens: &[u32]) -> Vec<u128> {
    let seed = seed(Unit::Tokens, "m", "", "");
    of_tokens(&seed, tokens, BLOCK_TOKENS as usize).iter().map(|digest| digest.short()).collect()
}

fn held(tokens: &[u32]) -> Op {
    Op::Set { level: Level::Gpu, digests: digests(tokens) }
}

fn sum(digests: &[u128]) -> String {
    format!("{:032x}", digests.iter().fold(0u128, |sum, digest| sum.wrapping_add(*digest)))
}

/// What an operator compares with another router: counted in the index, not in what was told.
#[test]
fn the_index_is_counted_by_worker_and_level() {
    let (house, mut agent) = House::with_agent("");
    let told = digests(&tokens(1, 10 * BLOCK_TOKENS));
    let set = |level, digests: &[u128]| Op::Set { level, digests: digests.to_vec() };
    agent.batch(A, 1, 1, set(Level::Gpu, &told));
    agent.batch(B, 1, 1, set(Level::Gpu, &told[..4]));
    agent.batch(A, 1, 2, set(Level::Gpu, &told[..3]));
    agent.batch(A, 1, 3, set(Level::Host, &told[7..]));
    agent.batch(A, 1, 4, Op::Remove { digests: told[9..].to_vec() });
    agent.batch(A, 1, 5, Op::Remove { digests: digests(&tokens(9_000, 64)) });
    // The last two were said before, or are no batch's next.
    agent.batch(A, 1, 5, Op::Clear);
    agent.state(B, 1, 2);
    assert_eq!(agent.hear(), ToAgent::Want { worker: B.to_owned() });

    let mut admin = Client::connect(house.router.admin);
    let answer = admin.get("/kv");
    assert_eq!((answer.status, answer.field("content-type")), (200, Some("application/json")));
    let none = json!({ "blocks": 0, "fingerprint": sum(&[]) });
    let held = |digests: &[u128]| json!({ "blocks": digests.len(), "fingerprint": sum(digests) });
    let expected = json!({
        "blocks": 9,
        "blocks_refused": 0,
        "workers": [
            {
                "worker": A, "known": "whole", "epoch": 1, "batch": 5, "block_tokens": BLOCK_TOKENS,
                "moved": false, "gpu": held(&told[..7]), "host": held(&told[7..9]), "disk": none,
            },
            {
                "worker": B, "known": "partial", "epoch": 1, "batch": 1,
                "block_tokens": BLOCK_TOKENS,
                "moved": false, "gpu": held(&told[..4]), "host": none, "disk": none,
            },
        ],
    });
    assert_eq!(serde_json::from_str::<Value>(answer.text()).unwrap(), expected);
    assert_eq!(admin.post("/kv", "", "").status, 405);
    assert_eq!(house.router.client().get("/kv").status, 404, "not for clients");
}

/// The index is large, so a count takes many pieces, and something always comes in between.
#[test]
fn a_count_says_when_it_was_overtaken_and_one_is_made_at_a_time() {
    const GET: &str = "GET /kv HTTP/1.1\r\nhost: x\r\n\r\n";
    let (house, mut agent) = House::with_agent("");
    let mut admins = [(); 2].map(|()| Client::connect(house.router.admin));
    let row = |text: &str| serde_json::from_str::<Value>(text).unwrap()["workers"][0].clone();
    let deadline = Instant::now() + PATIENCE;
    let (mut batch, mut was_overtaken, mut was_busy) = (0, false, false);
    while !(was_overtaken && was_busy) {
        assert!(Instant::now() < deadline, "overtaken {was_overtaken}, busy {was_busy}");
        admins.iter_mut().for_each(|admin| admin.send(GET));
        batch += 1;
        agent.batch(A, 1, batch, held(&tokens(batch as u32 * 32, BLOCK_TOKENS)));
        for answer in admins.iter_mut().map(Client::answer) {
            was_busy |= answer.status == 503;
            was_overtaken |= answer.status == 200 && row(answer.text())["moved"] == true;
        }
    }
    house.wait("cgn_router_kv_blocks_set_total", batch as f64);
    let still = row(admins[0].get("/kv").text());
    assert_eq!((&still["moved"], &still["batch"]), (&json!(false), &json!(batch)));
    assert_eq!(still["gpu"]["blocks"], batch);
}

#[test]
fn a_prompt_goes_where_the_engine_says_it_is_and_follows_what_it_drops() {
    let (house, mut agent) = House::with_agent("");
    let prompt = tokens(1, 2_049);
    agent.batch(B, 1, 1, held(&prompt));
    house.wait("cgn_router_kv_index_blocks", 64.0);
    assert_eq!(house.ask(&prompt), (B.to_owned(), 2_048));
    // The last token is always computed, so the last block of a full match is.
    assert_eq!(house.ask(&prompt[..2_048]), (B.to_owned(), 2_016));
    assert_eq!(house.router.metric("cgn_router_kv_predictions_total{cached=\"equal\"}"), 1.0);
    // What was routed there would count as there, but the engine says no.
    agent.batch(B, 1, 2, Op::Remove { digests: digests(&prompt)[32..].to_vec() });
    house.wait("cgn_router_kv_blocks_removed_total", 32.0);
    assert_eq!(house.ask(&prompt), (B.to_owned(), 1_024));
    assert_eq!(house.engines[0].asked().len(), 0);
}

#[test]
fn what_was_routed_counts_until_its_time_is_over() {
    let (house, _agent) = House::with_agent("");
    let prompt = tokens(5_000, 2_049);
    let (home, prefix) = house.ask(&prompt);
    assert_eq!(prefix, 0);
    assert_eq!(house.ask(&prompt), (home, 2_048), "a new prefix is not split");

    let (house, _agent) = House::with_agent("[router.kv]\nprediction_ms = 1");
    assert_eq!(house.ask(&prompt).1, 0);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(house.ask(&prompt).1, 0, "no event confirmed it");
}

#[test]
fn lost_batches_are_asked_for_and_a_new_engine_holds_nothing() {
    let (house, mut agent) = House::with_agent("");
    let prompt = tokens(1, 2_049);
    // The first of three is lost.
    agent.batch(B, 1, 2, held(&tokens(9_000, 64)));
    assert_eq!(agent.hear(), ToAgent::Want { worker: B.to_owned() });
    agent.say(&ToRouter::Snapshot {
        worker: B.to_owned(),
        epoch: 1,
        seq: 2,
        part: 0,
        last: true,
        sets: vec![held(&prompt), held(&tokens(9_000, 64))],
    });
    house.wait("cgn_router_kv_index_blocks", 66.0);
    assert_eq!(house.ask(&prompt), (B.to_owned(), 2_048));

    agent.state(B, 2, 0);
    house.wait("cgn_router_kv_feed_frames_total", 5.0);
    assert_eq!(house.ask(&prompt).1, 0);
}

#[test]
fn an_agent_that_comes_back_tells_everything_again_and_one_that_babbles_harms_nobody() {
    let (house, mut agent) = House::with_agent("");
    let prompt = tokens(1, 2_049);
    agent.batch(B, 1, 1, held(&prompt));
    house.wait("cgn_router_kv_index_blocks", 64.0);
    agent.stream.write_all(&[0xff; 100]).unwrap();
    let mut agent = Agent::accept(&house.listener);
    assert_eq!(house.ask(&prompt), (B.to_owned(), 2_048), "its last word stands for a while");
    agent.state(B, 1, 3);
    assert_eq!(agent.hear(), ToAgent::Want { worker: B.to_owned() });
    let sets = vec![held(&prompt[..1_024])];
    let worker = B.to_owned();
    agent.say(&ToRouter::Snapshot { worker, epoch: 1, seq: 3, part: 0, last: true, sets });
    house.wait("cgn_router_kv_feed_frames_total", 5.0);
    // A worker that is not there, and one that nobody asked about.
    agent.batch("n/c/0", 1, 1, held(&prompt));
    agent.batch(A, 1, 7, held(&prompt));
    agent.state(A, 1, 7);
    assert_eq!(agent.hear(), ToAgent::Want { worker: A.to_owned() });
    agent.batch(B, 1, 4, Op::Remove { digests: digests(&prompt)[16..].to_vec() });
    house.wait("cgn_router_kv_blocks_removed_total", 48.0);
    assert_eq!(house.ask(&prompt), (B.to_owned(), 512));
}
