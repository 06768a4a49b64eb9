//! What the router believes of the caches: its own index, told by events, and its own predictions.
//!
//! Both are the router's parts, [`Index`] and [`Predictions`], used as it uses them: what events say, and how
//! much further predictions go. There is no text here to take digests of, so
//! each of the trace's blocks gets one from its number: like a real one it names the block and all before.

use dataplane::digest::{self, Digest, Unit};
use dataplane::route::index::{
    Depths, Index, Level, Limits, LimitsError, WORKERS_MAX, WorkerNumber,
};
use dataplane::route::predictions::{Asked, BLOCKS_MAX, Predictions};
use dataplane::route::worker_cache::WorkerCache;

use super::cache::Change;

/// The digests of a trace's blocks, by their number.
pub fn digests(unique_blocks: usize) -> Vec<Digest> {
    let seed = digest::seed(Unit::Tokens, "trace", "", "");
    (0..unique_blocks as u64).map(|block| digest::chain(&seed, &block.to_le_bytes())).collect()
}

/// Which worker holds how much of a prompt, as far as the router can know.
pub struct Belief<'a> {
    digests: &'a [Digest],
    told: Index,
    predicted: Predictions,
    /// How full the workers' caches are, by what was given to them.
    fill: Vec<WorkerCache>,
    /// Working memory of a lookup.
    chain: Vec<Digest>,
    found: Depths,
    asked: Vec<Asked>,
    now_ms: u64,
}

impl<'a> Belief<'a> {
    /// Of so many workers with empty caches of `cache_blocks`; a prediction counts for `prediction_ms`.
    ///
    /// # Errors
    /// More workers or blocks than an index may have.
    pub fn new(
        digests: &'a [Digest],
        (workers, cache_blocks): (usize, usize),
        prediction_ms: f64,
        seed: u64,
    ) -> Result<Self, LimitsError> {
        let blocks_max = digests.len().min(workers.saturating_mul(cache_blocks)).max(1);
        let numbers = 0..u32::try_from(workers.min(WORKERS_MAX)).unwrap_or(u32::MAX);
        Ok(Belief {
            digests,
            told: Index::new(Limits { blocks_max, workers_max: workers }, seed)?,
            predicted: Predictions::new(BLOCKS_MAX, prediction_ms as u64),
            fill: numbers.map(|number| WorkerCache::new(number, cache_blocks as u64)).collect(),
            chain: Vec::new(),
            found: Depths::new(),
            asked: Vec::new(),
            now_ms: 0,
        })
    }

    /// For each worker, leading blocks believed to be there.
    pub fn depths(&mut self, blocks: &[u32], now_ms: f64, depths: &mut Vec<usize>) {
        self.chain.clear();
        self.chain.extend(blocks.iter().map(|block| self.digests[*block as usize]));
        // The router's clock begins at 1.
        self.now_ms = now_ms as u64;
        self.asked.clear();
        let nothing =
            |worker: &WorkerCache| Asked { worker: worker.number(), since_ms: 0, from: 0 };
        self.asked.extend(self.fill.iter().map(nothing));
        self.told.lookup(&self.chain, &mut self.found);
        for told in self.found.workers() {
            self.asked[told.worker.0 as usize].from = told.at(Level::Gpu) as usize;
        }
        depths.clear();
        depths.extend(self.asked.iter().map(|asked| asked.from));
        let asked = self.asked.iter().copied();
        self.predicted.depths(&self.chain, self.now_ms, asked, |at, depth| depths[at] = depth);
    }

    /// The prompt last asked for goes to `worker` now, which has `depth` blocks of it.
    pub fn predict(&mut self, worker: usize, depth: usize) {
        let Asked { worker: number, from, .. } = self.asked[worker];
        self.predicted.note(&self.chain[from..], number, self.now_ms);
        self.fill[worker].pass(self.chain.len().saturating_sub(depth) as u64);
    }

    /// A change of a worker's cache arrives, in its order.
    pub fn learn(&mut self, worker: usize, change: Change) {
        let number = WorkerNumber(self.fill[worker].number());
        match change {
            Change::Stored(block) => {
                let digest = self.digests[block as usize].short();
                self.told.set(number, Level::Gpu, &[digest]);
                self.predicted.settle(&[digest], number.0);
            }
            Change::Removed(block) => {
                let digest = self.digests[block as usize].short();
                self.told.remove(number, &[digest]);
                self.predicted.settle(&[digest], number.0);
            }
        }
    }

    /// Share of the worker's cache that was never filled, 0 to 1.
    pub fn free_share(&self, worker: usize) -> f64 {
        self.fill[worker].free_share()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::cache::Cache;
    use super::*;

    #[test]
    fn what_was_routed_counts_until_its_time_is_over_or_the_engine_says_otherwise() {
        let digests = digests(10);
        let mut belief = Belief::new(&digests, (2, 4), 1_000.0, 1).unwrap();
        let mut depths = Vec::new();
        belief.depths(&[1, 2, 3], 5_000.0, &mut depths);
        belief.predict(1, 0);
        belief.depths(&[1, 2, 9], 6_000.0, &mut depths);
        assert_eq!(depths, [0, 2]);
        belief.learn(1, Change::Stored(1));
        belief.depths(&[1, 2, 3], 7_000.0, &mut depths);
        assert_eq!(depths, [0, 1], "only what was confirmed");
        belief.learn(1, Change::Removed(1));
        belief.depths(&[1, 2, 3], 7_000.0, &mut depths);
        assert_eq!(depths, [0, 0]);
    }

    proptest! {
        /// Without predictions, what is believed once all events came is what the caches hold.
        #[test]
        fn told_all_it_is_what_the_caches_hold(
            uses in prop::collection::vec((0usize..3, 0u32..4, 1u32..9), 1..60),
            asked in (0u32..4, 1u32..9), capacity in 1usize..20,
        ) {
            let digests = digests(40);
            let blocks = |root: u32, length: u32| -> Vec<u32> { (0..length).map(|at| root * 10 + at).collect() };
            let mut belief = Belief::new(&digests, (3, capacity), 1.0, 7).unwrap();
            let mut caches: Vec<Cache> = (0..3).map(|_| Cache::new(capacity)).collect();
            for (worker, root, length) in uses {
                caches[worker].use_all(&blocks(root, length), |change| belief.learn(worker, change));
            }
            let mut depths = Vec::new();
            belief.depths(&blocks(asked.0, asked.1), 0.0, &mut depths);
            let held: Vec<usize> =
                caches.iter().map(|cache| cache.depth(&blocks(asked.0, asked.1))).collect();
            prop_assert_eq!(depths, held);
        }
    }
}
