//! The feed of one worker: joins the ranks of its engine, numbers what changed, cuts it into frames.
//!
//! A worker is one address to a router, so what any of its ranks holds counts; closed sets stay closed
//! when they are joined. Pure.

use std::collections::BTreeMap;

use dataplane::feed::{DIGESTS_MAX, Known, Level, Op, ToRouter};

use super::event::Batch;
use super::translate::{
    Change, Dropped, PENDING_BLOCKS_MAX, RANK_BLOCKS_MAX, Reason, Rules, Translator,
};

mod ledger;

use ledger::Ledger;

/// Most data-parallel ranks of one engine.
pub const RANKS_MAX: u32 = 64;

/// One life of one worker's engine.
#[derive(Debug)]
pub struct Writer {
    worker: String,
    epoch: u64,
    rules: Rules,
    seq: u64,
    ranks: BTreeMap<u32, Rank>,
    ledger: Ledger,
}

#[derive(Debug)]
struct Rank {
    translator: Translator,
    known: Known,
}

/// Everything a worker holds after batch `seq`, in the order in which it may be told.
#[derive(Debug)]
pub struct Snapshot {
    worker: String,
    epoch: u64,
    seq: u64,
    levels: [Vec<u128>; 3],
}

impl Writer {
    /// Nothing is known of any of `ranks` data-parallel ranks. `are_copies_counted`: see [`Rules`].
    pub fn new(
        worker: &str,
        epoch: u64,
        model: &str,
        are_copies_counted: bool,
        ranks: u32,
    ) -> Self {
        let rules = Rules {
            model: model.to_owned(),
            are_copies_counted,
            blocks_max: RANK_BLOCKS_MAX,
            pending_max: PENDING_BLOCKS_MAX,
        };
        let rank =
            |rank| (rank, Rank { translator: Translator::new(rules.clone()), known: Known::None });
        Writer {
            worker: worker.to_owned(),
            epoch,
            seq: 0,
            ranks: (0..ranks.clamp(1, RANKS_MAX)).map(rank).collect(),
            ledger: Ledger::default(),
            rules,
        }
    }

    /// Of the engine's process.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How much is known: as much as of the least known rank.
    pub fn known(&self) -> Known {
        self.ranks.values().map(|rank| rank.known).min().unwrap_or(Known::None)
    }

    /// Tokens in a block; 0 while unknown.
    pub fn block_tokens(&self) -> u32 {
        self.ranks.values().map(|rank| rank.translator.block_tokens()).max().unwrap_or(0)
    }

    /// Prefixes told, by level.
    pub fn blocks(&self) -> [u64; 3] {
        self.ledger.blocks()
    }

    /// What was dropped since this was last asked.
    pub fn take_dropped(&mut self) -> Dropped {
        let mut sum = Dropped::default();
        for rank in self.ranks.values_mut() {
            let dropped = rank.translator.take_dropped();
            sum.iter_mut().zip(dropped).for_each(|(sum, more)| *sum += more);
        }
        sum
    }

    /// Where the feed stands.
    pub fn state(&self) -> ToRouter {
        ToRouter::State {
            worker: self.worker.clone(),
            epoch: self.epoch,
            seq: self.seq,
            known: self.known(),
            block_tokens: self.block_tokens(),
        }
    }

    /// Takes what a rank's engine said; gives the frames that tell it.
    pub fn take(&mut self, rank: u32, batch: Batch) -> Vec<ToRouter> {
        // One endpoint may speak for several ranks.
        let rank = batch.rank.filter(|_| self.ranks.len() == 1).unwrap_or(rank).min(RANKS_MAX - 1);
        let rules = &self.rules;
        let rank = self.ranks.entry(rank).or_insert_with(|| Rank {
            translator: Translator::new(rules.clone()),
            known: Known::Partial,
        });
        let is_cleared = batch.events.contains(&super::event::Event::Cleared);
        let mut changes = rank.translator.apply(batch.events);
        if is_cleared {
            rank.known = Known::Whole;
        }
        if batch.malformed > 0 {
            // It may have said that something is gone.
            changes.extend(rank.translator.clear());
            rank.known = Known::Partial;
        }
        if rank.translator.blocks() >= RANK_BLOCKS_MAX {
            // Some were let go, or soon will be.
            rank.known = rank.known.min(Known::Partial);
        }
        self.tell(changes)
    }

