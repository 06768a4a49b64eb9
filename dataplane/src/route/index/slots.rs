//! Slots: which worker stands behind the small number that sets keep of it.
//!
//! A worker that restarts or leaves loses its slot at once and so everything it held; if it comes back it
//! gets another. What still names a dead slot is swept from the table bit by bit, and only after a whole
//! pass may the slot stand for another worker.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64, fence};

use super::WorkerNumber;

/// No worker: of a slot that is dead or was never used.
const NOBODY: u64 = u64::MAX;

/// What readers see.
pub(super) struct Owners {
    of_slot: Box<[AtomicU64]>,
    /// Counts the slots used again for another worker.
    reuses: AtomicU32,
}

impl Owners {
    fn new(slots: usize) -> Self {
        let of_slot = (0..slots).map(|_| AtomicU64::new(NOBODY)).collect();
        Owners { of_slot, reuses: AtomicU32::new(0) }
    }

    /// The worker behind a slot, `None` when it is dead.
    #[inline]
    pub(super) fn of(&self, slot: u32) -> Option<WorkerNumber> {
        let owner = self.of_slot.get(slot as usize)?.load(Relaxed);
        u32::try_from(owner).ok().map(WorkerNumber)
    }

    pub(super) fn len(&self) -> usize {
        self.of_slot.len()
    }

    /// What a reader notes before it starts and asks [`Owners::are_as_at`] for when it has read.
    pub(super) fn reuses(&self) -> u32 {
        self.reuses.load(Acquire)
    }

    /// Whether no slot changed hands since.
    pub(super) fn are_as_at(&self, reuses: u32) -> bool {
        fence(Acquire);
        self.reuses.load(Relaxed) == reuses
    }
}

/// What the writer knows.
pub(super) struct Slots {
    of_worker: HashMap<WorkerNumber, u32>,
    workers_max: usize,
    free: Vec<u32>,
    /// Dead slots and how much must be swept before they can be used again.
    dying: VecDeque<(u32, u64)>,
}

impl Slots {
    /// Slots for `workers_max` workers, and as many that are dying.
    pub(super) fn new(workers_max: usize) -> (Self, Owners) {
        let slots = 2 * workers_max + 2;
        let free = (0..slots as u32).rev().collect();
        let of_worker = HashMap::new();
        (Slots { of_worker, workers_max, free, dying: VecDeque::new() }, Owners::new(slots))
    }

    pub(super) fn of(&self, worker: WorkerNumber) -> Option<u32> {
        self.of_worker.get(&worker).copied()
    }

    /// The worker's slot, a new one if it has none. `None` when there are too many workers.
    pub(super) fn take(&mut self, owners: &Owners, worker: WorkerNumber) -> Option<u32> {
        if let Some(slot) = self.of(worker) {
            return Some(slot);
        }
        if self.of_worker.len() >= self.workers_max {
            return None;
        }
        let slot = self.free.pop()?;
        self.of_worker.insert(worker, slot);
        // A reader that sees the new owner must see that slots changed hands.
        owners.reuses.fetch_add(1, Release);
        fence(Release);
        owners.of_slot.get(slot as usize)?.store(u64::from(worker.0), Relaxed);
        Some(slot)
    }

    /// The worker's slot dies; it is free again when `due` buckets were swept. `false` if it had none.
    pub(super) fn retire(&mut self, owners: &Owners, worker: WorkerNumber, due: u64) -> bool {
        let Some(slot) = self.of_worker.remove(&worker) else { return false };
        if let Some(owner) = owners.of_slot.get(slot as usize) {
            owner.store(NOBODY, Relaxed);
        }
        self.dying.push_back((slot, due));
        true
    }

    /// Bytes of the writer's lists, about.
    pub(super) fn bytes(&self) -> usize {
        (self.of_worker.capacity() + self.free.capacity() + self.dying.capacity()) * 16
    }

    pub(super) fn are_dying(&self) -> bool {
        !self.dying.is_empty()
    }

    /// So many buckets were swept in all.
    pub(super) fn swept(&mut self, swept: u64) {
        while let Some(&(slot, due)) = self.dying.front()
            && due <= swept
        {
            self.dying.pop_front();
            self.free.push(slot);
        }
    }
}
