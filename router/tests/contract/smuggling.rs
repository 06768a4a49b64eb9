//! Requests that two hops could read differently, and HTTP/1.1 at its edges: every one is refused, or
//! reaches the engine in exactly one reading.

use std::io::Write;

use super::client::{Client, chat, post};
use super::engine::{Engine, json};
use super::process::{Router, worker};

const PATH: &str = "/v1/chat/completions";

/// A second request in the body of the first, as an attacker hides it.
const HIDDEN: &str = "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}";

/// Whatever `request` is answered with first, the connection ends there and no engine was asked.
fn refused(router: &Router, engine: &Engine, request: &str) -> u16 {
    let mut client = router.client();
    client.send(request);
    let answer = client.answer();
    assert!(answer.error()["message"].is_string(), "{request:?}");
    assert_eq!(answer.field("connection"), Some("close"), "{request:?}");
    assert!(client.rest().is_empty(), "answered twice: {request:?}");
    assert!(engine.asked().is_empty(), "reached an engine: {request:?}");
    answer.status
}

#[test]
fn a_body_with_two_lengths_is_refused_whichever_comes_first() {
    let engine = Engine::ok();
    let router = Router::start("", &worker(&engine, 1));
    let with = |fields: &str, body: &str| {
        format!("POST {PATH} HTTP/1.1\r\nHost: t\r\n{fields}\r\n\r\n{body}")
    };
    let hidden = format!("0\r\n\r\n{HIDDEN}");
    for (fields, status) in [
        ("Content-Length: 6\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 6", 400),
        ("Content-Length: 6\r\nContent-Length: 5", 400),
        ("Content-Length: 6, 6", 400),
        ("Content-Length: +6", 400),
        ("Content-Length: -1", 400),
        ("Content-Length: 0x6", 400),
        ("Content-Length: 6 6", 400),
        ("Content-Length:", 400),
        ("Content-Length: 18446744073709551616", 400),
        ("Content-Length: 6\r\n Transfer-Encoding: chunked", 400),
        ("Transfer-Encoding: gzip, chunked", 501),
        ("Transfer-Encoding: chunked, identity", 501),
        ("Transfer-Encoding: xchunked", 501),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 501),
        ("Transfer-Encoding:\u{b}chunked", 400),
        ("Transfer-Encoding : chunked", 400),
        ("X: 1\nTransfer-Encoding: chunked", 400),
        ("X: 1\rTransfer-Encoding: chunked", 400),
        ("X: 1\0", 400),
        ("X: 1\u{1}", 400),
        ("X\0: 1", 400),
        (": 1", 400),
        ("X: 1\r\n\tfolded: 2", 400),
    ] {
        assert_eq!(refused(&router, &engine, &with(fields, &hidden)), status, "{fields:?}");
    }
    let old = with("Transfer-Encoding: chunked", &hidden).replacen("HTTP/1.1", "HTTP/1.0", 1);
    assert_eq!(refused(&router, &engine, &old), 400);
    let lf = with("Content-Length: 0", "").replace("\r\n", "\n");
    assert_eq!(refused(&router, &engine, &lf), 400);
}

#[test]
fn the_same_length_twice_is_one_length() {
    let engine = Engine::ok();
    let router = Router::start("", &worker(&engine, 1));
    let body = chat("x");
    let again = format!("Content-Length: {}\r\n", body.len());
    assert_eq!(router.client().post(PATH, &again, &body).status, 200);
    let asked = &engine.asked()[0];
    assert_eq!(asked.head.to_ascii_lowercase().matches("content-length").count(), 1);
    assert_eq!(asked.body, body.as_bytes());
}

#[test]
fn requests_need_one_host_and_a_target() {
    let engine = Engine::ok();
    let router = Router::start("", &worker(&engine, 1));
    for head in [
        "GET /healthz HTTP/1.1\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: a\r\nhOST: b\r\n\r\n",
        "GET  /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /healthz  HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /health\0z HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://h HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /healthz HTTP/2.0\r\nHost: a\r\n\r\n",
        "GET /healthz\r\n\r\n",
        "G@T /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        assert_eq!(refused(&router, &engine, head), 400, "{head:?}");
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(70_000));
    assert_eq!(refused(&router, &engine, &long), 431);
}

#[test]
fn an_absolute_target_reaches_the_engine_as_a_path() {
    let engine = Engine::ok();
    let router = Router::start("", &worker(&engine, 1));
    let request = post(&format!("http://elsewhere:9{PATH}?a=1"), "", &chat("x"));
    let mut client = router.client();
    client.send(request);
    assert_eq!(client.answer().status, 200);
    assert_eq!(engine.asked()[0].line(), format!("POST {PATH}?a=1 HTTP/1.1"));
    assert_eq!(engine.asked()[0].field("host"), Some(engine.address.to_string().as_str()));
}

