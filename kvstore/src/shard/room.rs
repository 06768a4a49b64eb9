//! Making room: memory for a block that comes, by letting others go.
//!
//! Which one goes is decided by [`eviction`](crate::eviction); here its memory is taken back, and who
//! asks waits while all of it is leased.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::spill::SPILLS_MAX;
use super::{Shard, State};
use crate::arena::{MemoryError, Slot, padded_bytes};
use crate::executor::breath;
use crate::key::{Key, NamespaceId};
use crate::mesh::reply;
use crate::namespace::Namespace;
use crate::request::Request;
use crate::store::{Claim, StoreError};

/// Blocks one reservation may push out before others have their turn: 512 MiB in blocks of 64 KiB.
const EVICTIONS_PER_TURN_MAX: usize = 8192;

/// Why there is no memory now.
enum Want {
    /// Something may come back: wait.
    Room,
    /// Only blocks with children are left, of a namespace if one is named; the children may lie in
    /// other shards.
    Leaf(Option<NamespaceId>),
    /// It will not become better.
    Nothing(StoreError),
}

impl Shard {
    /// Memory for a block of `len` bytes, waiting at most `kv.limits.reserve_wait_ms` while all is leased.
    ///
    /// # Errors
    /// [`StoreError`]: too large, over the quota, busy, draining, or the namespace was never opened.
    pub async fn reserve(self: &Rc<Self>, key: Key, len: usize) -> Result<Slot, StoreError> {
        if self.is_draining.get() {
            return Err(StoreError::Draining);
        }
        let namespace =
            self.house.namespaces.find(key.namespace).ok_or(StoreError::UnknownNamespace)?;
        let wait = Duration::from_millis(self.limits.get().reserve_wait_ms);
        let deadline = Instant::now() + wait;
        loop {
            let rings = self.room.rings();
            match self.try_reserve(&namespace, len, Claim::Asked) {
                Ok(slot) => return Ok(slot),
                Err(Want::Nothing(error)) => return Err(error),
                Err(Want::Leaf(of)) if self.has_leaf_soon(rings, of).await => {
                    if Instant::now() >= deadline {
                        return Err(StoreError::Busy);
                    }
                    continue;
                }
                Err(Want::Room | Want::Leaf(_)) => {}
            }
            self.wanted.ring();
            if !self.room.rung_before(rings, Some(deadline)).await {
                return Err(StoreError::Busy);
            }
        }
    }

    /// Memory for a block that a peer offers, at once or not at all: from what is free, or from blocks that
    /// have outlived their head start and need no writing.
    ///
    /// # Errors
    /// As [`Shard::reserve`]; [`StoreError::Busy`] if all that is here is worth more.
    pub fn reserve_offered(self: &Rc<Self>, key: Key, len: usize) -> Result<Slot, StoreError> {
        if self.is_draining.get() {
            return Err(StoreError::Draining);
        }
        let namespace =
            self.house.namespaces.find(key.namespace).ok_or(StoreError::UnknownNamespace)?;
        self.try_reserve(&namespace, len, Claim::Offered).map_err(|want| match want {
            Want::Nothing(error) => error,
            Want::Room | Want::Leaf(_) => StoreError::Busy,
        })
    }

    /// Whether a block of `len` bytes that a peer offers would find memory, as far as can be seen without
    /// letting anything go. Not where nobody here knows its namespace.
    pub fn welcomes(&self, key: Key, len: usize) -> bool {
        let Some(namespace) = self.house.namespaces.find(key.namespace) else { return false };
        if self.is_draining.get() {
            return false;
        }
        let state = &mut *self.state.borrow_mut();
        let bytes = padded_bytes(len) as u64;
        let quota = namespace.rules().quota_bytes.unwrap_or(u64::MAX);
        let is_in_quota = namespace.used_bytes().saturating_add(bytes) <= quota;
        let is_free =
            state.memory.used_bytes().saturating_add(bytes) <= state.memory.budget_bytes();
        let of = if is_in_quota { None } else { Some(namespace.id) };
        (is_in_quota && is_free) || state.eviction.is_next_spent(of)
    }

