//! What one run came to.

use serde::Serialize;

use super::engine::Started;

/// Points of a curve over time.
const SLICES: usize = 60;

/// The figures of one policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Share of all blocks that were found, in the worker's cache or fetched.
    pub hit_ratio: f64,
    /// Share found in the worker's own cache.
    pub gpu_hit_ratio: f64,
    /// Mean time to the first token, in ms.
    pub ttft_mean_ms: f64,
    /// Half of the requests took no longer, in ms.
    pub ttft_p50_ms: f64,
    /// 99 of 100 took no longer, in ms.
    pub ttft_p99_ms: f64,
    /// Engine time used by the busiest worker over that of the mean.
    pub max_over_mean_load: f64,
    /// Curves for the page.
    #[serde(skip)]
    pub curves: Curves,
}

/// What the page draws.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curves {
    /// Times to the first token, shortest first, in ms.
    pub ttft_ms: Vec<f64>,
    /// Hit ratio of the requests that arrived in each slice of the time; `None` where none did.
    pub hit_ratio: Vec<Option<f64>>,
    /// Engine time used by each worker, in ms.
    pub busy_ms: Vec<f64>,
}

/// Collects while a run goes on.
pub struct Tally {
    ttft_ms: Vec<f64>,
    blocks: usize,
    found: usize,
    cached: usize,
    slices: Vec<(usize, usize)>,
    span_ms: f64,
}

impl Tally {
    /// For `requests` that arrive within `span_ms`.
    pub fn new(requests: usize, span_ms: f64) -> Self {
        Tally {
            ttft_ms: Vec::with_capacity(requests),
            blocks: 0,
            found: 0,
            cached: 0,
            slices: vec![(0, 0); SLICES],
            span_ms,
        }
    }

    /// A prefill started for a request of so many blocks.
    pub fn started(&mut self, arrived_ms: f64, blocks: usize, started: Started) {
        self.blocks += blocks;
        self.found += started.found_blocks;
        self.cached += started.cached_blocks;
        let at = arrived_ms / self.span_ms.max(1.0) * SLICES as f64;
        let slice = &mut self.slices[(at as usize).min(SLICES - 1)];
        slice.0 += started.found_blocks;
        slice.1 += blocks;
    }

    /// A first token came after so long.
    pub fn first_token(&mut self, ttft_ms: f64) {
        self.ttft_ms.push(ttft_ms);
    }

    /// Sums up.
    pub fn finish(self, busy_ms: Vec<f64>) -> Outcome {
        let Tally { mut ttft_ms, blocks, found, cached, slices, .. } = self;
        ttft_ms.sort_by(f64::total_cmp);
        let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
        let mean_ms = busy_ms.iter().sum::<f64>() / busy_ms.len().max(1) as f64;
        Outcome {
            hit_ratio: share(found, blocks),
            gpu_hit_ratio: share(cached, blocks),
            ttft_mean_ms: ttft_ms.iter().sum::<f64>() / ttft_ms.len().max(1) as f64,
            ttft_p50_ms: quantile(&ttft_ms, 0.50),
            ttft_p99_ms: quantile(&ttft_ms, 0.99),
            max_over_mean_load: busy_ms.iter().copied().fold(0.0, f64::max) / mean_ms.max(1e-9),
            curves: Curves {
                ttft_ms,
                hit_ratio: slices
                    .iter()
                    .map(|(found, blocks)| (*blocks > 0).then(|| share(*found, *blocks)))
                    .collect(),
                busy_ms,
            },
        }
    }
}

/// The value that `share` of the sorted values do not exceed; 0 of none.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
}
