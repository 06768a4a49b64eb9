//! Several policies on one trace: what `cgnctl bench replay` answers.

use std::collections::BTreeMap;

use dataplane::route::index::LimitsError;
use serde::Serialize;

use super::outcome::Outcome;
use super::policy::Policy;
use super::pooled::Pooled;
use super::replay::{self, Setup};
use super::trace::Trace;

/// One policy's figures, with those of the trace beside them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What the run came to.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// A cache without end would find this share of the blocks.
    pub ideal_hit_ratio: f64,
    /// One LRU as large as all workers' caches together finds this share.
    pub pooled_lru_hit_ratio: f64,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Requests replayed.
    pub requests: usize,
    /// Different blocks in the trace.
    pub unique_blocks: usize,
    /// Workers.
    pub workers: usize,
    /// Blocks in each worker's cache.
    pub cache_blocks: usize,
    /// Share of the workers' time that the work at the pooled hit ratio fills.
    pub load: f64,
    /// For ties and hashes.
    pub seed: u64,
    /// Whether a KV daemon fetched from other workers.
    pub peer_fetch: bool,
    /// By what the trace's times were divided.
    pub time_compressed_by: f64,
    /// By the policy's name.
    pub policies: BTreeMap<&'static str, Row>,
}

/// Runs each policy; `setup.policy` does not matter. `progress` is told how many requests are done, over
/// all policies.
///
/// # Errors
/// More workers or blocks than the router's index may have.
pub fn run(
    trace: &Trace,
    setup: &Setup,
    policies: &[Policy],
    mut progress: impl FnMut(usize, Policy),
) -> Result<Comparison, LimitsError> {
    let pooled = Pooled::of(trace, setup.cache_blocks.saturating_mul(setup.workers), &setup.model);
    let requests = trace.requests().len();
    let mut rows = BTreeMap::new();
    for (at, &policy) in policies.iter().enumerate() {
        let setup = Setup { policy, ..*setup };
        let outcome = replay::run(trace, &pooled, &setup, |done| {
            progress(at * requests + done, policy);
        })?;
        let row = Row {
            outcome,
            ideal_hit_ratio: pooled.ideal_hit_ratio,
            pooled_lru_hit_ratio: pooled.hit_ratio,
        };
        rows.insert(policy.as_str(), row);
    }
    Ok(Comparison {
        requests,
        unique_blocks: trace.unique_blocks(),
        workers: setup.workers,
        cache_blocks: setup.cache_blocks,
        load: setup.load,
        seed: setup.seed,
        peer_fetch: setup.model.peer_fetch,
        time_compressed_by: 1.0 / pooled.compression(trace, setup).max(1e-12),
        policies: rows,
    })
}
