//! What was routed a moment ago and is not in its engine's events yet (predict on route).
//!
//! For engines that tell what they hold: two requests with one new prefix must not go to two workers
//! only because the first one's blocks are still being computed. A block counts as there from the
//! moment it was routed until the engine says that it has it or has it not, until the engine starts
//! anew, or until its time is over. So the map holds little more than what is being computed.
//!
//! What the events say already is not noted again. A lookup therefore begins, for each worker, where its
//! events end, and finds how much further predictions go: a run of blocks, so a binary search.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use foldhash::fast::RandomState;

use super::holders::{Holder, Holders};
use crate::digest::Digest;

/// Locks over the map; one is held for the time of one probe.
const STRIPES: usize = 64;
/// Blocks predicted at a time. What is being computed: 4,096 prompts of 65,536 tokens in blocks of 16,
/// a quarter of each new, and some 80 MB. What is above is not predicted.
pub const BLOCKS_MAX: usize = 1 << 22;

type Stripe = HashMap<u128, Holders, RandomState>;

/// One worker, as a lookup asks about it.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Its number in the index.
    pub worker: u32,
    /// What was predicted before, on the cluster's clock, is void.
    pub since_ms: u64,
    /// Leading blocks that it is known to have.
    pub from: usize,
}

/// All predictions.
pub struct Predictions {
    stripes: Vec<Mutex<Stripe>>,
    stripe_blocks_max: usize,
    ttl_ms: u64,
    /// Blocks in all stripes: events of an idle router need not look.
    blocks: AtomicUsize,
}

impl Predictions {
    /// None yet; each counts for `ttl_ms`.
    pub fn new(blocks_max: usize, ttl_ms: u64) -> Self {
        Predictions {
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            stripe_blocks_max: blocks_max.div_ceil(STRIPES),
            ttl_ms,
            blocks: AtomicUsize::new(0),
        }
    }

    fn stripe(&self, digest: u128) -> MutexGuard<'_, Stripe> {
        // A panic while the lock is held ends the process, so poison is never seen.
        self.stripes[digest as usize % STRIPES].lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Calls `deeper` for each of those `asked`, by its place among them, that is predicted to have more
    /// leading blocks of `digests` than it is known to have: with how many.
    pub fn depths(
        &self,
        digests: &[Digest],
        now_ms: u64,
        asked: impl Iterator<Item = Asked>,
        mut deeper: impl FnMut(usize, usize),
    ) {
        if self.is_empty() {
            return;
        }
        // Most workers' events end at the same few places, and behind most of those nobody is
        // predicted: each such place is looked at once.
        let mut is_bare = vec![false; digests.len()];
        let mut rest = asked.enumerate().peekable();
        while let Some(from) = rest.peek().map(|(_, asked)| asked.from) {
            let Some(digest) = digests.get(from) else {
                rest.next();
                continue;
            };
            let found = if is_bare[from] { None } else { self.holders(digest.short()) };
            is_bare[from] = found.is_none();
            while let Some((at, asked)) = rest.next_if(|(_, asked)| asked.from == from) {
                let made_ms = found.as_ref().and_then(|holders| holders.used_at(asked.worker));
                if made_ms.is_some_and(|made_ms| self.counts(made_ms, now_ms, &asked)) {
                    deeper(at, self.end(digests, now_ms, &asked));
                }
            }
        }
    }

    fn holders(&self, digest: u128) -> Option<Holders> {
        self.stripe(digest).get(&digest).cloned()
    }

    fn counts(&self, made_ms: u64, now_ms: u64, asked: &Asked) -> bool {
        made_ms >= asked.since_ms && now_ms.saturating_sub(made_ms) <= self.ttl_ms
    }

    /// Where the run ends that begins at `asked.from`.
    fn end(&self, digests: &[Digest], now_ms: u64, asked: &Asked) -> usize {
        let is_there = |digest: &Digest| {
            let digest = digest.short();
            let stripe = self.stripe(digest);
            let made_ms = stripe.get(&digest).and_then(|holders| holders.used_at(asked.worker));
            made_ms.is_some_and(|made_ms| self.counts(made_ms, now_ms, asked))
        };
        let behind = &digests[asked.from + 1..];
        asked.from + 1 + behind.partition_point(is_there)
    }

