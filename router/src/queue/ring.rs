//! Deficit round robin over the tenants of a waiting room, a quantum of one token per unit of weight.
//!
//! Each visit of the round gives a tenant `weight` tokens; it is served while its next entry costs no
//! more than it saved; it loses what it saved when it has nobody left. A small quantum gives the finest
//! interleaving, and would need thousands of empty rounds before a long prompt: so the round in which
//! the next tenant can pay is computed, and all visits up to it are granted at once. The outcome is
//! the same as visiting one by one, which the tests do.
//!
//! While two tenants always have somebody waiting, the tokens they were served, each divided by its
//! weight, differ by at most `cost_max · (1/weight_a + 1/weight_b) + 1`.

use std::sync::Arc;

use super::WEIGHT_MAX;
use super::tenant::{Place, Tenant, Turn};

/// A weight as it counts.
pub(super) fn weight(weight: u32) -> u64 {
    u64::from(weight.clamp(1, WEIGHT_MAX))
}

/// The tenants in the order of the round.
#[derive(Debug, Default)]
pub(super) struct Ring {
    tenants: Vec<Tenant>,
    /// Whom the round is at.
    cursor: usize,
    /// Whether that one was already given its tokens for this visit.
    visiting: bool,
}

/// A tenant that could pay for its next entry at some visit.
struct Payer {
    /// Visits of the whole ring from now to that one; 0 is the one that is going on.
    visit: u64,
    at: usize,
    turn: Turn,
}

impl Ring {
    pub(super) fn tenants(&self) -> &[Tenant] {
        &self.tenants
    }

    pub(super) fn find(&self, name: &Arc<str>) -> Option<&Tenant> {
        self.tenants.iter().find(|tenant| tenant.name() == name)
    }

    /// The tenant's entry in the ring; a new one is visited last.
    pub(super) fn enter(&mut self, name: &Arc<str>, tenant_weight: u32) -> &mut Tenant {
        let known = self.tenants.iter().position(|tenant| tenant.name() == name);
        let at = known.unwrap_or_else(|| {
            let at = self.cursor;
            self.tenants.insert(at, Tenant::new(Arc::clone(name)));
            if self.tenants.len() > 1 {
                self.cursor += 1;
            }
            at
        });
        self.tenants[at].weight = weight(tenant_weight);
        &mut self.tenants[at]
    }

    /// Takes an entry out of its tenant, and the tenant out of the ring with its last one.
    pub(super) fn leave(&mut self, name: &Arc<str>, place: &Place) {
        let Some(at) = self.tenants.iter().position(|tenant| tenant.name() == name) else {
            return;
        };
        self.tenants[at].remove(place);
        if self.tenants[at].len() > 0 {
            return;
        }
        self.tenants.remove(at);
        if at < self.cursor {
            self.cursor -= 1;
        } else if at == self.cursor {
            self.visiting = false;
        }
        if self.cursor >= self.tenants.len() {
            self.cursor = 0;
        }
    }

    /// Moves the round on to the next tenant that can pay, which pays. Its entry is still inside.
    pub(super) fn turn(&mut self, now_ms: u64, patience_ms: u64) -> Option<u64> {
        let payer = (0..self.tenants.len())
            .filter_map(|at| self.payer(at, now_ms, patience_ms))
            .min_by_key(|payer| payer.visit)?;
        self.grant(payer.visit, now_ms, patience_ms);
        if payer.visit > 0 {
            self.cursor = payer.at;
            self.visiting = true;
        }
        self.tenants[payer.at].pay(&payer.turn);
        Some(payer.turn.id)
    }

    /// The number of the first visit to tenant `at`, 1 and up. The one that is being visited comes last.
    fn first_visit(&self, at: usize) -> u64 {
        let count = self.tenants.len();
        let steps = (at + count - self.cursor) % count;
        match (self.visiting, steps) {
            (true, 0) => count as u64,
            (true, steps) => steps as u64,
            (false, steps) => steps as u64 + 1,
        }
    }

    fn payer(&self, at: usize, now_ms: u64, patience_ms: u64) -> Option<Payer> {
        let tenant = &self.tenants[at];
        let turn = tenant.head(now_ms, patience_ms)?;
        let short = turn.cost_tokens.saturating_sub(tenant.deficit);
        if short == 0 && self.visiting && at == self.cursor {
            return Some(Payer { visit: 0, at, turn });
        }
        let visits = short.div_ceil(tenant.weight).max(1);
        let visit = (visits - 1) * self.tenants.len() as u64 + self.first_visit(at);
        Some(Payer { visit, at, turn })
    }

    /// Gives each tenant its tokens for all visits up to `visit`. Who has nothing but entries past
    /// their deadline earns nothing, or it could save without end.
    fn grant(&mut self, visit: u64, now_ms: u64, patience_ms: u64) {
        let count = self.tenants.len() as u64;
        for at in 0..self.tenants.len() {
            let first = self.first_visit(at);
            if visit >= first && self.tenants[at].head(now_ms, patience_ms).is_some() {
                let visits = (visit - first) / count + 1;
                let tenant = &mut self.tenants[at];
                tenant.deficit = tenant.deficit.saturating_add(visits * tenant.weight);
            }
        }
    }
}
