//! Lookup: how deep each worker matches a prompt, by a search over positions.
//!
//! Digests are chained, so a digest that is present proves all before it, and the set of holders only
//! shrinks with depth. Where two positions have the same set, so have all between them. The search asks
//! many positions at once, so that their cache misses overlap, and closes in on each place where the
//! set changes: three rounds for a prompt of 4,096 blocks. The first position is asked alone: most
//! prompts that share nothing end there.

use super::sets::{Member, level_of, slot_of, stored};
use super::slots::Owners;
use super::table::{SetId, Table};
use super::{Level, WorkerNumber, arena};

/// Positions asked in one round: about as many cache misses as a core keeps in flight.
const PROBES: usize = 16;
/// How often a lookup starts again because a set or a slot was used anew under it. Each needs the writer
/// to free and refill just what is being read, so even the second is rare.
const RETRIES_MAX: usize = 8;

/// How far one worker matches, in blocks from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerDepth {
    /// The worker.
    pub worker: WorkerNumber,
    /// Leading blocks at each level *or a faster one*, by [`Level`] as an index; the last is all it has.
    pub blocks: [u32; 3],
}

impl WorkerDepth {
    /// Leading blocks at `level` or a faster one.
    pub fn at(&self, level: Level) -> u32 {
        self.blocks[level as usize]
    }
}

/// What a lookup found, and its working memory. Keep one for each core and use it again: after the
/// first few lookups nothing is allocated.
#[derive(Default)]
pub struct Depths {
    workers: Vec<WorkerDepth>,
    /// The slot of each of `workers`.
    slots: Vec<u32>,
    /// Slot → place in `workers`; true only if `slots` says the same there.
    places: Vec<u32>,
    known: Vec<Known>,
    asked: Vec<Known>,
    members: Vec<Member>,
}

/// The set found at a position.
#[derive(Clone, Copy)]
struct Known {
    at: u32,
    id: SetId,
}

/// A prompt's short digests by position.
pub(super) trait Chain {
    fn len(&self) -> usize;
    fn at(&self, position: usize) -> u128;
}

/// What a lookup reads.
pub(super) struct Source<'a> {
    pub(super) table: &'a Table,
    pub(super) words: &'a arena::Words,
    pub(super) owners: &'a Owners,
}

impl Depths {
    /// An empty answer.
    pub fn new() -> Self {
        Depths::default()
    }

    /// The workers that hold at least the first block, in no order.
    pub fn workers(&self) -> &[WorkerDepth] {
        &self.workers
    }

    /// What was found of one worker, `None` if it does not hold the first block. Takes a walk over all.
    pub fn of(&self, worker: WorkerNumber) -> Option<WorkerDepth> {
        self.workers.iter().find(|depth| depth.worker == worker).copied()
    }

    fn clear(&mut self) {
        self.workers.clear();
        self.slots.clear();
    }

    /// Fills this with the depths of `chain`. `false` if the writer was always in the way; then it is
    /// empty, like a miss.
    pub(super) fn search(&mut self, source: &Source<'_>, chain: &impl Chain) -> bool {
        self.places.resize(source.owners.len(), 0);
        for _ in 0..RETRIES_MAX {
            self.clear();
            let reuses = source.owners.reuses();
            self.find_changes(source.table, chain);
            if self.fill(source, chain) && source.owners.are_as_at(reuses) {
                return true;
            }
        }
        self.clear();
        false
    }

    /// Leaves in `known` positions between which the set is known everywhere: neighbours have the same
    /// set or are next to each other. The last is behind the end, where nobody is.
    fn find_changes(&mut self, table: &Table, chain: &impl Chain) {
        self.known.clear();
        let id = if chain.len() == 0 { 0 } else { table.find(chain.at(0)) };
        if id == 0 {
            return;
        }
        self.known.push(Known { at: 0, id });
        self.known.push(Known { at: chain.len() as u32, id: 0 });
        while self.ask(table, chain) {}
    }

    /// One round; `false` when there was nothing left to ask.
    fn ask(&mut self, table: &Table, chain: &impl Chain) -> bool {
        let is_open = |pair: &[Known]| pair[0].id != pair[1].id && pair[1].at - pair[0].at > 1;
        let open = self.known.windows(2).filter(|pair| is_open(pair)).count();
        if open == 0 {
            return false;
        }
        let share = (PROBES / open).max(1) as u32;
        self.asked.clear();
        let mut near = 0;
        for pair in self.known.windows(2) {
            self.asked.push(pair[0]);
            if !is_open(pair) {
                continue;
            }
            let (from, span) = (pair[0].at, pair[1].at - pair[0].at);
            let asked = share.min(span - 1);
            for step in 1..=asked {
                // 64 bits: a prompt of 2^32 blocks is no prompt, but the product must hold anyway.
                let at = from + (u64::from(span) * u64::from(step) / u64::from(asked + 1)) as u32;
                near ^= table.touch(chain.at(at as usize));
                self.asked.push(Known { at, id: UNASKED });
            }
        }
        self.asked.extend(self.known.last());
        std::hint::black_box(near);
        for known in self.asked.iter_mut().filter(|known| known.id == UNASKED) {
            known.id = table.find(chain.at(known.at as usize));
        }
        std::mem::swap(&mut self.known, &mut self.asked);
        true
    }

    /// Turns the runs of equal sets into depths. `false` if a set was replaced while it was read.
    fn fill(&mut self, source: &Source<'_>, chain: &impl Chain) -> bool {
        let known = std::mem::take(&mut self.known);
        let mut members = std::mem::take(&mut self.members);
        let mut start = 0;
        let mut is_steady = true;
        for at in 1..known.len() {
            let (id, end) = (known[at - 1].id, known[at].at);
            if id == 0 {
                break;
            }
            if known[at].id == id {
                continue;
            }
            let is_in_use = || {
                source.table.find(chain.at(start as usize)) == id
                    && source.table.find(chain.at(end as usize - 1)) == id
            };
            is_steady &= match stored(id) {
                Some(place) => source.words.read(place, &mut members, is_in_use),
                None => {
                    members.clear();
                    members.push(id);
                    true
                }
            };
            if !is_steady {
                break;
            }
            self.extend(source.owners, &members, start, end);
            start = end;
        }
        self.known = known;
        self.members = members;
        is_steady
    }

    /// The members hold the blocks `start..end`.
    fn extend(&mut self, owners: &Owners, members: &[Member], start: u32, end: u32) {
        for &member in members {
            let (slot, level) = (slot_of(member), level_of(member));
            if start == 0 {
                let Some(worker) = owners.of(slot) else { continue };
                if let Some(place) = self.places.get_mut(slot as usize) {
                    *place = self.slots.len() as u32;
                }
                self.slots.push(slot);
                let blocks = std::array::from_fn(|at| if at < level { 0 } else { end });
                self.workers.push(WorkerDepth { worker, blocks });
                continue;
            }
            let place = self.places.get(slot as usize).map_or(0, |&place| place as usize);
            if self.slots.get(place) != Some(&slot) {
                continue;
            }
            let Some(depth) = self.workers.get_mut(place) else { continue };
            for blocks in depth.blocks.iter_mut().skip(level).filter(|blocks| **blocks == start) {
                *blocks = end;
            }
        }
    }
}

/// A position that is to be asked; no set has this id.
const UNASKED: SetId = SetId::MAX;
