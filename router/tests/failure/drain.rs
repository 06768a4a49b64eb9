//! Draining: of a worker, and of the router itself.

use std::time::Duration;

use dataplane::wire::WorkerState::{Draining, Ready};

use super::ask::{
    CHAT, assert_whole, begin, chat, eventually, of_response, resumed, start, stream, workers,
};
use super::control::{Control, worker_id};
use super::speaker::{Fault, Speaker, Turn};

#[test]
fn a_draining_worker_gets_nothing_new_and_its_streams_finish() {
    let engines = Speaker::group(2, |_, _| Turn::slow(50));
    let (mut control, router) = Control::start("");
    control.say(&router, &[(&engines[0], Ready)]);
    let running = begin(&router, CHAT, &chat("finishes"));
    eventually("it runs", || engines[0].asked().len() == 1);
    control.say(&router, &[(&engines[0], Draining), (&engines[1], Ready)]);
    for i in 0..4 {
        let prompt = format!("{i}");
        assert_whole(&stream(&router, &chat(&prompt)), &prompt);
    }
    let mut running = running;
    assert_whole(&of_response(&running.rest()), "finishes");
    assert_eq!((engines[0].asked().len(), engines[1].asked().len()), (1, 4));
    assert_eq!(resumed(&router, "resumed"), 0.0);
}

#[test]
fn streams_of_a_worker_that_drains_for_too_long_go_on_elsewhere() {
    let engines = Speaker::group(2, |number, _| match number {
        0 => Turn::fails(Fault::Stall, 6),
        _ => Turn::well(),
    });
    let (mut control, router) = Control::start("[router.limits]\ndrain_s_max = 1\n");
    // The other worker comes only after the stream began.
    control.say(&router, &[(&engines[0], Ready)]);
    let mut running = begin(&router, CHAT, &chat("moves"));
    eventually("it runs", || engines[0].asked().len() == 1);
    control.say(&router, &[(&engines[0], Draining), (&engines[1], Ready)]);
    assert_whole(&of_response(&running.rest()), "moves");
    assert_eq!(resumed(&router, "resumed"), 1.0);
    assert_eq!((engines[0].asked().len(), engines[1].asked().len()), (1, 1));
    assert_eq!(engines[0].cancelled().len(), 1, "it was let go");
}

#[test]
fn a_cordon_sticks_over_snapshots_and_health() {
    let engines = Speaker::group(2, |_, _| Turn::well());
    let (mut control, router) = Control::start("[router.limits]\nprobe_interval_ms = 50\n");
    for _ in 0..5 {
        control.say(&router, &[(&engines[0], Draining), (&engines[1], Ready)]);
        std::thread::sleep(Duration::from_millis(120));
        for i in 0..4 {
            let prompt = format!("{i}");
            assert_whole(&stream(&router, &chat(&prompt)), &prompt);
        }
    }
    assert!(engines[0].asked().is_empty(), "{} is cordoned", worker_id(&engines[0]));
}

#[test]
fn a_router_that_drains_says_so_and_lets_streams_finish() {
    let engine = Speaker::one(|_, _| Turn::slow(80));
    let mut router = start("", &workers([&engine]));
    let mut running = begin(&router, CHAT, &chat("finishes"));
    eventually("it runs", || engine.asked().len() == 1);
    assert_eq!(router.client().get("/readyz").status, 200);
    router.terminate();
    eventually("it is not ready", || router.client().get("/readyz").status == 503);
    assert_whole(&of_response(&running.rest()), "finishes");
    assert_eq!(router.wait(), Some(0));
}

#[test]
fn a_router_whose_time_to_drain_is_over_ends_streams_with_an_error_event() {
    let engine = Speaker::one(|_, _| Turn {
        pause: Duration::from_millis(20),
        ..Turn::fails(Fault::Endless, 5)
    });
    let mut router = start("[router.limits]\ndrain_s_max = 1\n", &workers([&engine]));
    let mut running = begin(&router, CHAT, &chat("for ever"));
    running.until("w3x");
    let mut client = running;
    router.terminate();
    let rest = String::from_utf8(client.rest()).unwrap();
    assert!(rest.contains("\"code\":\"server_stopping\"") && rest.ends_with("0\r\n\r\n"), "{rest}");
    assert_eq!(router.wait(), Some(0));
}
