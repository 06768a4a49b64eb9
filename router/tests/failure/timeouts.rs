//! Connect, first byte, between tokens, and a request as a whole.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::json;
use socket2::{Domain, Socket, Type};

use super::ask::{
    CHAT, assert_whole, begin, chat, eventually, of_response, raw, resumed, start, stream, with,
    worker, workers,
};
use super::client::post;
use super::process::Router;
use super::speaker::{Fault, Speaker, Turn};

/// An address that was healthy once and does not answer a SYN any more: its backlog is full.
struct Blackhole {
    address: SocketAddr,
    _listener: Socket,
    held: Vec<TcpStream>,
}

impl Blackhole {
    fn new() -> Blackhole {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        Blackhole { address, _listener: listener, held: Vec::new() }
    }

    /// Answers the router's first probe.
    fn answer_probe(&mut self) {
        let (probe, _) = self._listener.accept().unwrap();
        let mut probe = TcpStream::from(probe);
        let _ = probe.read(&mut [0; 4096]).unwrap();
        probe.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        self.held.push(probe);
    }

    fn fill(&mut self) {
        while let Ok(held) = TcpStream::connect_timeout(&self.address, Duration::from_millis(300)) {
            self.held.push(held);
            assert!(self.held.len() < 100, "it never fills");
        }
    }
}

#[test]
fn an_address_that_does_not_answer_costs_the_connect_timeout_and_no_request() {
    let good = Speaker::one(|_, _| Turn::well());
    let mut hole = Blackhole::new();
    let keys = "[router.limits]\nconnect_timeout_ms = 200\nprobe_interval_ms = 600000\n";
    let entry = worker(&good, "openai_compat")
        .replace(&good.address.to_string(), &hole.address.to_string());
    let router = Router::spawn(keys, &(workers([&good]) + &entry));
    hole.answer_probe();
    let ready = format!("cgn_router_worker_ready{{model=\"m\",worker=\"m@{}\"}}", hole.address);
    eventually("both are ready", || router.metric(&ready) == 1.0);
    hole.fill();
    for i in 0..8 {
        let prompt = format!("prompt {i}");
        assert_whole(&stream(&router, &chat(&prompt)), &prompt);
    }
    assert_eq!(good.asked().len(), 8);
    let tried = format!("cgn_router_picks_total{{worker=\"m@{}\"}}", hole.address);
    assert!(router.metric(&tried) >= 1.0, "the blackhole was never tried");
    assert!(router.metric("cgn_router_retries_total{cause=\"engine_failed\"}") >= 1.0);
}

#[test]
fn a_late_first_byte_is_a_504_and_the_next_request_of_the_connection_knows_nothing_of_it() {
    let engines = Speaker::group(2, |number, _| match number {
        0 => Turn::fails(Fault::Stall, 0),
        1 => Turn::fails(Fault::Close, 0),
        _ => Turn::well(),
    });
    let router = start("[router.limits]\nfirst_byte_s_max = 1\n", &workers(&engines));
    let body = with(chat("x"), json!({ "stream": false })).to_string();
    let mut client = router.client();
    let late = client.post(CHAT, "", &body);
    assert_eq!((late.status, late.error()["code"].as_str()), (504, Some("engine_timeout")));
    let next = client.post(CHAT, "", &body);
    assert_eq!(next.status, 200, "its engine died and another one answers: {}", next.text());
}

#[test]
fn a_stream_whose_engine_falls_silent_goes_on_elsewhere() {
    let engines = Speaker::group(2, |number, _| match number {
        0 => Turn::fails(Fault::Stall, 6),
        _ => Turn::well(),
    });
    let router = start("[router.limits]\ninter_token_s_max = 1\n", &workers(&engines));
    assert_whole(&stream(&router, &chat("silence")), "silence");
    assert_eq!(resumed(&router, "resumed"), 1.0);
    let cancelled: usize = engines.iter().map(|engine| engine.cancelled().len()).sum();
    assert_eq!(cancelled, 1, "the silent engine is let go");
}

#[test]
fn a_stream_that_never_ends_is_ended_and_so_is_its_engine() {
    let engine = Speaker::one(|_, _| Turn {
        pause: Duration::from_millis(20),
        ..Turn::fails(Fault::Endless, 5)
    });
    let router = start("[router.limits]\nrequest_s_max = 1\n", &workers([&engine]));
    let heard = of_response(&raw(&router, CHAT, &chat("for ever")));
    assert!(heard.is_ended_by_error(), "{heard:?}");
    assert_eq!(heard.errors[0]["code"], "engine_timeout");
    eventually("the engine is let go", || engine.cancelled().len() == 1);
    assert_eq!(engine.asked().len(), 1, "nobody else is asked for more of it");
}

#[test]
fn an_answer_that_takes_too_long_as_a_whole_is_a_504() {
    let engine = Speaker::one(|_, _| Turn::fails(Fault::Stall, 0));
    let router = start("[router.limits]\nrequest_s_max = 1\n", &workers([&engine]));
    let mut client = router.client();
    let answer = client.post(CHAT, "", &with(chat("x"), json!({ "stream": false })).to_string());
    assert_eq!((answer.status, answer.error()["code"].as_str()), (504, Some("engine_timeout")));
    eventually("the engine is let go", || engine.cancelled().len() == 1);
}

#[test]
fn a_messages_stream_ends_with_an_error_in_its_own_form() {
    let engine = Speaker::one(|_, _| Turn::fails(Fault::Close, 4));
    let router = start("", &workers([&engine]));
    let response = begin(&router, "/v1/messages", &chat("x")).rest();
    let text = String::from_utf8(super::heard::payload(&response).unwrap()).unwrap();
    let (before, error) = text.split_once("event: error\n").expect(&text);
    assert_eq!(before.matches("event: content_block_delta").count(), 4);
    let data: serde_json::Value =
        serde_json::from_str(error.trim_end().strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!((&data["type"], &data["error"]["type"]), (&json!("error"), &json!("api_error")));
    assert!(error.ends_with("\n\n"));
}

#[test]
fn a_kept_connection_that_is_given_up_is_no_stale_one() {
    let engine = Speaker::one(|number, _| match number {
        4 => Turn::fails(Fault::Stall, 0),
        _ => Turn::well(),
    });
    let router = start("[router.limits]\nfirst_byte_s_max = 1\n", &workers([&engine]));
    let body = with(chat("x"), json!({ "stream": false })).to_string();
    let mut client = router.client();
    for _ in 0..4 {
        assert_eq!(client.post(CHAT, "", &body).status, 200);
    }
    assert_eq!(client.post(CHAT, "", &body).status, 504);
    assert_eq!(engine.asked().len(), 5, "it is not sent again");
}

#[test]
fn pipelined_requests_behind_a_504_are_answered() {
    let engine = Speaker::one(|number, _| match number {
        0 => Turn::fails(Fault::Stall, 0),
        _ => Turn::well(),
    });
    let router = start("[router.limits]\nfirst_byte_s_max = 1\n", &workers([&engine]));
    let body = with(chat("x"), json!({ "stream": false })).to_string();
    let mut client = router.client();
    client.send(post(CHAT, "", &body).repeat(2));
    assert_eq!(client.answer().status, 504);
    assert_eq!(client.answer().status, 200);
}
