//! The workers as all cores see them: an immutable view that is replaced whole, and per worker the
//! few counters that outlive a view.
//!
//! Owned here: who exists, who is healthy, what is in flight. Readers load one pointer and never wait.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use dataplane::feed::Known;
use dataplane::route::index::{Index, Limits, LimitsError, WorkerNumber};
use dataplane::route::pick::Exclusion;
use dataplane::route::predictions::{self, Predictions};
use dataplane::route::share;
use dataplane::route::worker_cache::WorkerCache;
use dataplane::wire::{EngineKind, ScoreWeights, Snapshot, Worker, WorkerState};

use crate::breaker::Breaker;
use crate::breaker::outlier::{WorkerWindow, eject};
use crate::hall::{Bells, ModelLife};
use crate::hedge::Hedging;
use crate::index::PrefixIndex;
use crate::kv_feed::others::SharedOthers;
use crate::kv_feed::state::FeedState;
use crate::kv_feed::warmable::SharedWarmable;
use crate::openai::Endpoint;
use crate::retry::RetryBudget;
use crate::sessions::Sessions;
use crate::steering::Preset;
use crate::upstream::Target;
use crate::warm::Desk;

pub use self::shared_backlog::SharedBacklog;

mod shared_backlog;

/// What this router itself knows of a worker; lives as long as the worker is listed.
pub struct WorkerLife {
    /// Belief about its KV cache.
    pub cache: WorkerCache,
    /// Predictions of before are void, on the cluster's clock: its engine started anew.
    pub predicted_since_ms: AtomicU64,
    /// What its engine's events say of its KV cache.
    pub feed: FeedState,
    /// Whether it can be given KV state.
    pub warmable: SharedWarmable,
    /// Requests of this router in flight to it, over all cores.
    pub inflight: AtomicU32,
    /// Prefill work in front of it, given by this router.
    pub backlog: SharedBacklog,
    /// What other routers gave it.
    pub others: SharedOthers,
    /// Requests given to it.
    pub picked: AtomicU64,
    /// The last probe reached it.
    pub healthy: AtomicBool,
    /// What requests say of it.
    pub breaker: Breaker,
    /// Its failures and latencies lately, to compare with its peers'.
    pub window: WorkerWindow,
    /// It drains for longer than streams may take: what still runs there goes on elsewhere. A worker
    /// that vanished from the list is left alone: control may have lost its agent, not the engine.
    pub given_up: Arc<AtomicBool>,
    /// Since when it drains, on the cluster's clock; 0: it does not.
    draining_since_ms: AtomicU64,
    /// Its engine answered that it cannot tokenize; the text path is used instead.
    pub cannot_tokenize: AtomicBool,
    epoch: AtomicU64,
}

/// One worker of a view.
pub struct WorkerView {
    /// As control or the configuration said.
    pub worker: Worker,
    /// Where its engine listens.
    pub target: Target,
    /// Counters shared by all views.
    pub life: Arc<WorkerLife>,
}

impl WorkerView {
    /// Why it cannot take a request for `capability` now, if so.
    pub fn exclusion(&self, endpoint: Endpoint, now_ms: u64) -> Option<Exclusion> {
        if !self.offers(endpoint) {
            Some(Exclusion::NotCapable)
        } else if self.worker.state == WorkerState::Draining {
            Some(Exclusion::Draining)
        } else if self.worker.state != WorkerState::Ready || !self.life.healthy.load(Relaxed) {
            Some(Exclusion::NotReady)
        } else if self.life.window.is_ejected(now_ms) {
            Some(Exclusion::Ejected)
        } else if !self.life.breaker.would_permit(now_ms) {
            Some(Exclusion::BreakerOpen)
        } else {
            None
        }
    }

    /// Whether it takes requests at all.
    pub fn is_ready(&self, now_ms: u64) -> bool {
        self.exclusion(Endpoint::Other, now_ms).is_none()
    }

    /// Whether its engine serves `endpoint`. Of endpoints beyond the three that are told apart, the
    /// engine itself says whether it has them.
    pub fn offers(&self, endpoint: Endpoint) -> bool {
        match endpoint.capability() {
            Some(capability) => self.worker.capabilities.contains(&capability),
            None => !self.worker.capabilities.is_empty(),
        }
    }

    /// Whether its engine can turn a prompt into tokens for us.
    pub fn can_tokenize(&self) -> bool {
        matches!(self.worker.kind, EngineKind::LlamaCpp | EngineKind::Vllm | EngineKind::Sglang)
            && !self.life.cannot_tokenize.load(Relaxed)
    }
}

