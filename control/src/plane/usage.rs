//! What the routers used of their tenants' limits, so that each can be told the sum of the others'.
//! Pure: time comes in, in ms of one clock that never goes back. Nothing of it is stored: after a
//! restart of control, routers tell it anew within a second of dialling.
//!
//! A router is known by its life, a number drawn at its start. What it counted stays counted after it
//! left, until the windows have passed: a router that restarts gives no tenant a second budget. Only
//! what it *runs* is forgotten when it leaves or falls silent.

use std::collections::BTreeMap;

use dataplane::wire::{TenantUsage, USAGE_TENANTS_MAX};

/// A router that said nothing for so long runs nothing, as far as limits go: twenty reports.
pub const SILENT_MS: u64 = 10_000;
/// Counts of a minute are of no use two minutes later.
const MINUTES_KEPT_MS: u64 = 120_000;
/// Counts of a day are of no use a day later.
const DAY_KEPT_MS: u64 = 86_400_000;
/// Routers that left are kept one by one up to here, for one that dials again must not be counted
/// twice; older ones are counted as one.
pub const LEFT_MAX: usize = 16;

/// What a router said, and for which windows it wants to know of the others.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Unix time divided by 60 s.
    pub minute: u64,
    /// Unix time divided by 86,400 s.
    pub day: u64,
    /// Its tenants with any use.
    pub tenants: Vec<TenantUsage>,
}

/// The others of one router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Others {
    /// How many are attached and not silent.
    pub routers: u32,
    /// The sum over all that are and were, a row per tenant with any use.
    pub tenants: Vec<TenantUsage>,
}

/// All that is known.
#[derive(Debug, Default)]
pub struct Usages {
    /// By life.
    routers: BTreeMap<u64, Router>,
}

#[derive(Debug)]
struct Router {
    /// Where it is attached; `None` after it left.
    seat: Option<u64>,
    /// When it was heard of last.
    heard_ms: u64,
    told: Told,
}

impl Router {
    fn is_heard(&self, now_ms: u64) -> bool {
        self.seat.is_some() && now_ms.saturating_sub(self.heard_ms) <= SILENT_MS
    }

    fn leave(&mut self) {
        self.seat = None;
        self.told.tenants.retain_mut(|tenant| {
            tenant.running = 0;
            !tenant.is_empty()
        });
    }

    /// Forgets what is too old to count. Says whether anything is left.
    fn age(&mut self, now_ms: u64) -> bool {
        let age_ms = now_ms.saturating_sub(self.heard_ms);
        if age_ms > DAY_KEPT_MS {
            return false;
        }
        if age_ms > MINUTES_KEPT_MS {
            self.told.tenants.retain(|tenant| tenant.day_tokens > 0);
        }
        !self.told.tenants.is_empty()
    }
}

impl Usages {
    /// Takes what the router of that life said on that seat; it replaces what it said before.
    pub fn told(&mut self, seat: u64, life: u64, told: Told, now_ms: u64) {
        // A seat has one router, and a router that dials again leaves its old seat.
        let before = self.routers.iter_mut().filter(|(its, _)| **its != life);
        for (_, router) in before.filter(|(_, router)| router.seat == Some(seat)) {
            router.leave();
        }
        self.routers.insert(life, Router { seat: Some(seat), heard_ms: now_ms, told });
        self.forget(now_ms);
    }

    /// The router of that seat hung up.
    pub fn left(&mut self, seat: u64, now_ms: u64) {
        for router in self.routers.values_mut().filter(|router| router.seat == Some(seat)) {
            router.leave();
        }
        self.forget(now_ms);
    }

    /// What routers other than that seat's used, in the windows it asked for last. `None` if nothing
    /// was told on that seat.
    pub fn others(&self, seat: u64, now_ms: u64) -> Option<Others> {
        let is_it = |router: &Router| router.seat == Some(seat);
        let Told { minute, day, .. } = self.routers.values().find(|router| is_it(router))?.told;
        let mut routers = 0;
        let mut sums: BTreeMap<&str, TenantUsage> = BTreeMap::new();
        for router in self.routers.values().filter(|router| !is_it(router)) {
            let is_heard = router.is_heard(now_ms);
            routers += u32::from(is_heard);
            for tenant in &router.told.tenants {
                let mut seen = tenant.at(minute, day);
                if !is_heard {
                    seen.running = 0;
                }
                if seen.is_empty() {
                    continue;
                }
                match sums.get_mut(tenant.tenant.as_str()) {
                    Some(sum) => sum.add(&seen),
                    None => drop(sums.insert(&tenant.tenant, seen)),
                }
            }
        }
        Some(Others { routers, tenants: sums.into_values().collect() })
    }

    /// Lets go of what has no effect any more, and keeps the rest within [`LEFT_MAX`].
    fn forget(&mut self, now_ms: u64) {
        self.routers.retain(|_, router| router.seat.is_some() || router.age(now_ms));
        loop {
            let mut left: Vec<(u64, u64)> = self
                .routers
                .iter()
                .filter(|(_, router)| router.seat.is_none())
                .map(|(life, router)| (router.heard_ms, *life))
                .collect();
            if left.len() <= LEFT_MAX {
                return;
            }
            left.sort_unstable();
            let [(_, oldest), (_, next), ..] = left[..] else { return };
            let Some(oldest) = self.routers.remove(&oldest) else { return };
            if let Some(next) = self.routers.get_mut(&next) {
                merge(&mut next.told.tenants, oldest.told.tenants);
            }
        }
    }
}

/// Counts both as one, in the newer windows of the two. Rows stay within what one router may tell.
fn merge(into: &mut Vec<TenantUsage>, older: Vec<TenantUsage>) {
    let mut rows: BTreeMap<String, TenantUsage> =
        into.drain(..).map(|row| (row.tenant.clone(), row)).collect();
    for row in older {
        if let Some(sum) = rows.get_mut(&row.tenant) {
            *sum = sum.at(sum.minute.max(row.minute), sum.day.max(row.day));
            sum.add(&row);
        } else if rows.len() < USAGE_TENANTS_MAX {
            rows.insert(row.tenant.clone(), row);
        }
    }
    *into = rows.into_values().collect();
}

#[cfg(test)]
mod tests;
