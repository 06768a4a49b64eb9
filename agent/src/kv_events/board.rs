//! Owns the feeds of all workers of the node, and the seats of the routers that listen.
//!
//! What a writer says goes to each seat that follows the worker. A seat has a bounded queue: a router
//! that does not keep up loses what waits for it and gets snapshots instead, and nobody else is
//! delayed. What routers gave workers ([`super::loads`]) is not queued: a seat has only the names of the
//! workers to speak of. A wish to warm a worker is handed to the keeper of its slots, or answered at once
//! where there is none. Everything here is quick and under one lock; who reads sockets does not hold it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use dataplane::feed::{Known, Load, ToRouter, VERSION, Warm, encode};
use tokio::sync::{Notify, mpsc};

use super::event::Batch;
use super::loads::Loads;
use super::metrics::KvMetrics;
use super::translate::Reason;
use super::writer::{Snapshot, Writer, dropped_by_reason};
use crate::slots::keeper::Asked;
use crate::slots::metrics::SlotMetrics;

/// Most routers at once. A cluster has a few.
pub const ROUTERS_MAX: usize = 64;
/// Bytes that wait for one router: half a million changed blocks.
pub const OUTBOX_BYTES_MAX: usize = 8 << 20;
/// Most workers one router may ask for.
pub const WANTED_MAX: usize = 4096;

/// The feeds of the node and those who listen. Cheap to clone; clones share.
#[derive(Clone, Debug)]
pub struct Board {
    inner: Arc<Mutex<Inner>>,
    metrics: KvMetrics,
    slot_metrics: SlotMetrics,
}

#[derive(Debug, Default)]
struct Inner {
    writers: BTreeMap<String, Writer>,
    loads: Loads,
    warmers: BTreeMap<String, Warmer>,
    seats: BTreeMap<u64, Seat>,
    seats_given: u64,
    /// Not counted in the metrics yet.
    overflows: u64,
}

/// Who can give a worker KV state.
#[derive(Debug)]
struct Warmer {
    epoch: u64,
    block_tokens: u32,
    wishes: mpsc::Sender<Asked>,
}

/// A frame, encoded once for all.
pub type Encoded = Arc<[u8]>;

#[derive(Debug, Default)]
struct Seat {
    queue: VecDeque<Encoded>,
    queued_bytes: usize,
    /// Asked for by name; their batches are sent on, or will be from the next snapshot.
    wanted: BTreeSet<String>,
    /// Of those, whose snapshot is due; nothing is sent on of them.
    due: BTreeSet<String>,
    /// Workers whose load by the other routers it is to hear.
    others_due: BTreeSet<String>,
    woken: Arc<Notify>,
}

/// What a router is to be sent next.
#[derive(Debug)]
pub enum Next {
    /// A frame.
    Frame(Encoded),
    /// All frames of a snapshot, with what is queued after it behind them.
    Snapshot(Snapshot),
}

/// A router's place; it is given up when this is dropped.
#[derive(Debug)]
pub struct SeatHold {
    board: Board,
    id: u64,
    woken: Arc<Notify>,
}

impl Board {
    /// No worker, no router.
    pub fn new(metrics: KvMetrics, slot_metrics: SlotMetrics) -> Self {
        Board { inner: Arc::default(), metrics, slot_metrics }
    }

    /// What keepers of slots count with.
    pub fn slot_metrics(&self) -> &SlotMetrics {
        &self.slot_metrics
    }

