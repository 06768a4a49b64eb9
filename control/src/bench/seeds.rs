//! The same comparison over several seeds: what of a figure is the policy's, and what is luck.
//!
//! A seed decides ties, and one tie that falls otherwise changes all that comes after. So figures are
//! given as the least, the median and the most; ratios are taken within each seed.

use std::collections::BTreeMap;

use dataplane::route::index::LimitsError;
use serde::Serialize;

use super::compare::{self, Comparison, Row};
use super::policy::Policy;
use super::replay::Setup;
use super::trace::Trace;

/// A run of more seeds says no more.
pub const SEEDS_MAX: usize = 100;

/// Least, median (the lower of two) and most of one figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Range {
    /// Of all seeds.
    pub least: f64,
    /// Half of the seeds gave no more.
    pub median: f64,
    /// Of all seeds.
    pub most: f64,
}

impl Range {
    /// `None` of no values.
    pub fn of(mut values: Vec<f64>) -> Option<Range> {
        values.sort_by(f64::total_cmp);
        let median = *values.get(values.len().saturating_sub(1) / 2)?;
        Some(Range { least: *values.first()?, median, most: *values.last()? })
    }
}

/// One policy over all seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ranges {
    /// Share of all blocks that were found.
    pub hit_ratio: Range,
    /// The same as a share of what one LRU of all workers' size finds.
    pub hit_of_pooled: Range,
    /// In ms.
    pub ttft_mean_ms: Range,
    /// In ms.
    pub ttft_p50_ms: Range,
    /// In ms.
    pub ttft_p99_ms: Range,
    /// Busiest worker over the mean.
    pub max_over_mean_load: Range,
    /// Mean over Dynamo's of the same seed, where that ran.
    pub ttft_mean_of_dynamo: Option<Range>,
    /// p99 over Dynamo's of the same seed, where that ran.
    pub ttft_p99_of_dynamo: Option<Range>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OverSeeds {
    /// Each seed's own answer, in order.
    pub seeds: Vec<Comparison>,
    /// By the policy's name.
    pub policies: BTreeMap<&'static str, Ranges>,
}

/// Compares with `count` seeds, from `setup.seed` up. `progress` is told how many requests are done.
///
/// # Errors
/// More workers or blocks than the router's index may have.
pub fn run(
    trace: &Trace,
    setup: &Setup,
    policies: &[Policy],
    count: usize,
    mut progress: impl FnMut(usize, Policy),
) -> Result<OverSeeds, LimitsError> {
    let mut seeds = Vec::new();
    for at in 0..count {
        let setup = Setup { seed: setup.seed.wrapping_add(at as u64), ..*setup };
        let before = at * policies.len() * trace.requests().len();
        seeds.push(compare::run(trace, &setup, policies, |done, policy| {
            progress(before + done, policy);
        })?);
    }
    let names = policies.iter().map(|policy| policy.as_str());
    let policies = names.filter_map(|name| Some((name, ranges(&seeds, name)?))).collect();
    Ok(OverSeeds { seeds, policies })
}

fn ranges(seeds: &[Comparison], name: &str) -> Option<Ranges> {
    let rows = || seeds.iter().filter_map(|one| one.policies.get(name));
    let range = |figure: fn(&Row) -> f64| Range::of(rows().map(figure).collect());
    let of_dynamo = |figure: fn(&Row) -> f64| {
        let dynamos = seeds.iter().filter_map(|one| one.policies.get("dynamo"));
        Range::of(rows().zip(dynamos).map(|(row, other)| figure(row) / figure(other)).collect())
    };
    let of_pooled = |row: &Row| row.outcome.hit_ratio / row.pooled_lru_hit_ratio.max(1e-9);
    Some(Ranges {
        hit_ratio: range(|row| row.outcome.hit_ratio)?,
        hit_of_pooled: range(of_pooled)?,
        ttft_mean_ms: range(|row| row.outcome.ttft_mean_ms)?,
        ttft_p50_ms: range(|row| row.outcome.ttft_p50_ms)?,
        ttft_p99_ms: range(|row| row.outcome.ttft_p99_ms)?,
        max_over_mean_load: range(|row| row.outcome.max_over_mean_load)?,
        ttft_mean_of_dynamo: of_dynamo(|row| row.outcome.ttft_mean_ms),
        ttft_p99_of_dynamo: of_dynamo(|row| row.outcome.ttft_p99_ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_least_median_and_most() {
        let range = Range::of(vec![3.0, 1.0, 2.0]);
        assert_eq!(range, Some(Range { least: 1.0, median: 2.0, most: 3.0 }));
        assert_eq!(Range::of(vec![2.0, 1.0]).map(|range| range.median), Some(1.0));
        assert_eq!(Range::of(Vec::new()), None);
    }
}
