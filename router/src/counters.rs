//! Counters with labels that a core has looked up already: a look-up hashes its labels and takes a lock,
//! and a request that goes well would pay for five of them.
//!
//! Owned here: a core's own handles. The counters are `stats.rs`'s.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use prometheus::IntCounter;

use crate::stats::Stats;

/// Tenants a core remembers; more are looked up each time.
const TENANTS_MAX: usize = 4_096;

/// The counters of one tenant.
pub struct TenantCounters {
    /// Requests begun.
    pub requests: IntCounter,
    /// Prompt tokens.
    pub prompt: IntCounter,
    /// Of these, from an engine's cache.
    pub cached: IntCounter,
    /// Tokens generated.
    pub completion: IntCounter,
}

impl TenantCounters {
    fn of(stats: &Stats, tenant: &str) -> Self {
        let tokens = |kind| stats.tenant_tokens.with_label_values(&[tenant, kind]);
        TenantCounters {
            requests: stats.tenant_requests.with_label_values(&[tenant]),
            prompt: tokens("prompt"),
            cached: tokens("cached"),
            completion: tokens("completion"),
        }
    }
}

/// What one core has looked up.
#[derive(Default)]
pub struct Counters {
    tenants: RefCell<HashMap<String, Rc<TenantCounters>>>,
    answered: RefCell<HashMap<(&'static str, u16), IntCounter>>,
}

impl Counters {
    /// Those of `tenant`.
    pub fn tenant(&self, stats: &Stats, tenant: &str) -> Rc<TenantCounters> {
        let mut tenants = self.tenants.borrow_mut();
        if let Some(known) = tenants.get(tenant) {
            return Rc::clone(known);
        }
        let counters = Rc::new(TenantCounters::of(stats, tenant));
        if tenants.len() < TENANTS_MAX {
            tenants.insert(tenant.to_owned(), Rc::clone(&counters));
        }
        counters
    }

    /// Counts one answer.
    pub fn answered(&self, stats: &Stats, endpoint: &'static str, status: u16) {
        // Statuses are three digits and endpoints a handful, so this has an end.
        let mut answered = self.answered.borrow_mut();
        let counter = answered
            .entry((endpoint, status))
            .or_insert_with(|| stats.requests.with_label_values(&[endpoint, &status.to_string()]));
        counter.inc();
    }
}