/// All workers of one model.
pub struct ModelView {
    /// The name clients ask for.
    pub name: String,
    /// In the order of the snapshot.
    pub workers: Vec<Arc<WorkerView>>,
    /// What outlives a view.
    pub life: Arc<ModelLife>,
    /// Numbers in the index, in the order of `workers`.
    numbers: Vec<u32>,
    /// Number in the index → place in `workers`.
    positions: HashMap<u32, usize, foldhash::fast::RandomState>,
}

impl ModelView {
    /// The place of the worker with that number in the index.
    pub fn position_of(&self, number: u32) -> Option<usize> {
        self.positions.get(&number).copied()
    }

    /// The same, tried at `next` first: who asks for all in the order of their numbers pays little.
    pub fn position_from(&self, number: u32, next: usize) -> Option<usize> {
        if self.numbers.get(next) == Some(&number) { Some(next) } else { self.position_of(number) }
    }

    /// Tokens in a block of this model's engines, as the first of them says that tells of its blocks;
    /// one that cuts otherwise is routed to by what is learned of it.
    pub fn block_tokens(&self, now_ms: u64) -> Option<usize> {
        let told = |view: &&Arc<WorkerView>| {
            view.life.feed.known(now_ms) != Known::None && view.life.feed.block_tokens() > 0
        };
        let view = self.workers.iter().find(told)?;
        usize::try_from(view.life.feed.block_tokens()).ok()
    }

    /// Requests of this router that its ready workers may have in flight together: what other routers
    /// leave, at least a fair share ([`share::places`]).
    pub fn places(&self, per_slot: u32, now_ms: u64) -> u32 {
        let (mut places, mut others_inflight, mut routers) = (0u32, 0u32, 0u32);
        for worker in self.workers.iter().filter(|worker| worker.is_ready(now_ms)) {
            let slots = worker.worker.slots.max(1);
            let others = worker.life.others.at(now_ms);
            places = places.saturating_add(slots.saturating_mul(per_slot));
            others_inflight = others_inflight.saturating_add(others.load.inflight);
            routers = routers.max(others.routers);
        }
        share::places(places, others_inflight, routers)
    }
}

/// An immutable picture.
pub struct View {
    /// Control's version; 0 for the static list.
    pub version: u64,
    /// By name.
    pub models: HashMap<String, ModelView>,
    /// Control's word; the router's own file is asked where it has none.
    pub weights: Option<ScoreWeights>,
}

impl View {
    /// All workers of all models.
    pub fn workers(&self) -> impl Iterator<Item = &Arc<WorkerView>> {
        self.models.values().flat_map(|model| &model.workers)
    }
}

/// Workers whose engines tell of their blocks, at a time.
const EVENT_WORKERS_MAX: usize = 4_096;
/// Tokens per byte of prompt text before anything was learned: English, byte-pair encoded.
const TOKENS_PER_BYTE_START: f32 = 0.25;

/// What the cores share.
pub struct Cluster {
    view: ArcSwap<View>,
    /// Where blocks are believed to be.
    pub index: PrefixIndex,
    /// Blocks on their way to engines that say what they hold.
    pub predictions: Predictions,
    /// Where engines say that blocks are.
    held: OnceLock<Index>,
    /// Requests in flight over all cores and models.
    pub inflight: AtomicU32,
    /// Tokens per byte of prompt text, learned from `usage` (bits of an `f32`).
    tokens_per_byte: AtomicU32,
    /// Health says so, and clients are told to go elsewhere.
    pub draining: AtomicBool,
    /// The time to drain is over: what still runs is ended.
    pub stops: AtomicBool,
    /// Attempts after the first are paid from here.
    pub retries: RetryBudget,
    /// Second workers asked while the first is slow.
    pub hedging: Hedging,
    /// How the cores call those who wait.
    pub bells: Arc<Bells>,
    /// What requests wish of agents.
    pub warming: Desk,
    /// Where sessions were last.
    pub sessions: Sessions,
    preset: ArcSwap<Preset>,
    config: crate::config::Router,
    started: Instant,
    block_tokens: u64,
    worker_blocks_default: u64,
    /// The index of events is being counted ([`crate::census`]).
    pub is_counted: AtomicBool,
    /// Guards the one writer and numbers new workers.
    next_number: Mutex<u32>,
}

