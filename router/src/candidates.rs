//! Gathers what [`crate::pick`] decides on, and carries out its decision.
//!
//! The reading of counters and of the index happens here, so that the decision itself stays pure.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::admit::Ticket;
use crate::cluster::{ModelView, WorkerView};
use crate::index::Match;
use crate::openai::Endpoint;
use crate::overlap::{self, Overlap, Source, overlaps};
use crate::pick::{self, Candidate, Exclusion};
use crate::shard::Shard;
use crate::tokenize::Prefix;

/// Workers that failed this request already.
#[derive(Clone, Debug, Default)]
pub struct Tried(Vec<String>);

impl Tried {
    /// Notes a failure.
    pub fn add(&mut self, worker: &WorkerView) {
        self.0.push(worker.worker.id.clone());
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none failed yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A worker picked for a request: one place in its in-flight count until dropped.
pub struct Seat {
    /// The worker.
    pub worker: Arc<WorkerView>,
    /// How far its cache is believed to match.
    pub matched: Match,
    /// Tokens of the prompt it is believed to hold.
    pub prefix_tokens: u64,
    /// Where that belief comes from.
    pub source: Source,
}

impl Seat {
    /// Prompt tokens that this worker is expected to compute.
    pub fn uncached_tokens(&self, shard: &Shard, prefix: &Prefix) -> u64 {
        let tokens = prefix.tokens_estimated(shard.cluster.tokens_per_byte());
        tokens.saturating_sub(self.prefix_tokens)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.worker.life.inflight.fetch_sub(1, Relaxed);
    }
}

/// Every worker of the model as the decision sees it, in the order of `model.workers`.
pub fn gather(
    shard: &Shard,
    model: &ModelView,
    endpoint: Endpoint,
    prefix: &Prefix,
    tried: &Tried,
) -> Vec<(Candidate, Overlap)> {
    let now_ms = shard.now_ms();
    let excluded: Vec<Option<Exclusion>> = model
        .workers
        .iter()
        .map(|view| {
            view.exclusion(endpoint, now_ms)
                .or_else(|| tried.0.contains(&view.worker.id).then_some(Exclusion::Tried))
        })
        .collect();
    let found = overlaps(shard, model, prefix, |at| excluded[at].is_none());
    model
        .workers
        .iter()
        .zip(excluded)
        .zip(found)
        .map(|((view, excluded), overlap)| {
            let life = &view.life;
            let candidate = Candidate {
                excluded,
                prefix_tokens: prefix.tokens_in(overlap.blocks[2] as usize),
                inflight: life.inflight.load(Relaxed),
                slots: view.worker.slots.max(1),
                picked: life.picked.load(Relaxed),
                power_watts: view.worker.power_watts,
                cache_free: life.cache.free_share(),
            };
            (candidate, overlap)
        })
        .collect()
}

/// Picks a worker and takes a seat there; `None` when every worker is excluded.
///
/// The prompt counts as present at the worker from here on (predict on route).
pub fn seat(
    shard: &Shard,
    ticket: &Ticket,
    endpoint: Endpoint,
    prefix: &Prefix,
    tried: &Tried,
) -> Option<Seat> {
    let model = ticket.model();
    if let ([only], true) = (model.workers.as_slice(), prefix.digests.is_empty()) {
        return seat_at_only(shard, only, endpoint, tried);
    }
    let gathered = gather(shard, model, endpoint, prefix, tried);
    let candidates: Vec<Candidate> = gathered.iter().map(|(candidate, _)| *candidate).collect();
    let at =
        pick::worker(&candidates, prefix.prompt_tokens, &ticket.view().weights, shard.next_id())?;
    let worker = Arc::clone(&model.workers[at]);
    let Overlap { matched, source, .. } = gathered[at].1;
    worker.life.inflight.fetch_add(1, Relaxed);
    worker.life.picked.fetch_add(1, Relaxed);
    if !prefix.digests.is_empty() {
        let cache = overlap::cache(&worker, source);
        shard.cluster.index.insert(&prefix.digests, matched, cache);
    }
    Some(Seat { prefix_tokens: candidates[at].prefix_tokens, worker, matched, source })
}

/// With one worker and nothing to look up there is nothing to decide.
fn seat_at_only(
    shard: &Shard,
    worker: &Arc<WorkerView>,
    endpoint: Endpoint,
    tried: &Tried,
) -> Option<Seat> {
    if worker.exclusion(endpoint, shard.now_ms()).is_some() || tried.0.contains(&worker.worker.id) {
        return None;
    }
    worker.life.inflight.fetch_add(1, Relaxed);
    worker.life.picked.fetch_add(1, Relaxed);
    Some(Seat {
        worker: Arc::clone(worker),
        matched: Match::default(),
        prefix_tokens: 0,
        source: Source::Learned,
    })
}
