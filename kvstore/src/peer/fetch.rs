//! Read-through: blocks that this daemon lacks, fetched from whoever holds them, before a deadline.
//!
//! The cheapest peer is asked first, for all its blocks in one request. Where nothing comes for longer than
//! it usually takes, a second is asked too, and the first copy wins. Who fetches a block that is
//! on its way already waits for it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::ask::{AskError, Listener, Told, ask};
use super::blocks::Blocks;
use super::directory::Places;
use super::link::Close;
use super::node::{Node, Peer};
use super::wire::REQUEST_KEYS_MAX;
use crate::key::Key;
use crate::signal::Signal;

/// Peers asked for one block. If three that should hold it do not, the directory is out of date.
const ASKED_MAX: u32 = 3;

/// What came of a fetch of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The store has it now.
    Kept,
    /// No peer that is known to hold it does.
    Missing,
    /// It did not come before the deadline.
    Late,
    /// Too much is on its way already, or the store takes no more.
    Busy,
}

impl Fetched {
    /// As metrics call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Fetched::Kept => "kept",
            Fetched::Missing => "missing",
            Fetched::Late => "late",
            Fetched::Busy => "busy",
        }
    }
}

/// One block on its way.
pub(super) struct Flight {
    key: Key,
    done: Cell<Option<Fetched>>,
    asked: Cell<Places>,
    asks: Cell<u32>,
    /// Requests that may still bring it.
    live: Cell<u32>,
    is_refused: Cell<bool>,
    /// Rings when something came for any block of its batch.
    progress: Rc<Signal>,
}

impl Flight {
    fn finish(&self, fetched: Fetched) {
        if self.done.get().is_none() {
            self.done.set(Some(fetched));
        }
        self.progress.ring();
    }

    fn is_waiting(&self) -> bool {
        self.done.get().is_none()
    }
}

/// Fetches `keys` and says of each what came of it.
pub(super) async fn fetch<B: Blocks>(
    node: &Rc<Node<B>>,
    keys: &[Key],
    deadline: Instant,
) -> Vec<Fetched> {
    let flights = board(node, keys, deadline);
    let mut results = Vec::with_capacity(keys.len());
    for (key, flight) in keys.iter().zip(flights) {
        let mut result = arrived(flight, deadline).await;
        // Who began this flight had less time than is left here.
        if result == Fetched::Late && Instant::now() < deadline {
            let again = board(node, std::slice::from_ref(key), deadline).pop().flatten();
            result = arrived(again, deadline).await;
        }
        node.stats.fetched.with_label_values(&[result.as_str()]).inc();
        results.push(result);
    }
    results
}

/// Waits for one block.
async fn arrived(flight: Option<Rc<Flight>>, deadline: Instant) -> Fetched {
    let Some(flight) = flight else { return Fetched::Busy };
    loop {
        let rings = flight.progress.rings();
        if let Some(done) = flight.done.get() {
            return done;
        }
        let waits = flight.progress.rung_since(rings);
        if tokio::time::timeout_at(deadline, waits).await.is_err() {
            return flight.done.get().unwrap_or(Fetched::Late);
        }
    }
}

/// A flight for each key, joined or begun; none where there are too many.
fn board<B: Blocks>(
    node: &Rc<Node<B>>,
    keys: &[Key],
    deadline: Instant,
) -> Vec<Option<Rc<Flight>>> {
    let progress = Rc::new(Signal::default());
    let mut begun = Vec::new();
    let mut all = Vec::with_capacity(keys.len());
    {
        let mut flights = node.flights.borrow_mut();
        for &key in keys {
            if let Some(flight) = flights.get(&key) {
                all.push(Some(flight.clone()));
                continue;
            }
            if flights.len() >= node.config.fetches_max {
                all.push(None);
                continue;
            }
            let flight = Rc::new(Flight {
                key,
                done: Cell::new(None),
                asked: Cell::default(),
                asks: Cell::new(0),
                live: Cell::new(0),
                is_refused: Cell::new(false),
                progress: progress.clone(),
            });
            flights.insert(key, flight.clone());
            begun.push(flight.clone());
            all.push(Some(flight));
        }
    }
    if !begun.is_empty() {
        tokio::task::spawn_local(drive(node.clone(), begun, progress, deadline));
    }
    all
}

/// Asks, asks others, and ends each flight by the deadline at the latest.
async fn drive<B: Blocks>(
    node: Rc<Node<B>>,
    flights: Vec<Rc<Flight>>,
    progress: Rc<Signal>,
    deadline: Instant,
) {
    let mut hedge_delay = Duration::ZERO;
    let mut is_hedged = false;
    loop {
        let idle = |flight: &&Rc<Flight>| flight.is_waiting() && flight.live.get() == 0;
        hedge_delay = hedge_delay.max(launch(&node, flights.iter().filter(idle), deadline));
        let stranded = flights.iter().filter(idle);
        stranded.for_each(|flight| {
            let refused = flight.is_refused.get();
            flight.finish(if refused { Fetched::Busy } else { Fetched::Missing });
        });
        if !flights.iter().any(|flight| flight.is_waiting()) {
            break;
        }
        let rings = progress.rings();
        tokio::select! {
            () = progress.rung_since(rings) => {}
            () = tokio::time::sleep(hedge_delay), if !is_hedged => {
                is_hedged = true;
                let waiting = || flights.iter().filter(|flight| flight.is_waiting());
                let before: u32 = waiting().map(|flight| flight.live.get()).sum();
                launch(&node, waiting(), deadline);
                let after: u32 = waiting().map(|flight| flight.live.get()).sum();
                node.stats.hedged.inc_by(u64::from(after - before));
            }
            () = tokio::time::sleep_until(deadline) => {
                flights.iter().for_each(|flight| flight.finish(Fetched::Late));
                break;
            }
        }
    }
    let mut known = node.flights.borrow_mut();
    flights.iter().for_each(|flight| {
        known.remove(&flight.key);
    });
}

