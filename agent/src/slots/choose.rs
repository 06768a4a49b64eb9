//! Which slot is saved next, which one is given up for a state from outside, and when. Pure: what the
//! engine said and what is remembered come in.

use std::collections::BTreeMap;
use std::time::Duration;

/// Saving stops the engine for all its streams: at most one part in so many of its time goes into it.
pub const SAVE_SHARE: u32 = 8;

/// A slot, as `GET /slots` tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its number.
    pub id: u32,
    /// It works on something.
    pub is_busy: bool,
    /// Tokens it may hold.
    pub context_tokens: u32,
    /// What it worked on last and holds; none while it never worked.
    pub content: Option<Content>,
}

/// What tells one content of a slot from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// The task it worked on last: numbers rise.
    pub task: i64,
    /// Tokens it holds.
    pub tokens: u32,
}

/// What is remembered of an engine's slots.
#[derive(Debug, Default)]
pub struct Memory {
    /// The content that was dealt with: saved, refused, or put there by us.
    known: BTreeMap<u32, Content>,
    /// Slots given a state, and until when the prompt it is for may still be on its way.
    filled: BTreeMap<u32, Duration>,
}

impl Memory {
    /// The slot's content is not to be saved (again).
    pub fn know(&mut self, id: u32, content: Content) {
        self.known.insert(id, content);
    }

    /// The slot was given a state; it is left alone until `until`.
    pub fn fill(&mut self, slot: &Slot, tokens: u32, until: Duration) {
        self.filled.insert(slot.id, until);
        // It was not the engine's own work: the task stays, the tokens are those of the state.
        if let Some(content) = slot.content {
            self.know(slot.id, Content { tokens, ..content });
        }
    }

    /// Forgets slots that the engine does not have.
    pub fn keep_only(&mut self, slots: &[Slot]) {
        let is_there = |id: &u32| slots.iter().any(|slot| slot.id == *id);
        self.known.retain(|id, _| is_there(id));
        self.filled.retain(|id, _| is_there(id));
    }

    fn is_known(&self, slot: &Slot) -> bool {
        slot.content.is_some_and(|content| self.known.get(&slot.id) == Some(&content))
    }

    /// An idle slot whose work is worth saving and was not saved: the one that came to rest first.
    pub fn to_save(&self, slots: &[Slot], tokens_min: u32) -> Option<(u32, Content)> {
        let new = slots.iter().filter(|slot| !slot.is_busy && !self.is_known(slot));
        let worth = new.filter_map(|slot| {
            let content = slot.content.filter(|content| content.tokens >= tokens_min)?;
            Some((slot.id, content))
        });
        worth.min_by_key(|(_, content)| content.task)
    }

    /// An idle slot with room for `tokens` to give a state to: one that holds nothing, else one whose content
    /// is saved, else the one that worked longest ago. Not one whose prompt is still on its way.
    pub fn to_fill<'a>(&self, slots: &'a [Slot], now: Duration) -> Option<&'a Slot> {
        let is_awaited = |slot: &&Slot| self.filled.get(&slot.id).is_some_and(|until| now < *until);
        let idle = slots.iter().filter(|slot| !slot.is_busy && !is_awaited(slot));
        idle.min_by_key(|slot| match slot.content {
            None | Some(Content { tokens: 0, .. }) => (0, 0),
            Some(content) if self.is_known(slot) => (1, content.task),
            Some(content) => (2, content.task),
        })
    }
}

/// How long nothing is saved after a save that kept the engine for `took`.
pub fn pause_after(took: Duration) -> Duration {
    took.saturating_mul(SAVE_SHARE - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(id: u32, task: i64, tokens: u32) -> Slot {
        let content = (task >= 0).then_some(Content { task, tokens });
        Slot { id, is_busy: false, context_tokens: 2_048, content }
    }

    fn busy(id: u32, task: i64, tokens: u32) -> Slot {
        Slot { is_busy: true, ..slot(id, task, tokens) }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_came_to_rest_is_saved_once_and_again_after_more_work() {
        let mut memory = Memory::default();
        let slots = [slot(0, 9, 400), busy(1, 3, 900), slot(2, 5, 300), slot(3, -1, 0)];
        let (id, content) = memory.to_save(&slots, 256).unwrap();
        assert_eq!((id, content.task), (2, 5), "the first to rest");
        memory.know(id, content);
        let (id, content) = memory.to_save(&slots, 256).unwrap();
        assert_eq!(id, 0);
        memory.know(id, content);
        assert_eq!(memory.to_save(&slots, 256), None);
        assert_eq!(memory.to_save(&[slot(2, 11, 310)], 256).unwrap().0, 2);
        assert_eq!(memory.to_save(&[slot(2, 11, 255)], 256), None, "too little to be worth it");
        assert_eq!(memory.to_save(&[slot(2, 5, 0)], 1), None, "it was emptied");
        memory.keep_only(&slots);
        assert_eq!(memory.to_save(&slots, 256), None);
        memory.keep_only(&slots[2..]);
        assert_eq!(memory.to_save(&slots, 256).unwrap().0, 0, "it was gone for a while");
    }

    #[test]
    fn what_is_lost_least_is_given_up() {
        let mut memory = Memory::default();
        let fill = |memory: &Memory, slots: &[Slot]| memory.to_fill(slots, at(5)).map(|s| s.id);
        let (old, new) = (slot(0, 3, 400), slot(1, 8, 400));
        assert_eq!(fill(&memory, &[old, new, slot(2, -1, 0)]), Some(2), "one that is empty");
        assert_eq!(fill(&memory, &[old, new, slot(2, 9, 0)]), Some(2), "one that was emptied");
        assert_eq!(fill(&memory, &[old, new]), Some(0), "the oldest");
        memory.know(1, new.content.unwrap());
        assert_eq!(fill(&memory, &[old, new]), Some(1), "one that is saved");
        assert_eq!(fill(&memory, &[busy(0, 3, 400), busy(1, 8, 400)]), None);
    }

    #[test]
    fn a_slot_that_was_filled_waits_for_its_prompt_and_is_not_saved() {
        let mut memory = Memory::default();
        let slots = [slot(0, 3, 400)];
        memory.fill(&slots[0], 777, at(10));
        assert_eq!(memory.to_fill(&slots, at(9)), None);
        assert_eq!(memory.to_fill(&slots, at(10)).unwrap().id, 0);
        assert_eq!(memory.to_save(&[slot(0, 3, 777)], 1), None);
        assert!(memory.to_save(&[slot(0, 4, 777)], 1).is_some(), "its prompt came");
        memory.fill(&slot(1, -1, 0), 777, at(10));
        assert_eq!(memory.to_save(&[slot(1, -1, 0)], 1), None);
    }

    #[test]
    fn saving_takes_its_share_of_the_engine() {
        assert_eq!(pause_after(at(1)), at(7));
        assert_eq!(pause_after(Duration::MAX), Duration::MAX);
    }
}
