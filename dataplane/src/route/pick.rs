//! Phase *pick*: `(candidates, request, rules, seed) → worker`. Pure: no I/O, no clock, replayable.
//!
//! Each worker has a cost in weighted milliseconds, and the cheapest is picked:
//!
//! ```text
//! cost = load     · (work queued there + turns to wait for a slot + what decoding slows)
//!      + kv       · crowd · (computing and fetching what this prompt needs there)
//!      + power    · crowd · (that computing, as far as its watts are to the thirstiest's)
//!      + capacity · crowd · (that computing, as far as its cache is full: what is new pushes others out)
//! ```
//!
//! Own work counts beyond the request itself, because it delays those behind it too: as many as come
//! while it lasts. Their number is about that of those who wait now, so `crowd` is half of one and the
//! requests that wait for their first token at a worker on average, at most [`CROWD_MAX`]. With the default weights
//! a worker costs its queue and 1.1 (all idle) to 4.4 (crowded) times the own prefill. A hot prefix goes
//! to a second worker as soon as the first one's queue costs more than computing the prefix again. A
//! worker without a power reading is taken to draw as much as the thirstiest that has one.
//!
//! Costs within [`TIE_MS`] of the best are a tie. Ties go to the least loaded, then to the least recently
//! chosen (so idle equal workers share exactly evenly), then to the seed.

use serde::{Deserialize, Serialize};

use super::decision::ExactWeights;
use super::exact;
use super::speeds::{Held, Speeds};
use crate::wire::ScoreWeights;

/// Costs this close are equal, in weighted ms: 48 tokens of prefill, so that a short common preamble
/// does not draw a crowd.
pub const TIE_MS: f64 = 0.4;
/// However many wait, own work counts no more than so many times.
const CROWD_MAX: f64 = 2.0;
/// Costs of so many candidates are kept on the stack; those of more are computed twice.
const KEPT: usize = 1_024;
/// A turn of a slot is worth the prefill of at least so many tokens.
const TURN_TOKENS_MIN: u64 = 512;

/// What is known of one worker at the moment of the decision.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Why it cannot be picked, if so.
    pub excluded: Option<Exclusion>,
    /// Tokens of the prompt believed to be there.
    pub held: Held,
    /// Prefill work given to it and not yet done, in ms of [`Speeds`].
    #[serde(with = "exact")]
    pub queued_ms: f64,
    /// Requests whose first token has come and whose last has not.
    pub decoding: u32,
    /// Requests in flight to it, decoding or not.
    pub inflight: u32,
    /// Requests it works on at once; 1 or more.
    pub slots: u32,
    /// Requests given to it since the router started.
    pub picked: u64,
    /// Watts drawn, where measured.
    #[serde(with = "exact::optional_f32")]
    pub power_watts: Option<f32>,
    /// Free share of its KV cache, 0 to 1.
    #[serde(with = "exact")]
    pub cache_free: f64,
}
/// Why a worker cannot be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
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

/// The request, as far as the decision looks at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Tokens of its prompt; estimated where they are not known.
    pub prompt_tokens: u64,
    /// The candidate that its session was at before.
    pub preferred: Option<usize>,
}

/// How to decide.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// What matters how much; they sum to 1.0.
    #[serde(with = "ExactWeights")]
    pub weights: ScoreWeights,
    /// What tokens cost.
    pub speeds: Speeds,
    /// 0: the cheapest wins. Above: drawn by softmax over costs in units of the whole spread, so that
    /// 1.0 is close to chance.
    #[serde(with = "exact")]
    pub temperature: f64,
    /// The preferred worker wins while it costs no more than the best and this share of computing the
    /// whole prompt.
    #[serde(with = "exact")]
    pub affinity: f64,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            weights: ScoreWeights::default(),
            speeds: Speeds::default(),
            temperature: 0.0,
            affinity: 0.0,
        }
    }
}

/// The four weighted terms of one candidate's cost, in ms.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Terms {
    /// The request's own prefill and fetching.
    pub kv: f64,
    /// What it waits for.
    pub load: f64,
    /// The power its prefill draws.
    pub power: f64,
    /// What its blocks push out.
    pub capacity: f64,
}

impl Terms {
    /// Their sum; lower is better.
    pub fn cost(&self) -> f64 {
        self.kv + self.load + self.power + self.capacity
    }
}

/// What is the same for all candidates of one decision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    rules: Rules,
    request: Request,
    /// The most any candidate draws; 0 where none reports.
    watts_max: f64,
    /// A turn of a slot: computing the whole prompt, in ms.
    turn_ms: f64,
    /// How many times own work counts, by how many wait everywhere.
    crowd: f64,
}

impl Scale {
    /// Looks at all candidates once.
    pub fn of(candidates: &[Candidate], request: &Request, rules: &Rules) -> Self {
        let watts = candidates.iter().filter_map(|candidate| candidate.power_watts);
        let turn_tokens = request.prompt_tokens.max(TURN_TOKENS_MIN);
        let (waiting, eligible) = candidates
            .iter()
            .filter(|candidate| candidate.excluded.is_none())
            .map(|candidate| u64::from(candidate.inflight.saturating_sub(candidate.decoding)))
            .fold((0u64, 0u64), |(sum, count), waiting| (sum.saturating_add(waiting), count + 1));
        let waiting = waiting as f64 / eligible.max(1) as f64;
        Scale {
            crowd: ((1.0 + waiting) / 2.0).min(CROWD_MAX),
            rules: *rules,
            request: *request,
            watts_max: f64::from(watts.fold(0.0, f32::max)),
            turn_ms: rules.speeds.prefill_ms(0, turn_tokens),
        }
    }

