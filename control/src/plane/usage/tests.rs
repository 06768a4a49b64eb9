//! Tests of the sums: routers that join, leave, fall silent, restart and dial again.

use proptest::prelude::*;

use super::*;

const MINUTE: u64 = 29_000_000;
const DAY: u64 = MINUTE / 1_440;

fn row(tenant: &str, minute: u64, requests: u64, running: u32) -> TenantUsage {
    let tenant = tenant.to_owned();
    let (day, day_tokens) = (DAY, requests * 10);
    TenantUsage { tenant, minute, requests, day, day_tokens, running, ..TenantUsage::default() }
}

fn told(minute: u64, tenants: &[TenantUsage]) -> Told {
    Told { minute, day: DAY, tenants: tenants.to_vec() }
}

/// (routers, requests, running) that the router of `seat` hears of tenant `t`.
fn heard(usages: &Usages, seat: u64, now_ms: u64) -> (u32, u64, u32) {
    let others = usages.others(seat, now_ms).unwrap();
    let one = others.tenants.iter().find(|row| row.tenant == "t");
    (others.routers, one.map_or(0, |row| row.requests), one.map_or(0, |row| row.running))
}

#[test]
fn each_hears_the_sum_of_the_others_and_not_its_own() {
    let mut usages = Usages::default();
    assert_eq!(usages.others(1, 0), None, "nobody asked");
    usages.told(1, 11, told(MINUTE, &[row("t", MINUTE, 5, 1), row("u", MINUTE, 1, 0)]), 0);
    assert_eq!(usages.others(1, 0), Some(Others { routers: 0, tenants: vec![] }));
    usages.told(2, 22, told(MINUTE, &[row("t", MINUTE, 7, 2)]), 0);
    usages.told(3, 33, told(MINUTE, &[]), 0);
    assert_eq!(heard(&usages, 1, 0), (2, 7, 2));
    assert_eq!(heard(&usages, 2, 0), (2, 5, 1));
    assert_eq!(heard(&usages, 3, 0), (2, 12, 3));
    let third = usages.others(3, 0).unwrap().tenants;
    assert_eq!(third, [row("t", MINUTE, 12, 3), row("u", MINUTE, 1, 0)]);
    // Newer replaces older; it is not added.
    usages.told(2, 22, told(MINUTE, &[row("t", MINUTE, 8, 0)]), 500);
    assert_eq!(heard(&usages, 3, 500), (2, 13, 1));
}

#[test]
fn windows_are_those_of_the_one_who_asks() {
    let mut usages = Usages::default();
    usages.told(1, 11, told(MINUTE, &[row("t", MINUTE, 5, 0)]), 0);
    usages.told(2, 22, told(MINUTE + 1, &[]), 0);
    let seen = usages.others(2, 0).unwrap().tenants;
    assert_eq!((seen[0].minute, seen[0].requests, seen[0].requests_before), (MINUTE + 1, 0, 5));
    // Another clock, as after the system's time was set: nothing to add, and no window is shifted.
    usages.told(2, 22, told(MINUTE - 600, &[]), 0);
    let seen = usages.others(2, 0).unwrap().tenants;
    assert_eq!((seen[0].requests, seen[0].requests_before, seen[0].day_tokens), (0, 0, 50));
}

#[test]
fn who_leaves_or_falls_silent_runs_nothing_and_its_counts_stay() {
    let mut usages = Usages::default();
    usages.told(1, 11, told(MINUTE, &[row("t", MINUTE, 5, 3)]), 0);
    usages.told(2, 22, told(MINUTE, &[]), SILENT_MS);
    assert_eq!(heard(&usages, 2, SILENT_MS), (1, 5, 3));
    assert_eq!(heard(&usages, 2, SILENT_MS + 1), (0, 5, 0));
    usages.told(1, 11, told(MINUTE, &[row("t", MINUTE, 6, 3)]), SILENT_MS + 2);
    assert_eq!(heard(&usages, 2, SILENT_MS + 2), (1, 6, 3));
    usages.left(1, SILENT_MS + 3);
    assert_eq!(heard(&usages, 2, SILENT_MS + 3), (0, 6, 0));
    // It starts anew: what it used before is now told to it as another's.
    usages.told(3, 33, told(MINUTE, &[]), SILENT_MS + 4);
    assert_eq!(heard(&usages, 3, SILENT_MS + 4), (1, 6, 0));
    // Of the minute nothing is left after two, of the day nothing after one.
    let later = SILENT_MS + 4 + MINUTES_KEPT_MS;
    usages.told(3, 33, told(MINUTE + 2, &[]), later);
    let seen = usages.others(3, later).unwrap().tenants;
    assert_eq!((seen[0].requests, seen[0].day_tokens), (0, 60));
    let later = SILENT_MS + 4 + DAY_KEPT_MS;
    usages.told(3, 33, told(MINUTE + 1_440, &[]), later);
    assert!(usages.others(3, later).unwrap().tenants.is_empty());
    assert!(!usages.routers.contains_key(&11));
}

