//! What other routers gave counts, and what this one gave is told: a router and an agent that speaks for
//! the others.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use dataplane::feed::{Load, ToAgent, ToRouter, encode};

use super::engine::{Engine, json};
use super::kv_events::{A, Agent, B, House, tokens};

/// An agent repeats what it says; here so often that no load is taken for old on a slow machine.
const REPEAT: Duration = Duration::from_millis(200);

const ANSWER: &str = r#"{"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}"#;

/// Says again and again what others gave, until it is dropped.
struct Repeated {
    is_over: Arc<AtomicBool>,
    said: Arc<Mutex<Vec<ToRouter>>>,
    task: Option<JoinHandle<()>>,
}

impl Repeated {
    fn start(agent: &Agent) -> Repeated {
        let (is_over, said) =
            (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<ToRouter>>>::default());
        let mut stream = agent.stream.try_clone().unwrap();
        let (over, words) = (Arc::clone(&is_over), Arc::clone(&said));
        let task = std::thread::spawn(move || {
            while !over.load(Relaxed) && say_all(&mut stream, &words.lock().unwrap()) {
                std::thread::sleep(REPEAT);
            }
        });
        Repeated { is_over, said, task: Some(task) }
    }

    /// So many requests of one other router, in front of each of the two workers.
    fn say(&self, counts: [(&str, u32); 2]) {
        let others = |(worker, inflight): (&str, u32)| {
            let load =
                Load { inflight, waiting: inflight, queued_us: u64::from(inflight) * 500_000 };
            ToRouter::Others { worker: worker.to_owned(), load, routers: 1 }
        };
        *self.said.lock().unwrap() = counts.map(others).to_vec();
    }
}

impl Drop for Repeated {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
        let _ = self.task.take().map(JoinHandle::join);
    }
}

fn say_all(stream: &mut TcpStream, words: &[ToRouter]) -> bool {
    words.iter().all(|word| stream.write_all(&encode(word)).is_ok())
}

fn others_inflight(worker: &str) -> String {
    format!("cgn_router_worker_inflight_others_requests{{worker=\"{worker}\"}}")
}

/// Who got each of six prompts that nobody has seen.
fn six(house: &House, first: u32) -> Vec<String> {
    (0..6).map(|number| house.ask(&tokens(first + number * 1_000, 64)).0).collect()
}

#[test]
fn a_worker_that_others_filled_is_left_alone_until_they_are_gone() {
    let (house, agent) = House::with_agent("");
    let others = Repeated::start(&agent);
    others.say([(A, 4), (B, 0)]);
    house.wait(&others_inflight(A), 4.0);
    assert_eq!(house.router.metric("cgn_router_worker_other_routers{worker=\"n/a/0\"}"), 1.0);
    assert_eq!(six(&house, 10_000), [B; 6]);
    others.say([(A, 0), (B, 4)]);
    house.wait(&others_inflight(B), 4.0);
    house.wait(&others_inflight(A), 0.0);
    assert_eq!(six(&house, 20_000), [A; 6]);
    // Their last word was that B is full; it is believed for a while, and then no more.
    drop(others);
    house.wait(&others_inflight(B), 0.0);
    let after = six(&house, 30_000);
    assert!(after.contains(&A.to_owned()) && after.contains(&B.to_owned()), "{after:?}");
}

/// An engine that answers each request only when it is told to.
fn held_back() -> (Engine, Sender<()>) {
    let (release, released) = channel();
    let released = Mutex::new(released);
    let engine = Engine::start(move |_, stream| {
        let _ = released.lock().unwrap().recv();
        stream.write_all(&json(ANSWER)).is_ok()
    });
    (engine, release)
}

