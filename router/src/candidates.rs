//! Gathers what [`dataplane::route::pick`] decides on, and carries out its decision.
//!
//! The reading of counters and of the index happens here, so that the decision itself stays pure.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use dataplane::route::decision::RulesFrom;
use dataplane::route::pick::{self, Candidate, Exclusion, Picked, Request, Rules};
use dataplane::route::speeds::Held;

use crate::admit::Ticket;
use crate::admit::unix_ms;
use crate::cluster::{Cluster, ModelView, WorkerView};
use crate::decisions::Made;
use crate::index::Match;
use crate::openai::Endpoint;
use crate::overlap::{self, Overlap, Source, overlaps};
use crate::shard::Shard;
use crate::steering::{Steering, rules};
use crate::tokenize::Prefix;

/// Workers that failed this request already.
#[derive(Clone, Debug, Default)]
pub struct Tried(Vec<String>);

impl Tried {
    /// Notes a failure.
    pub fn add(&mut self, worker: &WorkerView) {
        self.0.push(worker.worker.id.clone());
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none failed yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A worker picked for a request: one place in its in-flight count until dropped.
pub struct Seat {
    /// The worker.
    pub worker: Arc<WorkerView>,
    /// How far its cache is believed to match.
    pub matched: Match,
    /// Tokens of the prompt it is believed to hold.
    pub prefix_tokens: u64,
    /// Where that belief comes from.
    pub source: Source,
    /// The prefill work it adds to the worker's backlog until its first token comes.
    prefill_us: Cell<Option<u64>>,
    cluster: Arc<Cluster>,
}

impl Seat {
    /// Prompt tokens that this worker is expected to compute.
    pub fn uncached_tokens(&self, shard: &Shard, prefix: &Prefix) -> u64 {
        let tokens = prefix.tokens_estimated(shard.cluster.tokens_per_byte());
        tokens.saturating_sub(self.prefix_tokens)
    }

    fn take(
        shard: &Shard,
        worker: &Arc<WorkerView>,
        (overlap, prefix_tokens): (Overlap, u64),
        prefill_ms: f64,
    ) -> Self {
        let life = &worker.life;
        let prefill_us = (prefill_ms * 1_000.0) as u64;
        life.inflight.fetch_add(1, Relaxed);
        life.picked.fetch_add(1, Relaxed);
        life.backlog.give(shard.now_ms(), prefill_us);
        Seat {
            worker: Arc::clone(worker),
            matched: overlap.matched,
            prefix_tokens,
            source: overlap.source,
            prefill_us: Cell::new(Some(prefill_us)),
            cluster: Arc::clone(&shard.cluster),
        }
    }

    /// The worker has computed the prompt: it waits for it no more.
    pub fn first_token(&self) {
        if let Some(prefill_us) = self.prefill_us.take() {
            self.worker.life.backlog.take(self.cluster.now_ms(), prefill_us);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.first_token();
        self.worker.life.inflight.fetch_sub(1, Relaxed);
    }
}

/// Every worker of the model as the decision sees it, and what it holds, in the order of `model.workers`.
pub fn gather(
    shard: &Shard,
    model: &ModelView,
    endpoint: Endpoint,
    prefix: &Prefix,
    tried: &Tried,
) -> (Vec<Candidate>, Vec<Overlap>) {
    let now_ms = shard.now_ms();
    let mut candidates: Vec<Candidate> = model
        .workers
        .iter()
        .map(|view| {
            let excluded = view
                .exclusion(endpoint, now_ms)
                .or_else(|| tried.0.contains(&view.worker.id).then_some(Exclusion::Tried));
            candidate(view, excluded, now_ms)
        })
        .collect();
    let found = overlaps(shard, model, prefix, |at| candidates[at].excluded.is_none());
    for (candidate, overlap) in candidates.iter_mut().zip(&found) {
        candidate.held = held(prefix, overlap);
    }
    (candidates, found)
}

/// What is known of one worker besides its cache.
fn candidate(view: &WorkerView, excluded: Option<Exclusion>, now_ms: u64) -> Candidate {
    let life = &view.life;
    let backlog = life.backlog.load();
    let others = life.others.at(now_ms);
    let inflight = life.inflight.load(Relaxed).saturating_add(others.load.inflight);
    let waiting = backlog.waiting.saturating_add(others.load.waiting);
    Candidate {
        excluded,
        held: Held::default(),
        queued_ms: backlog.left_ms(now_ms as f64) + others.left_ms(now_ms as f64),
        decoding: inflight.saturating_sub(waiting),
        inflight,
        slots: view.worker.slots.max(1),
        picked: life.picked.load(Relaxed),
        power_watts: view.worker.power_watts,
        cache_free: life.cache.free_share(),
    }
}

/// Picks a worker and takes a seat there; `None` when every worker is excluded.
///
/// The prompt counts as present at the worker from here on (predict on route).
pub fn seat(
    shard: &Shard,
    ticket: &Ticket,
    endpoint: Endpoint,
    prefix: &Prefix,
    steering: &Steering,
    tried: &Tried,
) -> Option<Seat> {
    let model = ticket.model();
    let is_plain = prefix.digests.is_empty() && steering.logged.is_none();
    if let ([only], true) = (model.workers.as_slice(), is_plain) {
        return seat_at_only(shard, only, endpoint, prefix, tried);
    }
    let (rules, rules_from) = rules(&shard.cluster, ticket.view(), steering);
    let request = request(shard, model, prefix, steering);
    let (candidates, overlaps) = gather(shard, model, endpoint, prefix, tried);
    let seed = shard.next_id();
    let picked = pick::worker(&candidates, &request, &rules, seed);
    if steering.logged.is_some() {
        let decided = Decided { request, rules, rules_from, seed, picked };
        log(shard, ticket, steering, tried, (&candidates, &overlaps), decided);
    }
    let at = picked?.at;
    let (worker, overlap) = (&model.workers[at], overlaps[at]);
    if let Some(session) = steering.session {
        shard.cluster.sessions.note(session, worker.life.cache.number(), shard.now_ms());
    }
    let held = candidates[at].held;
    let prefill_ms = rules.speeds.price(&held, request.prompt_tokens).compute_ms;
    let seat = Seat::take(shard, worker, (overlap, held.total()), prefill_ms);
    overlap::note(shard, worker, prefix, &overlap);
    Some(seat)
}

/// A decision and what it was made by.
struct Decided {
    request: Request,
    rules: Rules,
    rules_from: RulesFrom,
    seed: u64,
    picked: Option<Picked>,
}

/// Hands the decision to its log.
fn log(
    shard: &Shard,
    ticket: &Ticket,
    steering: &Steering,
    tried: &Tried,
    (candidates, overlaps): (&[Candidate], &[Overlap]),
    decided: Decided,
) {
    let (Some(log), Some(logged)) = (&shard.recorder.decisions, &steering.logged) else { return };
    let Decided { request, rules, rules_from, seed, picked } = decided;
    log.put(Made {
        time_unix_ms: unix_ms(),
        request_id: logged.request_id.as_ref().into(),
        trace_id: logged.trace_id,
        view: ticket.shared_view(),
        model: ticket.model().name.as_str().into(),
        tried: tried.len(),
        rules_from,
        request,
        rules,
        seed,
        candidates: candidates.into(),
        sources: overlaps.iter().map(|overlap| overlap.source).collect(),
        picked,
    });
}

/// Tokens at each level beyond the faster ones.
fn held(prefix: &Prefix, overlap: &Overlap) -> Held {
    let [gpu, .., disk] = overlap.blocks;
    if gpu == disk {
        return Held { gpu_tokens: prefix.tokens_in(gpu as usize), ..Held::default() };
    }
    let [gpu, host, disk] = overlap.blocks.map(|blocks| prefix.tokens_in(blocks as usize));
    Held {
        gpu_tokens: gpu,
        host_tokens: host.saturating_sub(gpu),
        disk_tokens: disk.saturating_sub(host.max(gpu)),
        peer_tokens: 0,
    }
}

/// The request as the decision sees it. A session's worker that is gone is no preference.
pub fn request(shard: &Shard, model: &ModelView, prefix: &Prefix, steering: &Steering) -> Request {
    let known = |session| shard.cluster.sessions.find(session, shard.now_ms());
    let preferred = steering.session.and_then(known);
    Request {
        prompt_tokens: prefix.tokens_estimated(shard.cluster.tokens_per_byte()),
        preferred: preferred.and_then(|number| model.position_of(number)),
    }
}

/// With one worker and nothing to look up there is nothing to decide.
fn seat_at_only(
    shard: &Shard,
    worker: &Arc<WorkerView>,
    endpoint: Endpoint,
    prefix: &Prefix,
    tried: &Tried,
) -> Option<Seat> {
    if worker.exclusion(endpoint, shard.now_ms()).is_some() || tried.0.contains(&worker.worker.id) {
        return None;
    }
    let prompt_tokens = prefix.tokens_estimated(shard.cluster.tokens_per_byte());
    let prefill_ms = Rules::default().speeds.prefill_ms(0, prompt_tokens);
    Some(Seat::take(shard, worker, (Overlap::default(), 0), prefill_ms))
}
