//! Two routers of one control: a tenant's limit holds for both together, over a router's restart, and
//! each goes on alone when control is gone.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::client::{self, Answer};
use crate::house::House;
use crate::process::eventually;
use crate::recipe::{FAST, ask, up};

const LIMIT: usize = 20;
/// Between two requests. A second, which is what one router may not know of the other, holds no more
/// than four requests of each.
const PAUSE: Duration = Duration::from_millis(125);
/// What both may admit beyond the limit: twice that much, for machines that are busy.
const OVER_MAX: usize = 8;
/// So many refusals in a row end the asking.
const REFUSALS: usize = 6;

/// Starts the routers with a limit for who comes from loopback.
fn limit(house: &mut House) {
    house.router = None;
    let path = house.dir.path().join("cgn-router.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let tenant = format!("\n[[tenants]]\nname = \"local\"\nrequests_per_minute = {LIMIT}\n");
    std::fs::write(&path, text + &tenant).unwrap();
    house.router = Some(house.process("cgn-router"));
    house.ready();
}

fn second_is_ready(address: SocketAddr) {
    let is_ready = || client::get(address, "/readyz").is_some_and(|answer| answer.status == 200);
    eventually("the second router is ready", is_ready);
}

/// Waits until most of a minute is left: counts of a minute that is over fade.
fn early_in_a_minute() {
    let second = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() % 60;
    if second > 25 {
        std::thread::sleep(Duration::from_secs(60 - second));
    }
}

fn chat(address: SocketAddr) -> Answer {
    let answer = client::post(address, "/v1/chat/completions", &ask("hello", 2));
    assert!(matches!(answer.status, 200 | 429), "{answer:?}");
    answer
}

/// Asks the routers in turn until all refuse; how often each admitted.
fn ask_in_turn(routers: &[SocketAddr]) -> Vec<usize> {
    let mut admitted = vec![0; routers.len()];
    let mut refusals = 0;
    for turn in 0.. {
        let at = turn % routers.len();
        let answer = chat(routers[at]);
        if answer.status == 200 {
            admitted[at] += 1;
            refusals = 0;
            assert!(admitted[at] <= 2 * LIMIT, "no limit at all: {admitted:?}");
        } else {
            let wait_s: u64 = answer.field("retry-after").unwrap().parse().unwrap();
            assert!((1..=120).contains(&wait_s), "{answer:?}");
            refusals += 1;
        }
        if refusals == REFUSALS {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    admitted
}

#[test]
fn two_routers_hold_one_limit_together_and_go_on_alone() {
    let (mut house, _) = up(1, 4, FAST);
    limit(&mut house);
    let (mut second_router, second) = house.second_router();
    second_is_ready(second);
    let routers = [house.http(), second];

    early_in_a_minute();
    let admitted = ask_in_turn(&routers);
    let total: usize = admitted.iter().sum();
    println!("limit {LIMIT}: admitted {admitted:?}");
    assert!((LIMIT..=LIMIT + OVER_MAX).contains(&total), "{admitted:?}");
    assert!(admitted.iter().all(|count| *count >= LIMIT / 4), "both took part: {admitted:?}");

    // A router that starts anew is told what it used before.
    second_router.crash();
    // The kernel takes a killed process's ring down, and what it listens on, a moment later.
    eventually("its port is free", || TcpListener::bind(second).is_ok());
    let (mut second_router, second) = house.second_router();
    second_is_ready(second);
    let again = ask_in_turn(&[second])[0];
    println!("after its restart the second router admitted {again}");
    assert!(again <= OVER_MAX, "{again} more after a restart");

    // Each applies the limit alone, once the other was not heard of for a while.
    house.control.as_mut().unwrap().crash();
    house.control = None;
    eventually("the first goes on alone", || chat(house.http()).status == 200);
    eventually("the second goes on alone", || chat(second).status == 200);
    assert!(second_router.is_alive() && house.router.as_mut().unwrap().is_alive());
}