/// Asks one more peer for each of `flights`, where there is one. Says how long the slowest of them usually
/// takes.
fn launch<'a, B: Blocks>(
    node: &Rc<Node<B>>,
    flights: impl Iterator<Item = &'a Rc<Flight>>,
    deadline: Instant,
) -> Duration {
    let mut groups: Vec<(Rc<Peer>, Vec<Rc<Flight>>)> = Vec::new();
    for flight in flights.filter(|flight| flight.asks.get() < ASKED_MAX) {
        let now = std::time::Instant::now();
        let Some(peer) = node.candidate(flight.key, flight.asked.get(), now) else { continue };
        let mut asked = flight.asked.get();
        asked.insert(peer.place);
        flight.asked.set(asked);
        flight.asks.set(flight.asks.get() + 1);
        flight.live.set(flight.live.get() + 1);
        let fits = |group: &&mut (Rc<Peer>, Vec<Rc<Flight>>)| {
            Rc::ptr_eq(&group.0, &peer) && group.1.len() < REQUEST_KEYS_MAX
        };
        match groups.iter_mut().find(fits) {
            Some(group) => group.1.push(flight.clone()),
            None => groups.push((peer, vec![flight.clone()])),
        }
    }
    let delays = groups.iter().map(|(peer, _)| peer.pace.borrow().hedge_delay());
    let delay = delays.max().unwrap_or(Duration::ZERO);
    for (peer, flights) in groups {
        tokio::task::spawn_local(request(node.clone(), peer, flights, deadline));
    }
    delay
}

/// One request, and what it says to each flight.
async fn request<B: Blocks>(
    node: Rc<Node<B>>,
    peer: Rc<Peer>,
    flights: Vec<Rc<Flight>>,
    deadline: Instant,
) {
    let keys: Vec<Key> = flights.iter().map(|flight| flight.key).collect();
    let heard =
        Heard { node: &node, peer: &peer, flights: RefCell::new(flights), told: Cell::new(0) };
    peer.pace.borrow_mut().asked += keys.len() as u32;
    let done = ask(&peer.link, &node.blocks, &keys, deadline, &heard).await;
    peer.pace.borrow_mut().asked -= keys.len() as u32;
    if let Err(AskError::Wire(error)) = &done {
        tracing::warn!(peer = %peer.identity, %error, "a peer's answer cannot be read");
        peer.link.close(Close::Malformed);
    }
    // A connection that gave way to another between the same two is no fault of the peer.
    let there = node.peer(peer.place);
    let gave_way = there.is_some_and(|there| !Rc::ptr_eq(&there, &peer));
    let flights = heard.flights.borrow();
    for flight in &flights[heard.told.get()..] {
        if gave_way {
            flight.asked.set(flight.asked.get().less(peer.place));
        }
        flight.live.set(flight.live.get().saturating_sub(1));
        flight.progress.ring();
    }
}

struct Heard<'a, B> {
    node: &'a Rc<Node<B>>,
    peer: &'a Rc<Peer>,
    flights: RefCell<Vec<Rc<Flight>>>,
    told: Cell<usize>,
}

impl<B: Blocks> Listener for Heard<'_, B> {
    fn is_wanted(&self, index: usize) -> bool {
        self.flights.borrow().get(index).is_some_and(|flight| flight.is_waiting())
    }

    fn told(&self, index: usize, told: Told, took: Duration, load: u16) {
        let flights = self.flights.borrow();
        let Some(flight) = flights.get(index) else { return };
        self.told.set(index + 1);
        flight.live.set(flight.live.get().saturating_sub(1));
        let print = flight.key.fingerprint();
        let mut pace = self.peer.pace.borrow_mut();
        pace.load = load;
        match told {
            Told::Kept { bytes } => {
                pace.learn(took);
                self.node.stats.fetched_bytes.inc_by(bytes);
                flight.finish(Fetched::Kept);
            }
            Told::Missing => {
                self.node.directory.borrow_mut().remove(self.peer.place, &[print]);
            }
            Told::Wrong => {
                self.node.stats.corrupt.inc();
                tracing::warn!(peer = %self.peer.identity, key = %flight.key, "a peer's block fails its hash");
                let now = std::time::Instant::now();
                self.node.directory.borrow_mut().blame(self.peer.place, print, now);
            }
            Told::NotKept => flight.is_refused.set(true),
            Told::Busy | Told::Unwanted => {}
        }
        flight.progress.ring();
    }
}
