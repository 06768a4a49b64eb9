//! The cheapest cluster that meets a target: replicas × topology × weights, each tried in simulation.
//!
//! Two topologies:
//!
//! * *aggregated*: every worker prefills and decodes, as in a replay;
//! * *split*: some workers prefill only, the rest decode only. Prefill workers then lose no time to
//!   decoding, a request's KV crosses the wire before its first token (128 KiB a token at 5 GB/s), and
//!   there must be enough decode workers for the decoding of the whole trace at [`DECODE_LOAD_MAX`].
//!
//! Time is not compressed: the trace's own rate, or that times a factor, is what must be served. What is
//! searched is small and each run takes well under a second, so every point is tried, fewest workers first.

use dataplane::route::index::LimitsError;
use dataplane::wire::ScoreWeights;
use serde::Serialize;

use super::engine::Model;
use super::outcome::Outcome;
use super::policy::Policy;
use super::pooled::Pooled;
use super::replay::{self, Setup};
use super::trace::Trace;

/// Decode workers are filled no further than this: beyond it the time between tokens suffers.
pub const DECODE_LOAD_MAX: f64 = 0.8;
/// Clusters are tried up to so many workers.
pub const WORKERS_MAX: usize = 1_024;

/// Weights that are tried, by name.
pub const WEIGHTS: [(&str, ScoreWeights); 3] = [
    ("default", ScoreWeights { kv: 0.55, load: 0.25, power: 0.10, capacity: 0.10 }),
    ("load", ScoreWeights { kv: 0.40, load: 0.40, power: 0.10, capacity: 0.10 }),
    ("cache", ScoreWeights { kv: 0.70, load: 0.15, power: 0.05, capacity: 0.10 }),
];

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Time to the first token, in ms.
    pub ttft_ms: f64,
    /// For this share of the requests: 0.99 for p99.
    pub share: f64,
    /// Workers at most.
    pub workers_max: usize,
    /// The trace's rate is multiplied by this.
    pub rate: f64,
}

/// How a cluster is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "topology")]
pub enum Topology {
    /// Every worker does both.
    Aggregated,
    /// Some prefill, the others decode.
    Split {
        /// Workers that prefill.
        prefill: usize,
        /// Workers that decode.
        decode: usize,
    },
}

/// One point that was tried.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Workers in all.
    pub workers: usize,
    /// What they do.
    #[serde(flatten)]
    pub topology: Topology,
    /// Name of the weights.
    pub weights: &'static str,
    /// The target's quantile, in ms.
    pub ttft_ms: f64,
    /// Mean, in ms.
    pub ttft_mean_ms: f64,
    /// Share of blocks found.
    pub hit_ratio: f64,
    /// Whether it meets the target.
    pub meets: bool,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The cheapest that meets the target: fewest workers, then the lowest time to the first token.
    pub best: Option<Point>,
    /// Everything that was tried, in order.
    pub tried: Vec<Point>,
}

/// Searches. `setup` gives cache, seed and model; `progress` is told how many workers are being tried.
///
/// # Errors
/// More workers or blocks than the router's index may have.
pub fn search(
    trace: &Trace,
    setup: &Setup,
    target: &Target,
    mut progress: impl FnMut(usize),
) -> Result<Plan, LimitsError> {
    let (mut tried, mut best) = (Vec::new(), None);
    let workers_max = target.workers_max.min(WORKERS_MAX);
    let mut workers = least_workers(trace, setup, target).min(workers_max);
    while best.is_none() && workers <= workers_max {
        progress(workers);
        let from = tried.len();
        for topology in topologies(trace, &setup.model, target, workers) {
            for weights in WEIGHTS {
                tried.push(try_point(trace, setup, target, (workers, topology), weights)?);
            }
        }
        let by_time = |a: &&Point, b: &&Point| a.ttft_ms.total_cmp(&b.ttft_ms);
        best = tried[from..].iter().filter(|point| point.meets).min_by(by_time).cloned();
        workers += 1;
    }
    Ok(Plan { best, tried })
}

