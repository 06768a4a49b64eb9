//! The prefix index: which worker probably holds which block, learned from what was routed.
//!
//! For engines without KV events. A routed prompt counts as present at its worker at once, so two
//! requests with one new prefix do not split; the engine's `cached_tokens` then corrects the belief.
//!
//! Each worker has a clock that counts the new blocks given to it. A block is believed to be there
//! while fewer than the worker's capacity of blocks came after its last use: LRU, without moving
//! anything on a hit. A restart moves the worker's floor past everything it had. The capacity starts
//! at what the engine reports and then follows the evidence, see [`WorkerCache::correct`].
//!
//! Because digests are chained and a use of a block is a use of its parents, belief falls with depth:
//! the depth of a match is a binary search, one probe a step, and one probe serves all workers.
//!
//! Uses are noted once per epoch of the worker's clock, a sixteenth to an eighth of its capacity. A
//! use notes blocks from the deepest up and stops at the first one noted in this epoch: whoever noted
//! that one noted its parents too. So a hot prefix costs no writes, and a block may be forgotten early
//! by one epoch, never more.

use std::collections::HashMap;
use std::sync::Mutex;

use dataplane::digest::Digest;
use dataplane::route::holders::{Cursor, Holder, Holders};
use dataplane::route::worker_cache::WorkerCache;
use foldhash::fast::RandomState;

/// Locks over the map; a lookup holds one for the time of one probe.
const STRIPES: usize = 64;
/// A stripe has room for so many blocks, however small the index.
const STRIPE_BLOCKS_MIN: usize = 16;

/// Digests are hashes already, of prompts that anybody may choose: mixed with a secret is enough.
type Stripe = HashMap<u128, Holders, RandomState>;

/// How far a worker matches a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Leading blocks believed to be there.
    pub blocks: usize,
    /// Age of the deepest of them on the worker's clock.
    pub age_blocks: u64,
}

/// The search for the depth of one worker's match: it lies in `low..=high`, and `low` is 1 or more.
struct Search<'a> {
    /// Its place among those asked.
    at: usize,
    cache: &'a WorkerCache,
    low: usize,
    high: usize,
    age_blocks: u64,
}

impl Search<'_> {
    /// The block to look at next; `None` when the depth is known. A prompt sent again shares all: after
    /// the first block the last is asked.
    fn probe(&self, blocks: usize) -> Option<usize> {
        (self.low < self.high).then(|| match (self.low, self.high) {
            (1, high) if high == blocks => blocks - 1,
            (low, high) => low + (high - low) / 2,
        })
    }

    /// Takes what was found of the block at `probe`: its age, if it is believed to be there.
    fn learn(&mut self, probe: usize, age_blocks: Option<u64>) {
        match age_blocks {
            Some(age_blocks) if probe >= self.low && probe < self.high => {
                self.low = probe + 1;
                self.age_blocks = age_blocks;
            }
            Some(_) => {}
            None => self.high = self.high.min(probe).max(self.low),
        }
    }
}

/// The map of all blocks.
pub struct PrefixIndex {
    stripes: Vec<Mutex<Stripe>>,
    stripe_blocks_max: usize,
}

impl PrefixIndex {
    /// An index that remembers at most about `blocks_max` blocks.
    pub fn new(blocks_max: usize) -> Self {
        PrefixIndex {
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            stripe_blocks_max: (blocks_max / STRIPES).max(STRIPE_BLOCKS_MIN),
        }
    }

    fn stripe(&self, digest: u128) -> std::sync::MutexGuard<'_, Stripe> {
        // A panic while the lock is held ends the process, so poison is never seen.
        self.stripes[digest as usize % STRIPES].lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// How many leading blocks of `digests` the worker is believed to hold.
    pub fn depth(&self, digests: &[Digest], worker: &WorkerCache) -> Match {
        self.depths(digests, &[Some(worker)])[0]
    }

