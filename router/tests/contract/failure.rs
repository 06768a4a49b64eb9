//! Failure as engines do it: dead before the head, in the middle, slow, overloaded, hung up on.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::client::{chat, post};
use super::engine::{Engine, STREAM_HEAD, chunk, json};
use super::process::{Router, worker};

const CHAT: &str = "/v1/chat/completions";

/// Two workers, and only one of them broken: nobody notices.
fn survives(broken: Engine) {
    let good = Engine::ok();
    let router = Router::start("", &(worker(&broken, 4) + &worker(&good, 4)));
    for i in 0..12 {
        let answer = router.client().post(CHAT, "", &chat(&format!("{i}")));
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.text(), "{\"ok\":true}");
    }
    assert_eq!(good.asked().len(), 12);
    assert!(!broken.asked().is_empty(), "the broken engine was never tried");
}

#[test]
fn an_engine_that_dies_before_its_head_costs_nothing() {
    survives(Engine::start(|_, _| false));
}

#[test]
fn an_engine_that_dies_within_a_short_answer_costs_nothing() {
    survives(Engine::start(|_, stream| {
        let whole = json("{\"ok\":\"but cut off here\"}");
        stream.write_all(&whole[..whole.len() - 5]).unwrap();
        false
    }));
}

#[test]
fn an_engine_that_dies_between_a_streams_head_and_its_first_event_costs_nothing() {
    survives(Engine::start(|_, stream| {
        stream.write_all(STREAM_HEAD.as_bytes()).unwrap();
        false
    }));
}

#[test]
fn an_engine_that_is_overloaded_costs_nothing() {
    survives(Engine::fixed("HTTP/1.1 503 Loading\r\nContent-Length: 2\r\n\r\n{}"));
}

#[test]
fn an_engine_that_talks_nonsense_costs_nothing() {
    survives(Engine::fixed("SSH-2.0-OpenSSH_9.6\r\n\r\n"));
}

#[test]
fn the_only_engines_503_is_passed_on() {
    let engine = Engine::fixed("HTTP/1.1 503 Loading\r\nContent-Length: 4\r\n\r\nbusy");
    let router = Router::start("", &worker(&engine, 1));
    let answer = router.client().post(CHAT, "", &chat("x"));
    assert_eq!((answer.status, answer.text()), (503, "busy"));
}

#[test]
fn when_all_fail_the_client_hears_it_once_with_retry_after() {
    let engines = [Engine::start(|_, _| false), Engine::start(|_, _| false)];
    // One failure closes a worker, and no probe may find it healthy again within the test.
    let keys = "[router.limits]\nprobe_interval_ms = 600000\n\
                [router.breaker]\nfailures_max = 1\nopen_ms = 30000\n";
    let router = Router::start(keys, &(worker(&engines[0], 1) + &worker(&engines[1], 1)));
    let answer = router.client().post(CHAT, "", &chat("x"));
    assert_eq!((answer.status, answer.error()["code"].as_str()), (502, Some("engine_failed")));
    assert!(answer.field("retry-after").is_some());
    assert_eq!(engines.iter().map(|engine| engine.asked().len()).sum::<usize>(), 2);
    let answer = router.client().post(CHAT, "", &chat("x"));
    assert_eq!((answer.status, answer.error()["code"].as_str()), (503, Some("no_engine_ready")));
    assert_eq!(router.client().get("/readyz").status, 503);
}

