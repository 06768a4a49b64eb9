//! Who holds a block: interned sets of members, a member being a worker's slot and the level there.
//!
//! The blocks of a chain mostly share one set, so an entry of the table keeps an id of four bytes. A set
//! of one member is its own id and needs no storage; larger ones lie in an [`Arena`] that readers read
//! without a lock, each with a sequence that is odd while the storage is free. Only the writer makes and
//! frees sets; it counts how many blocks use each.

use std::collections::HashMap;

use super::Level;
use super::arena::{Arena, HEADER_WORDS};
use super::table::SetId;

/// Set in the id of a set in the arena; the other bits are its place there.
const STORED: SetId = 1 << 31;
/// Remembered transitions. A chain's blocks go from one set to one other, so few do.
const MEMOS: usize = 64;
/// The transition that drops the members whose slots are dead.
const PURGE: u32 = u32::MAX;

/// A worker's slot and the level there, and the id of the set of it alone. Never 0.
pub(super) type Member = u32;

pub(super) fn member(slot: u32, level: Level) -> Member {
    slot << 2 | (level as u32 + 1)
}

pub(super) fn slot_of(member: Member) -> u32 {
    member >> 2
}

/// The level as an index, 0 to 2.
pub(super) fn level_of(member: Member) -> usize {
    (member & 3).saturating_sub(1) as usize
}

/// The place in the arena of a set that lies there.
pub(super) fn stored(id: SetId) -> Option<u32> {
    (id & STORED != 0).then_some(id & !STORED)
}

/// The arena is full.
pub(super) struct Full;

/// `from` became `to` by `change`, while both were what they were then.
#[derive(Clone, Copy, Default)]
struct Memo {
    from: SetId,
    from_sequence: u32,
    change: u32,
    to: SetId,
    to_sequence: u32,
}

/// What the writer knows of the sets.
pub(super) struct Sets {
    by_hash: HashMap<u64, SetId>,
    memos: Box<[Memo]>,
    members: Vec<Member>,
}

impl Sets {
    pub(super) fn new() -> Self {
        let memos = vec![Memo::default(); MEMOS].into();
        Sets { by_hash: HashMap::new(), memos, members: Vec::new() }
    }

    /// Bytes of what the writer keeps beside the arena, about.
    pub(super) fn bytes(&self) -> usize {
        self.by_hash.capacity() * (size_of::<(u64, SetId)>() + 1)
    }

    /// `from` with `slot` at `level`.
    pub(super) fn with(
        &mut self,
        arena: &mut Arena<'_>,
        from: SetId,
        slot: u32,
        level: Level,
    ) -> Result<SetId, Full> {
        let new = member(slot, level);
        if from == 0 || (stored(from).is_none() && slot_of(from) == slot) {
            return Ok(new);
        }
        self.change(arena, from, new, |members| {
            match members.binary_search_by_key(&slot, |&member| slot_of(member)) {
                Ok(at) => members[at] = new,
                Err(at) => members.insert(at, new),
            }
        })
    }

    /// `from` without `slot`.
    pub(super) fn without(
        &mut self,
        arena: &mut Arena<'_>,
        from: SetId,
        slot: u32,
    ) -> Result<SetId, Full> {
        if stored(from).is_none() {
            return Ok(if slot_of(from) == slot { 0 } else { from });
        }
        self.change(arena, from, slot << 2, |members| {
            members.retain(|&member| slot_of(member) != slot);
        })
    }

    /// `from` with only the slots that are alive.
    pub(super) fn purged(
        &mut self,
        arena: &mut Arena<'_>,
        from: SetId,
        is_alive: impl Fn(u32) -> bool,
    ) -> Result<SetId, Full> {
        if stored(from).is_none() {
            return Ok(if is_alive(slot_of(from)) { from } else { 0 });
        }
        self.change(arena, from, PURGE, |members| {
            members.retain(|&member| is_alive(slot_of(member)));
        })
    }

    /// Slots died: what purging did before says nothing more.
    pub(super) fn forget_purges(&mut self) {
        for memo in self.memos.iter_mut().filter(|memo| memo.change == PURGE) {
            *memo = Memo::default();
        }
    }

    fn change(
        &mut self,
        arena: &mut Arena<'_>,
        from: SetId,
        change: u32,
        edit: impl FnOnce(&mut Vec<Member>),
    ) -> Result<SetId, Full> {
        let at = (from.wrapping_mul(0x9e37_79b1) ^ change.wrapping_mul(0x85eb_ca6b)) as usize >> 8;
        let memo = self.memos[at % MEMOS];
        let sequence = |arena: &Arena<'_>, id| stored(id).map_or(0, |at| arena.sequence(at));
        let from_sequence = sequence(arena, from);
        if (memo.from, memo.change, memo.from_sequence) == (from, change, from_sequence)
            && memo.to_sequence == sequence(arena, memo.to)
        {
            return Ok(memo.to);
        }
        let mut members = std::mem::take(&mut self.members);
        members.clear();
        match stored(from) {
            Some(place) => arena.members(place, &mut members),
            None => members.push(from),
        }
        edit(&mut members);
        let to = self.intern(arena, &members);
        self.members = members;
        let to = to?;
        let to_sequence = sequence(arena, to);
        self.memos[at % MEMOS] = Memo { from, from_sequence, change, to, to_sequence };
        Ok(to)
    }

    /// The id of a set, made if there is none. It lives only once [`Sets::keep`] counts a block for it.
    fn intern(&mut self, arena: &mut Arena<'_>, members: &[Member]) -> Result<SetId, Full> {
        if members.len() < 2 {
            return Ok(members.first().copied().unwrap_or(0));
        }
        let hash = hash(members);
        if let Some(&known) = self.by_hash.get(&hash)
            && stored(known).is_some_and(|place| arena.is_equal(place, members))
        {
            return Ok(known);
        }
        let id = arena.store(members, hash).ok_or(Full)? | STORED;
        // Another set of the same hash is no longer found, only used: sharing is lost, nothing else.
        self.by_hash.insert(hash, id);
        Ok(id)
    }

    /// Counts one more block that has this set.
    pub(super) fn keep(&self, arena: &Arena<'_>, id: SetId) {
        if let Some(place) = stored(id) {
            arena.set_uses(place, arena.uses(place) + 1);
        }
    }

    /// Counts one block less; the last one frees the set.
    pub(super) fn drop(&mut self, arena: &mut Arena<'_>, id: SetId) {
        let Some(place) = stored(id) else { return };
        let uses = arena.uses(place).saturating_sub(1);
        arena.set_uses(place, uses);
        if uses == 0 {
            let hash = arena.hash(place);
            if self.by_hash.get(&hash) == Some(&id) {
                self.by_hash.remove(&hash);
            }
            arena.free(place);
        }
    }
}

fn hash(members: &[Member]) -> u64 {
    members.iter().fold(HEADER_WORDS as u64, |hash, &member| {
        let mixed = (hash ^ u64::from(member)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ mixed >> 29
    })
}
