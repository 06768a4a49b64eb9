//! The writer: applies what the feed says to the table, the sets and the slots, in one thread at a time.
//!
//! It also sweeps: after a worker was lost, each change looks at a few buckets more and drops what names
//! dead slots, so that no change stops for a pass over the whole table.

use super::arena::{Arena, Grains, Words};
use super::sets::{Full, Sets};
use super::slots::{Owners, Slots};
use super::table::{Place, SetId, Table};
use super::{Level, Limits, WorkerNumber};

/// Blocks whose cache lines are fetched together before they are changed.
const BATCH: usize = 32;
/// Buckets swept for each block that is set or removed while slots are dying.
const SWEEP_PER_BLOCK: usize = 1;
/// Buckets swept for a block for which there is no room, in the hope of finding a dead one.
const SWEEP_WHEN_FULL: usize = 64;

pub(super) struct Writer {
    limits: Limits,
    sets: Sets,
    grains: Grains,
    slots: Slots,
    blocks: usize,
    /// Buckets swept since the start; the next one is this modulo their number.
    swept: u64,
}

/// What one call changes.
struct Change<'a> {
    writer: &'a mut Writer,
    table: &'a Table,
    words: &'a Words,
    owners: &'a Owners,
}

impl Writer {
    pub(super) fn new(limits: Limits) -> (Self, Owners) {
        let (slots, owners) = Slots::new(limits.workers_max);
        let (sets, grains) = (Sets::new(), Grains::new());
        (Writer { limits, sets, grains, slots, blocks: 0, swept: 0 }, owners)
    }

    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    pub(super) fn grains(&mut self) -> &mut Grains {
        &mut self.grains
    }

    pub(super) fn bytes(&self) -> usize {
        self.sets.bytes() + self.grains.bytes() + self.slots.bytes()
    }

    /// Returns how many blocks were taken.
    pub(super) fn set(
        &mut self,
        table: &Table,
        words: &Words,
        owners: &Owners,
        worker: WorkerNumber,
        level: Level,
        digests: &[u128],
    ) -> usize {
        let Some(slot) = self.slots.take(owners, worker) else { return 0 };
        let mut change = Change { writer: self, table, words, owners };
        for (batch, digests) in digests.chunks(BATCH).enumerate() {
            touch(table, digests);
            for (at, &digest) in digests.iter().enumerate() {
                if change.put(digest, slot, level).is_err() {
                    return batch * BATCH + at;
                }
            }
        }
        change.sweep(digests.len() * SWEEP_PER_BLOCK);
        digests.len()
    }

    /// Returns how many blocks had to be forgotten for all their holders.
    pub(super) fn remove(
        &mut self,
        table: &Table,
        words: &Words,
        owners: &Owners,
        worker: WorkerNumber,
        digests: &[u128],
    ) -> usize {
        let Some(slot) = self.slots.of(worker) else { return 0 };
        let mut change = Change { writer: self, table, words, owners };
        let mut shed = 0;
        for digests in digests.chunks(BATCH) {
            touch(table, digests);
            for &digest in digests {
                shed += change.take(digest, slot);
            }
        }
        shed + change.sweep(digests.len() * SWEEP_PER_BLOCK)
    }

    /// Returns how many blocks had to be forgotten for all their holders.
    pub(super) fn retire(
        &mut self,
        table: &Table,
        words: &Words,
        owners: &Owners,
        worker: WorkerNumber,
    ) -> usize {
        if !self.slots.retire(owners, worker, self.swept + table.buckets() as u64) {
            return 0;
        }
        self.sets.forget_purges();
        let part = table.buckets().div_ceil(self.limits.workers_max);
        Change { writer: self, table, words, owners }.sweep(part)
    }
}

fn touch(table: &Table, digests: &[u128]) {
    let mut homes = [0; BATCH];
    for (home, &digest) in homes.iter_mut().zip(digests) {
        *home = table.home(digest);
    }
    table.touch(homes.into_iter().take(digests.len()));
}

impl Change<'_> {
    /// The sets, and the arena that they lie in.
    fn sets(&mut self) -> (&mut Sets, Arena<'_>) {
        let Writer { sets, grains, .. } = &mut *self.writer;
        (sets, Arena { words: self.words, grains })
    }

    fn put(&mut self, digest: u128, slot: u32, level: Level) -> Result<(), Full> {
        let Some(place) = self.table.locate(digest) else { return self.add(digest, slot, level) };
        let (sets, mut arena) = self.sets();
        let to = sets.with(&mut arena, place.id, slot, level)?;
        self.replace(place, to);
        Ok(())
    }

    fn add(&mut self, digest: u128, slot: u32, level: Level) -> Result<(), Full> {
        if self.writer.blocks >= self.writer.limits.blocks_max {
            self.sweep(SWEEP_WHEN_FULL);
        }
        if self.writer.blocks >= self.writer.limits.blocks_max
            || !self.table.insert(digest, super::sets::member(slot, level))
        {
            return Err(Full);
        }
        self.writer.blocks += 1;
        Ok(())
    }

    /// Removes one holder. Returns 1 if the block is forgotten for all, because the arena is full.
    fn take(&mut self, digest: u128, slot: u32) -> usize {
        let Some(place) = self.table.locate(digest) else { return 0 };
        let (sets, mut arena) = self.sets();
        let to = sets.without(&mut arena, place.id, slot);
        self.replace_or_shed(place, to)
    }

    fn replace_or_shed(&mut self, place: Place, to: Result<SetId, Full>) -> usize {
        let shed = usize::from(to.is_err());
        self.replace(place, to.unwrap_or(0));
        shed
    }

    fn replace(&mut self, place: Place, to: SetId) {
        if to == place.id {
            return;
        }
        if to == 0 {
            self.table.remove(place);
            self.writer.blocks -= 1;
        } else {
            self.table.set_id(place, to);
        }
        let (sets, mut arena) = self.sets();
        sets.keep(&arena, to);
        sets.drop(&mut arena, place.id);
    }

    /// Looks at some buckets, if slots are dying, and drops what names dead ones. Returns how many
    /// blocks had to be forgotten for all their holders.
    fn sweep(&mut self, buckets: usize) -> usize {
        let mut shed = 0;
        for _ in 0..buckets {
            if !self.writer.slots.are_dying() {
                break;
            }
            let bucket = self.writer.swept % self.table.buckets() as u64;
            for place in self.table.places(bucket as usize) {
                let owners = self.owners;
                let (sets, mut arena) = self.sets();
                let to = sets.purged(&mut arena, place.id, |slot| owners.of(slot).is_some());
                shed += self.replace_or_shed(place, to);
            }
            self.writer.swept += 1;
            let swept = self.writer.swept;
            self.writer.slots.swept(swept);
        }
        shed
    }
}