    /// Whether a block may have lost its last child: one is on its way to tell us, or another shard let a
    /// leaf go. Shards are asked by turns, each once.
    async fn has_leaf_soon(&self, rings: u64, of: Option<NamespaceId>) -> bool {
        breath().await;
        if self.room.rings() != rings {
            return true;
        }
        let inboxes = &self.house.inboxes;
        for _ in 1..inboxes.len() {
            self.asked.set((self.asked.get() + 1) % inboxes.len());
            if self.asked.get() == self.number {
                self.asked.set((self.asked.get() + 1) % inboxes.len());
            }
            let (reply, waiting) = reply();
            let request = Request::Shed { namespace: of, reply };
            if inboxes[self.asked.get()].send(request).is_ok()
                && waiting.answer().await == Some(true)
            {
                return true;
            }
        }
        false
    }

    /// Lets the next block go for another shard. False if none may.
    pub fn shed(self: &Rc<Self>, namespace: Option<NamespaceId>) -> bool {
        self.evict(&mut self.state.borrow_mut(), namespace, Claim::Asked).is_ok()
    }

    fn try_reserve(
        self: &Rc<Self>,
        namespace: &Arc<Namespace>,
        len: usize,
        claim: Claim,
    ) -> Result<Slot, Want> {
        let state = &mut *self.state.borrow_mut();
        let bytes = padded_bytes(len) as u64;
        if namespace.rules().quota_bytes.is_some_and(|quota| quota < bytes) {
            return Err(Want::Nothing(StoreError::QuotaExceeded));
        }
        for _ in 0..EVICTIONS_PER_TURN_MAX {
            if !namespace.charge(bytes) {
                self.evict(state, Some(namespace.id), claim)?;
                continue;
            }
            match state.memory.alloc(len, namespace.clone()) {
                Ok(slot) => return Ok(slot),
                Err(error) => {
                    namespace.discharge(bytes);
                    match error {
                        MemoryError::Full => self.evict(state, None, claim)?,
                        MemoryError::TooLarge { len, max } => {
                            return Err(Want::Nothing(StoreError::TooLarge { len, max }));
                        }
                        MemoryError::System(_) => {
                            // The machine is short, not we: one block less, and the next may fit.
                            tracing::warn!(%error, "the arena could not grow");
                            self.evict(state, None, claim)?;
                        }
                    }
                }
            }
        }
        Err(Want::Nothing(StoreError::Busy))
    }

    /// Lets the next block go, of `namespace` only if one is named. One that is worth it goes to disk
    /// first: then there is no room yet, but there will be.
    fn evict(
        self: &Rc<Self>,
        state: &mut State,
        namespace: Option<NamespaceId>,
        claim: Claim,
    ) -> Result<(), Want> {
        if self.spills.get() >= SPILLS_MAX {
            return Err(Want::Room);
        }
        let State { index, eviction, .. } = state;
        let may_go = |id| {
            index.get(id).is_some_and(|entry| {
                !entry.is_pinned
                    && !entry.is_leaving
                    // A leased block's memory would not come back: nothing is won by forgetting it.
                    && entry.ram.as_ref().is_some_and(|block| block.count() == 1)
            })
        };
        let victim = match claim {
            Claim::Asked => eviction
                .victim(namespace, may_go)
                .or_else(|| eviction.victim_thorough(namespace, may_go)),
            // What must be written first would come free too late, and more would have to go meanwhile.
            Claim::Offered => {
                let needs_writing =
                    |id| index.get(id).is_some_and(|entry| self.is_worth_writing(entry));
                eviction.victim_spent(namespace, |id| may_go(id) && !needs_writing(id))
            }
        };
        let Some(id) = victim else {
            let has_parents = eviction.parked() > 0;
            return Err(if has_parents { Want::Leaf(namespace) } else { Want::Room });
        };
        self.house.stats.evictions.inc();
        if index.get(id).is_some_and(|entry| self.is_worth_writing(entry)) {
            self.spill(state, id);
            return Ok(());
        }
        let place =
            state.index.get(id).filter(|entry| entry.touches > 0).and_then(|entry| entry.disk);
        if let (Some(place), Some(disk)) = (place, self.disk()) {
            disk.used(&place);
        }
        self.alter(state, id, |entry| entry.ram = None);
        Ok(())
    }
}
