//! One core's share of the store: its index, its memory, its eviction.
//!
//! Only the thread that made a shard touches it; others send a [`Request`](crate::request::Request) to
//! its inbox. What takes one step is here; [`load`], [`room`], [`commit`] and [`spill`] wait for tiers and
//! have files of their own; [`kin`] keeps parents before children. It knows no door and no protocol.

mod commit;
mod kin;
mod load;
mod room;
mod spill;
mod verify;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub use load::Reach;

use load::Load;

use crate::arena::Memory;
use crate::config::Limits;
use crate::disk::client::DiskClient;
use crate::eviction::Eviction;
use crate::executor::{breath, sleep, spawn};
use crate::index::Index;
use crate::key::{Key, NamespaceId};
use crate::mesh::Inbox;
use crate::namespace::Namespaces;
use crate::peer::Peers;
use crate::request::{Request, serve};
use crate::signal::Signal;
use crate::stats::Stats;
use crate::store::{Listed, Tier};

pub use crate::disk::place::Place;

/// What a shard owns, changed only between two waits.
struct State {
    index: Index<Place>,
    memory: Memory,
    eviction: Eviction,
}

/// What all shards share.
#[derive(Clone)]
pub struct House {
    /// Where each shard takes requests from other threads.
    pub inboxes: Arc<[Inbox<Request>]>,
    /// All namespaces.
    pub namespaces: Arc<Namespaces>,
    /// What is counted.
    pub stats: Arc<Stats>,
    /// Other daemons, once their thread runs; never, if there are to be none.
    pub peers: Arc<OnceLock<Peers>>,
    /// Every limit of the configuration at the start; a shard has them as they are now.
    pub limits: Limits,
}

impl House {
    /// Sends a request that nobody waits for to the shard of `key`. To be called on a shard's thread:
    /// where there is no room, a task of it waits.
    pub fn tell(&self, key: Key, request: Request) {
        let shard = key.shard(self.inboxes.len());
        let Err(request) = self.inboxes[shard].send(request) else { return };
        let inboxes = self.inboxes.clone();
        spawn(async move { inboxes[shard].send_when_room(request, breath).await });
    }

    /// The inbox of the shard of `key`.
    pub fn inbox(&self, key: &Key) -> &Inbox<Request> {
        &self.inboxes[key.shard(self.inboxes.len())]
    }
}

/// How often a shard that ends looks whether its disk is at rest.
const CLOSE_LOOK: Duration = Duration::from_millis(5);

/// One core's share of the store.
pub struct Shard {
    number: usize,
    house: House,
    /// Those of the configuration as it was last read.
    limits: Cell<Limits>,
    state: RefCell<State>,
    /// Rings when memory came back or a block stopped being on its way.
    room: Signal,
    /// Rings when somebody begins to wait for room.
    wanted: Signal,
    /// Keys on their way into RAM.
    loading: RefCell<HashMap<Key, Rc<Load>>>,
    /// Blocks on their way to disk because they leave RAM.
    spills: Cell<usize>,
    /// Keys that are being written to disk, and the signal that one is not any more.
    turns: RefCell<HashSet<Key>>,
    turn_over: Signal,
    /// Taken out at the end: tasks that wait for ever keep the shard itself.
    disk: RefCell<Option<Rc<DiskClient>>>,
    /// The shard that was asked last to let a block go.
    asked: Cell<usize>,
    is_draining: Cell<bool>,
}

impl Shard {
    /// A shard with the memory given to it. Its requests are served once [`Shard::run`] is polled.
    pub fn new(number: usize, house: House, memory: Memory, disk: Option<DiskClient>) -> Rc<Shard> {
        let eviction = Eviction::new(memory.budget_bytes());
        let state = State { index: Index::default(), memory, eviction };
        Rc::new(Shard {
            number,
            limits: Cell::new(house.limits),
            house,
            state: RefCell::new(state),
            room: Signal::default(),
            wanted: Signal::default(),
            loading: RefCell::default(),
            spills: Cell::new(0),
            turns: RefCell::default(),
            turn_over: Signal::default(),
            disk: RefCell::new(disk.map(Rc::new)),
            asked: Cell::new(number),
            is_draining: Cell::new(false),
        })
    }