#[test]
fn a_router_that_dials_again_is_not_counted_twice() {
    let mut usages = Usages::default();
    usages.told(1, 11, told(MINUTE, &[row("t", MINUTE, 5, 1)]), 0);
    usages.told(2, 22, told(MINUTE, &[]), 0);
    // Its old connection ends only after the new one began.
    usages.told(3, 11, told(MINUTE, &[row("t", MINUTE, 6, 1)]), 10);
    assert_eq!(heard(&usages, 2, 10), (1, 6, 1));
    usages.left(1, 20);
    assert_eq!(heard(&usages, 2, 20), (1, 6, 1));
    // And the other way round.
    usages.left(3, 30);
    usages.told(4, 11, told(MINUTE, &[row("t", MINUTE, 7, 2)]), 40);
    assert_eq!(heard(&usages, 2, 40), (1, 7, 2));
    assert_eq!(heard(&usages, 4, 40), (1, 0, 0));
}

#[test]
fn a_seat_that_changes_its_life_keeps_one_running() {
    let mut usages = Usages::default();
    usages.told(2, 22, told(MINUTE, &[]), 0);
    for life in 100..1_000 {
        usages.told(1, life, told(MINUTE, &[row("t", MINUTE, 1, 5)]), life);
    }
    assert_eq!(heard(&usages, 2, 1_000), (1, 900, 5));
    assert_eq!(usages.routers.len(), 2 + LEFT_MAX);
}

#[test]
fn rows_of_those_that_left_stay_bounded() {
    let mut usages = Usages::default();
    for life in 0..40_u64 {
        let rows: Vec<_> =
            (0..1_000).map(|at| row(&format!("{life}-{at}"), MINUTE, 1, 0)).collect();
        usages.told(life, life, told(MINUTE, &rows), life);
        usages.left(life, life);
    }
    let rows: usize = usages.routers.values().map(|router| router.told.tenants.len()).sum();
    assert!(rows <= USAGE_TENANTS_MAX + LEFT_MAX * 1_000, "{rows}");
}

#[derive(Clone, Debug)]
enum Step {
    Use { router: usize, requests: u64 },
    Tell { router: usize },
    Restart { router: usize },
    Redial { router: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let router = || 0_usize..4;
    prop_oneof![
        3 => (router(), 0_u64..9).prop_map(|(router, requests)| Step::Use { router, requests }),
        3 => router().prop_map(|router| Step::Tell { router }),
        1 => router().prop_map(|router| Step::Restart { router }),
        1 => router().prop_map(|router| Step::Redial { router }),
    ]
}

proptest! {
    /// Within one minute, what a router hears and what it has itself is all that was ever told.
    #[test]
    fn nothing_told_is_lost_or_counted_twice(steps in prop::collection::vec(step(), 1..120)) {
        let mut usages = Usages::default();
        let (mut next, mut now_ms, mut restarts) = (100_u64, 0, 0);
        // Of each router: seat, life, what it counted in this life.
        let mut routers: Vec<(u64, u64, u64)> = (0..4).map(|at| (at, at + 50, 0)).collect();
        let mut truth: BTreeMap<u64, u64> = BTreeMap::new();
        for step in steps {
            (next, now_ms) = (next + 1, now_ms + 10);
            match step {
                Step::Use { router, requests } => routers[router].2 += requests,
                Step::Tell { router } => {
                    let (seat, life, count) = routers[router];
                    usages.told(seat, life, told(MINUTE, &[row("t", MINUTE, count, 1)]), now_ms);
                    truth.insert(life, count);
                    let all: u64 = truth.values().sum();
                    prop_assert_eq!(heard(&usages, seat, now_ms).1, all - count);
                }
                // With more gone ones than are kept apart, one that dials again may count twice.
                Step::Restart { .. } if restarts + 4 >= LEFT_MAX => {}
                Step::Restart { router } => {
                    restarts += 1;
                    usages.left(routers[router].0, now_ms);
                    routers[router] = (next, next, 0);
                }
                Step::Redial { router } => {
                    usages.left(routers[router].0, now_ms);
                    routers[router].0 = next;
                }
            }
        }
    }
}
