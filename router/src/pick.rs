//! Phase *pick*: `(candidates, weights, seed) → worker`. Pure: no I/O, no clock, replayable.
//!
//! ```text
//! score = kv · saved  +  load · (1 − inflight/slots)  +  power · (1 − watts/watts_max)  +  capacity · free
//! ```
//!
//! * `saved` is the share of the prompt already in the worker's cache, of at least
//!   [`KV_SCALE_TOKENS`] tokens: a short common preamble saves nothing worth a crowd.
//! * the load term falls below zero once requests queue, so a hot prefix spills to a second worker
//!   instead of waiting for the first (with the default weights: at about 3 requests per slot).
//! * a worker without a power reading is taken to draw as much as the thirstiest that has one.
//!
//! Scores within [`TIE_MARGIN`] of the best are a tie. Ties go to the least loaded, then to the
//! least recently chosen (so idle equal workers share exactly evenly), then to the seed.

use dataplane::wire::ScoreWeights;

/// Prompts shorter than this are scored as if they had this length.
pub const KV_SCALE_TOKENS: u64 = 512;
/// Scores this close are equal: 1/20 of the whole scale.
pub const TIE_MARGIN: f64 = 0.05;

/// What is known of one worker at the moment of the decision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Why it cannot be picked, if so.
    pub excluded: Option<Exclusion>,
    /// Tokens of the prompt believed to be in its cache.
    pub prefix_tokens: u64,
    /// Requests in flight to it.
    pub inflight: u32,
    /// Requests it works on at once; 1 or more.
    pub slots: u32,
    /// Requests given to it since the router started.
    pub picked: u64,
    /// Watts drawn, where measured.
    pub power_watts: Option<f32>,
    /// Free share of its KV cache, 0 to 1.
    pub cache_free: f64,
}

/// Why a worker cannot be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exclusion {
    /// Its engine does not serve this endpoint.
    NotCapable,
    /// Control or the probe says it is not ready.
    NotReady,
    /// It finishes what it has.
    Draining,
    /// It already failed this request.
    Tried,
    /// It failed too often lately.
    BreakerOpen,
    /// It is much worse than its peers.
    Ejected,
}

impl Exclusion {
    /// For the table of `route explain`.
    pub fn as_str(self) -> &'static str {
        match self {
            Exclusion::NotCapable => "does not serve this endpoint",
            Exclusion::NotReady => "not ready",
            Exclusion::Draining => "draining",
            Exclusion::Tried => "already failed this request",
            Exclusion::BreakerOpen => "its circuit breaker is open",
            Exclusion::Ejected => "much worse than its peers",
        }
    }
}

/// The four weighted terms of one candidate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Terms {
    /// Weighted KV overlap.
    pub kv: f64,
    /// Weighted load.
    pub load: f64,
    /// Weighted power.
    pub power: f64,
    /// Weighted free capacity.
    pub capacity: f64,
}

impl Terms {
    /// Their sum.
    pub fn score(&self) -> f64 {
        self.kv + self.load + self.power + self.capacity
    }
}

/// Scores one candidate. `watts_max` is the most any candidate draws, if any reports.
pub fn terms(
    candidate: &Candidate,
    prompt_tokens: u64,
    watts_max: Option<f32>,
    weights: &ScoreWeights,
) -> Terms {
    let saved = candidate.prefix_tokens as f64 / prompt_tokens.max(KV_SCALE_TOKENS) as f64;
    let busy = f64::from(candidate.inflight) / f64::from(candidate.slots.max(1));
    let thrift = match (candidate.power_watts, watts_max) {
        (Some(watts), Some(max)) if max > 0.0 => 1.0 - f64::from(watts) / f64::from(max),
        _ => 0.0,
    };
    Terms {
        kv: weights.kv * saved.min(1.0),
        load: weights.load * (1.0 - busy),
        power: weights.power * thrift,
        capacity: weights.capacity * candidate.cache_free.clamp(0.0, 1.0),
    }
}

/// The most any candidate draws.
pub fn watts_max(candidates: &[Candidate]) -> Option<f32> {
    candidates.iter().filter_map(|candidate| candidate.power_watts).reduce(f32::max)
}