    /// [`PrefixIndex::depth`] of each worker, in their order; no match for those left out (`None`).
    pub fn depths(&self, digests: &[Digest], workers: &[Option<&WorkerCache>]) -> Vec<Match> {
        let mut matches = vec![Match::default(); workers.len()];
        let mut open = self.begin(digests, workers);
        // Any search's next probe will do: what it finds narrows the others too.
        while let Some(probe) = open.iter().find_map(|search| search.probe(digests.len())) {
            let digest = digests[probe].short();
            let stripe = self.stripe(digest);
            let holders = stripe.get(&digest);
            let mut cursor = Cursor::default();
            for search in &mut open {
                let number = search.cache.number();
                let used_at = holders.and_then(|holders| holders.next_at(number, &mut cursor));
                let age_blocks = used_at.and_then(|used_at| search.cache.age_if_believed(used_at));
                search.learn(probe, age_blocks);
            }
        }
        for search in open {
            matches[search.at] = Match { blocks: search.low, age_blocks: search.age_blocks };
        }
        matches
    }

    /// Those who have the first block. Most prompts share nothing with most workers.
    fn begin<'a>(
        &self,
        digests: &[Digest],
        workers: &[Option<&'a WorkerCache>],
    ) -> Vec<Search<'a>> {
        let Some(first) = digests.first().map(Digest::short) else { return Vec::new() };
        let stripe = self.stripe(first);
        let Some(holders) = stripe.get(&first) else { return Vec::new() };
        let mut cursor = Cursor::default();
        let search = |(at, worker): (usize, &Option<&'a WorkerCache>)| {
            let cache = (*worker)?;
            let used_at = holders.next_at(cache.number(), &mut cursor)?;
            let age_blocks = cache.age_if_believed(used_at)?;
            Some(Search { at, cache, low: 1, high: digests.len(), age_blocks })
        };
        workers.iter().enumerate().filter_map(search).collect()
    }

    /// Counts `digests` as used at the worker now; `matched` says which were believed to be there.
    pub fn insert(&self, digests: &[Digest], matched: Match, worker: &WorkerCache) {
        let (known, new) = digests.split_at(matched.blocks.min(digests.len()));
        let used_at = worker.pass(new.len() as u64);
        let holder = Holder { worker: worker.number(), used_at };
        for digest in new {
            self.note(digest.short(), holder, None);
        }
        let epoch_log2 = worker.epoch_log2();
        for digest in known.iter().rev() {
            if !self.note(digest.short(), holder, Some(epoch_log2)) {
                break;
            }
        }
    }

    /// Notes one use, unless the worker's use of the block was noted in this epoch already.
    fn note(&self, digest: u128, holder: Holder, epoch_log2: Option<u32>) -> bool {
        let mut stripe = self.stripe(digest);
        if let Some(holders) = stripe.get_mut(&digest) {
            let noted = epoch_log2.zip(holders.used_at(holder.worker));
            if noted.is_some_and(|(log2, before)| before >> log2 >= holder.used_at >> log2) {
                return false;
            }
            holders.note(holder);
            return true;
        }
        if stripe.len() >= self.stripe_blocks_max {
            shed(&mut stripe, self.stripe_blocks_max);
        }
        if stripe.len() == stripe.capacity() {
            grow(&mut stripe, self.stripe_blocks_max);
        }
        stripe.insert(digest, Holders::new(holder));
        true
    }

    /// Blocks there is room for without more memory.
    #[cfg(test)]
    fn room(&self) -> usize {
        self.stripes.iter().map(|stripe| stripe.lock().unwrap().capacity()).sum()
    }

    /// Drops everything of workers that are gone for good.
    pub fn remove_workers(&self, gone: &[u32]) {
        for stripe in &self.stripes {
            let mut stripe = stripe.lock().unwrap_or_else(|poison| poison.into_inner());
            stripe.retain(|_, holders| holders.retain(|holder| !gone.contains(&holder.worker)));
        }
    }

    /// Blocks remembered.
    pub fn len(&self) -> usize {
        let count = |stripe: &Mutex<Stripe>| {
            stripe.lock().unwrap_or_else(|poison| poison.into_inner()).len()
        };
        self.stripes.iter().map(count).sum()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Gives a stripe without free places a new table, of twice its blocks and of no more than the limit.
///
/// Left to itself, a table that is more than half full of blocks doubles when the marks of removed ones
/// use up its places, and so ends at twice the memory the limit stands for.
fn grow(stripe: &mut Stripe, blocks_max: usize) {
    let room = (2 * stripe.len()).clamp(STRIPE_BLOCKS_MIN, blocks_max);
    let mut larger = Stripe::with_capacity_and_hasher(room, RandomState::default());
    larger.extend(stripe.drain());
    *stripe = larger;
}

/// Makes room in a full stripe: drops the older half of each worker's uses.
///
/// Costs one pass over the stripe and frees half of it, so the cost per insert stays constant.
fn shed(stripe: &mut Stripe, blocks_max: usize) {
    let mut uses: HashMap<u32, Vec<u64>> = HashMap::new();
    for holder in stripe.values().flat_map(Holders::iter) {
        uses.entry(holder.worker).or_default().push(holder.used_at);
    }
    let median: HashMap<u32, u64> = uses
        .into_iter()
        .map(|(worker, mut times)| {
            let middle = times.len() / 2;
            (worker, *times.select_nth_unstable(middle).1)
        })
        .collect();
    stripe.retain(|_, holders| holders.retain(|holder| holder.used_at > median[&holder.worker]));
    if stripe.len() >= blocks_max {
        stripe.clear();
    }
}

#[cfg(test)]
mod tests {
    use dataplane::digest::{Unit, of_tokens, seed};
    use dataplane::route::worker_cache::WORKER_BLOCKS_MIN;
    use proptest::prelude::*;

    use super::*;

    fn chain(tokens: &[u32]) -> Vec<Digest> {
        of_tokens(&seed(Unit::Tokens, "m", "", ""), tokens, 1)
    }

    fn route(index: &PrefixIndex, worker: &WorkerCache, tokens: &[u32]) -> usize {
        let digests = chain(tokens);
        let matched = index.depth(&digests, worker);
        index.insert(&digests, matched, worker);
        matched.blocks
    }

    #[test]
    fn what_was_routed_is_found_and_only_there() {
        let index = PrefixIndex::new(1 << 12);
        let (a, b) = (WorkerCache::new(0, 1_000), WorkerCache::new(1, 1_000));
        assert_eq!(route(&index, &a, &[1, 2, 3]), 0);
        assert_eq!(index.depth(&chain(&[1, 2, 3, 4]), &a).blocks, 3);
        assert_eq!(index.depth(&chain(&[1, 2, 9]), &a).blocks, 2);
        assert_eq!(index.depth(&chain(&[1, 2, 3]), &b).blocks, 0);
    }

    #[test]
    fn a_restart_forgets_and_learns_again() {
        let index = PrefixIndex::new(1 << 12);
        let worker = WorkerCache::new(0, 1_000);
        route(&index, &worker, &[1, 2]);
        worker.clear();
        assert_eq!(index.depth(&chain(&[1, 2]), &worker).blocks, 0);
        assert_eq!(worker.free_share(), 1.0);
        route(&index, &worker, &[1, 2]);
        assert_eq!(index.depth(&chain(&[1, 2]), &worker).blocks, 2);
    }

    #[test]
    fn what_lies_beyond_the_capacity_is_not_believed() {
        let index = PrefixIndex::new(1 << 12);
        let worker = WorkerCache::new(0, WORKER_BLOCKS_MIN);
        route(&index, &worker, &[7]);
        let others: Vec<u32> = (1_000..1_000 + WORKER_BLOCKS_MIN as u32).collect();
        route(&index, &worker, &others);
        assert_eq!(index.depth(&chain(&[7]), &worker).blocks, 1);
        route(&index, &worker, &[5_000]);
        assert_eq!(index.depth(&chain(&[7]), &worker).blocks, 0);
    }

    /// Its last block was always noted a moment ago, its first one long ago if nobody looked further.
    #[test]
    fn a_conversation_in_constant_use_keeps_its_beginning() {
        let index = PrefixIndex::new(1 << 12);
        let worker = WorkerCache::new(0, WORKER_BLOCKS_MIN);
        let others = 1_000..1_000 + WORKER_BLOCKS_MIN as u32 / 2;
        for (turn, other) in (1..).zip(others) {
            let matched = route(&index, &worker, &(0..turn).collect::<Vec<_>>());
            assert_eq!(matched, turn as usize - 1);
            route(&index, &worker, &[other]);
            route(&index, &worker, &[other + 10_000]);
        }
    }

    #[test]
    fn removed_workers_leave_nothing() {
        let index = PrefixIndex::new(1 << 12);
        let worker = WorkerCache::new(3, 1_000);
        route(&index, &worker, &[1, 2, 3]);
        index.remove_workers(&[3]);
        assert!(index.is_empty());
    }

    /// However many blocks come and go, memory stays that of the limit.
    #[test]
    fn a_full_index_takes_no_more_memory() {
        let index = PrefixIndex::new(STRIPES * 100);
        let worker = WorkerCache::new(0, 1 << 20);
        let room = Stripe::with_capacity_and_hasher(100, RandomState::default()).capacity();
        for turn in 0..2_000 {
            let tokens: Vec<u32> = (turn * 64..turn * 64 + 64).collect();
            route(&index, &worker, &tokens);
            assert!(index.room() <= STRIPES * room);
        }
    }

    proptest! {
        /// Against a naive LRU-free model with room for everything: the longest common prefix with
        /// anything routed to that worker.
        #[test]
        fn with_room_for_all_the_depth_is_the_longest_common_prefix(
            routed in prop::collection::vec((0u32..3, prop::collection::vec(0u32..3, 1..8)), 0..40),
            query in prop::collection::vec(0u32..3, 0..8),
        ) {
            let index = PrefixIndex::new(1 << 16);
            let workers: Vec<_> = (0..3).map(|n| WorkerCache::new(n, 1 << 20)).collect();
            for (worker, tokens) in &routed {
                route(&index, &workers[*worker as usize], tokens);
            }
            for (number, worker) in (0u32..).zip(&workers) {
                let naive = routed.iter().filter(|(w, _)| *w == number)
                    .map(|(_, t)| t.iter().zip(&query).take_while(|(a, b)| a == b).count())
                    .max().unwrap_or(0);
                prop_assert_eq!(index.depth(&chain(&query), worker).blocks, naive);
            }
        }

        /// Against a model that notes each use of each block at once: what the index says lies between
        /// the model's answer and its answer for a cache that is smaller by one epoch.
        #[test]
        fn noting_uses_once_per_epoch_forgets_at_most_an_epoch_early(
            capacity in WORKER_BLOCKS_MIN..200,
            routed in prop::collection::vec((0u32..6, 1u32..24, 0u32..3), 1..300),
        ) {
            let index = PrefixIndex::new(1 << 16);
            let worker = WorkerCache::new(0, capacity);
            let mut used_at: HashMap<Digest, u64> = HashMap::new();
            for (root, length, tail) in routed {
                let tokens: Vec<u32> =
                    (0..length).map(|i| if i < 12 { root * 100 } else { tail }).collect();
                let digests = chain(&tokens);
                let now = worker.now();
                let naive = |capacity: u64| {
                    let is_there = |digest: &&Digest| {
                        used_at.get(*digest).is_some_and(|at| now - at <= capacity)
                    };
                    digests.iter().take_while(is_there).count()
                };
                let matched = index.depth(&digests, &worker);
                prop_assert!(matched.blocks <= naive(capacity));
                prop_assert!(matched.blocks >= naive(capacity - (1 << worker.epoch_log2())));
                index.insert(&digests, matched, &worker);
                let now = worker.now();
                used_at.extend(digests.into_iter().map(|digest| (digest, now)));
            }
        }

        /// One search for all workers finds what a search for each finds.
        #[test]
        fn depths_are_the_depth_of_each(
            routed in prop::collection::vec((0u32..4, prop::collection::vec(0u32..2, 1..12)), 0..40),
            query in prop::collection::vec(0u32..2, 0..12),
            left_out in 0usize..4,
        ) {
            let index = PrefixIndex::new(1 << 16);
            let workers: Vec<_> = (0..4).map(|n| WorkerCache::new(n, 1 << 20)).collect();
            for (worker, tokens) in &routed {
                route(&index, &workers[*worker as usize], tokens);
            }
            let mut asked: Vec<_> = workers.iter().map(Some).collect();
            asked[left_out] = None;
            let together = index.depths(&chain(&query), &asked);
            for (worker, found) in asked.iter().zip(together) {
                let alone = worker.map(|worker| index.depth(&chain(&query), worker));
                prop_assert_eq!(found, alone.unwrap_or_default());
            }
        }

        #[test]
        fn the_index_never_outgrows_its_limit(
            routed in prop::collection::vec(prop::collection::vec(any::<u32>(), 1..64), 0..200),
        ) {
            let limit = STRIPES * 16;
            let index = PrefixIndex::new(limit);
            let worker = WorkerCache::new(0, 1 << 20);
            for tokens in &routed {
                route(&index, &worker, tokens);
                prop_assert!(index.len() <= limit);
            }
        }
    }
}