    /// What it counts with.
    pub fn metrics(&self) -> &KvMetrics {
        &self.metrics
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker's process `epoch` is there, with KV events or without: routers may speak of it.
    pub fn serve(&self, worker: &str, epoch: u64) {
        self.lock().loads.open(worker, epoch);
    }

    /// It has ended.
    pub fn unserve(&self, worker: &str, epoch: u64) {
        self.lock().loads.close(worker, epoch);
    }

    /// A worker's process `epoch` can be given KV state: routers hear of it, and their wishes go there.
    pub fn open_warm(
        &self,
        worker: &str,
        epoch: u64,
        block_tokens: u32,
        wishes: mpsc::Sender<Asked>,
    ) {
        let mut inner = self.lock();
        inner.warmers.insert(worker.to_owned(), Warmer { epoch, block_tokens, wishes });
        inner.announce(&ToRouter::Warmable { worker: worker.to_owned(), block_tokens });
    }

    /// It cannot any more.
    pub fn close_warm(&self, worker: &str, epoch: u64) {
        let mut inner = self.lock();
        if inner.warmers.get(worker).is_some_and(|warmer| warmer.epoch == epoch) {
            inner.warmers.remove(worker);
        }
    }

    /// What became of a wish, told to the router that had it if it is still there.
    pub fn warmed(&self, seat: u64, worker: &str, ticket: u64, tokens: u32) {
        let frame = ToRouter::Warmed { worker: worker.to_owned(), ticket, tokens };
        let mut inner = self.lock();
        let pushed = inner.seats.get_mut(&seat).map(|seat| seat.push(encoded(&frame)));
        inner.overflows += u64::from(pushed == Some(false));
    }

    /// A new life of a worker with KV events begins; its last one ends.
    pub fn open(&self, worker: &str, writer: Writer) {
        let mut inner = self.lock();
        let state = writer.state();
        inner.writers.insert(worker.to_owned(), writer);
        inner.announce(&state);
        self.show(worker, &mut inner);
    }

    /// The life `epoch` of a worker ends.
    pub fn close(&self, worker: &str, epoch: u64) {
        let mut inner = self.lock();
        if inner.writers.get(worker).is_none_or(|writer| writer.epoch() != epoch) {
            return;
        }
        inner.writers.remove(worker);
        inner.announce(&ToRouter::Gone { worker: worker.to_owned(), epoch });
        self.metrics.forget(worker);
    }

    /// A rank's batch. Gives the block size known after it.
    pub fn take(&self, worker: &str, epoch: u64, rank: u32, batch: Batch) -> Option<u32> {
        self.metrics.events(worker, batch.events.len());
        self.metrics.dropped(worker, Reason::UnknownEvent, u64::from(batch.unknown));
        self.metrics.dropped(worker, Reason::Malformed, u64::from(batch.malformed));
        self.change(worker, epoch, |writer| writer.take(rank, batch))
    }

    /// A rank's state is not known any more.
    pub fn clear(&self, worker: &str, epoch: u64, rank: u32, known: Known) -> Option<u32> {
        self.metrics.clears(worker);
        self.change(worker, epoch, |writer| writer.clear(rank, known))
    }

    /// How much of a rank's state is known.
    pub fn set_known(&self, worker: &str, epoch: u64, rank: u32, known: Known) -> Option<u32> {
        self.change(worker, epoch, |writer| {
            writer.set_known(rank, known);
            Vec::new()
        })
    }

    fn change(
        &self,
        worker: &str,
        epoch: u64,
        change: impl FnOnce(&mut Writer) -> Vec<ToRouter>,
    ) -> Option<u32> {
        let mut inner = self.lock();
        let writer = inner.writers.get_mut(worker).filter(|writer| writer.epoch() == epoch)?;
        let before = (writer.known(), writer.block_tokens());
        let frames = change(writer);
        let block_tokens = writer.block_tokens();
        for (reason, count) in dropped_by_reason(&writer.take_dropped()) {
            self.metrics.dropped(worker, reason, count);
        }
        let state = (before != (writer.known(), block_tokens)).then(|| writer.state());
        for frame in &frames {
            inner.send_on(worker, frame);
        }
        if let Some(state) = state {
            inner.announce(&state);
        }
        self.show(worker, &mut inner);
        Some(block_tokens)
    }

    /// Says of every worker where it stands, and what it was given.
    pub fn heartbeat(&self, now: Instant) {
        let mut inner = self.lock();
        inner.loads.expire(now);
        let workers: Vec<_> = inner.loads.workers().cloned().collect();
        if workers.is_empty() {
            // All engines are away. The agent is not.
            inner.announce(&hello());
        }
        workers.iter().for_each(|worker| inner.others_are_due(worker, None));
        let states: Vec<_> = inner.writers.values().map(Writer::state).collect();
        for state in &states {
            inner.announce(state);
        }
        let warmables: Vec<_> = inner.warmables().collect();
        for warmable in &warmables {
            inner.announce(warmable);
        }
        self.show_seats(&mut inner);
    }

    /// A place for one more router; none if [`ROUTERS_MAX`] are there.
    pub fn sit(&self) -> Option<SeatHold> {
        let mut inner = self.lock();
        if inner.seats.len() >= ROUTERS_MAX {
            return None;
        }
        let id = inner.seats_given;
        inner.seats_given += 1;
        let seat = inner.seats.entry(id).or_default();
        let woken = Arc::clone(&seat.woken);
        let told = inner.writers.values().map(Writer::state).chain(inner.warmables());
        let states: Vec<_> = told.map(|state| encoded(&state)).collect();
        let workers = inner.loads.workers().cloned().collect();
        if let Some(seat) = inner.seats.get_mut(&id) {
            seat.others_due = workers;
            for state in states {
                // A seat that is new has room for every worker of a node.
                let _ = seat.push(state);
            }
        }
        self.show_seats(&mut inner);
        Some(SeatHold { board: self.clone(), id, woken })
    }

    fn show(&self, worker: &str, inner: &mut Inner) {
        if let Some(writer) = inner.writers.get(worker) {
            self.metrics.show_worker(worker, writer.blocks(), writer.known());
        }
        self.show_seats(inner);
    }

    fn show_seats(&self, inner: &mut Inner) {
        self.metrics.overflows(std::mem::take(&mut inner.overflows));
        let queued = inner.seats.values().map(|seat| seat.queued_bytes).max().unwrap_or(0);
        self.metrics.show_seats(inner.seats.len(), queued);
    }
}

impl Inner {
    /// Of each worker that can be given KV state, that it can.
    fn warmables(&self) -> impl Iterator<Item = ToRouter> {
        self.warmers.iter().map(|(worker, warmer)| ToRouter::Warmable {
            worker: worker.clone(),
            block_tokens: warmer.block_tokens,
        })
    }

