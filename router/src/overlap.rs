//! How much of a prompt each worker holds, from the best source there is for each.
//!
//! * **Events**: the engine itself says what it holds ([`crate::kv_feed`]). What was routed there a
//!   moment ago counts too, until the engine confirms it, denies it, or its time is over.
//! * **Learned**: the engine says nothing: what was routed there, corrected by its answers
//!   ([`crate::index`]).
//!
//! It decides nothing; that is [`dataplane::route::pick`].

use std::sync::atomic::Ordering::Relaxed;

use dataplane::feed::Known;
use dataplane::route::predictions::Asked;
use dataplane::route::worker_cache::WorkerCache;

use crate::cluster::{ModelView, WorkerView};
use crate::index::Match;
use crate::shard::Shard;
use crate::tokenize::{Cut, Prefix};

/// Where knowledge of a worker's cache comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// Its engine's events, all of them.
    Events,
    /// Its engine's events, of which some were missed.
    PartialEvents,
    /// What was routed there.
    #[default]
    Learned,
}

impl Source {
    /// For `route explain` and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Events => "events",
            Source::PartialEvents => "partial events",
            Source::Learned => "learned",
        }
    }

    /// Whether the engine itself is the source.
    pub fn is_engine(self) -> bool {
        self != Source::Learned
    }
}

/// What one worker holds of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overlap {
    /// Leading blocks at each level or a faster one, GPU, host, disk.
    pub blocks: [u32; 3],
    /// Leading blocks that the engine itself says it holds.
    pub told: u32,
    /// What `blocks` rests on, where it is learned.
    pub matched: Match,
    /// Where `blocks` comes from.
    pub source: Source,
}

/// How far the engine of `view` can be asked by `prefix`: its events are heard and cut alike. One that has
/// told of no block yet holds none, however it cuts.
pub fn source(view: &WorkerView, prefix: &Prefix, now_ms: u64) -> Source {
    let is_cut_alike = [0, prefix.block_tokens()].contains(&view.life.feed.block_tokens());
    if prefix.cut != Cut::Tokens || !is_cut_alike {
        return Source::Learned;
    }
    match view.life.feed.known(now_ms) {
        Known::Whole => Source::Events,
        Known::Partial => Source::PartialEvents,
        Known::None => Source::Learned,
    }
}

/// What each worker of `model` holds of `prefix`, in their order; nothing of those left out.
pub fn overlaps(
    shard: &Shard,
    model: &ModelView,
    prefix: &Prefix,
    is_asked: impl Fn(usize) -> bool,
) -> Vec<Overlap> {
    let now_ms = shard.now_ms();
    let mut found: Vec<Overlap> = model
        .workers
        .iter()
        .map(|view| Overlap { source: source(view, prefix, now_ms), ..Overlap::default() })
        .collect();
    if prefix.digests.is_empty() {
        return found;
    }
    if found.iter().any(|overlap| !overlap.source.is_engine()) {
        learned(shard, model, prefix, &mut found, &is_asked);
    }
    if found.iter().any(|overlap| overlap.source.is_engine()) {
        told(shard, model, prefix, &mut found, &is_asked);
        predicted(shard, model, prefix, &mut found, &is_asked);
    }
    found
}

/// What was routed to engines that say nothing, corrected by their answers.
fn learned(
    shard: &Shard,
    model: &ModelView,
    prefix: &Prefix,
    found: &mut [Overlap],
    is_asked: impl Fn(usize) -> bool,
) {
    let all = model.workers.iter().zip(&*found).enumerate();
    let asked: Vec<Option<&WorkerCache>> = all
        .map(|(at, (view, overlap))| {
            (is_asked(at) && !overlap.source.is_engine()).then_some(&view.life.cache)
        })
        .collect();
    let matches = shard.cluster.index.depths(&prefix.digests, &asked);
    for (overlap, matched) in found.iter_mut().zip(matches) {
        overlap.matched = matched;
        overlap.blocks = [u32::try_from(matched.blocks).unwrap_or(u32::MAX); 3];
    }
}

/// What the engines say.
fn told(
    shard: &Shard,
    model: &ModelView,
    prefix: &Prefix,
    found: &mut [Overlap],
    is_asked: impl Fn(usize) -> bool,
) {
    let Some(index) = shard.cluster.held() else { return };
    let mut depths = shard.depths.borrow_mut();
    index.lookup(&prefix.digests[..prefix.blocks_reusable()], &mut depths);
    let mut next = 0;
    for depth in depths.workers() {
        let Some(at) = model.position_from(depth.worker.0, next) else { continue };
        next = at + 1;
        if !is_asked(at) {
            continue;
        }
        if found[at].source.is_engine() {
            found[at].blocks = depth.blocks;
            found[at].told = depth.blocks[2];
        }
    }
}

/// What is on its way there. It counts as fast as any: it will be computed.
fn predicted(
    shard: &Shard,
    model: &ModelView,
    prefix: &Prefix,
    found: &mut [Overlap],
    is_asked: impl Fn(usize) -> bool,
) {
    if shard.cluster.predictions.is_empty() {
        return;
    }
    let digests = &prefix.digests[..prefix.blocks_reusable()];
    // Whom nobody asks about, events are known to have all: nothing is beyond that.
    let asked = found.iter().zip(&model.workers).enumerate().map(|(at, (overlap, view))| {
        let is_wanted = overlap.source.is_engine() && is_asked(at);
        let from = if is_wanted { overlap.told as usize } else { usize::MAX };
        let since_ms = view.life.predicted_since_ms.load(Relaxed);
        Asked { worker: view.life.cache.number(), since_ms, from }
    });
    let mut deeper = Vec::new();
    let predictions = &shard.cluster.predictions;
    predictions.depths(digests, shard.now_ms(), asked, |at, depth| deeper.push((at, depth)));
    for (at, depth) in deeper {
        found[at].blocks = [u32::try_from(depth).unwrap_or(u32::MAX); 3];
    }
}

/// The prompt goes to `view`, and counts as present there from here on (predict on route).
pub fn note(shard: &Shard, view: &WorkerView, prefix: &Prefix, overlap: &Overlap) {
    if overlap.source.is_engine() {
        let told = prefix.digests.len().min(overlap.told as usize);
        let number = view.life.cache.number();
        // Not the shard's clock: a prediction older than its engine's start would be void.
        let now_ms = shard.cluster.now_ms();
        shard.cluster.predictions.note(&prefix.digests[told..], number, now_ms);
        // Nothing is learned of it, but how full it is must be known of any.
        let new = prefix.digests.len().saturating_sub(overlap.blocks[2] as usize);
        view.life.cache.pass(new as u64);
    } else if !prefix.digests.is_empty() {
        shard.cluster.index.insert(&prefix.digests, overlap.matched, &view.life.cache);
    }
}
