//! The policies compared, and the router's books that they decide by.
//!
//! All of them see what a router sees: what it routed itself, first and last tokens as they come, and
//! events of the caches after their delay. None sees the engines.

use std::collections::BTreeSet;

use dataplane::digest::Digest;
use dataplane::route::backlog::Line;
use dataplane::route::index::LimitsError;
use dataplane::route::pick::{self, Candidate, Rules, shuffle};
use dataplane::route::speeds::Held;

use super::belief::Belief;
use super::cache::Change;
use super::dynamo::{self, Dynamo};
use super::engine::Model;
use super::replay::Setup;
use super::trace::{Request, Trace};

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Policy {
    /// This router: `dataplane::route::pick`.
    Cognitora,
    /// One after the other.
    RoundRobin,
    /// Fewest requests in flight, ties at random.
    LeastLoaded,
    /// Rendezvous hashing of the first 1,024 tokens: what tells conversations apart.
    ConsistentHash,
    /// Dynamo's cost function.
    Dynamo,
}

impl Policy {
    /// All, in the order of the table.
    pub const ALL: [Policy; 5] = [
        Policy::Cognitora,
        Policy::Dynamo,
        Policy::ConsistentHash,
        Policy::LeastLoaded,
        Policy::RoundRobin,
    ];

    /// As it is typed and printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Policy::Cognitora => "cognitora",
            Policy::RoundRobin => "round_robin",
            Policy::LeastLoaded => "least_loaded",
            Policy::ConsistentHash => "consistent_hash",
            Policy::Dynamo => "dynamo",
        }
    }

    /// Whether it matters to it which worker holds what.
    pub fn looks_at_prefixes(self) -> bool {
        matches!(self, Policy::Cognitora | Policy::Dynamo)
    }
}

/// Tokens by which [`Policy::ConsistentHash`] tells conversations apart.
const HASH_TOKENS: u32 = 1_024;

/// What the router counts of one worker.
#[derive(Clone, Debug, Default)]
struct Seat {
    inflight: u32,
    line: Line,
    picked: u64,
}

/// What was promised for one request.
#[derive(Clone, Copy, Debug, Default)]
struct Promise {
    prefill_us: u64,
    new_tokens: u64,
}

/// A router with a policy.
pub struct Router<'a> {
    policy: Policy,
    trace: &'a Trace,
    model: Model,
    rules: Rules,
    slots: u32,
    seed: u64,
    seats: Vec<Seat>,
    promises: Vec<Promise>,
    /// Of policies that look at prefixes.
    belief: Option<Belief<'a>>,
    dynamo: Dynamo,
    settings: dynamo::Settings,
    /// Held back by Dynamo's queue: what decides the order, and the number.
    held: BTreeSet<(u64, usize)>,
    candidates: Vec<Candidate>,
    depths: Vec<usize>,
}

impl<'a> Router<'a> {
    /// Knows nothing yet. `digests` are those of the trace's blocks.
    ///
    /// # Errors
    /// More workers or blocks than the index may have.
    pub fn new(
        trace: &'a Trace,
        digests: &'a [Digest],
        setup: &Setup,
    ) -> Result<Self, LimitsError> {
        let Setup { policy, workers, cache_blocks, seed, model, rules, .. } = *setup;
        let sizes = (workers, cache_blocks);
        let belief = match policy.looks_at_prefixes() {
            true => Some(Belief::new(digests, sizes, model.prediction_ms, seed)?),
            false => None,
        };
        Ok(Router {
            policy,
            trace,
            model,
            rules,
            slots: SLOTS,
            seed,
            seats: vec![Seat::default(); workers],
            promises: vec![Promise::default(); trace.requests().len()],
            belief,
            dynamo: Dynamo::new(workers, trace.block_tokens()),
            settings: setup.dynamo,
            held: BTreeSet::new(),
            candidates: Vec::with_capacity(workers),
            depths: Vec::with_capacity(workers),
        })
    }

    /// A request came. Those that [`Router::next`] gives can go.
    pub fn arrive(&mut self, now_ms: f64, number: usize) {
        let key = match self.policy == Policy::Dynamo && self.settings.shortest_first {
            true => {
                self.look(now_ms, number);
                let request = &self.trace.requests()[number];
                let best = self.depths.iter().copied().max().unwrap_or(0);
                u64::from(request.prompt_tokens) - self.trace.tokens_in(request, best)
            }
            false => 0,
        };
        self.held.insert((key, number));
    }

    /// The request whose turn it is and where it goes, unless all workers are too busy for it.
    pub fn next(&mut self, now_ms: f64) -> Option<(usize, usize)> {
        let threshold = self.settings.queue_threshold.filter(|_| self.policy == Policy::Dynamo);
        if threshold.is_some_and(|share| self.dynamo.all_exceed(share)) {
            return None;
        }
        let (_, number) = self.held.pop_first()?;
        Some((number, self.route(now_ms, number)))
    }

    /// Asks who holds how much of a prompt.
    fn look(&mut self, now_ms: f64, number: usize) {
        let blocks = self.trace.blocks_of(&self.trace.requests()[number]);
        match &mut self.belief {
            Some(belief) => belief.depths(blocks, now_ms, &mut self.depths),
            None => self.depths.resize(self.seats.len(), 0),
        }
    }