    fn announce(&mut self, frame: &ToRouter) {
        let frame = encoded(frame);
        let pushed = self.seats.values_mut().map(|seat| seat.push(Arc::clone(&frame)));
        self.overflows += pushed.filter(|is_in| !is_in).count() as u64;
    }

    /// All but who said it are to hear what the others gave a worker.
    fn others_are_due(&mut self, worker: &str, said_by: Option<u64>) {
        for (_, seat) in self.seats.iter_mut().filter(|(id, _)| Some(**id) != said_by) {
            // A name is there already while what was said before is still to be told.
            if seat.others_due.insert(worker.to_owned()) {
                seat.woken.notify_one();
            }
        }
    }

    fn send_on(&mut self, worker: &str, frame: &ToRouter) {
        let follows = |seat: &&mut Seat| seat.wanted.contains(worker) && !seat.due.contains(worker);
        let mut seats = self.seats.values_mut().filter(follows).peekable();
        if seats.peek().is_some() {
            let frame = encoded(frame);
            let pushed = seats.map(|seat| seat.push(Arc::clone(&frame)));
            self.overflows += pushed.filter(|is_in| !is_in).count() as u64;
        }
    }
}

impl Seat {
    /// False: too much waits. Then all of it is dropped, and what was followed is due to be told whole.
    fn push(&mut self, frame: Encoded) -> bool {
        let has_room = self.queued_bytes + frame.len() <= OUTBOX_BYTES_MAX;
        if has_room {
            self.queued_bytes += frame.len();
            self.queue.push_back(frame);
        } else {
            self.queue.clear();
            self.queued_bytes = 0;
            self.due = self.wanted.clone();
        }
        self.woken.notify_one();
        has_room
    }
}

impl SeatHold {
    /// The router asks for a worker. False: it asks for too many.
    pub fn want(&self, worker: &str) -> bool {
        let mut inner = self.board.lock();
        let Some(seat) = inner.seats.get_mut(&self.id) else { return false };
        if seat.wanted.len() >= WANTED_MAX && !seat.wanted.contains(worker) {
            return false;
        }
        seat.wanted.insert(worker.to_owned());
        seat.due.insert(worker.to_owned());
        seat.woken.notify_one();
        true
    }

