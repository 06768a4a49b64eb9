//! What this router says on one connection to one agent: which workers it wants to hear of, what it
//! gave them, and what requests wish for them.
//!
//! The house thread looks at the counters now and then and puts down what is new; the connection's writer
//! takes it. Nothing is put down while something waits to be written, so only the newest counts and
//! little ever waits.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Poll, Waker};

use dataplane::feed::{Load, ToAgent, Warm, encode};
use dataplane::route::share::LOAD_REPEAT_MS;

use crate::cluster::{WorkerLife, WorkerView};

/// What may wait to be written. Wishes are few and short: an agent that makes for more than this, or
/// reads none of it, is no agent.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// The counters of a worker that say whether there is news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counters {
    inflight: u32,
    waiting: u32,
    given_us: u64,
}

impl Counters {
    fn of(life: &WorkerLife) -> Counters {
        let (waiting, given_us) = life.backlog.counted();
        Counters { inflight: life.inflight.load(Relaxed), waiting, given_us }
    }
}

/// One connection's words that are not written yet, and what was said of loads.
#[derive(Default)]
pub struct Teller {
    is_open: Cell<bool>,
    bytes: RefCell<Vec<u8>>,
    waker: RefCell<Option<Waker>>,
    /// By worker, and when.
    said: RefCell<HashMap<String, (Counters, u64)>>,
}

impl Teller {
    /// The agent said hello: all is to be said.
    pub fn open(&self) {
        self.is_open.set(true);
    }

    /// The connection is over; so is what was said on it.
    pub fn close(&self) {
        self.is_open.set(false);
        self.bytes.borrow_mut().clear();
        self.said.borrow_mut().clear();
    }

    /// Asks for a snapshot. False: far too much waits to be written.
    pub fn want(&self, worker: String) -> bool {
        let mut bytes = self.bytes.borrow_mut();
        if bytes.len() > WAITING_BYTES_MAX {
            return false;
        }
        bytes.extend(encode(&ToAgent::Want { worker }));
        drop(bytes);
        self.wake();
        true
    }

    /// Says a request's wish. False: nobody listens, or far too much waits to be written.
    pub fn warm(&self, wish: Warm) -> bool {
        let mut bytes = self.bytes.borrow_mut();
        if !self.is_open.get() || bytes.len() > WAITING_BYTES_MAX {
            return false;
        }
        bytes.extend(encode(&ToAgent::Warm(wish)));
        drop(bytes);
        self.wake();
        true
    }

    /// Says of each of the agent's workers what this router gave it, where that is new or is to be
    /// repeated.
    pub fn look(&self, workers: &[Arc<WorkerView>], now_ms: u64) {
        let mut bytes = self.bytes.borrow_mut();
        if !self.is_open.get() || !bytes.is_empty() {
            return;
        }
        let mut said = self.said.borrow_mut();
        for view in workers {
            let counters = Counters::of(&view.life);
            let id = view.worker.id.as_str();
            let is_news = said.get(id).is_none_or(|(before, at_ms)| {
                *before != counters || now_ms.saturating_sub(*at_ms) >= LOAD_REPEAT_MS
            });
            if !is_news {
                continue;
            }
            let left_ms = view.life.backlog.load().left_ms(now_ms as f64);
            let load = Load {
                inflight: counters.inflight,
                waiting: counters.waiting,
                queued_us: (left_ms * 1_000.0) as u64,
            };
            bytes.extend(encode(&ToAgent::Load { worker: id.to_owned(), load }));
            match said.get_mut(id) {
                Some(before) => *before = (counters, now_ms),
                None => drop(said.insert(id.to_owned(), (counters, now_ms))),
            }
        }
        if said.len() > workers.len() {
            said.retain(|id, _| workers.iter().any(|view| view.worker.id == *id));
        }
        let is_something = !bytes.is_empty();
        drop(bytes);
        if is_something {
            self.wake();
        }
    }

