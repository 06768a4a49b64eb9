//! What routers used of their tenants' limits, told to control over the real socket and by it to the
//! others.

use std::time::Duration;

use dataplane::wire::{FromPlane, TenantUsage, ToPlane, USAGE_TENANTS_MAX};

use crate::house::{House, PATIENCE};
use crate::plane::Plane;

const MINUTE: u64 = 29_000_000;
const DAY: u64 = MINUTE / 1_440;

fn row(tenant: &str, requests: u64, running: u32) -> TenantUsage {
    let tenant = tenant.to_owned();
    let none = TenantUsage::default();
    TenantUsage {
        tenant,
        minute: MINUTE,
        requests,
        day: DAY,
        day_tokens: requests,
        running,
        ..none
    }
}

fn told(life: u64, tenants: &[TenantUsage]) -> FromPlane {
    FromPlane::Usage { life, minute: MINUTE, day: DAY, tenants: tenants.to_vec() }
}

/// The next word about the others.
async fn heard(plane: &mut Plane) -> (u32, Vec<TenantUsage>) {
    loop {
        if let ToPlane::Usage { routers, others } = plane.hear().await {
            return (routers, others);
        }
    }
}

/// Says it and hears the answer.
async fn exchange(
    plane: &mut Plane,
    life: u64,
    tenants: &[TenantUsage],
) -> (u32, Vec<TenantUsage>) {
    plane.say(&told(life, tenants)).await;
    heard(plane).await
}

#[tokio::test]
async fn each_router_is_told_what_the_others_used_and_what_those_that_left_used() {
    let house = House::start("").await;
    let mut a = Plane::dial(&house, "cgn-router").await;
    let mut b = Plane::dial(&house, "cgn-router").await;
    let mut c = Plane::dial(&house, "cgn-router").await;
    assert_eq!(exchange(&mut a, 1, &[row("t", 5, 1)]).await, (0, vec![]));
    assert_eq!(exchange(&mut b, 2, &[row("t", 7, 2)]).await, (1, vec![row("t", 5, 1)]));
    assert_eq!(exchange(&mut c, 3, &[row("u", 1, 0)]).await, (2, vec![row("t", 12, 3)]));
    let seen = exchange(&mut a, 1, &[row("t", 6, 0)]).await;
    assert_eq!(seen, (2, vec![row("t", 7, 2), row("u", 1, 0)]));

    drop(b);
    let left = async {
        loop {
            match exchange(&mut a, 1, &[row("t", 6, 0)]).await {
                (1, others) => return others,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let others = tokio::time::timeout(PATIENCE, left).await.expect("it stays for ever");
    assert_eq!(others, [row("t", 7, 0), row("u", 1, 0)], "what it counted stays counted");

    // The same process dials again, and another one starts anew.
    let mut b = Plane::dial(&house, "cgn-router").await;
    assert_eq!(exchange(&mut b, 2, &[row("t", 8, 1)]).await.1[0], row("t", 6, 0));
    let mut d = Plane::dial(&house, "cgn-router").await;
    assert_eq!(exchange(&mut d, 4, &[]).await, (3, vec![row("t", 14, 1), row("u", 1, 0)]));
}

#[tokio::test]
async fn who_says_nothing_of_usage_hears_nothing_of_it() {
    let house = House::start("").await;
    let mut quiet = Plane::dial(&house, "cgn-router").await;
    let mut other = Plane::dial(&house, "cgn-router").await;
    quiet.see(|_| true).await;
    exchange(&mut other, 1, &[row("t", 5, 1)]).await;
    exchange(&mut other, 1, &[row("t", 6, 1)]).await;
    assert!(quiet.hears_nothing(Duration::from_millis(300)).await);
}

#[tokio::test]
async fn a_router_that_does_not_read_delays_nobody_and_gets_the_newest_only() {
    const REPORTS: u64 = 40;
    let house = House::start("").await;
    let mut stuck = Plane::dial(&house, "cgn-router").await;
    let mut other = Plane::dial(&house, "cgn-router").await;
    // Far more than a socket holds.
    let many: Vec<_> = (0..USAGE_TENANTS_MAX).map(|at| row(&format!("t{at:04}"), 1, 0)).collect();
    assert_eq!(exchange(&mut other, 1, &many).await, (0, vec![]));
    // Two connections have no order between them: its first word may come after an exchange.
    stuck.say(&told(2, &[row("x", 1, 1)])).await;
    let known = async { while exchange(&mut other, 1, &many).await.1.is_empty() {} };
    tokio::time::timeout(PATIENCE, known).await.expect("its word is not passed on");
    for _ in 0..REPORTS {
        stuck.say(&told(2, &[row("x", 1, 1)])).await;
        assert_eq!(exchange(&mut other, 1, &many).await.1, [row("x", 1, 1)]);
    }
    let newest: Vec<_> = (0..9).map(|at| row(&format!("t{at:04}"), 2, 0)).collect();
    exchange(&mut other, 1, &newest).await;
    stuck.say(&told(2, &[row("x", 2, 1)])).await;
    let mut answers = 0;
    loop {
        answers += 1;
        let (routers, others) = heard(&mut stuck).await;
        assert_eq!(routers, 1);
        if others == newest {
            break;
        }
    }
    assert!(answers < REPORTS / 2, "{answers} answers waited for one that does not read");
}

#[tokio::test]
async fn too_many_tenants_end_the_connection_and_no_other() {
    let house = House::start("").await;
    let mut good = Plane::dial(&house, "cgn-router").await;
    let mut bad = Plane::dial(&house, "cgn-router").await;
    exchange(&mut good, 1, &[]).await;
    let many: Vec<_> = (0..=USAGE_TENANTS_MAX).map(|at| row(&format!("t{at}"), 1, 0)).collect();
    bad.say(&told(2, &many)).await;
    bad.hung_up().await;
    assert_eq!(exchange(&mut good, 1, &[]).await, (0, vec![]));
}
