//! Requests that were given up: no engine gets them a second time.

use std::io::{Read, Write};
use std::time::Duration;

use super::client::{chat, post as bytes};
use super::engine::{Engine, json};
use super::process::{Router, worker};
use super::tenants::{CHAT, until};

/// Answers on connections that stay open, but for `hold`, which it is silent on until the other side ends it.
fn keeps_connections() -> Engine {
    Engine::start(|asked, stream| {
        if asked.body.windows(4).any(|four| four == b"hold") {
            let _ = stream.read(&mut [0; 16]);
            return false;
        }
        stream.write_all(&json("{}")).is_ok()
    })
}

#[test]
fn a_client_that_hangs_up_is_not_asked_for_again_on_a_fresh_connection() {
    let engine = keeps_connections();
    let router = Router::start("", &worker(&engine, 4));
    let mut client = router.client();
    assert_eq!(client.post(CHAT, "", &chat("x")).status, 200);
    client.send(bytes(CHAT, "", &chat("hold")));
    until("it is at the engine", || engine.asked().len() == 2);
    drop(client);
    until("nothing runs", || router.metric("cgn_router_requests_running") == 0.0);
    assert_eq!(engine.asked().len(), 2);
    assert_eq!(router.metric("cgn_router_clients_gone_total"), 1.0);
}

#[test]
fn an_engine_that_is_silent_on_a_kept_connection_is_given_up_in_time() {
    let engine = keeps_connections();
    let limits = "[router.limits]\nfirst_byte_s_max = 1\n";
    let router = Router::start(limits, &worker(&engine, 4));
    let mut client = router.client();
    assert_eq!(client.post(CHAT, "", &chat("x")).status, 200);
    client.stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let answer = client.post(CHAT, "", &chat("hold"));
    assert_eq!((answer.status, &answer.error()["code"]), (504, &"engine_timeout".into()));
    assert_eq!(engine.asked().len(), 2);
}