    /// Which shard this is.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Its disk, if it has one.
    pub(crate) fn disk(&self) -> Option<Rc<DiskClient>> {
        self.disk.borrow().clone()
    }

    /// Lets the disk go once nothing is read from it or written to it any more, and ends its thread. False
    /// if something still is at `deadline`.
    pub async fn close_disk(&self, deadline: Instant) -> bool {
        let Some(disk) = self.disk.take() else { return true };
        while Rc::strong_count(&disk) > 1 {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(CLOSE_LOOK).await;
        }
        let ended = async {
            disk.end().await;
            true
        };
        let late = async {
            sleep(deadline.saturating_duration_since(Instant::now())).await;
            false
        };
        futures_lite::future::or(ended, late).await
    }

    /// The limits it keeps to now.
    pub fn limits(&self) -> Limits {
        self.limits.get()
    }

    /// Other limits from here on.
    pub fn set_limits(&self, limits: Limits) {
        self.limits.set(limits);
        if let Some(disk) = self.disk() {
            let shards = self.house.inboxes.len() as u64;
            disk.set_write_rate(limits.ssd_write_bytes_per_s().map(|all| all / shards));
        }
    }

    /// What all shards share.
    pub fn house(&self) -> &House {
        &self.house
    }

    /// Serves requests of other threads, for ever.
    pub async fn run(self: Rc<Self>) {
        spawn(self.clone().watch_memory());
        loop {
            let request = self.house.inboxes[self.number].receive().await;
            serve(&self, request);
        }
    }

    /// Rings `room` when a lease was let go on any thread, while somebody waits for one.
    async fn watch_memory(self: Rc<Self>) {
        let freed = self.state.borrow().memory.freed().clone();
        loop {
            let wanted = self.wanted.rings();
            let releases = freed.releases();
            self.room.ring();
            freed.released_since(releases).await;
            self.room.ring();
            // Leases come back all the time; only one that is waited for is worth a look.
            self.wanted.rung_since(wanted).await;
        }
    }

    /// Where each of `keys`, all of this shard, lies.
    pub fn lookup(&self, keys: &[Key], tiers: &mut Vec<Option<Tier>>) {
        let state = self.state.borrow();
        tiers.extend(keys.iter().map(|key| state.index.find(key)?.1.tier()));
    }

    /// Keeps the block in RAM, or lets it go again. False if RAM does not hold it.
    pub fn pin(&self, key: Key, is_pinned: bool) -> bool {
        let mut state = self.state.borrow_mut();
        let Some(id) = state.index.id(&key) else { return false };
        let Some(entry) = state.index.get_mut(id).filter(|entry| entry.ram.is_some()) else {
            return false;
        };
        entry.is_pinned = is_pinned;
        true
    }

    /// Up to `max` blocks from id `cursor` on, and where to go on; none: that was all.
    pub fn list(
        &self,
        namespace: Option<NamespaceId>,
        cursor: u32,
        max: usize,
    ) -> (Vec<Listed>, Option<u32>) {
        let state = self.state.borrow();
        let mut listed = Vec::new();
        for (id, entry) in state.index.from(cursor) {
            if listed.len() >= max {
                return (listed, Some(id));
            }
            let is_asked = namespace.is_none_or(|namespace| entry.key.namespace == namespace);
            if let Some(tier) = entry.tier().filter(|_| is_asked) {
                listed.push(Listed {
                    key: entry.key,
                    tier,
                    bytes: match (&entry.ram, &entry.disk) {
                        (Some(block), _) => block.len() as u64,
                        (None, Some(place)) => place.len,
                        (None, None) => 0,
                    },
                    label: entry.ram.as_ref().map(|block| block.label().into()).unwrap_or_default(),
                    is_pinned: entry.is_pinned,
                });
            }
        }
        (listed, None)
    }

    /// Takes no more blocks from here on.
    pub fn drain(&self) {
        self.is_draining.set(true);
    }

    /// Writes down what this shard holds.
    pub fn measure(&self) {
        let mut state = self.state.borrow_mut();
        let used = state.memory.used_bytes();
        let resident = state.memory.resident_bytes();
        self.house.stats.shard(self.number, state.index.len() as u64, used, resident);
    }
}
