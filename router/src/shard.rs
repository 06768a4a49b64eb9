//! One core's share of the router: its engine connections, its watchdog, its token cache, its seeds.
//!
//! Nothing here is shared with another core but through [`Cluster`] and [`Stats`]. No borrow of a
//! cell lives across an await.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use dataplane::route::index::Depths;
use prometheus::{Counter, IntCounter};

use crate::cluster::Cluster;
use crate::config::Router;
use crate::counters::Counters;
use crate::front::Front;
use crate::hall::Waiters;
use crate::identity::{Identity, IdentityCache};
use crate::record::Recorder;
use crate::stats::Stats;
use crate::tokenize::TokenCache;
use crate::tokenizer::shelf::Shelf;
use crate::upstream::Pool;
use crate::watch::Watchdog;

/// What the cores share.
#[derive(Clone)]
pub struct Shared {
    /// The configuration in force.
    pub config: Arc<Router>,
    /// The workers.
    pub cluster: Arc<Cluster>,
    /// The counters.
    pub stats: Arc<Stats>,
    /// Who may come in.
    pub identity: Arc<Identity>,
    /// The models' own tokenizers.
    pub shelf: Arc<Shelf>,
}

/// Everything one core owns.
pub struct Shard {
    /// The configuration in force.
    pub config: Arc<Router>,
    /// The workers, shared.
    pub cluster: Arc<Cluster>,
    /// The counters, shared.
    pub stats: Arc<Stats>,
    /// What this core's listener speaks.
    pub front: Arc<Front>,
    /// Idle connections to engines.
    pub pool: Pool,
    /// Time limits of this core's connections.
    pub watchdog: Rc<Watchdog>,
    /// Who may come in, shared.
    pub identity: Arc<Identity>,
    /// Tokens and certificates verified lately.
    pub callers: RefCell<IdentityCache>,
    /// Those who wait for a place.
    pub waiters: Rc<Waiters>,
    /// What records of requests are written with.
    pub recorder: Recorder,
    bytes_in: IntCounter,
    cpu: Counter,
    bytes_out: IntCounter,
    /// Counters looked up already.
    pub counters: Counters,
    /// The time of the last look at the clock, in ms on the cluster's clock.
    clock_ms: Cell<u64>,
    /// This shard, for what goes on beside a request.
    pub me: Weak<Shard>,
    /// The models' own tokenizers, shared.
    pub shelf: Arc<Shelf>,
    /// Self-checks of tokenizers under way.
    pub checks: Cell<usize>,
    /// Prompts tokenized lately.
    pub tokens: RefCell<TokenCache>,
    /// Working memory of lookups in what engines say they hold.
    pub depths: RefCell<Depths>,
    /// Nothing is accepted any more.
    pub has_left: Cell<bool>,
    next_id: Cell<u64>,
}

fn core_name(core: usize) -> String {
    match core {
        usize::MAX => "house".to_owned(),
        core => core.to_string(),
    }
}

impl Shard {
    /// Core number `core`, whose request ids and tie-breaks begin at `seed`.
    pub fn new(
        shared: Shared,
        front: Arc<Front>,
        recorder: Recorder,
        core: usize,
        seed: u64,
    ) -> Rc<Self> {
        let Shared { config, cluster, stats, identity, shelf } = shared;
        Rc::new_cyclic(|me| Shard {
            me: Weak::clone(me),
            shelf,
            checks: Cell::new(0),
            watchdog: Rc::new(Watchdog::new(&config.limits)),
            tokens: RefCell::new(TokenCache::new(config.kv.token_cache_entries_max)),
            depths: RefCell::default(),
            pool: Pool::default(),
            has_left: Cell::new(false),
            waiters: Rc::new(Waiters::new(core, Arc::clone(&cluster.bells))),
            callers: RefCell::new(IdentityCache::new()),
            counters: Counters::default(),
            clock_ms: Cell::new(cluster.now_ms()),
            identity,
            recorder,
            cpu: stats.cpu.with_label_values(&[&core_name(core)]),
            bytes_in: stats.bytes.with_label_values(&["in"]),
            bytes_out: stats.bytes.with_label_values(&["out"]),
            next_id: Cell::new(seed),
            config,
            cluster,
            stats,
            front,
        })
    }

    /// Counts the bytes of one request's body and of its answer.
    pub fn count_bytes(&self, bytes_in: u64, bytes_out: u64) {
        self.bytes_in.inc_by(bytes_in);
        self.bytes_out.inc_by(bytes_out);
    }

    /// Notes the time. Called where the clock is read anyway: when a request begins, when a part of an
    /// answer was passed on, and each tick.
    pub fn strike(&self, now: Instant) {
        self.clock_ms.set(self.cluster.at_ms(now));
    }

    /// The time on the cluster's clock, as of the last strike: a tick old at most. For queues, breakers
    /// and budgets, which count in seconds.
    pub fn now_ms(&self) -> u64 {
        self.clock_ms.get()
    }

    /// Hands what was recorded over to those who write it down.
    pub fn flush_records(&self) {
        if let Some(access) = &self.recorder.access {
            access.flush();
        }
        // Time on the CPU is the thread's own to read.
        if let Ok(spent) = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID) {
            let seconds = spent.tv_sec() as f64 + spent.tv_nsec() as f64 / 1e9;
            self.cpu.inc_by((seconds - self.cpu.get()).max(0.0));
        }
    }

    /// Whether the process is on its way out: what is here is served, and told to go elsewhere.
    pub fn is_draining(&self) -> bool {
        self.cluster.draining.load(Relaxed)
    }

    /// A number never given before by this process (seeds of shards lie 2^48 apart).
    pub fn next_id(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id.wrapping_add(1));
        id
    }
}
