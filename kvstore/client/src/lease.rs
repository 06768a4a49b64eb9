//! A block's bytes in place, for as long as somebody looks at them.
//!
//! Owns the ids of leases that are over until they are told to the daemon: together with the next
//! request, when [`RELEASES_HELD_MAX`] have gathered, or at once when no lease is left.

use std::sync::{Arc, Mutex, PoisonError};

use dataplane::kv::Fault;

use crate::client::Shared;

/// So many leases that are over are told in one frame, and are held back at most.
const RELEASES_HELD_MAX: usize = 64;

/// What a GET found of one block.
#[derive(Debug)]
pub enum Found {
    /// The block.
    Lease(Lease),
    /// In no tier, or not in time.
    Missing,
    /// There may be one, but it cannot be had now.
    Failed(Fault),
}

impl Found {
    /// The lease, if there is one.
    pub fn lease(self) -> Option<Lease> {
        match self {
            Found::Lease(lease) => Some(lease),
            _ => None,
        }
    }
}

/// A block in the daemon's memory. Its bytes stay as they are until it is dropped.
pub struct Lease {
    /// None once `into_id` took it.
    shared: Option<Arc<Shared>>,
    id: u64,
    offset: u64,
    len: u64,
}

impl Lease {
    /// Takes a lease that the daemon granted, and that [`Shared::grants`] found in the arena.
    pub(crate) fn new(shared: &Arc<Shared>, id: u64, offset: u64, len: u64) -> Lease {
        shared.releases.granted();
        Lease { shared: Some(Arc::clone(shared)), id, offset, len }
    }

    /// Whether `shared` got it.
    pub(crate) fn is_of(&self, shared: &Arc<Shared>) -> bool {
        self.shared.as_ref().is_some_and(|own| Arc::ptr_eq(own, shared))
    }

    /// Its number, for who tells the daemon that it is over.
    pub(crate) fn into_id(mut self) -> u64 {
        if let Some(shared) = self.shared.take() {
            shared.releases.told();
        }
        self.id
    }
}

impl std::ops::Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // Was in the arena when it was granted, and the arena does not shrink.
        let arena = self.shared.as_ref().map(|shared| &shared.arena);
        arena.and_then(|arena| arena.leased(self.offset, self.len)).unwrap_or_default()
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Lease { id, offset, len, .. } = self;
        write!(f, "Lease {{ id: {id}, offset: {offset}, len: {len} }}")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared
            && shared.releases.over(self.id)
        {
            shared.flush_releases();
        }
    }
}

/// Leases that are out, and those that are over but not told yet.
#[derive(Default)]
pub(crate) struct Releases(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    out: usize,
    over: Vec<u64>,
}

impl Releases {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        // Whoever panicked left a list of ids and a count, which are whole between statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn granted(&self) {
        self.inner().out += 1;
    }

    /// A lease is over, and the daemon hears of it some other way.
    fn told(&self) {
        self.inner().out -= 1;
    }

    /// A lease is over. Whether the daemon should hear of it now.
    fn over(&self, id: u64) -> bool {
        let mut inner = self.inner();
        inner.out -= 1;
        inner.over.push(id);
        inner.out == 0 || inner.over.len() >= RELEASES_HELD_MAX
    }

    /// Those to tell the daemon now.
    pub(crate) fn take(&self) -> Vec<u64> {
        std::mem::take(&mut self.inner().over)
    }
}
