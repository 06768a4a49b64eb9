//! Clients that ask without a pause, every second one for a stream, and what became of each request.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::client::{Answer, Exchange};
use crate::recipe::{ask, words};

/// Requests one load may send before it counts as running away.
const REQUESTS_MAX: usize = 100_000;

/// A running load.
pub struct Load {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Outcomes>>,
    clients: Vec<JoinHandle<()>>,
}

/// What became of the requests.
#[derive(Clone, Debug, Default)]
pub struct Outcomes {
    /// Complete 200s, by worker.
    pub whole: BTreeMap<String, usize>,
    /// Streams that had started and ended with an error event.
    pub broken_off: usize,
    /// Everything else, with what came.
    pub lost: Vec<String>,
}

impl Outcomes {
    pub fn whole_sum(&self) -> usize {
        self.whole.values().sum()
    }
}

impl Load {
    /// Starts `clients` clients that ask for answers of `tokens` tokens.
    pub fn start(http: SocketAddr, clients: usize, tokens: u32) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Outcomes::default()));
        let next = Arc::new(AtomicUsize::new(0));
        let client = || {
            let (stop, seen, next) = (Arc::clone(&stop), Arc::clone(&seen), Arc::clone(&next));
            std::thread::spawn(move || {
                while !stop.load(Relaxed) {
                    let number = next.fetch_add(1, Relaxed);
                    assert!(number < REQUESTS_MAX);
                    one(http, number, tokens, &seen);
                }
            })
        };
        let clients = (0..clients).map(|_| client()).collect();
        Load { stop, seen, clients }
    }

    /// So far.
    pub fn so_far(&self) -> Outcomes {
        self.seen.lock().unwrap().clone()
    }

    /// Lets each client finish its last request.
    pub fn end(mut self) -> Outcomes {
        self.stop.store(true, Relaxed);
        for client in self.clients.drain(..) {
            client.join().unwrap();
        }
        self.so_far()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

fn one(http: SocketAddr, number: usize, tokens: u32, seen: &Mutex<Outcomes>) {
    let mut body = ask(&words(number, 40), tokens);
    let is_stream = number.is_multiple_of(2);
    body["stream"] = is_stream.into();
    let exchange = Exchange::begin(http, "POST", "/v1/chat/completions", &body.to_string());
    let answer = exchange.and_then(Exchange::end);
    let mut seen = seen.lock().unwrap();
    match answer {
        Some(answer) if is_whole(&answer, is_stream) => {
            *seen.whole.entry(answer.worker().to_owned()).or_default() += 1;
        }
        Some(answer) if is_stream && broke_off(&answer) => seen.broken_off += 1,
        other => seen.lost.push(format!("request {number}, stream {is_stream}: {other:?}")),
    }
}

fn is_whole(answer: &Answer, is_stream: bool) -> bool {
    match (answer.status, is_stream) {
        (200, true) => answer.is_done(),
        (200, false) => answer.is_whole && answer.json()["choices"][0]["message"].is_object(),
        _ => false,
    }
}

/// It had started, and its last word is an OpenAI error.
fn broke_off(answer: &Answer) -> bool {
    let last = answer.events().pop().unwrap_or_default();
    answer.status == 200 && answer.is_whole && last["error"]["code"] == "engine_failed"
}
