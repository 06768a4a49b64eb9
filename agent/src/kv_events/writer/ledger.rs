//! Which prefixes a worker was last told to hold, and how many of its ranks (and of their blocks) hold
//! each at which level. Two changes that cancel out within a batch are not told.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;

use dataplane::feed::Level;
use foldhash::fast::RandomState;

use crate::kv_events::translate::Change;

/// Beyond this many removals that leave nothing, Clear is told instead.
const CLEAR_ABOVE: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Digests are hashes already, of prompts that anybody may choose: mixed with a secret is enough.
    entries: HashMap<u128, Entry, RandomState>,
    blocks: [u64; 3],
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    held: [u16; 3],
    told: Option<Level>,
    is_touched: bool,
}

impl Entry {
    fn level(&self) -> Option<Level> {
        Level::ALL.into_iter().zip(self.held).find(|(_, held)| *held > 0).map(|(level, _)| level)
    }
}

/// What a batch changes.
#[derive(Debug, Default)]
pub(super) struct Net {
    pub removed: Vec<u128>,
    pub set: [Vec<u128>; 3],
}

impl Net {
    pub fn is_large(&self) -> bool {
        self.removed.len() > CLEAR_ABOVE
    }
}

impl Ledger {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn blocks(&self) -> [u64; 3] {
        self.blocks
    }

    pub fn level(&self, digest: u128) -> Option<Level> {
        self.entries.get(&digest)?.told
    }

    pub fn apply(&mut self, changes: Vec<Change>) -> Net {
        let mut touched = Vec::with_capacity(changes.len());
        for Change { digest, old, new } in changes {
            let entry = self.entries.entry(digest).or_default();
            if let Some(level) = old {
                let held = &mut entry.held[level as usize];
                *held = held.saturating_sub(1);
            }
            if let Some(level) = new {
                let held = &mut entry.held[level as usize];
                *held = held.saturating_add(1);
            }
            if !std::mem::replace(&mut entry.is_touched, true) {
                touched.push(digest);
            }
        }
        let mut net = Net::default();
        for digest in touched {
            let Place::Occupied(mut place) = self.entries.entry(digest) else { continue };
            let entry = place.get_mut();
            entry.is_touched = false;
            let (old, new) = (entry.told, entry.level());
            entry.told = new;
            if new.is_none() {
                place.remove();
            }
            if old == new {
                continue;
            }
            if let Some(level) = old {
                self.blocks[level as usize] -= 1;
            }
            match new {
                Some(level) => {
                    self.blocks[level as usize] += 1;
                    net.set[level as usize].push(digest);
                }
                None => net.removed.push(digest),
            }
        }
        // What follows goes before what it follows.
        net.removed.reverse();
        net
    }
}