    /// Decides, and counts on it.
    fn route(&mut self, now_ms: f64, number: usize) -> usize {
        let trace = self.trace;
        let request = &trace.requests()[number];
        let blocks = trace.blocks_of(request);
        self.look(now_ms, number);
        let seed = shuffle(self.seed ^ shuffle(number as u64));
        let worker = match self.policy {
            Policy::Cognitora => self.cheapest(now_ms, request, seed),
            Policy::RoundRobin => number % self.seats.len(),
            Policy::LeastLoaded => {
                least(self.seats.len(), seed, |at| f64::from(self.seats[at].inflight))
            }
            Policy::ConsistentHash => {
                let first = (HASH_TOKENS / trace.block_tokens()).max(1) as usize;
                let key = blocks
                    .iter()
                    .take(first)
                    .fold(self.seed, |key, block| shuffle(key ^ u64::from(*block)));
                (0..self.seats.len()).max_by_key(|at| shuffle(key ^ *at as u64)).unwrap_or(0)
            }
            Policy::Dynamo => least(self.seats.len(), seed, |at| {
                self.dynamo.cost(at, request.prompt_tokens, blocks, self.depths[at])
            }),
        };
        self.count(now_ms, number, worker);
        worker
    }

    fn cheapest(&mut self, now_ms: f64, request: &Request, seed: u64) -> usize {
        let best = self.depths.iter().copied().max().unwrap_or(0);
        let tokens = |blocks| self.trace.tokens_in(request, blocks);
        self.candidates.clear();
        for (at, seat) in self.seats.iter().enumerate() {
            let gpu_tokens = tokens(self.depths[at]);
            let peer_tokens = if self.model.peer_fetch { tokens(best) - gpu_tokens } else { 0 };
            self.candidates.push(Candidate {
                excluded: None,
                held: Held { gpu_tokens, peer_tokens, ..Held::default() },
                queued_ms: seat.line.backlog().left_ms(now_ms),
                decoding: seat.inflight - seat.line.waiting(),
                inflight: seat.inflight,
                slots: self.slots,
                picked: seat.picked,
                power_watts: None,
                cache_free: self.belief.as_ref().map_or(1.0, |belief| belief.free_share(at)),
            });
        }
        let asked =
            pick::Request { prompt_tokens: u64::from(request.prompt_tokens), preferred: None };
        pick::worker(&self.candidates, &asked, &self.rules, seed).map_or(0, |picked| picked.at)
    }

    fn count(&mut self, now_ms: f64, number: usize, worker: usize) {
        let trace = self.trace;
        let request = &trace.requests()[number];
        let blocks = trace.blocks_of(request);
        let cached = trace.tokens_in(request, self.depths[worker]);
        let whole = u64::from(request.prompt_tokens);
        let mut promise = Promise { prefill_us: 0, new_tokens: whole.saturating_sub(cached) };
        match self.policy {
            Policy::Cognitora => {
                let price = |at: &Candidate| self.rules.speeds.price(&at.held, whole);
                let compute_ms = self.candidates.get(worker).map_or(0.0, |at| price(at).compute_ms);
                promise.prefill_us = (compute_ms * 1_000.0) as u64;
            }
            Policy::Dynamo => self.dynamo.add(worker, promise.new_tokens, blocks),
            _ => {}
        }
        let predicts = self.policy == Policy::Cognitora || self.settings.predicts;
        if let Some(belief) = self.belief.as_mut().filter(|_| predicts) {
            belief.predict(worker, self.depths[worker]);
        }
        let seat = &mut self.seats[worker];
        seat.inflight += 1;
        seat.picked += 1;
        seat.line.give(now_ms as u64, promise.prefill_us);
        self.promises[number] = promise;
    }

    /// The first token came.
    pub fn first_token(&mut self, now_ms: f64, number: usize, worker: usize) {
        let promise = self.promises[number];
        self.seats[worker].line.take(now_ms as u64, promise.prefill_us);
        if self.policy == Policy::Dynamo {
            self.dynamo.prefilled(worker, promise.new_tokens);
        }
    }

    /// The last token came.
    pub fn finished(&mut self, number: usize, worker: usize) {
        self.seats[worker].inflight -= 1;
        if self.policy == Policy::Dynamo {
            let request = &self.trace.requests()[number];
            self.dynamo.free(worker, self.trace.blocks_of(request));
        }
    }

    /// An event came.
    pub fn learn(&mut self, worker: usize, change: Change) {
        if let Some(belief) = &mut self.belief {
            belief.learn(worker, change);
        }
    }
}

/// Sequences an engine runs at once: the default of vLLM.
const SLOTS: u32 = 256;

/// The worker of least cost; exact ties by the seed.
fn least(workers: usize, seed: u64, cost: impl Fn(usize) -> f64) -> usize {
    let key = |at: &usize| (cost(*at), shuffle(seed ^ *at as u64));
    let order = |a: &(f64, u64), b: &(f64, u64)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
    (0..workers)
        .map(|at| (key(&at), at))
        .min_by(|a, b| order(&a.0, &b.0))
        .map_or(0, |least| least.1)
}
