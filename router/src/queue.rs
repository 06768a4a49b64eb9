//! The waiting room of one model: who waits, for how long, and who goes next. Pure, time comes in.
//!
//! It owns the entries and their order. It does not wake anybody, send anything or read a clock: the
//! caller keeps it behind a lock, shared by the cores, and acts on what it answers.
//!
//! ```text
//! between tenants   deficit round robin by weight, cost in uncached tokens         queue/ring.rs
//! within a tenant   overdue (one turn of four) > deadline, earliest first > rank   queue/tenant.rs
//! rank              (1 + priority) / uncached tokens, doubling each `age_doubles_ms` of waiting
//! at the door       a tenant holds at most `tenant_free_factor` × the places that are free
//! ```
//!
//! Sources: deficit round robin is Shreedhar and Varghese (SIGCOMM 1995); highest weight per work
//! first is Smith's rule (1956); the limit at the door is the dynamic threshold of Choudhury and Hahne
//! (1998), so that a tenant that floods the room leaves places for the next one.

mod ring;
mod tenant;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use ring::Ring;
use tenant::{Place, Tenant};

/// More uncached tokens than this cost no more: 16 M, above any context, so that sums cannot overflow.
pub const COST_TOKENS_MAX: u64 = 1 << 24;
/// A tenant's weight ends here: beyond it the others would wait too long for one turn.
pub const WEIGHT_MAX: u32 = 1 << 16;
/// Priorities end here: a factor of 1,024 in rank, or ten doublings of age.
pub const PRIORITY_MAX: f64 = 1_023.0;
/// And here: `1 + priority` stays above zero.
pub const PRIORITY_MIN: f64 = -0.99;
/// `entries_max` ends here, so that one room stays below a gigabyte.
pub const ENTRIES_LIMIT: usize = 1 << 20;

/// `[router.queue]`: the waiting room of each model.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueueConfig {
    /// Requests that may wait for one model, over all tenants; more is a 429.
    pub entries_max: usize,
    /// A tenant may hold so many times as many places as are free: 4 lets one alone fill four fifths.
    pub tenant_free_factor: f64,
    /// A waiting request's rank doubles in this time, so that long ones get their turn.
    pub age_doubles_ms: u64,
    /// A request that waited longer is overdue: one turn of four goes to the oldest of these.
    pub patience_ms: u64,
}

impl Default for QueueConfig {
    fn default() -> Self {
        QueueConfig {
            entries_max: 1_024,
            tenant_free_factor: 4.0,
            age_doubles_ms: 2_000,
            patience_ms: 30_000,
        }
    }
}

impl QueueConfig {
    /// The first key that makes no sense, and what it must be.
    pub fn invalid(&self) -> Option<(&'static str, &'static str)> {
        if self.entries_max > ENTRIES_LIMIT {
            return Some(("entries_max", "must be 1048576 or less"));
        }
        if !(self.tenant_free_factor.is_finite() && self.tenant_free_factor > 0.0) {
            return Some(("tenant_free_factor", "must be above 0"));
        }
        if !(1..=3_600_000).contains(&self.age_doubles_ms) {
            return Some(("age_doubles_ms", "must be between 1 and 3600000"));
        }
        None
    }
}

/// One request that waits. Times are milliseconds of one clock that never goes back.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    /// Given by the caller, never twice at the same time.
    pub id: u64,
    /// Whose request it is.
    pub tenant: Arc<str>,
    /// The tenant's weight; 0 counts as 1. The last one pushed holds for all of the tenant.
    pub weight: u32,
    /// 0 is usual, higher goes earlier; NaN counts as 0. Without meaning beside a deadline.
    pub priority: f64,
    /// Its first token is worth nothing after this time.
    pub deadline_ms: Option<u64>,
    /// Prompt tokens the best worker would have to compute.
    pub uncached_tokens: u64,
    /// When it came.
    pub arrived_ms: u64,
    /// The core that serves it: who to wake.
    pub core: usize,
}

impl Waiting {
    /// What its turn costs its tenant, in tokens; at least 1.
    pub fn cost_tokens(&self) -> u64 {
        self.uncached_tokens.clamp(1, COST_TOKENS_MAX)
    }
}

/// Why an entry may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// `entries_max` are waiting.
    #[error("the queue of this model is full")]
    Room,
    /// This tenant holds its share of the room.
    #[error("the queue of this model holds as many requests of this tenant as it may")]
    Tenant,
    /// An entry of this id waits already: a bug of the caller.
    #[error("this request waits already")]
    Duplicate,
}

