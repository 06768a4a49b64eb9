//! Bringing a block into RAM: from disk, else from a peer.
//!
//! Each key is brought once at a time, by a task of its own; who asks for it meanwhile waits for that.
//! A task is never dropped in the middle: the device may be writing to its memory.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use super::{Place, Shard};
use crate::block::{Block, Lease};
use crate::disk::DiskError;
use crate::executor::spawn;
use crate::key::Key;
use crate::peer::fetch::Fetched;
use crate::signal::Signal;
use crate::store::StoreError;

/// How far a block is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// RAM and disk of this daemon: for a peer that asks.
    Here,
    /// Peers too.
    Peers,
}

/// A block on its way into RAM.
#[derive(Default)]
pub(super) struct Load {
    /// Rings when it is over.
    over: Signal,
    /// The tiers here did not have it.
    asks_peers: Cell<bool>,
    /// How it ended. The lease keeps the block in RAM for who waited.
    outcome: RefCell<Option<Result<Option<Lease>, StoreError>>>,
}

impl Shard {
    /// A lease on the block, wherever it lies; none if no tier has it, or not before `deadline`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get(
        self: &Rc<Self>,
        key: Key,
        reach: Reach,
        deadline: Option<Instant>,
    ) -> Result<Option<Lease>, StoreError> {
        if let Some(lease) = self.get_from_ram(key) {
            return Ok(Some(lease));
        }
        let Some(load) = self.load(key, reach, deadline)? else {
            self.house.stats.lookups.with_label_values(&["none"]).inc();
            return Ok(None);
        };
        if load.outcome.borrow().is_none() {
            // Nothing rings between this look and the wait: both happen on one thread, in one step.
            let rings = load.over.rings();
            if !load.over.rung_before(rings, deadline).await {
                return Ok(None);
            }
        }
        load.outcome.borrow().clone().unwrap_or(Ok(None))
    }

    /// A lease on the block if it lies in RAM. It counts as a use.
    pub fn get_from_ram(&self, key: Key) -> Option<Lease> {
        let state = &mut *self.state.borrow_mut();
        let id = state.index.id(&key)?;
        let entry = state.index.get_mut(id)?;
        let lease = entry.ram.clone()?;
        entry.touches = entry.touches.saturating_add(1);
        state.eviction.touch(id);
        self.house.stats.hit_in_ram(lease.len() as u64);
        Some(lease)
    }

    /// The load of this key that runs, or a new one; none if no tier could have it.
    fn load(
        self: &Rc<Self>,
        key: Key,
        reach: Reach,
        deadline: Option<Instant>,
    ) -> Result<Option<Rc<Load>>, StoreError> {
        let running = self.loading.borrow().get(&key).cloned();
        // Who may not ask peers does not wait for who does: two daemons could wait for each other.
        if let Some(running) =
            running.filter(|load| reach == Reach::Peers || !load.asks_peers.get())
        {
            return Ok(Some(running));
        }
        let place = self.state.borrow().index.find(&key).and_then(|(_, entry)| entry.disk);
        let has_peers = reach == Reach::Peers && self.house.peers.get().is_some();
        if place.is_none() && !has_peers {
            return Ok(None);
        }
        if self.loading.borrow().len() >= self.limits.get().loads_max {
            return Err(StoreError::Busy);
        }
        let load = Rc::new(Load::default());
        self.loading.borrow_mut().insert(key, load.clone());
        let (shard, running) = (self.clone(), load.clone());
        spawn(async move {
            let outcome = shard.bring(key, place, reach, &running, deadline).await;
            let mut loading = shard.loading.borrow_mut();
            if loading.get(&key).is_some_and(|load| Rc::ptr_eq(load, &running)) {
                loading.remove(&key);
            }
            drop(loading);
            running.outcome.replace(Some(outcome));
            running.over.ring();
        });
        Ok(Some(load))
    }

    /// Tries the tiers in order of their speed.
    async fn bring(
        self: &Rc<Self>,
        key: Key,
        place: Option<Place>,
        reach: Reach,
        load: &Load,
        deadline: Option<Instant>,
    ) -> Result<Option<Lease>, StoreError> {
        if let Some(place) = place
            && let Some(lease) = self.bring_from_disk(key, place).await?
        {
            self.house.stats.hit_on_disk(lease.len() as u64);
            return Ok(Some(lease));
        }
        if reach == Reach::Peers
            && let Some(peers) = self.house.peers.get()
        {
            load.asks_peers.set(true);
            let fetched = peers.fetch(vec![key], deadline).await;
            if fetched.first() == Some(&Fetched::Kept)
                && let Some(lease) = self.peek(key)
            {
                self.house.stats.hit_at_peer(lease.len() as u64);
                return Ok(Some(lease));
            }
        }
        self.house.stats.lookups.with_label_values(&["none"]).inc();
        Ok(None)
    }

    /// A lease on the block if it lies in RAM, without counting a use.
    fn peek(&self, key: Key) -> Option<Lease> {
        self.state.borrow().index.find(&key)?.1.ram.clone()
    }

    async fn bring_from_disk(
        self: &Rc<Self>,
        key: Key,
        place: Place,
    ) -> Result<Option<Lease>, StoreError> {
        let Some(disk) = self.disk() else { return Ok(None) };
        let slot = self.reserve(key, place.len as usize).await?;
        match disk.read(key, place, slot).await {
            Ok((about, slot)) => {
                let block = Block::seal(slot, key, about.parent, about.label).with_hash(about.hash);
                Ok(Some(self.arrived(block, place)))
            }
            Err(error) => {
                if !matches!(error, DiskError::Gone) {
                    tracing::warn!(%key, %error, "a block on disk could not be read; it is dropped");
                }
                self.left_disk(key, place);
                Ok(None)
            }
        }
    }

    /// A block was read from `place`. It lies in RAM too from here on, unless its entry changed since.
    fn arrived(&self, block: Lease, place: Place) -> Lease {
        let state = &mut *self.state.borrow_mut();
        if let Some((id, entry)) = state.index.find(&block.key())
            && entry.disk == Some(place)
            && entry.ram.is_none()
        {
            self.alter(state, id, |entry| {
                entry.ram = Some(block.clone());
                entry.touches = entry.touches.saturating_add(1);
            });
        }
        block
    }
}
