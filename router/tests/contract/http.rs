//! HTTP as clients really speak it: reuse, pipelines, chunks, 100-continue, old versions, limits.

use super::client::{chat, field, post};
use super::engine::{Engine, STREAM_HEAD, chunk, json};
use super::process::{Router, worker};

const PATH: &str = "/v1/chat/completions";

#[test]
fn one_connection_serves_request_after_request() {
    let engine = Engine::start(|asked, stream| {
        use std::io::Write;
        stream.write_all(&json(&format!("{{\"length\":{}}}", asked.body.len()))).is_ok()
    });
    let router = Router::start("", &worker(&engine, 1));
    let mut client = router.client();
    for size in [1, 500, 70_000, 3, 200_000, 1] {
        let body = chat(&"x".repeat(size));
        let answer = client.post(PATH, "", &body);
        assert_eq!(answer.text(), format!("{{\"length\":{}}}", body.len()));
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let engine = Engine::start(|asked, stream| {
        use std::io::Write;
        stream.write_all(&json(std::str::from_utf8(&asked.body).unwrap())).is_ok()
    });
    let router = Router::start("", &worker(&engine, 1));
    let mut client = router.client();
    let bodies: Vec<String> = (0..5).map(|i| chat(&format!("number {i}"))).collect();
    client.send(bodies.iter().map(|body| post(PATH, "", body)).collect::<String>());
    for body in &bodies {
        assert_eq!(client.answer().text(), body);
    }
}

#[test]
fn a_chunked_request_reaches_the_engine_whole() {
    let engine = Engine::ok();
    let router = Router::start("", &worker(&engine, 1));
    let body = chat(&"chunks ".repeat(3_000));
    let mut client = router.client();
    client.send(format!("POST {PATH} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n"));
    for part in body.as_bytes().chunks(777) {
        client.send(chunk(std::str::from_utf8(part).unwrap()));
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    assert_eq!(engine.asked()[0].body, body.as_bytes());
    assert_eq!(client.post(PATH, "", &chat("next")).status, 200);
}

#[test]
fn a_client_that_expects_100_is_invited() {
    let router = Router::start("", &worker(&Engine::ok(), 1));
    let body = chat("x");
    let mut client = router.client();
    let whole = post(PATH, "Expect: 100-continue\r\n", &body);
    let (head, _) = whole.split_at(whole.len() - body.len());
    client.send(head);
    assert_eq!(client.head().0, 100);
    client.send(&body);
    assert_eq!(client.answer().status, 200);
}

#[test]
fn an_old_client_gets_payload_without_chunks() {
    let engine = Engine::fixed(format!(
        "{STREAM_HEAD}{}{}0\r\n\r\n",
        chunk("data: a\n\n"),
        chunk("data: b\n\n")
    ));
    let router = Router::start("", &worker(&engine, 1));
    let mut client = router.client();
    let body = chat("x");
    client.send(post(PATH, "", &body).replace("HTTP/1.1", "HTTP/1.0"));
    let answer = client.answer();
    assert_eq!(answer.text(), "data: a\n\ndata: b\n\n");
    assert_eq!(answer.field("connection"), Some("close"));
}

#[test]
fn hop_by_hop_fields_stop_here_and_the_others_pass() {
    let engine = Engine::fixed(
        "HTTP/1.1 200 OK\r\nX-Engine: yes\r\nKeep-Alive: timeout=5\r\nX-Cgn-Worker: forged\r\nContent-Length: 2\r\n\r\n{}",
    );
    let router = Router::start("", &worker(&engine, 1));
    let fields = "X-Mine: 1\r\nTE: trailers\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-Cgn-Secret: forged\r\nAuthorization: Bearer k\r\n";
    let answer = router.client().post(PATH, fields, &chat("x"));
    assert_eq!(answer.field("x-engine"), Some("yes"));
    assert_eq!(answer.field("keep-alive"), None);
    assert!(answer.field("x-cgn-worker").unwrap().starts_with("m@127.0.0.1:"));
    let asked = &engine.asked()[0];
    assert_eq!(asked.line(), format!("POST {PATH} HTTP/1.1"));
    assert_eq!(
        (asked.field("x-mine"), asked.field("authorization")),
        (Some("1"), Some("Bearer k"))
    );
    assert_eq!((asked.field("te"), asked.field("x-cgn-secret")), (None, None));
    assert_eq!((asked.field("x-hop"), asked.field("connection")), (None, None));
    assert_eq!(asked.field("host"), Some(engine.address.to_string().as_str()));
}

#[test]
fn request_ids_are_kept_or_made_and_never_repeated() {
    let engine = Engine::ok();
    let router = Router::start("", &worker(&engine, 1));
    let mut client = router.client();
    let mine = client.post(PATH, "X-Request-Id: mine-1\r\n", &chat("x"));
    assert_eq!(mine.field("x-request-id"), Some("mine-1"));
    assert_eq!(engine.asked()[0].field("x-request-id"), Some("mine-1"));
    let long = format!("X-Request-Id: {}\r\n", "y".repeat(500));
    let ids: Vec<String> = (0..20)
        .map(|_| {
            router.client().post(PATH, &long, &chat("x")).field("x-request-id").unwrap().to_owned()
        })
        .collect();
    let mut unique = ids.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), ids.len(), "{ids:?}");
}

#[test]
fn limits_are_refused_with_their_status_before_an_engine_is_touched() {
    let engine = Engine::ok();
    let limits = "[router.limits]\nbody_bytes_max = 1000\nhead_bytes_max = 2048\n";
    let router = Router::start(limits, &worker(&engine, 1));
    let status = |request: String| {
        let mut client = router.client();
        client.send(request);
        let answer = client.answer();
        assert!(answer.error()["message"].is_string());
        assert_eq!(answer.field("connection"), Some("close"));
        answer.status
    };
    assert_eq!(status(post(PATH, "", &chat(&"x".repeat(1000)))), 413);
    let announced =
        format!("POST {PATH} HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999999999\r\n\r\n");
    assert_eq!(status(announced), 413);
    let chunks = format!(
        "POST {PATH} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        chunk(&"x".repeat(1500))
    );
    assert_eq!(status(chunks), 413);
    assert_eq!(status(post(PATH, &format!("X-Long: {}\r\n", "y".repeat(3000)), "{}")), 431);
    let many: String = (0..150).map(|i| format!("x{i}: 1\r\n")).collect();
    assert_eq!(status(post(PATH, &many, "{}")), 431);
    assert_eq!(status("NONSENSE\r\n\r\n".into()), 400);
    let both = format!(
        "POST {PATH} HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    );
    assert_eq!(status(both), 400);
    let broken = format!("POST {PATH} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n");
    assert_eq!(status(broken), 400);
    assert!(engine.asked().is_empty());
}

#[test]
fn an_answer_without_length_is_passed_on_until_the_engine_closes() {
    let engine = Engine::start(|_, stream| {
        use std::io::Write;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: x\n\n")
            .unwrap();
        false
    });
    let router = Router::start("", &worker(&engine, 1));
    let answer = router.client().post(PATH, "", &chat("x"));
    assert_eq!((answer.text(), answer.field("connection")), ("data: x\n\n", Some("close")));
}

#[test]
fn connection_close_is_honoured() {
    let router = Router::start("", &worker(&Engine::ok(), 1));
    let mut client = router.client();
    let answer = client.post(PATH, "Connection: close\r\n", &chat("x"));
    assert_eq!(field(&answer.head, "connection"), Some("close"));
    assert!(client.rest().is_empty());
}