    /// These are at the worker or will be soon.
    pub fn note(&self, digests: &[Digest], worker: u32, now_ms: u64) {
        let holder = Holder { worker, used_at: now_ms };
        for digest in digests {
            let digest = digest.short();
            let mut stripe = self.stripe(digest);
            if let Some(holders) = stripe.get_mut(&digest) {
                holders.note(holder);
                continue;
            }
            if stripe.len() >= self.stripe_blocks_max {
                self.shed(&mut stripe, now_ms, &[]);
            }
            if stripe.len() < self.stripe_blocks_max {
                stripe.insert(digest, Holders::new(holder));
                self.blocks.fetch_add(1, Relaxed);
            }
        }
    }

    fn shed(&self, stripe: &mut Stripe, now_ms: u64, gone: &[u32]) {
        let before = stripe.len();
        stripe.retain(|_, holders| {
            holders.retain(|holder| {
                let is_over = now_ms.saturating_sub(holder.used_at) > self.ttl_ms;
                !is_over && !gone.contains(&holder.worker)
            })
        });
        self.blocks.fetch_sub(before - stripe.len(), Relaxed);
    }

    /// The worker's engine has spoken of these: what was predicted of them is over.
    pub fn settle(&self, digests: &[u128], worker: u32) {
        if self.is_empty() {
            return;
        }
        for digest in digests {
            let mut stripe = self.stripe(*digest);
            if let Some(holders) = stripe.get_mut(digest)
                && !holders.retain(|holder| holder.worker != worker)
            {
                stripe.remove(digest);
                self.blocks.fetch_sub(1, Relaxed);
            }
        }
    }

    /// Drops what is over, and everything of workers that are `gone` for good.
    pub fn sweep(&self, now_ms: u64, gone: &[u32]) {
        for stripe in &self.stripes {
            let mut stripe = stripe.lock().unwrap_or_else(|poison| poison.into_inner());
            self.shed(&mut stripe, now_ms, gone);
        }
    }

    /// Blocks predicted.
    pub fn len(&self) -> usize {
        self.blocks.load(Relaxed)
    }

    /// Whether nothing is predicted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::digest::{Unit, of_tokens, seed};

    const TTL_MS: u64 = 1_000;

    fn chain(tokens: &[u32]) -> Vec<Digest> {
        of_tokens(&seed(Unit::Tokens, "m", "", ""), tokens, 1)
    }

    fn depths(
        predictions: &Predictions,
        digests: &[Digest],
        now_ms: u64,
        asked: &[Asked],
    ) -> Vec<usize> {
        let mut depths: Vec<usize> = asked.iter().map(|asked| asked.from).collect();
        predictions.depths(digests, now_ms, asked.iter().copied(), |at, depth| depths[at] = depth);
        depths
    }

    fn depth(predictions: &Predictions, tokens: &[u32], from: usize, now_ms: u64) -> usize {
        let asked = Asked { worker: 0, since_ms: 0, from };
        depths(predictions, &chain(tokens), now_ms, &[asked])[0]
    }

    #[test]
    fn a_prediction_ends_with_its_time_or_with_the_engines_word() {
        let predictions = Predictions::new(BLOCKS_MAX, TTL_MS);
        let digests = chain(&[1, 2, 3]);
        predictions.note(&digests, 0, 5_000);
        assert_eq!(depth(&predictions, &[1, 2, 3, 4], 0, 6_000), 3);
        assert_eq!(depth(&predictions, &[1, 2, 3, 4], 2, 6_000), 3);
        assert_eq!(depth(&predictions, &[1, 2, 3, 4], 4, 6_000), 4);
        predictions.settle(&[digests[1].short(), digests[2].short(), 7], 0);
        assert_eq!(depth(&predictions, &[1, 2, 3], 0, 6_000), 1);
        assert_eq!(depth(&predictions, &[1, 2, 3], 0, 6_001), 0);
        predictions.sweep(6_001, &[]);
        assert!(predictions.is_empty());
    }

