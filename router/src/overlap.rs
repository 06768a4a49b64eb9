//! How much of a prompt each worker holds, from the best source there is for each.
//!
//! * **Events**: the engine itself says what it holds ([`crate::kv_feed`]). What was routed there a
//!   moment ago counts too, until the engine confirms it, denies it, or its time is over.
//! * **Learned**: the engine says nothing: what was routed there, corrected by its answers
//!   ([`crate::index`]).
//!
//! Reads only. It decides nothing; that is [`dataplane::route::pick`].

use dataplane::feed::Known;
use dataplane::route::index::Depths;

use crate::cluster::{ModelView, WorkerView};
use crate::index::{Match, WorkerCache};
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
    /// The same by what was routed there; for an engine with events, lately.
    pub matched: Match,
    /// Where `blocks` comes from.
    pub source: Source,
}

/// How far the engine of `view` can be asked by `prefix`: its events are heard and cut alike.
pub fn source(view: &WorkerView, prefix: &Prefix, now_ms: u64) -> Source {
    if prefix.cut != Cut::Tokens || view.life.feed.block_tokens() != prefix.block_tokens() {
        return Source::Learned;
    }
    match view.life.feed.known(now_ms) {
        Known::Whole => Source::Events,
        Known::Partial => Source::PartialEvents,
        Known::None => Source::Learned,
    }
}

/// What predictions and lessons of that worker are kept in.
pub fn cache(view: &WorkerView, source: Source) -> &WorkerCache {
    if source.is_engine() { &view.life.predicted } else { &view.life.cache }
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
    let asked: Vec<Option<&WorkerCache>> = model
        .workers
        .iter()
        .zip(&found)
        .enumerate()
        .map(|(at, (view, overlap))| {
            let cache = cache(view, overlap.source);
            cache.advance_to(now_ms);
            is_asked(at).then_some(cache)
        })
        .collect();
    let matches = shard.cluster.index.depths(&prefix.digests, &asked);
    let reusable = prefix.blocks_reusable();
    for (overlap, matched) in found.iter_mut().zip(matches) {
        let most = if overlap.source.is_engine() { reusable } else { usize::MAX };
        overlap.matched = Match { blocks: matched.blocks.min(most), ..matched };
        overlap.blocks = [u32::try_from(overlap.matched.blocks).unwrap_or(u32::MAX); 3];
    }
    if found.iter().any(|overlap| overlap.source.is_engine()) {
        let mut depths = shard.depths.borrow_mut();
        from_events(shard, model, prefix, &mut depths, &mut found, is_asked);
    }
    found
}

/// Adds what the engines say. A block that was only routed counts as fast as any: it will be computed.
fn from_events(
    shard: &Shard,
    model: &ModelView,
    prefix: &Prefix,
    depths: &mut Depths,
    found: &mut [Overlap],
    is_asked: impl Fn(usize) -> bool,
) {
    let Some(index) = shard.cluster.held() else { return };
    index.lookup(&prefix.digests[..prefix.blocks_reusable()], depths);
    for depth in depths.workers() {
        let Some(at) = model.position_of(depth.worker.0).filter(|at| is_asked(*at)) else {
            continue;
        };
        let overlap = &mut found[at];
        if overlap.source.is_engine() {
            for (blocks, told) in overlap.blocks.iter_mut().zip(depth.blocks) {
                *blocks = (*blocks).max(told);
            }
        }
    }
}
