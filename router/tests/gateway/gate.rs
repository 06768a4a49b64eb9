//! An engine that answers one request after another, and none before it is let go.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex};

use super::client::{Answer, Client, chat, post};
use super::engine::{Engine, json};
use super::process::{Router, worker};
use super::tenants::{CHAT, until};

/// The engine's gate.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub fn pass(&self) {
        let mut is_open = self.0.0.lock().unwrap();
        while !*is_open {
            is_open = self.0.1.wait(is_open).unwrap();
        }
    }
}

/// One place, taken by a request that nothing moves until the gate opens; everybody else waits.
pub struct Full {
    pub engine: Engine,
    pub router: Router,
    pub gate: Gate,
    first: Client,
}

/// At the engines as many as there are slots, and no more.
pub const ONE_PER_SLOT: &str = "[router.limits]\nrequests_per_slot_max = 1\n";

impl Full {
    /// `fields` are those of the request that holds the place.
    pub fn start(sections: &str, tenants: &str, fields: &str) -> Full {
        let gate = Gate::default();
        let engine = Engine::start({
            let gate = gate.clone();
            move |_, stream| {
                gate.pass();
                stream.write_all(&json("{}")).is_ok()
            }
        });
        let keys = format!("{ONE_PER_SLOT}{sections}");
        let router = Router::start(&keys, &(worker(&engine, 1) + tenants));
        let mut first = router.client();
        first.send(post(CHAT, fields, &chat("first")));
        until("the place is taken", || engine.asked().len() == 1);
        Full { engine, router, gate, first }
    }

    /// Sends a request that will wait, and waits until it does.
    pub fn line_up(&self, fields: &str, content: &str) -> Client {
        let before = self.waiting();
        let mut client = self.router.client();
        client.send(post(CHAT, fields, &chat(content)));
        until("one more waits", || self.waiting() == before + 1.0);
        client
    }

    pub fn waiting(&self) -> f64 {
        self.router.metric("cgn_router_queue_requests{model=\"m\"}")
    }

    /// Lets everybody through; the contents in the order in which the engine got them.
    pub fn served(&mut self, clients: Vec<Client>) -> Vec<String> {
        self.gate.open();
        assert_eq!(self.first.answer().status, 200);
        let answers: Vec<Answer> = clients.into_iter().map(|mut client| client.answer()).collect();
        assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
        self.order()
    }

    /// What the engine got after the first.
    pub fn order(&self) -> Vec<String> {
        let asked = self.engine.asked();
        asked.iter().skip(1).map(|asked| content(&asked.body)).collect()
    }
}

/// The first word of the prompt.
pub fn content(body: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    let text = body["messages"][0]["content"].as_str().unwrap();
    text.split(' ').next().unwrap().to_owned()
}
