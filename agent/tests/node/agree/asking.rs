//! Clients that ask all the time, each one address, for a few conversations that share beginnings.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;

use crate::client::Exchange;
use crate::recipe::MODEL;

/// Between two requests of a client: the point is how long it goes on, not how fast.
const PAUSE: Duration = Duration::from_millis(10);
/// Conversations; together they are several times what a cache holds.
const STORIES: u64 = 23;

/// Clients that run until this is dropped.
pub struct Asking {
    stop: Arc<AtomicBool>,
    answered: Vec<Arc<AtomicU64>>,
    clients: Vec<JoinHandle<()>>,
}

impl Asking {
    /// One client for each address.
    pub fn start(addresses: &[SocketAddr]) -> Asking {
        let stop = Arc::<AtomicBool>::default();
        let answered: Vec<_> = addresses.iter().map(|_| Arc::<AtomicU64>::default()).collect();
        let client = |(at, &address): (usize, &SocketAddr)| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered[at]));
            std::thread::spawn(move || {
                for number in (at as u64 * 7).. {
                    if stop.load(Relaxed) {
                        return;
                    }
                    answered.fetch_add(u64::from(ask(address, number)), Relaxed);
                    std::thread::sleep(PAUSE);
                }
            })
        };
        let clients = addresses.iter().enumerate().map(client).collect();
        Asking { stop, answered, clients }
    }

    /// Requests answered so far, by client.
    pub fn answered(&self) -> Vec<u64> {
        self.answered.iter().map(|count| count.load(Relaxed)).collect()
    }

    /// Lets each client finish its last request; how many were answered.
    pub fn end(mut self) -> Vec<u64> {
        self.stop.store(true, Relaxed);
        self.clients.drain(..).for_each(|client| client.join().unwrap());
        self.answered()
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

/// Says whether there was an answer: who is asked may just have been killed.
fn ask(address: SocketAddr, number: u64) -> bool {
    let story = number.wrapping_mul(5) % STORIES;
    let turns = "and then they went on for a while. ".repeat(3 + number as usize % 9);
    let prompt = format!("story {story} {turns}");
    let body = json!({ "model": MODEL, "prompt": prompt, "max_tokens": 4 }).to_string();
    let exchange = Exchange::begin(address, "POST", "/v1/completions", &body);
    exchange.and_then(Exchange::end).is_some_and(|answer| answer.status == 200)
}