    /// The router says what it gave a worker.
    pub fn tell(&self, worker: &str, load: Load, now: Instant) {
        let mut inner = self.board.lock();
        // A seat that was taken away counts no more.
        if inner.seats.contains_key(&self.id) && inner.loads.tell(self.id, worker, load, now) {
            inner.others_are_due(worker, Some(self.id));
        }
    }

    /// The router wishes that a worker be given KV state. Answered in any case, at once where nobody can.
    pub fn warm(&self, wish: Warm, now: Instant) {
        let wishes =
            self.board.lock().warmers.get(&wish.worker).map(|warmer| warmer.wishes.clone());
        let asked = Asked::new(wish, &self.board, self.id, now);
        if let Some(wishes) = wishes {
            // One that does not go through answers itself when it is dropped: not under the lock.
            drop(wishes.try_send(asked));
        }
    }

    /// What the others gave, of each worker of which that is new: frames in one piece, empty if nothing is.
    pub fn others(&self) -> Vec<u8> {
        let mut inner = self.board.lock();
        let Inner { loads, seats, .. } = &mut *inner;
        let Some(seat) = seats.get_mut(&self.id) else { return Vec::new() };
        let due = std::mem::take(&mut seat.others_due).into_iter();
        let told = due.filter_map(|worker| {
            let (load, routers) = loads.others(&worker, self.id)?;
            Some(encode(&ToRouter::Others { worker, load, routers }))
        });
        told.flatten().collect()
    }

    /// What to send next, if there is anything. Snapshots come first, as `may_snapshot` allows.
    pub fn next(&self, may_snapshot: bool) -> Option<Next> {
        let mut inner = self.board.lock();
        let Inner { writers, seats, .. } = &mut *inner;
        let seat = seats.get_mut(&self.id)?;
        if may_snapshot {
            let due = seat.due.iter().find(|worker| writers.contains_key(*worker)).cloned();
            if let Some((worker, writer)) = due.and_then(|due| writers.get_key_value(&due)) {
                seat.due.remove(worker);
                return Some(Next::Snapshot(writer.snapshot()));
            }
        }
        let frame = seat.queue.pop_front()?;
        seat.queued_bytes -= frame.len();
        Some(Next::Frame(frame))
    }

    /// Waits until there may be something more.
    pub async fn woken(&self) {
        self.woken.notified().await;
    }
}

impl Drop for SeatHold {
    fn drop(&mut self) {
        let mut inner = self.board.lock();
        inner.seats.remove(&self.id);
        let left = inner.loads.leave(self.id);
        left.iter().for_each(|worker| inner.others_are_due(worker, None));
        self.board.show_seats(&mut inner);
    }
}

/// What an agent says first.
pub fn hello() -> ToRouter {
    ToRouter::Hello { version: VERSION, process: "cgn-agent".to_owned() }
}

/// A frame's bytes.
pub fn encoded(frame: &ToRouter) -> Encoded {
    encode(frame).into()
}

#[cfg(test)]
mod tests;