    /// Everything of this rank is forgotten; `known` says how much is known of what comes now.
    pub fn clear(&mut self, rank: u32, known: Known) -> Vec<ToRouter> {
        let Some(rank) = self.ranks.get_mut(&rank) else { return Vec::new() };
        rank.known = known;
        let changes = rank.translator.clear();
        self.tell(changes)
    }

    /// How much is known of this rank now. Says whether that is news.
    pub fn set_known(&mut self, rank: u32, known: Known) -> bool {
        match self.ranks.get_mut(&rank) {
            Some(rank) => std::mem::replace(&mut rank.known, known) != known,
            None => false,
        }
    }

    fn tell(&mut self, changes: Vec<Change>) -> Vec<ToRouter> {
        let net = self.ledger.apply(changes);
        let mut ops = Vec::new();
        if self.ledger.is_empty() && net.is_large() {
            ops.push(Op::Clear);
        } else {
            ops.extend(pieces(net.removed).map(|digests| Op::Remove { digests }));
            for (level, digests) in Level::ALL.into_iter().zip(net.set) {
                ops.extend(pieces(digests).map(|digests| Op::Set { level, digests }));
            }
        }
        packed(ops).map(|ops| self.batch(ops)).collect()
    }

    fn batch(&mut self, ops: Vec<Op>) -> ToRouter {
        self.seq += 1;
        ToRouter::Batch { worker: self.worker.clone(), epoch: self.epoch, seq: self.seq, ops }
    }

    /// All that is held now.
    pub fn snapshot(&self) -> Snapshot {
        let mut levels = [Vec::new(), Vec::new(), Vec::new()];
        for rank in self.ranks.values() {
            rank.translator.visit(|digest| {
                if let Some(level) = self.ledger.level(digest) {
                    levels[level as usize].push(digest);
                }
            });
        }
        Snapshot { worker: self.worker.clone(), epoch: self.epoch, seq: self.seq, levels }
    }
}

impl Snapshot {
    /// How many frames it takes; at least one.
    pub fn parts(&self) -> u32 {
        let parts: usize = self.levels.iter().map(|level| level.len().div_ceil(DIGESTS_MAX)).sum();
        u32::try_from(parts.max(1)).unwrap_or(u32::MAX)
    }

    /// One of them. The faster levels come first: what follows a block is never faster than it.
    pub fn part(&self, part: u32) -> ToRouter {
        let chunks = Level::ALL.into_iter().zip(&self.levels).flat_map(|(level, digests)| {
            digests.chunks(DIGESTS_MAX).map(move |chunk| (level, chunk))
        });
        let sets = chunks
            .skip(part as usize)
            .take(1)
            .map(|(level, chunk)| Op::Set { level, digests: chunk.to_vec() })
            .collect();
        ToRouter::Snapshot {
            worker: self.worker.clone(),
            epoch: self.epoch,
            seq: self.seq,
            part,
            last: part + 1 >= self.parts(),
            sets,
        }
    }
}

/// Lists that fit a frame each; none of an empty list.
fn pieces(digests: Vec<u128>) -> impl Iterator<Item = Vec<u128>> {
    let is_short = digests.len() <= DIGESTS_MAX;
    let (short, long) = if is_short { (digests, vec![]) } else { (vec![], digests) };
    let short = Some(short).filter(|list| !list.is_empty());
    let long: Vec<_> = long.chunks(DIGESTS_MAX).map(<[u128]>::to_vec).collect();
    short.into_iter().chain(long)
}

/// Puts operations together while they fit one frame.
fn packed(ops: Vec<Op>) -> impl Iterator<Item = Vec<Op>> {
    let mut frames: Vec<Vec<Op>> = Vec::new();
    let mut digests = usize::MAX;
    for op in ops {
        digests = digests.saturating_add(op.len());
        match frames.last_mut() {
            // At most four operations that are not full frames of their own, so never too many.
            Some(frame) if digests <= DIGESTS_MAX => frame.push(op),
            _ => {
                digests = op.len();
                frames.push(vec![op]);
            }
        }
    }
    frames.into_iter()
}

/// The label of each count of [`Dropped`].
pub fn dropped_by_reason(dropped: &Dropped) -> impl Iterator<Item = (Reason, u64)> {
    Reason::ALL.into_iter().zip(*dropped).filter(|(_, count)| *count > 0)
}

#[cfg(test)]
mod tests;
