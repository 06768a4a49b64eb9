//! An engine killed in the middle of load.

use nix::sys::signal::Signal;

use crate::load::Load;
use crate::process::{eventually, is_running, send};
use crate::recipe::{REAL, up};

const CLIENTS: usize = 12;

#[test]
fn a_killed_engine_costs_no_request_that_had_not_started_streaming_and_comes_back() {
    let (house, engines) = up(3, 8, REAL);
    let load = Load::start(house.http(), CLIENTS, 40);
    eventually("all workers answer", || load.so_far().whole.len() == 3);

    let victim = &engines[0];
    let running = format!("cgn_router_worker_inflight_requests{{worker=\"{}\"}}", victim.worker);
    eventually("the victim works", || house.metric(&running) >= 2.0);
    send(victim.pid, Signal::SIGKILL);
    eventually("it is gone", || !is_running(victim.pid));

    let mut back = None;
    eventually("the agent has started it again", || {
        let engine = house.engines().into_iter().find(|engine| engine.worker == victim.worker);
        back = engine.filter(|engine| engine.state == "ready" && engine.epoch > victim.epoch);
        back.is_some()
    });
    let back = back.unwrap();
    assert!(back.restarts >= 1 && back.pid != victim.pid, "{back:?}");
    let answered = || load.so_far().whole.get(&victim.worker).copied().unwrap_or(0);
    let before = answered();
    eventually("the router sends it requests again", || answered() >= before + 10);

    let seen = load.end();
    let retries = house.metric("cgn_router_retries_total");
    println!(
        "{} whole, {} broken off after they had started, {} lost, {retries} retries",
        seen.whole_sum(),
        seen.broken_off,
        seen.lost.len()
    );
    assert!(seen.lost.is_empty(), "{:#?}", seen.lost);
    assert!(seen.broken_off <= CLIENTS);
    assert!(retries >= 1.0 || seen.broken_off >= 1, "the kill hit nothing");
}