/// Index of the candidate picked; `None` when all are excluded.
pub fn worker(
    candidates: &[Candidate],
    prompt_tokens: u64,
    weights: &ScoreWeights,
    seed: u64,
) -> Option<usize> {
    let watts_max = watts_max(candidates);
    let score = |candidate: &Candidate| terms(candidate, prompt_tokens, watts_max, weights).score();
    let eligible = || candidates.iter().enumerate().filter(|(_, c)| c.excluded.is_none());
    let best = eligible().map(|(_, candidate)| score(candidate)).reduce(f64::max)?;
    eligible()
        .filter(|(_, candidate)| best - score(candidate) <= TIE_MARGIN)
        .min_by_key(|(index, candidate)| {
            let per_slot = |count: u64| count * 1_000 / u64::from(candidate.slots.max(1));
            (
                per_slot(u64::from(candidate.inflight)),
                per_slot(candidate.picked),
                shuffle(seed ^ *index as u64),
            )
        })
        .map(|(index, _)| index)
}

/// SplitMix64's finalizer (Steele, Lea, Flood 2014): spreads a seed over 64 bits.
fn shuffle(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn idle() -> Candidate {
        Candidate {
            excluded: None,
            prefix_tokens: 0,
            inflight: 0,
            slots: 4,
            picked: 0,
            power_watts: None,
            cache_free: 1.0,
        }
    }

    fn pick(candidates: &[Candidate], prompt_tokens: u64) -> usize {
        worker(candidates, prompt_tokens, &ScoreWeights::default(), 7).unwrap()
    }

    #[test]
    fn equal_idle_workers_share_evenly() {
        let mut workers = [idle(); 3];
        for seed in 0..300 {
            let at = worker(&workers, 100, &ScoreWeights::default(), seed).unwrap();
            workers[at].picked += 1;
        }
        assert_eq!(workers.map(|w| w.picked), [100, 100, 100]);
    }

    #[test]
    fn a_short_common_preamble_does_not_draw_a_crowd() {
        let mut workers = [idle(), idle()];
        workers[0].prefix_tokens = 32;
        workers[0].picked = 1;
        assert_eq!(pick(&workers, 48), 1);
    }

    #[test]
    fn a_long_prefix_wins_until_its_worker_queues() {
        let mut workers = [idle(), idle()];
        workers[0] = Candidate { prefix_tokens: 1_800, picked: 9, inflight: 4, ..workers[0] };
        assert_eq!(pick(&workers, 2_000), 0, "busy is still cheaper than a recompute");
        workers[0].inflight = 16;
        assert_eq!(pick(&workers, 2_000), 1, "a queue of four per slot is not");
    }

    #[test]
    fn power_decides_only_where_it_is_measured() {
        let mut workers = [idle(), idle()];
        workers[0].power_watts = Some(700.0);
        workers[1].power_watts = Some(200.0);
        workers[1].picked = 5;
        assert_eq!(pick(&workers, 100), 1);
    }

    #[test]
    fn excluded_workers_are_never_picked() {
        let excluded = Candidate { excluded: Some(Exclusion::Tried), ..idle() };
        assert_eq!(worker(&[excluded, excluded], 1, &ScoreWeights::default(), 0), None);
        assert_eq!(worker(&[], 1, &ScoreWeights::default(), 0), None);
    }

    fn any_candidate() -> impl Strategy<Value = Candidate> {
        (any::<bool>(), 0u64..5_000, 0u32..40, 1u32..9, 0u64..99, 0f64..1.0).prop_map(
            |(tried, prefix_tokens, inflight, slots, picked, cache_free)| Candidate {
                excluded: tried.then_some(Exclusion::Tried),
                prefix_tokens,
                inflight,
                slots,
                picked,
                power_watts: None,
                cache_free,
            },
        )
    }

    proptest! {
        #[test]
        fn the_pick_is_eligible_within_the_margin_and_repeatable(
            candidates in prop::collection::vec(any_candidate(), 1..12), tokens in 0u64..6_000, seed: u64,
        ) {
            let weights = ScoreWeights::default();
            let picked = worker(&candidates, tokens, &weights, seed);
            prop_assert_eq!(picked, worker(&candidates, tokens, &weights, seed));
            let eligible: Vec<_> = candidates.iter().filter(|c| c.excluded.is_none()).collect();
            prop_assert_eq!(picked.is_some(), !eligible.is_empty());
            if let Some(at) = picked {
                prop_assert!(candidates[at].excluded.is_none());
                let score = |c: &Candidate| terms(c, tokens, None, &weights).score();
                prop_assert!(eligible.iter().all(|c| score(c) - score(&candidates[at]) <= TIE_MARGIN));
            }
        }
    }
}
