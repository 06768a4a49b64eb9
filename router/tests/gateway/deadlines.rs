//! First tokens that are wanted by a time: refused where they would come later, earliest first else.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use super::client::{chat, post as bytes};
use super::engine::{Engine, json};
use super::gate::{Full, ONE_PER_SLOT};
use super::process::{Router, worker};
use super::tenants::{CHAT, bearer, post, two_tenants, until};

fn within_ms(ms: impl std::fmt::Display) -> String {
    format!("x-cgn-deadline-ms: {ms}\r\n")
}

/// Answers before the router predicts anything, and a few more.
const LEARNED: usize = 20;
/// How long the slow engine takes.
const SLOW: Duration = Duration::from_millis(40);

/// A router that has seen a slow engine answer, at one place. `held` stops the engine.
fn learned(sections: &str, tenants: &str, fields: &str) -> (Engine, Router, Arc<AtomicBool>) {
    let held = Arc::new(AtomicBool::new(false));
    let engine = Engine::start({
        let held = Arc::clone(&held);
        move |_, stream| {
            std::thread::sleep(SLOW);
            while held.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            stream.write_all(&json("{}")).is_ok()
        }
    });
    let keys = format!("{ONE_PER_SLOT}{sections}");
    let router = Router::start(&keys, &(worker(&engine, 1) + tenants));
    let mut client = router.client();
    for _ in 0..LEARNED {
        assert_eq!(client.post(CHAT, fields, &chat("x")).status, 200);
    }
    (engine, router, held)
}

#[test]
fn what_would_come_too_late_is_refused_before_an_engine_hears_of_it() {
    let (engine, router, held) = learned("", "", "");
    let late = post(&router, &within_ms(5), &chat("x"));
    assert_eq!((late.status, &late.error()["code"]), (429, &"deadline_unreachable".into()));
    assert!(late.error()["message"].as_str().unwrap().contains("within 5 ms"), "{}", late.text());
    assert_eq!(late.field("retry-after"), Some("60"), "the engine is never that fast");
    assert_eq!(engine.asked().len(), LEARNED);
    assert_eq!(router.metric("cgn_router_refusals_total{reason=\"deadline\"}"), 1.0);
    assert_eq!(post(&router, &within_ms(60_000), &chat("x")).status, 200);
    // With one at the engine and twenty that wait, 300 ms cannot be met; a minute can.
    held.store(true, SeqCst);
    let waiting: Vec<_> = (0..21)
        .map(|i| {
            let mut client = router.client();
            client.send(bytes(CHAT, "", &chat("x")));
            until("one more waits", || queued(&router) == f64::from(i));
            client
        })
        .collect();
    let late = post(&router, &within_ms(300), &chat("x"));
    assert_eq!((late.status, &late.error()["code"]), (429, &"deadline_unreachable".into()));
    let said_s: u64 = late.field("retry-after").unwrap().parse().unwrap();
    assert!((1..60).contains(&said_s), "{said_s}");
    assert_eq!(queued(&router), 20.0, "it did not wait");
    held.store(false, SeqCst);
    let in_time = post(&router, &within_ms(60_000), &chat("x"));
    assert_eq!(in_time.status, 200, "{}", in_time.text());
    drop(waiting);
}

fn queued(router: &Router) -> f64 {
    router.metric("cgn_router_queue_requests{model=\"m\"}")
}

#[test]
fn a_full_queue_says_when_it_will_have_drained() {
    let queue = "[router.queue]\nentries_max = 50\ntenant_free_factor = 1000.0\n";
    let (_engine, router, held) = learned(queue, "", "");
    held.store(true, SeqCst);
    let _waiting: Vec<_> = (0..51)
        .map(|i| {
            let mut client = router.client();
            client.send(bytes(CHAT, "", &chat("x")));
            until("one more waits", || queued(&router) == f64::from(i));
            client
        })
        .collect();
    let refused = post(&router, "", &chat("x"));
    assert_eq!((refused.status, &refused.error()["code"]), (429, &"queue_full".into()));
    let said_s: u64 = refused.field("retry-after").unwrap().parse().unwrap();
    // Fifty answers, none of which came within 40 ms.
    assert!(said_s >= 2, "{said_s} s said");
    held.store(false, SeqCst);
}

#[test]
fn a_deadline_that_passes_in_the_queue_is_told_and_no_engine_hears_of_it() {
    let mut full = Full::start("", "", "");
    let mut late = full.line_up(&within_ms(200), "late");
    let stays = full.line_up(&within_ms(60_000), "stays");
    let answer = late.answer();
    assert_eq!((answer.status, &answer.error()["code"]), (429, &"deadline_unreachable".into()));
    assert!(answer.field("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(full.waiting(), 1.0);
    // The connection is as good as before.
    assert_eq!(late.get("/healthz").status, 200);
    assert_eq!(full.served(vec![stays]), ["stays"]);
}

#[test]
fn a_tenants_own_wish_counts_where_the_request_has_none() {
    let (keys, tenants) = two_tenants("ttft_slo_ms = 200", "");
    let mut full = Full::start(&keys.section(""), &tenants, "");
    let mut late = full.line_up(&bearer("key-a"), "late");
    let patient = full.line_up(&(bearer("key-a") + &within_ms(60_000)), "patient");
    let other = full.line_up(&bearer("key-b"), "other");
    let answer = late.answer();
    assert_eq!((answer.status, &answer.error()["code"]), (429, &"deadline_unreachable".into()));
    assert!(answer.error()["message"].as_str().unwrap().contains("200 ms"), "{}", answer.text());
    let mut order = full.served(vec![patient, other]);
    order.sort();
    assert_eq!(order, ["other", "patient"]);
}

#[test]
fn the_earliest_deadline_goes_first_and_before_those_without() {
    let mut full = Full::start("", "", "");
    let clients = vec![
        full.line_up("", "none"),
        full.line_up(&within_ms(50_000), "50s"),
        full.line_up(&within_ms(30_000), "30s"),
        full.line_up(&within_ms(40_000), "40s"),
    ];
    assert_eq!(full.served(clients), ["30s", "40s", "50s", "none"]);
}

#[test]
fn a_deadline_that_means_nothing_is_refused() {
    let engine = Engine::ok();
    let router = Router::start("", &worker(&engine, 1));
    for value in ["0", "-1", "abc", "1.5", "86400001", "", "1e3", "99999999999999999999", "5 "] {
        let answer = post(&router, &within_ms(value), &chat("x"));
        // Space around a value is not part of it.
        let status = if value == "5 " { 200 } else { 400 };
        assert_eq!(answer.status, status, "{value:?}");
        if status == 400 {
            assert_eq!(answer.error()["code"], "invalid_header");
            assert!(answer.error()["message"].as_str().unwrap().contains("x-cgn-deadline-ms"));
        }
    }
    assert_eq!(engine.asked().len(), 1);
    assert_eq!(engine.asked()[0].field("x-cgn-deadline-ms"), None);
}