    /// The terms of one candidate.
    pub fn terms(&self, candidate: &Candidate) -> Terms {
        let Rules { weights, speeds, .. } = &self.rules;
        let price = speeds.price(&candidate.held, self.request.prompt_tokens);
        let slots = candidate.slots.max(1);
        let over = candidate.inflight.saturating_add(1).saturating_sub(slots);
        let turns_ms = f64::from(over) / f64::from(slots) * self.turn_ms;
        let slowed_ms = f64::from(candidate.decoding)
            * speeds.decode_share
            * (candidate.queued_ms + price.compute_ms);
        let thirst = match candidate.power_watts {
            _ if self.watts_max <= 0.0 => 0.0,
            Some(watts) => (f64::from(watts) / self.watts_max).max(0.0),
            None => 1.0,
        };
        let full = 1.0 - candidate.cache_free.clamp(0.0, 1.0);
        Terms {
            kv: weights.kv * self.crowd * price.total_ms(),
            load: weights.load * (candidate.queued_ms + turns_ms + slowed_ms),
            power: weights.power * self.crowd * thirst * price.compute_ms,
            capacity: weights.capacity * self.crowd * full * price.compute_ms,
        }
    }
}

/// The worker picked and the terms of its cost.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Picked {
    /// Index among the candidates.
    pub at: usize,
    /// Why that one.
    pub because: Because,
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// No other could be picked.
    Only,
    /// It costs least.
    Cheapest,
    /// As cheap as the best, and less loaded or less recently chosen.
    Tie,
    /// The session was there before, and it is cheap enough.
    Session,
    /// Drawn, as the temperature asks.
    Drawn,
}

/// Decides. `None` when all candidates are excluded.
pub fn worker(
    candidates: &[Candidate],
    request: &Request,
    rules: &Rules,
    seed: u64,
) -> Option<Picked> {
    let scale = Scale::of(candidates, request, rules);
    let cost = |candidate: &Candidate| scale.terms(candidate).cost();
    let (mut spread, mut kept) = (Spread::default(), [f64::INFINITY; KEPT]);
    for (at, candidate) in candidates.iter().enumerate() {
        if candidate.excluded.is_none() {
            let cost = cost(candidate);
            spread.add(cost);
            if let Some(place) = kept.get_mut(at) {
                *place = cost;
            }
        }
    }
    let first = candidates.iter().position(|candidate| candidate.excluded.is_none())?;
    if spread.count == 1 {
        return Some(Picked { at: first, because: Because::Only });
    }
    if let Some(at) = request.preferred
        && let Some(candidate) = candidates.get(at).filter(|c| c.excluded.is_none())
        && cost(candidate)
            <= spread.least + rules.affinity.max(0.0) * rules.weights.kv * scale.turn_ms
    {
        return Some(Picked { at, because: Because::Session });
    }
    let eligible = candidates.iter().enumerate().filter(|(_, c)| c.excluded.is_none());
    if rules.temperature > 0.0 {
        let noise = rules.temperature * (spread.most - spread.least).max(TIE_MS);
        let drawn =
            |at: usize, candidate| cost(candidate) - noise * gumbel(shuffle(seed ^ at as u64));
        return eligible
            .map(|(at, candidate)| (at, drawn(at, candidate)))
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .map(|(at, _)| Picked { at, because: Because::Drawn });
    }
    let tied = eligible.filter(|(at, candidate)| {
        let cost = kept.get(*at).copied().unwrap_or_else(|| cost(candidate));
        cost - spread.least <= TIE_MS
    });
    let mut count = 0;
    tied.inspect(|_| count += 1)
        .min_by_key(|(at, candidate)| {
            let per_slot =
                |count: u64| count.saturating_mul(1_000) / u64::from(candidate.slots.max(1));
            let inflight = per_slot(u64::from(candidate.inflight));
            (inflight, per_slot(candidate.picked), shuffle(seed ^ *at as u64))
        })
        .map(|(at, _)| at)
        .map(|at| Picked { at, because: if count > 1 { Because::Tie } else { Because::Cheapest } })
}

/// Least and most of some costs.
struct Spread {
    least: f64,
    most: f64,
    count: usize,
}

impl Default for Spread {
    fn default() -> Self {
        Spread { least: f64::INFINITY, most: f64::NEG_INFINITY, count: 0 }
    }
}

impl Spread {
    fn add(&mut self, cost: f64) {
        self.least = self.least.min(cost);
        self.most = self.most.max(cost);
        self.count += 1;
    }
}

/// A draw from the Gumbel distribution: the least of `cost − t · gumbel` is a draw by softmax.
fn gumbel(bits: u64) -> f64 {
    // 53 bits, in the middle of their interval: never 0 nor 1.
    let uniform = ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -(-uniform.ln()).ln()
}

/// SplitMix64's finalizer (Steele, Lea, Flood 2014): spreads a seed over 64 bits.
pub fn shuffle(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
