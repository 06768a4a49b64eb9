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

/// Positions asked in one round in each gap: their cache misses overlap almost wholly, and two rounds
/// close a gap of 255 blocks, three one of 4,095.
const PROBES: usize = 15;
/// And in all gaps together, while each gets one.
const PROBES_MAX: usize = 64;
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
    /// Who has the first block, in the order of `workers`: by slot.
    first: Vec<Member>,
    /// Whether some of them are dead.
    has_dead: bool,
    known: Vec<Known>,
    next: Vec<Known>,
    asked: Vec<Asked>,
    members: Vec<Member>,
}

/// The set found at a position.
#[derive(Clone, Copy)]
struct Known {
    at: u32,
    id: SetId,
}

/// A position to ask for, with what finding it needs.
#[derive(Clone, Copy)]
struct Asked {
    digest: u128,
    at: u32,
    home: u32,
}

impl Asked {
    fn new(table: &Table, chain: &impl Chain, at: u32) -> Self {
        let digest = chain.at(at as usize);
        Asked { digest, at, home: table.home(digest) }
    }
}

/// Two neighbours among the positions known, and the set changes somewhere between. Behind a block that
/// nobody has nothing is looked for.
fn is_open(pair: &[Known]) -> bool {
    pair[0].id != pair[1].id && pair[0].id != 0 && pair[1].at - pair[0].at > 1
}

/// Adds a position; of more than two with one set the first and the last are kept.
fn note(list: &mut Vec<Known>, new: Known) {
    if let [.., before, last] = list.as_mut_slice()
        && before.id == new.id
        && last.id == new.id
    {
        *last = new;
    } else {
        list.push(new);
    }
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

    /// Fills this with the depths of `chain`. `false` if the writer was always in the way; then it is
    /// empty, like a miss.
    pub(super) fn search(&mut self, source: &Source<'_>, chain: &impl Chain) -> bool {
        for _ in 0..RETRIES_MAX {
            self.workers.clear();
            let reuses = source.owners.reuses();
            self.find_changes(source, chain);
            if self.fill(source, chain) && source.owners.are_as_at(reuses) {
                return true;
            }
        }
        self.workers.clear();
        false
    }

    /// Leaves in `known` positions between which the set is known everywhere: neighbours have the same
    /// set or are next to each other. The last is behind the end, where nobody is.
    fn find_changes(&mut self, source: &Source<'_>, chain: &impl Chain) {
        self.known.clear();
        let id = if chain.len() == 0 { 0 } else { source.table.find(chain.at(0)) };
        if id == 0 {
            return;
        }
        self.known.push(Known { at: 0, id });
        self.known.push(Known { at: chain.len() as u32, id: 0 });
        let mut hint = stored(id).map_or(0, |place| source.words.hint(place));
        while self.ask(source.table, chain, hint) {
            hint = 0;
        }
    }

    /// One round; `false` when there was nothing left to ask.
    fn ask(&mut self, table: &Table, chain: &impl Chain, hint: u32) -> bool {
        let open = self.known.windows(2).filter(|pair| is_open(pair)).count();
        if open == 0 {
            return false;
        }
        self.plan(table, chain, (PROBES_MAX / open).clamp(1, PROBES) as u32);
        // Most prompts that begin alike go separate ways at the same place.
        if 1 < hint && (hint as usize) < chain.len() {
            self.plan_at(table, chain, hint - 1);
            self.plan_at(table, chain, hint);
        }
        table.touch(self.asked.iter().map(|asked| asked.home));
        self.next.clear();
        let mut asked = self.asked.iter().peekable();
        for pair in self.known.windows(2) {
            note(&mut self.next, pair[0]);
            let mut is_over = false;
            while let Some(asked) = asked.next_if(|asked| asked.at < pair[1].at) {
                if !is_over {
                    let id = table.look(asked.home, asked.digest);
                    note(&mut self.next, Known { at: asked.at, id });
                    is_over = id == 0;
                }
            }
        }
        self.next.extend(self.known.last());
        std::mem::swap(&mut self.known, &mut self.next);
        true
    }

    /// Spreads the positions of one round evenly over each gap.
    fn plan(&mut self, table: &Table, chain: &impl Chain, share: u32) {
        self.asked.clear();
        for pair in self.known.windows(2).filter(|pair| is_open(pair)) {
            let span = pair[1].at - pair[0].at;
            let count = share.min(span - 1);
            // Steps in 2^-32 blocks; each is at least one block, so no position is asked twice.
            let step = (u64::from(span) << 32) / u64::from(count + 1);
            self.asked.extend((1..=u64::from(count)).map(|count| {
                let at = pair[0].at + ((step * count) >> 32) as u32;
                Asked::new(table, chain, at)
            }));
        }
    }

    /// Adds one position to those of the first round.
    fn plan_at(&mut self, table: &Table, chain: &impl Chain, at: u32) {
        if let Err(place) = self.asked.binary_search_by_key(&at, |asked| asked.at) {
            self.asked.insert(place, Asked::new(table, chain, at));
        }
    }

    /// Turns the runs of equal sets into depths. `false` if a set was replaced while it was read.
    fn fill(&mut self, source: &Source<'_>, chain: &impl Chain) -> bool {
        let known = std::mem::take(&mut self.known);
        let mut members = std::mem::take(&mut self.members);
        let mut start = 0;
        let mut is_steady = true;
        self.has_dead = false;
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
            if start == 0 {
                std::mem::swap(&mut self.first, &mut members);
                self.begin(source.owners, end);
                if let (Some(place), 1..) = (stored(id), known[at].id) {
                    source.words.set_hint(place, end);
                }
            } else {
                self.extend(&members, start, end);
            }
            start = end;
        }
        self.known = known;
        self.members = members;
        if self.has_dead {
            self.workers.retain(|depth| depth.blocks[2] > 0);
        }
        is_steady
    }

    /// `first` holds the blocks `0..end`.
    fn begin(&mut self, owners: &Owners, end: u32) {
        let mut has_dead = false;
        self.workers.extend(self.first.iter().map(|&member| {
            let level = level_of(member);
            let owner = owners.of(slot_of(member));
            has_dead |= owner.is_none();
            let end = if owner.is_some() { end } else { 0 };
            let blocks = std::array::from_fn(|at| if at < level { 0 } else { end });
            WorkerDepth { worker: owner.unwrap_or(WorkerNumber(0)), blocks }
        }));
        self.has_dead = has_dead;
    }

    /// The members, by slot too, hold the blocks `start..end` as well.
    fn extend(&mut self, members: &[Member], start: u32, end: u32) {
        let mut place = 0;
        for &member in members {
            let (slot, level) = (slot_of(member), level_of(member));
            let rest = self.first.get(place..).unwrap_or_default();
            place += rest.partition_point(|&first| slot_of(first) < slot);
            if self.first.get(place).is_none_or(|&first| slot_of(first) != slot) {
                continue;
            }
            let Some(depth) = self.workers.get_mut(place) else { continue };
            for blocks in depth.blocks.iter_mut().skip(level).filter(|blocks| **blocks == start) {
                *blocks = end;
            }
        }
    }
}
