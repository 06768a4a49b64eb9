//! What this router's index of events has of each worker, counted: `GET /kv` of the admin listener.
//!
//! It answers whether two routers agree, and whether a router agrees with its agents, without sending
//! any block: a number and a fingerprint for each worker and level. It reads the index itself, not what
//! was told, in pieces on the house thread, so neither requests nor the feed wait for it.
//! What was only routed or learned is not counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use dataplane::feed::Known;
use dataplane::route::index::{Bookmark, Index, Level};
use serde::Serialize;

use crate::cluster::{Cluster, WorkerLife, WorkerView};

/// Where it is.
pub const PATH: &str = "/kv";
/// Between two pieces of the index the thread does what else it has.
const PAUSE: Duration = Duration::from_millis(1);
/// Workers listed: as many as the index knows.
const ROWS_MAX: usize = 4_096;

/// Another count is under way; it is over in a moment.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the index is being counted already; ask again in a moment")]
pub struct Busy;

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Census {
    /// Blocks in the index, counted once however many workers hold them; those of lost workers too until
    /// they are swept.
    pub blocks: usize,
    /// Blocks that were not taken for want of room since the start.
    pub blocks_refused: usize,
    /// Workers whose agents tell of KV events, by id.
    pub workers: Vec<Row>,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Its id.
    pub worker: String,
    /// How much of what it holds is known: `none`, `partial` or `whole`.
    pub known: &'static str,
    /// Of the engine's process.
    pub epoch: u64,
    /// The last batch taken of that process.
    pub batch: u64,
    /// Tokens in a block; 0 is unknown.
    pub block_tokens: u32,
    /// Batches came in while it was counted: the counts are of no single moment.
    pub moved: bool,
    /// What it holds whose fastest copy is in the GPU's memory.
    pub gpu: Held,
    /// In the host's.
    pub host: Held,
    /// On disk or slower.
    pub disk: Held,
}

/// Blocks of one worker at one level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Held {
    /// How many.
    pub blocks: u64,
    /// The sum of their digests' first 16 bytes as little-endian numbers, modulo 2^128: equal for equal
    /// sets, in whatever order they came.
    #[serde(serialize_with = "as_hex")]
    pub fingerprint: u128,
}

impl Held {
    /// One block more.
    pub fn add(&mut self, digest: u128) {
        self.blocks += 1;
        self.fingerprint = self.fingerprint.wrapping_add(digest);
    }
}

fn as_hex<S: serde::Serializer>(fingerprint: &u128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{fingerprint:032x}"))
}

/// Held while a count is under way.
struct Turn<'a>(&'a AtomicBool);

impl<'a> Turn<'a> {
    fn take(taken: &'a AtomicBool) -> Result<Self, Busy> {
        if taken.swap(true, Relaxed) { Err(Busy) } else { Ok(Turn(taken)) }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

/// Counts.
///
/// # Errors
/// [`Busy`]: one at a time, so that who asks too often costs no more than one.
pub async fn take(cluster: &Cluster) -> Result<Census, Busy> {
    let _turn = Turn::take(&cluster.is_counted)?;
    let view = cluster.view().clone();
    let mut told: Vec<&Arc<WorkerView>> =
        view.workers().filter(|worker| worker.worker.kv_feed.is_some()).collect();
    told.sort_unstable_by(|one, other| one.worker.id.cmp(&other.worker.id));
    told.truncate(ROWS_MAX);
    let before: Vec<Row> = told.iter().map(|worker| row(cluster, worker)).collect();
    let held = match cluster.held() {
        Some(index) => count(index).await,
        None => HashMap::new(),
    };
    let rows = told.into_iter().zip(before).map(|(worker, before)| {
        let levels = held.get(&worker.life.cache.number()).copied().unwrap_or_default();
        let stands = has_not_moved(cluster, worker, &before);
        let [gpu, host, disk] = levels;
        Row { moved: !stands, gpu, host, disk, ..before }
    });
    Ok(Census {
        workers: rows.collect(),
        blocks: cluster.held().map_or(0, Index::len),
        blocks_refused: cluster.held().map_or(0, Index::refused),
    })
}

/// By worker number and level.
async fn count(index: &Index) -> HashMap<u32, [Held; 3]> {
    let mut held: HashMap<u32, [Held; 3]> = HashMap::new();
    let mut from = Bookmark::default();
    loop {
        let next = index.visit(from, |worker, level: Level, digest| {
            let levels = held.entry(worker.0).or_default();
            if let Some(held) = levels.get_mut(level as usize) {
                held.add(digest);
            }
        });
        match next {
            Some(next) => from = next,
            None => return held,
        }
        monoio::time::sleep(PAUSE).await;
    }
}

/// What is known of a worker, nothing counted.
fn row(cluster: &Cluster, worker: &WorkerView) -> Row {
    let feed = &worker.life.feed;
    let known: Known = feed.known(cluster.now_ms());
    let (epoch, batch) = feed.position();
    Row {
        worker: worker.worker.id.clone(),
        known: known.as_str(),
        epoch,
        batch,
        block_tokens: feed.block_tokens(),
        moved: false,
        gpu: Held::default(),
        host: Held::default(),
        disk: Held::default(),
    }
}

fn has_not_moved(cluster: &Cluster, worker: &WorkerView, before: &Row) -> bool {
    let is_it = |life: &Arc<WorkerLife>| Arc::ptr_eq(life, &worker.life);
    cluster.view().workers().any(|view| is_it(&view.life)) && row(cluster, worker) == *before
}
