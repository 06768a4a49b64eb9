//! One core's share of the router: its engine connections, its watchdog, its token cache, its seeds.
//!
//! Nothing here is shared with another core but through [`Cluster`] and [`Stats`]. No borrow of a
//! cell lives across an await.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::cluster::Cluster;
use crate::config::Router;
use crate::front::Front;
use crate::stats::Stats;
use crate::tokenize::TokenCache;
use crate::upstream::Pool;
use crate::watch::Watchdog;

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
    /// Prompts tokenized lately.
    pub tokens: RefCell<TokenCache>,
    /// Nothing is accepted any more.
    pub has_left: Cell<bool>,
    next_id: Cell<u64>,
}

impl Shard {
    /// A shard whose request ids and tie-breaks begin at `seed`.
    pub fn new(
        config: Arc<Router>,
        cluster: Arc<Cluster>,
        stats: Arc<Stats>,
        front: Arc<Front>,
        seed: u64,
    ) -> Rc<Self> {
        Rc::new(Shard {
            watchdog: Rc::new(Watchdog::new(&config.limits)),
            tokens: RefCell::new(TokenCache::new(config.kv.token_cache_entries_max)),
            pool: Pool::default(),
            has_left: Cell::new(false),
            next_id: Cell::new(seed),
            config,
            cluster,
            stats,
            front,
        })
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
