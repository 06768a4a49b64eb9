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
use crate::store::Claim;

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
    /// What it may take the place of: more once somebody asks for it who waits.
    claim: Cell<Claim>,
    /// What a block that was offered may have at most: what its peer said when it offered it.
    offered_bytes: Option<u64>,
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

/// Fetches blocks and says of each what came of it. The number beside a key is how large it may be.
pub(super) async fn fetch<B: Blocks>(
    node: &Rc<Node<B>>,
    blocks: &[(Key, u64)],
    claim: Claim,
    deadline: Instant,
) -> Vec<Fetched> {
    let flights = board(node, blocks, claim, deadline);
    let mut results = Vec::with_capacity(blocks.len());
    for (block, flight) in blocks.iter().zip(flights) {
        let is_less = flight.as_ref().is_some_and(|flight| flight.offered_bytes.is_some());
        let mut result = arrived(flight, deadline).await;
        // Who began this flight had less time than is left here, or less of a claim.
        let is_over = result == Fetched::Late || (result != Fetched::Kept && is_less);
        if claim == Claim::Asked && is_over && Instant::now() < deadline {
            let again = board(node, std::slice::from_ref(block), claim, deadline).pop().flatten();
            result = arrived(again, deadline).await;
        }
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
    blocks: &[(Key, u64)],
    claim: Claim,
    deadline: Instant,
) -> Vec<Option<Rc<Flight>>> {
    let progress = Rc::new(Signal::default());
    let mut begun = Vec::new();
    let mut all = Vec::with_capacity(blocks.len());
    {
        let mut flights = node.flights.borrow_mut();
        for &(key, bytes_max) in blocks {
            if let Some(flight) = flights.get(&key) {
                if claim == Claim::Asked {
                    flight.claim.set(claim);
                }
                all.push(Some(flight.clone()));
                continue;
            }
            if flights.len() >= node.config.borrow().fetches_max {
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
                claim: Cell::new(claim),
                offered_bytes: (claim == Claim::Offered).then_some(bytes_max),
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
    fn claim(&self, index: usize, len: u64) -> Option<Claim> {
        let flights = self.flights.borrow();
        let flight = flights.get(index).filter(|flight| flight.is_waiting())?;
        // One that is larger than was said when it was offered would be past every limit on offers.
        let is_as_offered = flight.offered_bytes.is_none_or(|bytes| len <= bytes);
        is_as_offered.then(|| flight.claim.get())
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
                self.node.count_known();
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
