//! Who waits for whom when there is one place: shares of tenants, bounds, and those who leave.

use super::client::chat;
use super::gate::Full;
use super::tenants::{bearer, post, two_tenants, until};

/// How many of the first `count` are of the tenant `name`.
fn share(order: &[String], name: &str, count: usize) -> usize {
    order[..count].iter().filter(|content| content.starts_with(name)).count()
}

#[test]
fn a_tenant_that_floods_leaves_the_other_its_half() {
    let (keys, tenants) = two_tenants("", "");
    let mut full = Full::start(&keys.section(""), &tenants, &bearer("key-a"));
    let mut clients: Vec<_> =
        (0..40).map(|i| full.line_up(&bearer("key-a"), &format!("a{i:02}"))).collect();
    clients.extend((0..5).map(|i| full.line_up(&bearer("key-b"), &format!("b{i:02}"))));
    let order = full.served(clients);
    assert_eq!(order.len(), 45);
    // They take turns while both wait: five of b within the first ten, or eleven.
    assert_eq!(share(&order, "b", 11), 5, "{order:?}");
}

#[test]
fn a_weight_of_three_is_three_turns_of_four() {
    let (keys, tenants) = two_tenants("weight = 3", "weight = 1");
    let mut full = Full::start(&keys.section(""), &tenants, "");
    let clients = (0..48)
        .map(|i| match i % 2 {
            0 => full.line_up(&bearer("key-a"), &format!("a{i:02}")),
            _ => full.line_up(&bearer("key-b"), &format!("b{i:02}")),
        })
        .collect();
    let order = full.served(clients);
    let of_a = share(&order, "a", 24);
    assert!((16..=20).contains(&of_a), "{of_a} of 24: {order:?}");
}

#[test]
fn a_full_queue_refuses_at_once_and_says_when_to_come_back() {
    let full =
        Full::start("[router.queue]\nentries_max = 3\ntenant_free_factor = 1000.0\n", "", "");
    let _waiting: Vec<_> = (0..3).map(|i| full.line_up("", &format!("w{i}"))).collect();
    let refused = post(&full.router, "", &chat("one-too-many"));
    assert_eq!((refused.status, &refused.error()["code"]), (429, &"queue_full".into()));
    assert_eq!(refused.error()["type"], "rate_limit_error");
    assert!(refused.field("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!((full.engine.asked().len(), full.waiting()), (1, 3.0));
    assert_eq!(full.router.metric("cgn_router_refusals_total{reason=\"busy\"}"), 1.0);
}

#[test]
fn a_tenant_that_floods_leaves_room_for_the_next() {
    let (keys, tenants) = two_tenants("", "");
    let queue = "[router.queue]\nentries_max = 10\ntenant_free_factor = 1.0\n";
    let full = Full::start(&(keys.section("") + queue), &tenants, "");
    let mut waiting: Vec<_> =
        (0..5).map(|i| full.line_up(&bearer("key-a"), &format!("a{i}"))).collect();
    let refused = post(&full.router, &bearer("key-a"), &chat("too-many"));
    assert_eq!((refused.status, &refused.error()["code"]), (429, &"queue_full".into()));
    assert!(refused.error()["message"].as_str().unwrap().contains("share"), "{}", refused.text());
    waiting.push(full.line_up(&bearer("key-b"), "b0"));
    assert_eq!(full.waiting(), 6.0);
}

#[test]
fn a_client_that_is_gone_leaves_the_queue_and_no_engine_hears_of_it() {
    let mut full = Full::start("", "", "");
    let (gone, stays) = (full.line_up("", "gone"), full.line_up("", "stays"));
    drop(gone);
    until("it left the queue", || full.waiting() == 1.0);
    until("it is counted", || full.router.metric("cgn_router_clients_gone_total") == 1.0);
    assert_eq!(full.served(vec![stays]), ["stays"]);
}

#[test]
fn a_request_that_waits_for_too_long_is_told() {
    let full = Full::start("request_s_max = 1\n", "", "");
    std::thread::sleep(std::time::Duration::from_millis(300));
    let mut waits = full.line_up("", &format!("waits {}", "word ".repeat(2_000)));
    // Comes later and goes before it; so the place is taken when the time of the other is up.
    std::thread::sleep(std::time::Duration::from_millis(400));
    let overtakes = full.line_up("", "overtakes");
    let answer = waits.answer();
    assert_eq!((answer.status, &answer.error()["code"]), (504, &"engine_timeout".into()));
    assert_eq!(answer.field("connection"), None, "the next request may come here");
    until("the other overtook it", || full.order() == ["overtakes"]);
    drop(overtakes);
}

#[test]
fn the_short_goes_before_the_long() {
    let mut full = Full::start("", "", "");
    let long = |name: &str| format!("{name} {}", "word ".repeat(2_000));
    let clients = vec![
        full.line_up("", &long("long-1")),
        full.line_up("", &long("long-2")),
        full.line_up("", "short-1"),
        full.line_up("", "short-2"),
    ];
    assert_eq!(full.served(clients), ["short-1", "short-2", "long-1", "long-2"]);
}

#[test]
fn a_request_that_waits_is_served_when_its_turn_comes() {
    let mut full = Full::start("", "", "");
    let clients: Vec<_> = (0..3).map(|i| full.line_up("", &format!("w{i}"))).collect();
    assert_eq!(full.served(clients), ["w0", "w1", "w2"]);
    let router = &full.router;
    assert_eq!(full.waiting(), 0.0);
    assert_eq!(router.metric("cgn_router_queue_wait_seconds_count"), 3.0);
    assert!(router.metric("cgn_router_queue_wait_seconds_sum") > 0.0);
}
