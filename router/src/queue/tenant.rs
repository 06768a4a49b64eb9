//! The order within one tenant of the waiting room, and the tenant's account in the round robin.
//!
//! A rank that doubles with age needs no sorting again: `rank · 2^(age / d)` of two entries compares
//! like their `arrived + d · log2(cost / (1 + priority))`, which never changes. So an entry waits, among
//! entries without a deadline, for none that came more than `d · log2` of the ratio of their ranks
//! after it: with 2 s, a prompt of 100,000 tokens waits for prompts of 100 tokens for 20 s and not longer.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{PRIORITY_MAX, PRIORITY_MIN, Waiting};

/// One turn of so many goes to the oldest overdue entry; the others keep their order, so that a
/// backlog older than the patience of its clients does not push deadlines aside.
pub(super) const OVERDUE_EVERY: u32 = 4;
/// Arrival times end here (36,000 years), so that ranks fit an `i64` of microseconds.
const ARRIVED_MS_MAX: u64 = 1 << 50;

/// Smaller goes first: the deadline or rank, then the arrival, then the order of pushing.
type Key = (i64, u64, u64);

/// Where an entry stands within its tenant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    turn: Turn,
    key: Key,
    has_deadline: bool,
}

/// What a turn hands out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) id: u64,
    pub(super) cost_tokens: u64,
    /// Given for age alone.
    pub(super) overdue: bool,
}

impl Place {
    /// `number` rises with each entry pushed.
    pub(super) fn of(entry: &Waiting, number: u64, age_doubles_ms: u64) -> Self {
        let first = match entry.deadline_ms {
            Some(deadline_ms) => i64::try_from(deadline_ms).unwrap_or(i64::MAX),
            None => rank_us(entry, age_doubles_ms),
        };
        Place {
            turn: Turn { id: entry.id, cost_tokens: entry.cost_tokens(), overdue: false },
            key: (first, entry.arrived_ms, number),
            has_deadline: entry.deadline_ms.is_some(),
        }
    }
}

/// The rank as the time, in microseconds, at which an entry of cost 1 and priority 0 would have had to
/// come to stand beside it. Earlier is better.
pub(super) fn rank_us(entry: &Waiting, age_doubles_ms: u64) -> i64 {
    let priority = if entry.priority.is_nan() { 0.0 } else { entry.priority };
    let factor = 1.0 + priority.clamp(PRIORITY_MIN, PRIORITY_MAX);
    let doublings = (entry.cost_tokens() as f64 / factor).log2();
    let arrived_us = entry.arrived_ms.min(ARRIVED_MS_MAX).cast_signed() * 1_000;
    arrived_us.saturating_add((age_doubles_ms as f64 * 1_000.0 * doublings) as i64)
}

/// A tenant with somebody in the room.
#[derive(Debug)]
pub(super) struct Tenant {
    name: Arc<str>,
    pub(super) weight: u64,
    /// Tokens it may spend on its turn.
    pub(super) deficit: u64,
    tokens: u64,
    /// Turns since the last one that was given for age alone, up to [`OVERDUE_EVERY`].
    turns_since_overdue: u32,
    with_deadline: BTreeMap<Key, Turn>,
    plain: BTreeMap<Key, Turn>,
    /// The plain ones again, by `(arrived_ms, number)`.
    by_age: BTreeMap<(u64, u64), Turn>,
}

impl Tenant {
    pub(super) fn new(name: Arc<str>) -> Self {
        Tenant {
            name,
            weight: 1,
            deficit: 0,
            tokens: 0,
            turns_since_overdue: OVERDUE_EVERY,
            with_deadline: BTreeMap::new(),
            plain: BTreeMap::new(),
            by_age: BTreeMap::new(),
        }
    }

    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) fn weight(&self) -> u64 {
        self.weight
    }

    /// Cost of all its entries.
    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    pub(super) fn len(&self) -> usize {
        self.with_deadline.len() + self.plain.len()
    }

    pub(super) fn insert(&mut self, place: &Place) {
        self.tokens += place.turn.cost_tokens;
        if place.has_deadline {
            self.with_deadline.insert(place.key, place.turn);
        } else {
            let (_, arrived_ms, number) = place.key;
            self.plain.insert(place.key, place.turn);
            self.by_age.insert((arrived_ms, number), Turn { overdue: true, ..place.turn });
        }
    }

    pub(super) fn remove(&mut self, place: &Place) {
        let (_, arrived_ms, number) = place.key;
        let removed = if place.has_deadline {
            self.with_deadline.remove(&place.key)
        } else {
            self.by_age.remove(&(arrived_ms, number));
            self.plain.remove(&place.key)
        };
        self.tokens -= removed.map_or(0, |turn| turn.cost_tokens);
    }

    /// Whose turn it would be. `None` when all it has are past their deadline.
    pub(super) fn head(&self, now_ms: u64, patience_ms: u64) -> Option<Turn> {
        let overdue = self.by_age.first_key_value().filter(|((arrived_ms, _), _)| {
            self.turns_since_overdue + 1 >= OVERDUE_EVERY
                && now_ms >= arrived_ms.saturating_add(patience_ms)
        });
        if let Some((_, turn)) = overdue {
            return Some(*turn);
        }
        let now = i64::try_from(now_ms).unwrap_or(i64::MAX);
        let deadline = self.with_deadline.range((now, 0, 0)..).next();
        deadline.or_else(|| self.plain.first_key_value()).map(|(_, turn)| *turn)
    }

    /// Pays for a turn. The entry itself leaves by [`Tenant::remove`].
    pub(super) fn pay(&mut self, turn: &Turn) {
        self.deficit = self.deficit.saturating_sub(turn.cost_tokens);
        self.turns_since_overdue = match turn.overdue {
            true => 0,
            false => (self.turns_since_overdue + 1).min(OVERDUE_EVERY),
        };
    }

    /// Cost of its entries that stand before `place`; what becomes overdue meanwhile is not foreseen.
    pub(super) fn tokens_before(&self, place: &Place) -> u64 {
        let sum = |entries: &BTreeMap<Key, Turn>| -> u64 {
            entries.range(..place.key).map(|(_, turn)| turn.cost_tokens).sum()
        };
        if place.has_deadline {
            return sum(&self.with_deadline);
        }
        let deadlines: u64 = self.with_deadline.values().map(|turn| turn.cost_tokens).sum();
        deadlines + sum(&self.plain)
    }
}
