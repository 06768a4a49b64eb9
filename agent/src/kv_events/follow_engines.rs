//! Keeps one subscription for each engine process that has KV events, as the agent's owner lists them,
//! has routers speak of all that are listed, keeps the slots of those whose state can be, and keeps the feed's heart beating. It owns the thread all of this runs on.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::board::Board;
use super::serve::{self, Bound, Listener};
use super::subscribe::{self, Ear};
use super::tensorrt;
use super::writer::Writer;
use crate::engine::EventSource;
use crate::engine::events::Dialect;
use crate::slots::keeper::{self, SlotSource, Subject};

/// A silent feed says where it stands this often, so that a router notices what it missed.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// One engine process.
#[derive(Clone, Debug)]
pub struct Source {
    /// Of the process.
    pub epoch: u64,
    /// The name clients ask for.
    pub model: String,
    /// Where its events come from; none where it has none.
    pub events: Option<EventSource>,
    /// Data-parallel ranks, each with endpoints of its own.
    pub ranks: u32,
    /// How its slots are kept; none where they are not.
    pub slots: Option<SlotSource>,
    /// Set to the tokens in a block once the engine says it.
    pub block_tokens: Arc<AtomicU32>,
}

/// All engine processes, by worker id.
pub type Sources = BTreeMap<String, Source>;

/// What the agent's owner keeps: lists engines here, and they are followed.
#[derive(Debug)]
pub struct Following {
    sources: watch::Sender<Sources>,
}

impl Following {
    /// Starts the thread. It ends with the process, or when this is dropped.
    ///
    /// # Errors
    /// When the system gives no thread, or no runtime can be made.
    pub fn start(bound: Option<Bound>, board: Board) -> std::io::Result<Self> {
        let (sources, receiver) = watch::channel(Sources::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("kv-events".to_owned()).spawn(move || {
            runtime.block_on(async {
                match bound.map(Listener::of).transpose() {
                    Ok(listener) => follow(receiver, listener, board).await,
                    Err(error) => tracing::error!(%error, "no feed of KV events"),
                }
            });
        })?;
        Ok(Following { sources })
    }

    /// A process began.
    pub fn begin(&self, worker: &str, source: Source) {
        self.sources.send_modify(|sources| drop(sources.insert(worker.to_owned(), source)));
    }

    /// The process `epoch` of a worker ended.
    pub fn end(&self, worker: &str, epoch: u64) {
        self.sources.send_if_modified(|sources| {
            let is_it = sources.get(worker).is_some_and(|source| source.epoch == epoch);
            if is_it {
                sources.remove(worker);
            }
            is_it
        });
    }

    /// Whether this worker's events are followed, and the size of its blocks; 0 is unknown.
    pub fn block_tokens(&self, worker: &str) -> Option<u32> {
        let sources = self.sources.borrow();
        let source = sources.get(worker).filter(|source| source.events.is_some())?;
        Some(source.block_tokens.load(Relaxed))
    }
}

async fn follow(mut wanted: watch::Receiver<Sources>, listener: Option<Listener>, board: Board) {
    let mut tasks = JoinSet::new();
    if let Some(listener) = listener {
        tasks.spawn(serve::serve(listener, board.clone()));
    }
    let mut followed: HashMap<String, (u64, JoinSet<()>)> = HashMap::new();
    let mut heartbeat = tokio::time::interval(HEARTBEAT_INTERVAL);
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                let sources = wanted.borrow_and_update().clone();
                reconcile(&sources, &mut followed, &board);
            }
            _ = heartbeat.tick() => board.heartbeat(std::time::Instant::now()),
        }
    }
}

/// A task ends when its set is dropped.
fn reconcile(sources: &Sources, followed: &mut HashMap<String, (u64, JoinSet<()>)>, board: &Board) {
    followed.retain(|worker, (epoch, _)| {
        let stays = sources.get(worker).is_some_and(|source| source.epoch == *epoch);
        if !stays {
            board.close(worker, *epoch);
            board.close_warm(worker, *epoch);
            board.unserve(worker, *epoch);
        }
        stays
    });
    for (worker, source) in sources {
        if !followed.contains_key(worker) {
            board.serve(worker, source.epoch);
            followed.insert(worker.clone(), (source.epoch, subscribed(worker, source, board)));
        }
    }
}

fn subscribed(worker: &str, source: &Source, board: &Board) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    if let Some(slots) = &source.slots {
        let (worker, model) = (worker.to_owned(), source.model.clone());
        let subject = Subject { worker, epoch: source.epoch, model };
        tasks.spawn(keeper::keep(subject, slots.clone(), board.clone()));
    }
    let Some(events) = &source.events else { return tasks };
    let are_copies_counted = events.dialect == Dialect::Vllm;
    let writer = Writer::new(worker, source.epoch, &source.model, are_copies_counted, source.ranks);
    board.open(worker, writer);
    for rank in 0..source.ranks.max(1) {
        let ear = Ear {
            board: board.clone(),
            worker: worker.to_owned(),
            epoch: source.epoch,
            rank,
            block_tokens: Arc::clone(&source.block_tokens),
        };
        match (events.dialect, subscribe::of_rank(events, rank)) {
            (Dialect::TensorrtLlm, _) => {
                tasks.spawn(tensorrt::poll(events.live.clone(), ear));
                // One address speaks for all ranks.
                break;
            }
            (_, Some(rank)) => drop(tasks.spawn(subscribe::subscribe(rank, ear))),
            (_, None) => tracing::warn!(
                worker,
                rank,
                live = events.live,
                "the KV events of this rank have no address; use tcp:// endpoints for several ranks"
            ),
        }
    }
    tasks
}