#[test]
fn chunks_that_do_not_add_up_are_refused_and_nothing_behind_them_is_run() {
    let engine = Engine::ok();
    let router = Router::start("", &worker(&engine, 1));
    let extension = format!("2;{}\r\n{{}}\r\n0\r\n\r\n", "e".repeat(300));
    let trailers = format!("0\r\n{}\r\n", "X-Trailer: 0123456789\r\n".repeat(500));
    for body in [
        "10000000000000000\r\n",
        "ffffffffffffffffff\r\n",
        "-2\r\n{}\r\n0\r\n\r\n",
        "2 2\r\n{}\r\n0\r\n\r\n",
        "2\n{}\r\n0\r\n\r\n",
        "2\r\n{}0\r\n\r\n",
        "2\r\n{}\n0\r\n\r\n",
        "2\r\n{}\r0\r\n\r\n",
        "0\r\n\n",
        &extension,
        &trailers,
    ] {
        let request = format!(
            "POST {PATH} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n{body}{HIDDEN}"
        );
        assert_eq!(refused(&router, &engine, &request), 400, "{body:?}");
    }
}

#[test]
fn a_body_ends_where_it_ends_and_the_next_request_begins_there() {
    let engine = Engine::start(|asked, stream| {
        stream.write_all(&json(std::str::from_utf8(&asked.body).unwrap())).is_ok()
    });
    let router = Router::start("", &worker(&engine, 1));
    let mut client = router.client();
    let (first, inner, last) = (chat("first"), chat("in chunks"), chat("last"));
    let (left, right) = inner.split_at(10);
    client.send(format!(
        "{}\r\nPOST {PATH} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n\
         {:x};name=\"v\"\r\n{left}\r\n{:X}\r\n{right}\r\n000\r\nX-Trailer: dropped\r\n\r\n{}",
        post(PATH, "", &first),
        left.len(),
        right.len(),
        post(PATH, "", &last)
    ));
    for body in [&first, &inner, &last] {
        assert_eq!(client.answer().text(), body);
    }
    let asked = engine.asked();
    assert!(asked.iter().all(|asked| asked.field("x-trailer").is_none()));
    assert_eq!(asked.len(), 3);
}

#[test]
fn a_head_has_no_body_so_the_next_answer_is_the_next_answer() {
    let router = Router::start("", &worker(&Engine::ok(), 1));
    let mut client = router.client();
    for path in ["/v1/models", PATH, "/nowhere"] {
        client.send(format!("HEAD {path} HTTP/1.1\r\nHost: t\r\n\r\n"));
        assert!(client.head().0 >= 400);
        // Were there a body, it would be taken for this answer.
        assert_eq!(client.get("/healthz").text(), "ok\n");
    }
    client.send("OPTIONS * HTTP/1.1\r\nHost: t\r\n\r\n");
    assert_eq!(client.answer().status, 404);
}

#[test]
fn http_10_closes_unless_asked_not_to() {
    let engine = Engine::ok();
    let router = Router::start("", &worker(&engine, 1));
    let old = |fields: &str| post(PATH, fields, &chat("x")).replacen("HTTP/1.1", "HTTP/1.0", 1);
    let mut client = router.client();
    client.send(old("Connection: keep-alive\r\n"));
    assert_eq!(client.answer().field("connection"), Some("keep-alive"));
    client.send(old(""));
    assert_eq!(client.answer().field("connection"), Some("close"));
    assert!(client.rest().is_empty());
}

#[test]
fn an_expectation_we_do_not_know_is_not_waited_for_and_not_passed_on() {
    let engine = Engine::ok();
    let router = Router::start("", &worker(&engine, 1));
    let answer = router.client().post(PATH, "Expect: 200-maybe\r\n", &chat("x"));
    assert_eq!(answer.status, 200);
    assert_eq!(engine.asked()[0].field("expect"), None);
    // An announced body over the limit is refused before it is sent.
    let mut client = router.client();
    client.send(format!(
        "POST {PATH} HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n"
    ));
    assert_eq!(client.head().0, 413);
}

#[test]
fn a_body_that_never_comes_is_no_request() {
    let engine = Engine::ok();
    let router = Router::start("", &worker(&engine, 1));
    let whole = post(PATH, "", &chat("x"));
    let mut client = router.client();
    client.send(&whole[..whole.len() - 1]);
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(client.rest().is_empty());
    assert_eq!(Client::connect(router.http).get("/healthz").status, 200);
    assert!(engine.asked().is_empty());
}