impl Cluster {
    /// A cluster without workers.
    pub fn new(config: &crate::config::Router, bells: Arc<Bells>) -> Self {
        Cluster {
            view: ArcSwap::from_pointee(View { version: 0, models: HashMap::new(), weights: None }),
            index: PrefixIndex::new(config.kv.index_blocks_max),
            predictions: Predictions::new(predictions::BLOCKS_MAX, config.kv.prediction_ms),
            held: OnceLock::new(),
            inflight: AtomicU32::new(0),
            tokens_per_byte: AtomicU32::new(TOKENS_PER_BYTE_START.to_bits()),
            draining: AtomicBool::new(false),
            stops: AtomicBool::new(false),
            retries: RetryBudget::new(&config.retry),
            hedging: Hedging::new(config.hedge.clone()),
            bells,
            warming: Desk::default(),
            sessions: Sessions::new(config.routing.sessions_max, config.routing.session_idle_s_max),
            preset: ArcSwap::from_pointee(Preset::of(config)),
            config: config.clone(),
            started: Instant::now(),
            block_tokens: config.kv.block_tokens as u64,
            worker_blocks_default: config.kv.worker_blocks_default,
            is_counted: AtomicBool::new(false),
            next_number: Mutex::new(0),
        }
    }

    /// Milliseconds since the router started: the clock of queues, breakers and budgets.
    pub fn now_ms(&self) -> u64 {
        self.at_ms(Instant::now())
    }

    /// `now` on that clock. It begins at 1, so that 0 can mean never.
    pub fn at_ms(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.started).as_millis();
        u64::try_from(elapsed).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// The picture in force.
    pub fn view(&self) -> arc_swap::Guard<Arc<View>> {
        self.view.load()
    }

    /// What the file says of the decision, as it was read last.
    pub fn preset(&self) -> Preset {
        **self.preset.load()
    }

    /// The file was read again.
    pub fn set_preset(&self, preset: Preset) {
        self.preset.store(Arc::new(preset));
    }

    /// Takes a new picture. Workers that cannot be reached by their URL are left out with a warning.
    /// `healthy` is the belief about workers not known before, until a probe says more.
    pub fn apply(&self, snapshot: Snapshot, healthy: bool) {
        let mut next_number = self.next_number.lock().unwrap_or_else(|poison| poison.into_inner());
        let old = self.view.load_full();
        let known: HashMap<&str, &Arc<WorkerLife>> =
            old.workers().map(|view| (view.worker.id.as_str(), &view.life)).collect();
        let mut models: HashMap<String, ModelView> = HashMap::new();
        let mut kept = Vec::new();
        for worker in snapshot.workers {
            let target = match Target::resolve(&worker.url) {
                Ok(target) => target,
                Err(error) => {
                    tracing::warn!(worker = worker.id, %error, "left out");
                    continue;
                }
            };
            let life = known.get(worker.id.as_str()).map_or_else(
                || self.new_life(&worker, &mut next_number, healthy),
                |life| Arc::clone(life),
            );
            // An engine started anew has an empty cache, and may have learned to tokenize.
            if life.epoch.swap(worker.epoch, Relaxed) != worker.epoch {
                life.cache.clear();
                life.predicted_since_ms.store(self.now_ms(), Relaxed);
                life.cannot_tokenize.store(false, Relaxed);
                life.breaker.reset();
                life.window.reset(self.now_ms());
            }
            if control_saw_it_recover(&old, &worker) {
                life.healthy.store(true, Relaxed);
                life.breaker.reset();
                life.window.reset(self.now_ms());
            }
            self.note_draining(&life, worker.state);
            kept.push(worker.id.clone());
            let model = models.entry(worker.model.clone()).or_insert_with(|| ModelView {
                name: worker.model.clone(),
                workers: Vec::new(),
                numbers: Vec::new(),
                positions: HashMap::default(),
                life: old.models.get(&worker.model).map_or_else(
                    || Arc::new(ModelLife::new(&self.config.queue)),
                    |known| Arc::clone(&known.life),
                ),
            });
            model.numbers.push(life.cache.number());
            model.positions.insert(life.cache.number(), model.workers.len());
            model.workers.push(Arc::new(WorkerView { worker, target, life }));
        }
        let weights = snapshot.weights.filter(ScoreWeights::is_valid);
        self.view.store(Arc::new(View { version: snapshot.version, models, weights }));
        let left = || old.workers().filter(|view| !kept.contains(&view.worker.id));
        let gone: Vec<u32> = left().map(|view| view.life.cache.number()).collect();
        if !gone.is_empty() {
            self.index.remove_workers(&gone);
            self.predictions.sweep(self.now_ms(), &gone);
        }
        if let Some(index) = self.held() {
            left().for_each(|view| index.remove_worker(WorkerNumber(view.life.cache.number())));
        }
    }

    /// What engines say they hold; `None` until one did.
    pub fn held(&self) -> Option<&Index> {
        self.held.get()
    }

