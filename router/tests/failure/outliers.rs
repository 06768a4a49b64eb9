//! Who is much worse than its peers rests a while, unless nobody else is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use super::ask::{CHAT, assert_whole, chat, eventually, id, picks, raw, start, stream, workers};
use super::process::Router;
use super::speaker::{Fault, Speaker, Turn};

fn ejections(router: &Router, engine: &Speaker, cause: &str) -> f64 {
    let labels = [format!("cause=\"{cause}\""), format!("worker=\"{}\"", id(engine))];
    router.metric(&format!("cgn_router_worker_ejections_total{{{}}}", labels.join(",")))
}

const OUTLIER: &str = "[router.breaker]\nfailures_max = 64\nfailure_share_min = 1.0\n\
    [router.breaker.outlier]\nerror_requests_min = 5\nlatency_requests_min = 4\neject_ms = 60000\n";

#[test]
fn a_worker_that_is_slow_between_tokens_rests() {
    let quick = Speaker::group(2, |_, _| Turn::slow(1));
    let slow = Speaker::one(|_, _| Turn::slow(100));
    let router = start(OUTLIER, &workers(quick.iter().chain([&slow])));
    eventually("the slow one is ejected", || {
        std::thread::scope(|scope| {
            for i in 0..6 {
                let router = &router;
                scope.spawn(move || stream(router, &chat(&format!("{i}"))));
            }
        });
        ejections(&router, &slow, "slow") == 1.0
    });
    let picked = picks(&router, &slow);
    for i in 0..10 {
        let prompt = format!("{i}");
        assert_whole(&stream(&router, &chat(&prompt)), &prompt);
    }
    assert_eq!(picks(&router, &slow), picked, "it rests");
    assert!(quick.iter().all(|engine| ejections(&router, engine, "slow") == 0.0));
}

#[test]
fn a_worker_that_fails_most_requests_rests() {
    let good = Speaker::group(2, |_, _| Turn::well());
    let erring = Speaker::one(|_, _| Turn::fails(Fault::Status(502), 0));
    let router = start(OUTLIER, &workers(good.iter().chain([&erring])));
    eventually("it is ejected", || {
        raw(&router, CHAT, &chat("x"));
        ejections(&router, &erring, "errors") == 1.0
    });
    let picked = picks(&router, &erring);
    for i in 0..10 {
        let prompt = format!("{i}");
        assert_whole(&stream(&router, &chat(&prompt)), &prompt);
    }
    assert_eq!(picks(&router, &erring), picked, "it rests");
}

#[test]
fn who_rests_is_called_back_when_the_others_are_gone() {
    let quick = Speaker::one(|_, _| Turn::slow(1));
    let slow = Speaker::one(|_, _| Turn::slow(100));
    let keys = format!("{OUTLIER}[router.limits]\nprobe_interval_ms = 100\n");
    let router = start(&keys, &workers([&quick, &slow]));
    eventually("the slow one is ejected", || {
        std::thread::scope(|scope| {
            for i in 0..4 {
                let router = &router;
                scope.spawn(move || stream(router, &chat(&format!("{i}"))));
            }
        });
        ejections(&router, &slow, "slow") == 1.0
    });
    quick.stop();
    eventually("the slow one serves", || {
        raw(&router, CHAT, &chat("x")).starts_with(b"HTTP/1.1 200 ")
    });
}

/// What an engine did before it was started anew says nothing of it.
#[test]
fn a_worker_that_was_started_anew_is_judged_anew() {
    let good = Speaker::group(2, |_, _| Turn::well());
    let sick = Arc::new(AtomicBool::new(true));
    let is_sick = Arc::clone(&sick);
    let erring = Speaker::one(move |_, _| match is_sick.load(SeqCst) {
        true => Turn::fails(Fault::Status(502), 0),
        false => Turn::well(),
    });
    let keys = format!("{OUTLIER}[router.limits]\nprobe_interval_ms = 50\n");
    let router = start(&keys, &workers(good.iter().chain([&erring])));
    eventually("it is ejected", || {
        raw(&router, CHAT, &chat("x"));
        ejections(&router, &erring, "errors") == 1.0
    });
    sick.store(false, SeqCst);
    erring.stop();
    let ready = format!("cgn_router_worker_ready{{model=\"m\",worker=\"{}\"}}", id(&erring));
    // The probes see that it is gone, and that it is back.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let again = erring.restarted();
    eventually("it serves", || router.metric(&ready) == 1.0);
    eventually("it is asked", || {
        raw(&router, CHAT, &chat("x"));
        !again.asked().is_empty()
    });
}