/// What it said last of each worker: in flight and waiting.
fn told(agent: &mut Agent, until: impl Fn(&BTreeMap<String, (u32, u32)>) -> bool) {
    let mut last = BTreeMap::new();
    while !until(&last) {
        if let ToAgent::Load { worker, load } = agent.hear_all() {
            assert_eq!(load.queued_us > 0, load.waiting > 0, "{load:?}");
            last.insert(worker, (load.inflight, load.waiting));
        }
    }
}

#[test]
fn what_this_router_gave_is_told_and_told_again_on_a_new_connection() {
    let ((one, release_one), (two, release_two)) = (held_back(), held_back());
    let house = House::around([one, two], "");
    let mut agent = Agent::accept(&house.listener);
    let all = |last: &BTreeMap<String, (u32, u32)>, counts: (u32, u32)| {
        last.len() == 2 && last.values().all(|told| *told == counts)
    };
    // An agent that is silent for seconds is left, and this may take so long.
    let alive = Repeated::start(&agent);
    alive.say([(A, 0), (B, 0)]);
    told(&mut agent, |last| all(last, (0, 0)));
    std::thread::scope(|scope| {
        let ask = |first| {
            let house = &house;
            scope.spawn(move || house.ask(&tokens(first, 64)))
        };
        // Of two at one time each core could take the same worker for idle.
        let first = ask(40_000);
        told(&mut agent, |last| last.values().any(|told| *told == (1, 1)));
        let asks = [first, ask(50_000)];
        told(&mut agent, |last| all(last, (1, 1)));
        // A line that says nonsense is left, and the next one hears it all.
        let load = Load { inflight: 1, waiting: 2, queued_us: 0 };
        let mut lie = encode(&ToRouter::Others { worker: A.to_owned(), load, routers: 1 });
        let at = lie.len() - 3;
        lie[at] = 2;
        agent.stream.write_all(&lie).unwrap();
        agent = Agent::accept(&house.listener);
        let alive = Repeated::start(&agent);
        alive.say([(A, 0), (B, 0)]);
        told(&mut agent, |last| all(last, (1, 1)));
        release_one.send(()).unwrap();
        release_two.send(()).unwrap();
        let workers: Vec<_> = asks.into_iter().map(|ask| ask.join().unwrap().0).collect();
        assert_ne!(workers[0], workers[1]);
        told(&mut agent, |last| all(last, (0, 0)));
    });
    assert_eq!(house.router.metric(&others_inflight(A)), 0.0, "a lie is not believed");
}

#[test]
fn places_that_others_hold_are_not_filled_beyond_a_share() {
    let ((one, release_one), (two, release_two)) = (held_back(), held_back());
    // Four slots each: eight places.
    let house = House::around([one, two], "[router.limits]\nrequests_per_slot_max = 1");
    let mut agent = Agent::accept(&house.listener);
    agent.say(&ToRouter::Others { worker: A.to_owned(), load: Load::default(), routers: 1 });
    let others = Repeated::start(&agent);
    others.say([(A, 4), (B, 3)]);
    house.wait(&others_inflight(B), 3.0);
    std::thread::scope(|scope| {
        let ask = |number: u32| {
            let house = &house;
            scope.spawn(move || house.ask(&tokens(60_000 + number * 1_000, 64)))
        };
        let asks: Vec<_> = (0..6).map(ask).collect();
        // One place is left, but the share is four.
        house.wait("cgn_router_queue_requests{model=\"m\"}", 2.0);
        let sent = [A, B].map(|worker| {
            house
                .router
                .metric(&format!("cgn_router_worker_inflight_requests{{worker=\"{worker}\"}}"))
        });
        assert_eq!(sent.iter().sum::<f64>(), 4.0, "{sent:?}");
        others.say([(A, 0), (B, 0)]);
        house.wait("cgn_router_queue_requests{model=\"m\"}", 0.0);
        for _ in 0..6 {
            release_one.send(()).unwrap();
            release_two.send(()).unwrap();
        }
        asks.into_iter().for_each(|ask| drop(ask.join().unwrap()));
    });
}
