//! What a tenant may take: requests and tokens a minute, requests at once, tokens a day.

use std::io::{Read, Write};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::client::{Answer, chat, post as bytes};
use super::engine::{Engine, STREAM_HEAD, chunk, json};
use super::gate::Full;
use super::process::{Router, worker};
use super::tenants::{CHAT, bearer, post, two_tenants, until};

/// The seconds in `Retry-After`.
fn retry_after_s(answer: &Answer) -> u64 {
    answer
        .field("retry-after")
        .unwrap_or_else(|| panic!("no retry-after: {}", answer.head))
        .parse()
        .unwrap()
}

fn number(answer: &Answer, name: &str) -> u64 {
    answer.field(name).unwrap_or_else(|| panic!("no {name}: {}", answer.head)).parse().unwrap()
}

/// Sends a request of tenant `a` or `b` and waits until it is counted.
fn ask(router: &Router, tenant: &str, body: &str) -> Answer {
    let answer = post(router, &bearer(&format!("key-{tenant}")), body);
    idle(router, tenant);
    answer
}

/// Waits until what the tenant used has been counted: a moment after the client has its answer.
fn idle(router: &Router, tenant: &str) {
    let name = format!("cgn_router_tenant_running{{tenant=\"{tenant}\"}}");
    until("the tenant's requests are counted", || router.metric(&name) == 0.0);
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// An engine that says it counted so many tokens.
fn counting(prompt: u64, completion: u64) -> Engine {
    Engine::fixed(json(&format!(
        "{{\"usage\":{{\"prompt_tokens\":{prompt},\"completion_tokens\":{completion}}}}}"
    )))
}

#[test]
fn requests_a_minute_are_counted_told_and_refused_for_one_tenant_alone() {
    let (keys, tenants) = two_tenants("requests_per_minute = 3", "");
    let engine = Engine::ok();
    let router = Router::start(&keys.section(""), &(worker(&engine, 4) + &tenants));
    let began_ms = unix_ms();
    for left in [2, 1, 0] {
        let answer = post(&router, &bearer("key-a"), &chat("x"));
        assert_eq!(answer.status, 200);
        assert_eq!(number(&answer, "x-ratelimit-limit-requests"), 3);
        assert_eq!(number(&answer, "x-ratelimit-remaining-requests"), left);
        assert!(answer.field("x-ratelimit-reset-requests").unwrap().ends_with("ms"));
        assert_eq!(answer.field("x-ratelimit-limit-tokens"), None, "there is none");
    }
    let answer = post(&router, &bearer("key-a"), &chat("x"));
    assert_eq!((answer.status, &answer.error()["code"]), (429, &"rate_limit_exceeded".into()));
    assert_eq!(answer.error()["type"], "rate_limit_error");
    assert!(answer.error()["message"].as_str().unwrap().contains("requests_per_minute = 3"));
    assert_eq!(number(&answer, "x-ratelimit-remaining-requests"), 0);
    // Three in this minute: there is room when a third of it has slid out of the window.
    let (said_s, now_ms) = (retry_after_s(&answer), unix_ms());
    if began_ms / 60_000 == now_ms / 60_000 {
        let expected_s = (60_000 - now_ms % 60_000 + 20_000).div_ceil(1_000);
        assert!(said_s.abs_diff(expected_s) <= 1, "{said_s} s said, {expected_s} s expected");
    }
    for _ in 0..10 {
        let other = post(&router, &bearer("key-b"), &chat("x"));
        assert_eq!((other.status, other.field("x-ratelimit-limit-requests")), (200, None));
    }
    assert_eq!(engine.asked().len(), 13);
}

#[test]
fn tokens_a_minute_are_those_the_engine_counted() {
    let (keys, tenants) = two_tenants("tokens_per_minute = 100", "tokens_per_minute = 100");
    let engine = counting(50, 10);
    let router = Router::start(&keys.section(""), &(worker(&engine, 4) + &tenants));
    let left = |answer: &Answer| number(answer, "x-ratelimit-remaining-tokens");
    let first = ask(&router, "a", &chat("x"));
    assert_eq!((first.status, number(&first, "x-ratelimit-limit-tokens")), (200, 100));
    assert_eq!(left(&first), 100, "its own are not known yet");
    // A request begins while one more token fits.
    let second = ask(&router, "a", &chat("x"));
    assert_eq!((second.status, left(&second)), (200, 40));
    let third = ask(&router, "a", &chat("x"));
    assert_eq!((third.status, &third.error()["code"]), (429, &"rate_limit_exceeded".into()));
    assert!((1..=120).contains(&retry_after_s(&third)), "{}", third.head);
    assert_eq!((ask(&router, "b", &chat("x")).status, engine.asked().len()), (200, 3));
}

#[test]
fn a_stream_that_does_not_say_its_usage_is_estimated() {
    let (keys, tenants) = two_tenants("tokens_per_minute = 10", "");
    let engine = Engine::start(|_, stream| {
        let mut say = |text: &str| stream.write_all(text.as_bytes()).is_ok();
        let mut went_well = say(STREAM_HEAD);
        for i in 0..25 {
            let event = "{\"choices\":[{\"index\":0,\"delta\":{\"content\":\"w \"}}]}";
            went_well &= say(&chunk(&format!("data: {event}\n\n")));
            std::thread::sleep(Duration::from_millis(if i % 5 == 0 { 4 } else { 2 }));
        }
        went_well && say(&format!("{}0\r\n\r\n", chunk("data: [DONE]\n\n")))
    });
    let router = Router::start(&keys.section(""), &(worker(&engine, 4) + &tenants));
    // The prompt is next to nothing, and a part of the answer counts as a token.
    let body = chat("x").replacen('{', "{\"stream\":true,", 1);
    assert_eq!(ask(&router, "a", &body).status, 200);
    let refused = ask(&router, "a", &body);
    assert_eq!((refused.status, &refused.error()["code"]), (429, &"rate_limit_exceeded".into()));
    assert_eq!(ask(&router, "b", &body).status, 200);
    assert_eq!(engine.asked().len(), 2);
}

#[test]
fn a_stream_that_its_client_leaves_is_counted_as_far_as_it_went() {
    let (keys, tenants) = two_tenants("tokens_per_minute = 10", "");
    let engine = Engine::start(|_, stream| {
        let event = chunk("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"w \"}}]}\n\n");
        let mut says = stream.write_all(STREAM_HEAD.as_bytes()).is_ok();
        for _ in 0..1_000 {
            std::thread::sleep(Duration::from_millis(2));
            says = says && stream.write_all(event.as_bytes()).is_ok();
        }
        false
    });
    let router = Router::start(&keys.section(""), &(worker(&engine, 4) + &tenants));
    let body = chat("x").replacen('{', "{\"stream\":true,", 1);
    let mut leaves = router.client();
    leaves.send(bytes(CHAT, &bearer("key-a"), &body));
    for _ in 0..20 {
        leaves.until("\n\n");
    }
    drop(leaves);
    idle(&router, "a");
    assert_eq!(ask(&router, "a", &body).status, 429);
}

#[test]
fn a_prompt_that_no_engine_counted_is_estimated() {
    let (keys, tenants) = two_tenants("tokens_per_minute = 100", "");
    let engine = Engine::ok();
    let router = Router::start(&keys.section(""), &(worker(&engine, 4) + &tenants));
    let long = chat(&"word ".repeat(400));
    assert_eq!([0; 3].map(|_| ask(&router, "a", &chat("x")).status), [200; 3]);
    assert_eq!([0; 2].map(|_| ask(&router, "a", &long).status), [200, 429]);
    assert_eq!(engine.asked().len(), 4);
}

#[test]
fn a_stream_that_says_its_usage_is_counted_by_it() {
    let (keys, tenants) = two_tenants("tokens_per_minute = 1000", "");
    let event = "{\"choices\":[],\"usage\":{\"prompt_tokens\":700,\"completion_tokens\":100}}";
    let engine = Engine::fixed(format!(
        "{STREAM_HEAD}{}{}{}0\r\n\r\n",
        chunk("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"w\"}}]}\n\n"),
        chunk(&format!("data: {event}\n\n")),
        chunk("data: [DONE]\n\n")
    ));
    let router = Router::start(&keys.section(""), &(worker(&engine, 4) + &tenants));
    let body = chat("x").replacen('{', "{\"stream\":true,", 1);
    assert_eq!(ask(&router, "a", &body).status, 200);
    let second = ask(&router, "a", &body);
    assert_eq!(number(&second, "x-ratelimit-remaining-tokens"), 200);
    assert_eq!(ask(&router, "a", &body).status, 429);
}

#[test]
fn requests_at_once_are_bounded_and_a_place_is_given_back() {
    let (keys, tenants) = two_tenants("concurrent_requests_max = 1", "");
    let (release, held) = mpsc::channel::<()>();
    let held = Arc::new(Mutex::new(held));
    let engine = Engine::start(move |asked, stream| {
        if asked.body.windows(4).any(|four| four == b"hold") {
            let _ = held.lock().unwrap().recv();
        }
        stream.write_all(&json("{}")).is_ok()
    });
    let router = Router::start(&keys.section(""), &(worker(&engine, 4) + &tenants));
    let mut first = router.client();
    first.send(bytes(CHAT, &bearer("key-a"), &chat("hold")));
    until("the first is at the engine", || engine.asked().len() == 1);
    let second = post(&router, &bearer("key-a"), &chat("x"));
    assert_eq!((second.status, &second.error()["code"]), (429, &"rate_limit_exceeded".into()));
    assert!(retry_after_s(&second) >= 1);
    assert_eq!(post(&router, &bearer("key-b"), &chat("x")).status, 200);
    release.send(()).unwrap();
    assert_eq!(first.answer().status, 200);
    idle(&router, "a");
    assert_eq!(post(&router, &bearer("key-a"), &chat("x")).status, 200);
}

#[test]
fn a_client_that_hangs_up_gives_its_place_back() {
    let (keys, tenants) = two_tenants("concurrent_requests_max = 1", "");
    // One request a connection: what a kept connection adds is no matter of limits.
    let close = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";
    let engine = Engine::start(move |asked, stream| {
        let holds = asked.body.windows(4).any(|four| four == b"hold");
        let _ = if holds { stream.read(&mut [0; 16]) } else { stream.write(close.as_bytes()) };
        false
    });
    let router = Router::start(&keys.section(""), &(worker(&engine, 4) + &tenants));
    let mut gone = router.client();
    gone.send(bytes(CHAT, &bearer("key-a"), &chat("hold")));
    until("it is at the engine", || engine.asked().len() == 1);
    assert_eq!(post(&router, &bearer("key-a"), &chat("x")).status, 429);
    drop(gone);
    until("its place is free", || post(&router, &bearer("key-a"), &chat("x")).status == 200);
}

#[test]
fn a_request_that_waits_holds_its_tenants_place_and_refusals_hold_none() {
    let (keys, tenants) = two_tenants("concurrent_requests_max = 2\nrequests_per_minute = 100", "");
    let sections = keys.section("");
    let mut full = Full::start(&sections, &tenants, &bearer("key-a"));
    let waiting = full.line_up(&bearer("key-a"), "second");
    for _ in 0..5 {
        let third = post(&full.router, &bearer("key-a"), &chat("third"));
        assert_eq!(third.status, 429, "one runs and one waits");
        // A refusal takes nothing from the minute either.
        assert_eq!(number(&third, "x-ratelimit-remaining-requests"), 98);
    }
    assert_eq!(full.served(vec![waiting]), ["second"]);
}

#[test]
fn a_days_budget_is_spent_once() {
    let (keys, tenants) = two_tenants("tokens_per_day = 100", "");
    let engine = counting(90, 30);
    let router = Router::start(&keys.section(""), &(worker(&engine, 4) + &tenants));
    assert_eq!(ask(&router, "a", &chat("x")).status, 200);
    let refused = ask(&router, "a", &chat("x"));
    assert_eq!((refused.status, &refused.error()["code"]), (429, &"insufficient_quota".into()));
    let to_midnight_s = 86_400 - unix_ms() / 1_000 % 86_400;
    let said_s = retry_after_s(&refused);
    assert!(said_s.abs_diff(to_midnight_s) <= 2, "{said_s} s said, {to_midnight_s} s to midnight");
    assert_eq!(ask(&router, "b", &chat("x")).status, 200);
    assert_eq!(engine.asked().len(), 2);
}
