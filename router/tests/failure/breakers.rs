//! A worker that fails is left alone, tried again, and taken back; one client's bad requests do not
//! close it to the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use super::ask::{
    CHAT, assert_whole, chat, eventually, of_worker, picks, raw, start, stream, workers,
};
use super::process::Router;
use super::speaker::{Fault, Speaker, Turn};

const STATE: &str = "cgn_router_breaker_state";

fn status(router: &Router, prompt: &str) -> String {
    let response = String::from_utf8(raw(router, CHAT, &chat(prompt))).unwrap();
    response.split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn it_opens_after_failures_and_probes_close_it_again() {
    let sick = Arc::new(AtomicBool::new(true));
    let is_sick = Arc::clone(&sick);
    let failing = Speaker::one(move |_, _| match is_sick.load(SeqCst) {
        true => Turn::fails(Fault::Garbage, 0),
        false => Turn::well(),
    });
    let good = Speaker::one(|_, _| Turn::well());
    let keys = "[router.breaker]\nfailures_max = 3\nopen_ms = 60000\nopen_ms_max = 60000\n";
    let router = start(keys, &workers([&failing, &good]));
    for i in 0..20 {
        let prompt = format!("{i}");
        assert_whole(&stream(&router, &chat(&prompt)), &prompt);
    }
    assert_eq!(failing.asked().len(), 3, "three failures open it");
    assert_eq!(of_worker(&router, STATE, &failing), 2.0);
    assert_eq!(of_worker(&router, STATE, &good), 0.0);
    assert_eq!(picks(&router, &failing), 3.0, "while open it is not picked");

    sick.store(false, SeqCst);
    let keys = keys.replace("60000", "200");
    let router = start(&keys, &workers([&failing, &good]));
    sick.store(true, SeqCst);
    eventually("it opens", || {
        stream(&router, &chat("x"));
        of_worker(&router, STATE, &failing) == 2.0
    });
    sick.store(false, SeqCst);
    let picked = picks(&router, &failing);
    eventually("probes close it", || {
        assert_whole(&stream(&router, &chat("x")), "x");
        of_worker(&router, STATE, &failing) == 0.0
    });
    assert!(picks(&router, &failing) >= picked + 2.0, "two successes are needed");
}

#[test]
fn the_500s_of_one_client_are_its_own() {
    let engines = Speaker::group(2, |_, asked| {
        match asked.bytes.windows(6).any(|window| window == b"poison") {
            true => Turn::fails(Fault::Status(500), 0),
            false => Turn::well(),
        }
    });
    let router = start("", &workers(&engines));
    for _ in 0..30 {
        assert_eq!(status(&router, "poison"), "500");
    }
    let asked: usize = engines.iter().map(|engine| engine.asked().len()).sum();
    assert_eq!(asked, 30, "a 500 is not tried again");
    for engine in &engines {
        assert_eq!(of_worker(&router, STATE, engine), 0.0);
    }
    assert_eq!(status(&router, "honest"), "200");
}

#[test]
fn a_request_at_which_engines_hang_up_closes_no_worker_to_the_others() {
    let engines = Speaker::group(3, |_, asked| {
        match asked.bytes.windows(6).any(|window| window == b"poison") {
            true => Turn::fails(Fault::Close, 0),
            false => Turn::well(),
        }
    });
    let router = start("", &workers(&engines));
    assert_eq!(status(&router, "poison"), "502");
    assert_eq!(status(&router, "honest"), "200");
    for engine in &engines {
        assert_eq!(of_worker(&router, STATE, engine), 0.0);
    }
}

#[test]
fn a_refused_connection_opens_it_at_once() {
    let engines = Speaker::group(2, |_, _| Turn::well());
    let keys = "[router.limits]\nprobe_interval_ms = 600000\n[router.breaker]\nopen_ms = 60000\nopen_ms_max = 60000\n";
    let router = start(keys, &workers(&engines));
    eventually("both are used", || {
        stream(&router, &chat("x"));
        engines.iter().all(|engine| !engine.asked().is_empty())
    });
    engines[0].stop();
    for i in 0..10 {
        let prompt = format!("{i}");
        assert_whole(&stream(&router, &chat(&prompt)), &prompt);
    }
    assert_eq!(of_worker(&router, STATE, &engines[0]), 2.0);
    assert!(router.metric("cgn_router_retries_total{cause=\"engine_failed\"}") <= 2.0);
}