    /// The same, made now if need be: routers without events pay nothing for it.
    ///
    /// # Errors
    /// The configured limits are none that an index can have.
    pub fn held_or_new(&self) -> Result<&Index, LimitsError> {
        if let Some(index) = self.held.get() {
            return Ok(index);
        }
        let limits =
            Limits { blocks_max: self.config.kv.event_blocks_max, workers_max: EVENT_WORKERS_MAX };
        let index = Index::new(limits, RandomState::new().hash_one(0u8))?;
        Ok(self.held.get_or_init(|| index))
    }

    fn note_draining(&self, life: &WorkerLife, state: WorkerState) {
        if state == WorkerState::Draining {
            let now_ms = self.now_ms();
            let _ = life.draining_since_ms.compare_exchange(0, now_ms, Relaxed, Relaxed);
        } else {
            life.draining_since_ms.store(0, Relaxed);
            life.given_up.store(false, Relaxed);
        }
    }

    /// Calls those who wait and for whom there is a place by now, or whose time is up.
    pub fn call_waiting(&self) {
        let now_ms = self.now_ms();
        let per_slot = self.config.limits.requests_per_slot_max;
        for model in self.view().models.values().filter(|model| model.life.waiting() > 0) {
            model.life.look(model.places(per_slot, now_ms), &self.bells, now_ms);
        }
    }