#[test]
fn a_worker_that_comes_back_is_used_again() {
    let dies_once = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&dies_once);
    let engine = Engine::start(move |_, stream| {
        count.fetch_add(1, Ordering::SeqCst) > 0 && stream.write_all(&json("{}")).is_ok()
    });
    let router = Router::start("[router.limits]\nprobe_interval_ms = 50\n", &worker(&engine, 1));
    assert_eq!(router.client().post(CHAT, "", &chat("x")).status, 502);
    for _ in 0..200 {
        if router.client().get("/readyz").status == 200 {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(router.client().post(CHAT, "", &chat("x")).status, 200);
}

#[test]
fn an_engine_that_dies_within_a_stream_ends_it_with_an_error_event() {
    let engine = Engine::start(|_, stream| {
        stream.write_all(format!("{STREAM_HEAD}{}", chunk("data: a\n\n")).as_bytes()).unwrap();
        false
    });
    let router = Router::start("", &worker(&engine, 1));
    let answer = router.client().post(CHAT, "", &chat("x"));
    assert_eq!(answer.status, 200);
    let text = answer.text();
    assert!(text.starts_with(&chunk("data: a\n\n")), "{text}");
    let event = text.lines().find(|line| line.starts_with("data: {")).unwrap();
    let event: serde_json::Value =
        serde_json::from_str(event.trim_start_matches("data: ")).unwrap();
    assert_eq!(event["error"]["code"], "engine_failed");
    assert!(text.ends_with("0\r\n\r\n"));
    assert_eq!(router.metric("cgn_router_streams_broken_total"), 1.0);
}

#[test]
fn an_engine_that_dies_within_a_chunk_breaks_the_connection_off() {
    let engine = Engine::start(|_, stream| {
        stream.write_all(format!("{STREAM_HEAD}ff\r\ndata: a").as_bytes()).unwrap();
        false
    });
    let router = Router::start("", &worker(&engine, 1));
    let mut client = router.client();
    client.send(post(CHAT, "", &chat("x")));
    client.head();
    assert_eq!(client.rest(), b"ff\r\ndata: a");
}

#[test]
fn a_kept_connection_that_went_stale_is_replaced() {
    // Answers once on each connection and then closes it without having said so.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer);
            let _ = stream.write_all(&json("{}"));
        }
    });
    let workers = format!(
        "[[workers]]\nurl = \"http://{address}\"\nmodel = \"m\"\nkind = \"openai_compat\"\n"
    );
    let router = Router::start("", &workers);
    let mut client = router.client();
    for _ in 0..20 {
        assert_eq!(client.post(CHAT, "", &chat("x")).status, 200);
    }
}

#[test]
fn a_client_that_hangs_up_stops_the_engine() {
    let (ended, saw_end) = mpsc::channel();
    let engine = Engine::start(move |_, stream| {
        // Says nothing: a long prefill. The end of the connection is the cancellation.
        ended.send(matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_))).unwrap();
        false
    });
    let router = Router::start("", &worker(&engine, 1));
    let mut client = router.client();
    client.send(post(CHAT, "", &chat("x")));
    while engine.asked().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(client);
    assert_eq!(saw_end.recv_timeout(Duration::from_secs(10)), Ok(true));
}

#[test]
fn a_silent_engine_is_given_up_with_504() {
    let engine =
        Engine::start(|_, stream| matches!(stream.read(&mut [0; 16]), Ok(read) if read > 0));
    let router = Router::start("[router.limits]\nfirst_byte_s_max = 1\n", &worker(&engine, 1));
    let answer = router.client().post(CHAT, "", &chat("x"));
    assert_eq!((answer.status, answer.error()["code"].as_str()), (504, Some("engine_timeout")));
}

#[test]
fn a_full_queue_is_a_429_with_retry_after() {
    let engine = Engine::start(|_, stream| {
        std::thread::sleep(Duration::from_secs(2));
        stream.write_all(&json("{}")).is_ok()
    });
    let router = Router::start("[router.queue]\nentries_max = 0\n", &worker(&engine, 1));
    let mut waiting: Vec<_> = (0..2).map(|_| router.client()).collect();
    for client in &mut waiting {
        client.send(post(CHAT, "", &chat("x")));
    }
    while engine.asked().len() < 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let answer = router.client().post(CHAT, "", &chat("x"));
    assert_eq!((answer.status, answer.error()["code"].as_str()), (429, Some("queue_full")));
    assert!(answer.field("retry-after").is_some());
    for mut client in waiting {
        assert_eq!(client.answer().status, 200);
    }
}