/// Who waits for one model.
#[derive(Debug)]
pub struct WaitingRoom {
    config: QueueConfig,
    ring: Ring,
    entries: HashMap<u64, (Waiting, Place)>,
    /// `(deadline_ms, id)` over all tenants.
    deadlines: BTreeSet<(u64, u64)>,
    pushed: u64,
}

impl WaitingRoom {
    /// An empty room.
    pub fn new(config: QueueConfig) -> Self {
        WaitingRoom {
            config,
            ring: Ring::default(),
            entries: HashMap::new(),
            deadlines: BTreeSet::new(),
            pushed: 0,
        }
    }

    /// Lets one in. `O(tenants + log entries)`.
    ///
    /// # Errors
    /// [`Full`]; nothing has changed then.
    pub fn push(&mut self, entry: Waiting) -> Result<(), Full> {
        let free = self.config.entries_max.min(ENTRIES_LIMIT).saturating_sub(self.entries.len());
        if free == 0 {
            return Err(Full::Room);
        }
        if self.entries.contains_key(&entry.id) {
            return Err(Full::Duplicate);
        }
        let held = self.ring.find(&entry.tenant).map_or(0, Tenant::len);
        // Written so that a factor of NaN refuses nobody who holds nothing.
        if held > 0 && held as f64 >= self.config.tenant_free_factor * free as f64 {
            return Err(Full::Tenant);
        }
        self.pushed += 1;
        let place = Place::of(&entry, self.pushed, self.config.age_doubles_ms);
        self.ring.enter(&entry.tenant, entry.weight).insert(&place);
        if let Some(deadline_ms) = entry.deadline_ms {
            self.deadlines.insert((deadline_ms, entry.id));
        }
        self.entries.insert(entry.id, (entry, place));
        Ok(())
    }

    /// The one whose turn it is, out of the room. `O(tenants × log entries)`. Entries whose deadline
    /// has passed are never handed out: [`WaitingRoom::expire`] finds them.
    pub fn next(&mut self, now_ms: u64) -> Option<Waiting> {
        let id = self.ring.turn(now_ms, self.config.patience_ms)?;
        self.take(id)
    }

    /// Takes one out whose client is gone. False when it is not here. `O(tenants + log entries)`.
    pub fn remove(&mut self, id: u64) -> bool {
        self.take(id).is_some()
    }

    /// Takes out those whose deadline lies before `now_ms`, earliest first.
    pub fn expire(&mut self, now_ms: u64) -> Vec<Waiting> {
        let mut expired = Vec::new();
        while let Some(&(deadline_ms, id)) = self.deadlines.first() {
            if deadline_ms >= now_ms {
                break;
            }
            // Gone from the set in any case, so that this loop ends.
            self.deadlines.pop_first();
            expired.extend(self.take(id));
        }
        expired
    }

    /// The earliest deadline in the room: when to call [`WaitingRoom::expire`] again.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.deadlines.first().map(|&(deadline_ms, _)| deadline_ms)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Tenants with somebody in the room; never more than entries.
    pub fn tenants(&self) -> usize {
        self.ring.tenants().len()
    }

    /// Uncached tokens of all that wait.
    pub fn tokens(&self) -> u64 {
        self.ring.tenants().iter().map(Tenant::tokens).sum()
    }

    /// Tokens that would go before `entry` if it came in now (at its `arrived_ms`): all of its own
    /// tenant that stand before it, and of each other tenant the share its weight earns meanwhile.
    /// Off by a turn or two of each other tenant. `O(entries)`: for arrivals, not for each turn.
    pub fn tokens_ahead_of(&self, entry: &Waiting) -> u64 {
        let place = Place::of(entry, self.pushed + 1, self.config.age_doubles_ms);
        let own = self.ring.find(&entry.tenant).map_or(0, |tenant| tenant.tokens_before(&place));
        let weight = u128::from(ring::weight(entry.weight));
        let until_served = u128::from(own) + u128::from(entry.cost_tokens());
        let others = self.ring.tenants().iter().filter(|other| other.name() != &entry.tenant);
        others.fold(own, |ahead, other| {
            let earned = until_served * u128::from(other.weight()) / weight;
            ahead.saturating_add(other.tokens().min(u64::try_from(earned).unwrap_or(u64::MAX)))
        })
    }

    fn take(&mut self, id: u64) -> Option<Waiting> {
        let (entry, place) = self.entries.remove(&id)?;
        if let Some(deadline_ms) = entry.deadline_ms {
            self.deadlines.remove(&(deadline_ms, id));
        }
        self.ring.leave(&entry.tenant, &place);
        Some(entry)
    }
}