    #[test]
    fn an_engine_started_anew_is_predicted_nothing_of_before() {
        let predictions = Predictions::new(BLOCKS_MAX, TTL_MS);
        predictions.note(&chain(&[1, 2]), 0, 100);
        let asked = |since_ms| Asked { worker: 0, since_ms, from: 0 };
        let found = depths(&predictions, &chain(&[1, 2]), 200, &[asked(100), asked(101)]);
        assert_eq!(found, [2, 0]);
    }

    #[test]
    fn it_stays_within_its_limit_and_makes_room_from_what_is_over() {
        let predictions = Predictions::new(STRIPES, TTL_MS);
        predictions.note(&chain(&(0..1_000).collect::<Vec<_>>()), 0, 1);
        assert!(predictions.len() <= STRIPES);
        predictions.note(&chain(&[5_000]), 1, TTL_MS + 2);
        assert!(depth(&predictions, &[0], 0, TTL_MS) <= 1);
        let asked = Asked { worker: 1, since_ms: 0, from: 0 };
        assert_eq!(depths(&predictions, &chain(&[5_000]), TTL_MS + 2, &[asked]), [1]);
    }

    #[test]
    fn workers_that_left_leave_nothing() {
        let predictions = Predictions::new(BLOCKS_MAX, TTL_MS);
        predictions.note(&chain(&[1, 2]), 3, 1);
        predictions.note(&chain(&[1]), 4, 1);
        predictions.sweep(1, &[3]);
        assert_eq!(predictions.len(), 1);
    }

    proptest! {
        /// Against a list of all that was noted, of which what the engine spoke of was crossed out.
        #[test]
        fn depths_are_those_of_a_list(
            noted in prop::collection::vec(
                (0u32..4, 0u64..3, prop::collection::vec(0u32..2, 1..10)), 0..40),
            settled in prop::collection::vec((0u32..4, prop::collection::vec(0u32..2, 1..10)), 0..6),
            query in prop::collection::vec(0u32..2, 0..12),
            from in prop::collection::vec(0usize..6, 4),
        ) {
            let predictions = Predictions::new(BLOCKS_MAX, TTL_MS);
            let now_ms = 2 * TTL_MS;
            let mut list: Vec<(u32, u128)> = Vec::new();
            for (worker, age, tokens) in &noted {
                let made_ms = now_ms - age * TTL_MS / 2 - 1;
                predictions.note(&chain(tokens), *worker, made_ms);
                if now_ms - made_ms <= TTL_MS {
                    list.extend(chain(tokens).iter().map(|digest| (*worker, digest.short())));
                }
            }
            // With a block all behind it is spoken of, as an engine does.
            for (worker, tokens) in &settled {
                let gone: Vec<u128> = noted.iter()
                    .filter(|(w, _, other)| w == worker && other.starts_with(tokens))
                    .flat_map(|(_, _, other)| chain(other)[tokens.len() - 1..].to_vec())
                    .map(|digest| digest.short())
                    .collect();
                predictions.settle(&gone, *worker);
                list.retain(|(w, digest)| w != worker || !gone.contains(digest));
            }
            let digests = chain(&query);
            let asked: Vec<Asked> = (0..4)
                .map(|worker| Asked {
                    worker,
                    since_ms: 0,
                    from: from[worker as usize].min(query.len()),
                })
                .collect();
            let found = depths(&predictions, &digests, now_ms, &asked);
            for (asked, found) in asked.iter().zip(found) {
                let behind = digests[asked.from..].iter();
                let is_there = |digest: &&Digest| list.contains(&(asked.worker, digest.short()));
                prop_assert_eq!(found, asked.from + behind.take_while(is_there).count());
            }
        }
    }
}