    /// The house thread's look at what changes with time alone: workers that drain for too long,
    /// outliers.
    pub fn look(&self, mut ejected: impl FnMut(&WorkerView, &'static str)) {
        let now_ms = self.now_ms();
        let view = self.view();
        let limits = &self.config.limits;
        self.predictions.sweep(now_ms, &[]);
        for model in view.models.values() {
            self.eject_outliers(model, now_ms, &mut ejected);
            call_back(model, now_ms);
            for worker in &model.workers {
                let since_ms = worker.life.draining_since_ms.load(Relaxed);
                if since_ms > 0 && now_ms - since_ms > limits.drain_s_max * 1_000 {
                    worker.life.given_up.store(true, Relaxed);
                }
            }
        }
    }

    fn eject_outliers(
        &self,
        model: &ModelView,
        now_ms: u64,
        ejected: &mut impl FnMut(&WorkerView, &'static str),
    ) {
        let ready: Vec<_> = model
            .workers
            .iter()
            .filter(|worker| worker.worker.state == WorkerState::Ready)
            // Of two with one dead, the other one is all there is.
            .filter(|worker| worker.life.healthy.load(Relaxed))
            .collect();
        if ready.len() < 2 {
            return;
        }
        let seen: Vec<_> = ready.iter().map(|worker| worker.life.window.seen(now_ms)).collect();
        for out in eject(&seen, now_ms, &self.config.breaker.outlier) {
            ready[out.at].life.window.set_ejected(&out, now_ms);
            ejected(ready[out.at], out.cause.as_str());
        }
    }

    fn new_life(&self, worker: &Worker, next_number: &mut u32, healthy: bool) -> Arc<WorkerLife> {
        let number = *next_number;
        *next_number = next_number.wrapping_add(1);
        let blocks = match worker.kv_cache_tokens / self.block_tokens {
            0 => self.worker_blocks_default,
            blocks => blocks,
        };
        Arc::new(WorkerLife {
            cache: WorkerCache::new(number, blocks),
            predicted_since_ms: AtomicU64::new(0),
            feed: FeedState::default(),
            warmable: SharedWarmable::default(),
            inflight: AtomicU32::new(0),
            backlog: SharedBacklog::default(),
            others: SharedOthers::default(),
            picked: AtomicU64::new(0),
            healthy: AtomicBool::new(healthy),
            breaker: Breaker::new(self.config.breaker.clone()),
            window: WorkerWindow::default(),
            given_up: Arc::default(),
            draining_since_ms: AtomicU64::new(0),
            cannot_tokenize: AtomicBool::new(false),
            epoch: AtomicU64::new(worker.epoch),
        })
    }

    /// Tokens per byte of prompt text.
    pub fn tokens_per_byte(&self) -> f32 {
        f32::from_bits(self.tokens_per_byte.load(Relaxed))
    }

    /// Moves the ratio a sixteenth towards what one answer says.
    pub fn learn_tokens_per_byte(&self, tokens: u64, bytes: u64) {
        if tokens == 0 || bytes == 0 {
            return;
        }
        let old = self.tokens_per_byte();
        let new = old + (tokens as f32 / bytes as f32 - old) / 16.0;
        self.tokens_per_byte.store(new.clamp(0.01, 2.0).to_bits(), Relaxed);
    }
}

/// A worker that is much worse than the others is better than none: who rests is called back while nobody
/// else is ready.
fn call_back(model: &ModelView, now_ms: u64) {
    if model.workers.iter().any(|worker| worker.is_ready(now_ms)) {
        return;
    }
    for worker in &model.workers {
        worker.life.window.call_back(now_ms);
    }
}

/// Control's word that a worker went from not ready to ready is newer than our last failed probe.
fn control_saw_it_recover(old: &View, worker: &Worker) -> bool {
    worker.state == WorkerState::Ready
        && old.workers().find(|view| view.worker.id == worker.id).is_some_and(|view| {
            view.worker.state != WorkerState::Ready || view.worker.epoch != worker.epoch
        })
}

#[cfg(test)]
mod tests {
    use dataplane::wire::Capability;

    use super::*;

    fn worker(id: &str, epoch: u64, state: WorkerState) -> Worker {
        Worker {
            id: id.into(),
            node: "n".into(),
            url: "http://127.0.0.1:9".into(),
            model: "m".into(),
            kind: EngineKind::LlamaCpp,
            slots: 2,
            context_length_tokens: 0,
            kv_cache_tokens: 0,
            capabilities: vec![Capability::Chat],
            state,
            epoch,
            power_watts: None,
            running_requests: None,
            kv_feed: None,
            kv_events: false,
            kv_block_tokens: 0,
            model_files: None,
        }
    }

    fn snapshot(version: u64, workers: Vec<Worker>) -> Snapshot {
        Snapshot { version, workers, weights: None }
    }

    fn life(cluster: &Cluster, id: &str) -> Arc<WorkerLife> {
        Arc::clone(&cluster.view().workers().find(|view| view.worker.id == id).unwrap().life)
    }

    #[test]
    fn counters_outlive_a_view_and_a_restart_clears_the_cache() {
        let cluster = Cluster::new(&crate::config::Router::default(), Arc::default());
        cluster.apply(snapshot(1, vec![worker("a", 1, WorkerState::Ready)]), true);
        let first = life(&cluster, "a");
        first.inflight.store(3, Relaxed);
        let digests = dataplane::digest::of_tokens(
            &dataplane::digest::seed(dataplane::digest::Unit::Tokens, "m", "", ""),
            &[1, 2],
            1,
        );
        cluster.index.insert(&digests, crate::index::Match::default(), &first.cache);
        cluster.apply(snapshot(2, vec![worker("a", 1, WorkerState::Ready)]), true);
        let again = life(&cluster, "a");
        assert!(Arc::ptr_eq(&first, &again));
        assert_eq!(cluster.index.depth(&digests, &again.cache).blocks, 2);
        cluster.apply(snapshot(3, vec![worker("a", 2, WorkerState::Ready)]), true);
        assert_eq!(cluster.index.depth(&digests, &again.cache).blocks, 0);
        cluster.apply(snapshot(4, vec![]), true);
        assert!(cluster.index.is_empty());
    }

    #[test]
    fn exclusions_follow_state_health_and_capability() {
        let cluster = Cluster::new(&crate::config::Router::default(), Arc::default());
        let workers = vec![
            worker("ready", 1, WorkerState::Ready),
            worker("draining", 1, WorkerState::Draining),
            worker("down", 1, WorkerState::NotReady),
        ];
        cluster.apply(snapshot(1, workers), true);
        let view = cluster.view();
        let of = |id: &str, endpoint| {
            view.workers().find(|w| w.worker.id == id).unwrap().exclusion(endpoint, 1)
        };
        assert_eq!(of("ready", Endpoint::Chat), None);
        assert_eq!(of("ready", Endpoint::Embeddings), Some(Exclusion::NotCapable));
        assert_eq!(of("draining", Endpoint::Chat), Some(Exclusion::Draining));
        assert_eq!(of("down", Endpoint::Chat), Some(Exclusion::NotReady));
        life(&cluster, "ready").healthy.store(false, Relaxed);
        assert_eq!(of("ready", Endpoint::Chat), Some(Exclusion::NotReady));
    }

    #[test]
    fn the_ratio_of_tokens_to_bytes_is_learned_within_bounds() {
        let cluster = Cluster::new(&crate::config::Router::default(), Arc::default());
        for _ in 0..200 {
            cluster.learn_tokens_per_byte(50, 100);
        }
        assert!((cluster.tokens_per_byte() - 0.5).abs() < 0.01);
        cluster.learn_tokens_per_byte(0, 100);
        for _ in 0..500 {
            cluster.learn_tokens_per_byte(u64::MAX, 1);
        }
        assert!(cluster.tokens_per_byte() <= 2.0);
    }
}