/// Fewer cannot keep up even with one endless cache.
fn least_workers(trace: &Trace, setup: &Setup, target: &Target) -> usize {
    let ideal = Pooled::of(trace, trace.unique_blocks(), &setup.model);
    (ideal.work_ms / (span_ms(trace) / target.rate).max(1.0)).ceil().max(1.0) as usize
}

fn span_ms(trace: &Trace) -> f64 {
    let requests = trace.requests();
    let at = |end: Option<&super::trace::Request>| end.map_or(0.0, |request| request.arrival_ms);
    at(requests.last()) - at(requests.first())
}

fn topologies(trace: &Trace, model: &Model, target: &Target, workers: usize) -> Vec<Topology> {
    let decode_ms: f64 = trace
        .requests()
        .iter()
        .map(|request| {
            let answer_ms = f64::from(request.output_tokens) * model.answer_token_ms;
            answer_ms * model.decode_share(request.prompt_tokens)
        })
        .sum();
    let span_ms = (span_ms(trace) / target.rate).max(1.0);
    let decode = (decode_ms / span_ms / DECODE_LOAD_MAX).ceil().max(1.0) as usize;
    let split = Topology::Split { prefill: workers.saturating_sub(decode), decode };
    match workers > decode {
        true => vec![Topology::Aggregated, split],
        false => vec![Topology::Aggregated],
    }
}

fn try_point(
    trace: &Trace,
    setup: &Setup,
    target: &Target,
    (workers, topology): (usize, Topology),
    (name, weights): (&'static str, ScoreWeights),
) -> Result<Point, LimitsError> {
    let mut model = setup.model;
    let prefilling = match topology {
        Topology::Aggregated => workers,
        Topology::Split { prefill, .. } => {
            model.decodes_elsewhere = true;
            prefill
        }
    };
    let rules = dataplane::route::pick::Rules { weights, ..setup.rules };
    let setup = Setup { policy: Policy::Cognitora, workers: prefilling, model, rules, ..*setup };
    let outcome = replay::run_at(trace, &setup, 1.0 / target.rate, |_| {})?;
    let ttft_ms = super::outcome::quantile(&outcome.curves.ttft_ms, target.share);
    let Outcome { ttft_mean_ms, hit_ratio, .. } = outcome;
    let meets = ttft_ms <= target.ttft_ms;
    Ok(Point { workers, topology, weights: name, ttft_ms, ttft_mean_ms, hit_ratio, meets })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::synth::{self, Kind};

    fn planned(ttft_ms: f64, rate: f64) -> Plan {
        let trace = Trace::of(synth::lines(Kind::Chats, 1_500, 64, 3), 64).unwrap();
        let setup = Setup {
            policy: Policy::Cognitora,
            workers: 1,
            cache_blocks: 4_000,
            load: 1.0,
            seed: 1,
            model: Model::default(),
            rules: dataplane::route::pick::Rules::default(),
            dynamo: crate::bench::dynamo::Settings::default(),
        };
        let target = Target { ttft_ms, share: 0.99, workers_max: 12, rate };
        search(&trace, &setup, &target, |_| {}).unwrap()
    }

    #[test]
    fn the_best_is_the_first_size_that_meets_the_target() {
        let plan = planned(2_000.0, 30.0);
        let best = plan.best.unwrap();
        assert!(best.meets && best.ttft_ms <= 2_000.0);
        assert!(plan.tried.iter().all(|point| point.workers >= best.workers || !point.meets));
    }

    #[test]
    fn what_cannot_be_met_is_not_promised() {
        let plan = planned(0.001, 30.0);
        assert_eq!(plan.best, None);
        assert!(plan.tried.iter().any(|point| point.workers == 12));
    }

    #[test]
    fn more_traffic_takes_no_fewer_workers() {
        let workers = |rate| planned(3_000.0, rate).best.map_or(13, |best| best.workers);
        assert!(workers(10.0) <= workers(60.0));
    }
}
