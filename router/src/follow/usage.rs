//! What is exchanged about tenants' limits: this router's use for the report, the others' into the
//! meters. Time comes in; the bytes are moved by [`follow`](crate::follow).

use std::collections::HashMap;

use dataplane::wire::{FromPlane, TenantUsage};

use crate::meter::{DAY_MS, Limits, WINDOW_MS};
use crate::tenant::{Tenant, Tenants};

fn limited(tenants: &Tenants) -> impl Iterator<Item = &Tenant> {
    let tenants = tenants.iter().map(AsRef::as_ref);
    tenants.filter(|tenant: &&Tenant| tenant.meter.limits() != Limits::default())
}

/// What the tenants with limits used here; `None` when there is none with limits, and nothing to
/// exchange. `life` is this process's.
pub fn report(tenants: &Tenants, life: u64, now_ms: u64) -> Option<FromPlane> {
    let mut is_limited = false;
    let used = limited(tenants)
        .inspect(|_| is_limited = true)
        .map(|tenant| tenant.meter.report(&tenant.name, now_ms))
        .filter(|usage| !usage.is_empty())
        .collect();
    let (minute, day) = (now_ms / WINDOW_MS, now_ms / DAY_MS);
    is_limited.then_some(FromPlane::Usage { life, minute, day, tenants: used })
}

/// Takes what the others used. A tenant that is not listed was not used by any of them. Where there
/// are no others at all, what was heard before is left to fall out by its age: control that was just
/// started has not heard of them yet.
pub fn absorb(tenants: &Tenants, routers: u32, others: &[TenantUsage], now_ms: u64) {
    if routers == 0 && others.is_empty() {
        return;
    }
    let by_name: HashMap<&str, &TenantUsage> =
        others.iter().map(|usage| (usage.tenant.as_str(), usage)).collect();
    let (minute, day) = (now_ms / WINDOW_MS, now_ms / DAY_MS);
    let unused = TenantUsage { minute, day, ..TenantUsage::default() };
    for tenant in limited(tenants) {
        let usage = by_name.get(tenant.name.as_str()).copied().unwrap_or(&unused);
        tenant.meter.absorb(now_ms, usage);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::OTHERS_FRESH_MS;
    use crate::tenant::TenantConfig;

    const NOW_MS: u64 = 20_000 * DAY_MS + 600 * WINDOW_MS;

    fn tenants(limit: u64) -> Tenants {
        let limited = TenantConfig {
            name: "limited".to_owned(),
            requests_per_minute: limit,
            ..TenantConfig::default()
        };
        let free = TenantConfig { name: "free".to_owned(), ..TenantConfig::default() };
        Tenants::build(&[limited, free], None).unwrap()
    }

    fn told(tenants: &Tenants, now_ms: u64) -> Vec<TenantUsage> {
        match report(tenants, 7, now_ms) {
            Some(FromPlane::Usage { life: 7, minute, day, tenants }) => {
                assert_eq!((minute, day), (now_ms / WINDOW_MS, now_ms / DAY_MS));
                tenants
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_tenants_with_limits_and_use_are_told() {
        let none = tenants(0);
        none.of_key("limited").unwrap().meter.begin(NOW_MS).unwrap();
        assert_eq!(report(&none, 7, NOW_MS), None);
        let some = tenants(5);
        assert_eq!(told(&some, NOW_MS), []);
        some.of_key("free").unwrap().meter.begin(NOW_MS).unwrap();
        some.of_key("limited").unwrap().meter.begin(NOW_MS).unwrap();
        let rows = told(&some, NOW_MS);
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].tenant.as_str(), rows[0].requests, rows[0].running), ("limited", 1, 1));
    }

    #[test]
    fn two_routers_hold_one_limit_and_hear_of_an_end() {
        let (a, b) = (tenants(3), tenants(3));
        let begin =
            |at: &Tenants, now_ms| at.of_key("limited").unwrap().meter.begin(now_ms).is_ok();
        assert!(begin(&a, NOW_MS) && begin(&a, NOW_MS));
        absorb(&b, 1, &told(&a, NOW_MS), NOW_MS);
        assert!(begin(&b, NOW_MS) && !begin(&b, NOW_MS));
        // The others used nothing, as far as control says: the room is there again.
        absorb(&b, 1, &[], NOW_MS);
        assert!(begin(&b, NOW_MS));
    }

    #[test]
    fn without_others_what_was_heard_falls_out_by_age() {
        let (a, b) = (tenants(1), tenants(1));
        let begin =
            |at: &Tenants, now_ms| at.of_key("limited").unwrap().meter.begin(now_ms).is_ok();
        assert!(begin(&a, NOW_MS));
        absorb(&b, 1, &told(&a, NOW_MS), NOW_MS);
        absorb(&b, 0, &[], NOW_MS + 1);
        assert!(!begin(&b, NOW_MS + OTHERS_FRESH_MS));
        assert!(begin(&b, NOW_MS + OTHERS_FRESH_MS + 1));
    }
}