    /// Waits for something to write, and takes it.
    pub async fn taken(&self) -> Vec<u8> {
        std::future::poll_fn(|context| {
            let mut bytes = self.bytes.borrow_mut();
            if bytes.is_empty() {
                *self.waker.borrow_mut() = Some(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(std::mem::take(&mut *bytes))
        })
        .await
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use dataplane::feed::Decoder;

    use super::*;
    use crate::cluster::Cluster;

    fn cluster() -> Cluster {
        let cluster = Cluster::new(&crate::config::Router::default(), Arc::default());
        let worker = |id: &str| dataplane::wire::Worker {
            id: id.into(),
            node: "n".into(),
            url: "http://127.0.0.1:9".into(),
            model: "m".into(),
            kind: dataplane::wire::EngineKind::Vllm,
            slots: 2,
            context_length_tokens: 0,
            kv_cache_tokens: 0,
            capabilities: Vec::new(),
            state: dataplane::wire::WorkerState::Ready,
            epoch: 1,
            power_watts: None,
            running_requests: None,
            kv_feed: Some("f".into()),
            kv_events: false,
            kv_block_tokens: 0,
            model_files: None,
        };
        let workers = vec![worker("a"), worker("b")];
        cluster.apply(dataplane::wire::Snapshot { version: 1, workers, weights: None }, true);
        cluster
    }

    /// What was said since the last time: worker, in flight, waiting, µs queued.
    fn said(teller: &Teller) -> Vec<(String, u32, u32, u64)> {
        let mut decoder = Decoder::default();
        decoder.push(&std::mem::take(&mut *teller.bytes.borrow_mut()));
        let mut said = Vec::new();
        while let Some(message) = decoder.poll_message::<ToAgent>().unwrap() {
            let ToAgent::Load { worker, load } = message else { panic!("{message:?}") };
            said.push((worker, load.inflight, load.waiting, load.queued_us));
        }
        said
    }

    #[test]
    fn only_what_is_new_is_said_and_all_of_it_now_and_then() {
        let (cluster, teller) = (cluster(), Teller::default());
        let workers: Vec<_> = cluster.view().workers().cloned().collect();
        let (a, b) = (("a".to_owned(), 0, 0, 0), ("b".to_owned(), 0, 0, 0));
        teller.look(&workers, 1);
        assert!(said(&teller).is_empty(), "nobody listens yet");
        teller.open();
        teller.look(&workers, 1);
        assert_eq!(said(&teller), [a, b.clone()]);
        teller.look(&workers, 2);
        assert!(said(&teller).is_empty());

        workers[0].life.inflight.store(2, Relaxed);
        workers[0].life.backlog.give(2, 7_000);
        teller.look(&workers, 2);
        workers[0].life.backlog.give(2, 7_000);
        teller.look(&workers, 2);
        assert_eq!(said(&teller), [("a".to_owned(), 2, 1, 7_000)], "it was not written yet");
        teller.look(&workers, 4);
        assert_eq!(said(&teller), [("a".to_owned(), 2, 2, 12_000)], "two ms of it are done");
        teller.look(&workers, 4 + LOAD_REPEAT_MS);
        assert_eq!(said(&teller), [("a".to_owned(), 2, 2, 7_350), b.clone()], "it is repeated");

        teller.look(&workers[1..], 5 + LOAD_REPEAT_MS);
        assert_eq!(teller.said.borrow().len(), 1, "one that left is forgotten");
        teller.close();
        teller.open();
        teller.look(&workers[1..], 6 + LOAD_REPEAT_MS);
        assert_eq!(said(&teller), [b], "a new connection is told all");
    }

    #[test]
    fn a_wish_of_a_request_is_said_while_somebody_listens() {
        let teller = Teller::default();
        let digests = vec![dataplane::digest::Digest([7; 32]); 2];
        let wish = Warm { worker: "a".into(), ticket: 1, deadline_ms: 2, blocks_min: 3, digests };
        assert!(!teller.warm(wish.clone()));
        teller.open();
        assert!(teller.warm(wish.clone()));
        let mut decoder = Decoder::default();
        decoder.push(&teller.bytes.borrow());
        assert_eq!(decoder.poll_message(), Ok(Some(ToAgent::Warm(wish.clone()))));
        let said = (0..WAITING_BYTES_MAX).take_while(|_| teller.warm(wish.clone())).count();
        assert!(said > 1_000 && said < WAITING_BYTES_MAX);
    }

    #[test]
    fn wishes_are_bounded() {
        let teller = Teller::default();
        let wanted = (0..WAITING_BYTES_MAX).take_while(|_| teller.want("n/d/0".to_owned())).count();
        assert!(wanted > 1_000 && wanted < WAITING_BYTES_MAX);
    }
}
