//! Clients that dawdle, bodies made to hurt, engines that misbehave: each is bounded in memory and time,
//! each ends in a clear error, and everybody else is served meanwhile.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use super::client::{chat, post};
use super::engine::{Engine, STREAM_HEAD, chunk, json};
use super::process::{Router, worker};

const PATH: &str = "/v1/chat/completions";
const PATIENCE: Duration = Duration::from_secs(10);

/// Times short enough for a test.
const SHORT: &str = "[router.limits]\nclient_stall_s_max = 1\nclient_idle_s_max = 1\nfirst_byte_s_max = 1\ninter_token_s_max = 1\nrequest_s_max = 2\nprobe_interval_ms = 600000\n";

/// Sends one more byte again and again; whether the router put an end to it.
fn drips_to_its_end(mut stream: TcpStream, begin: &str, drop: &str) -> bool {
    stream.write_all(begin.as_bytes()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    for _ in 0..100 {
        let _ = stream.write_all(drop.as_bytes());
        match stream.read(&mut [0; 64]) {
            Ok(0) => return true,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return true,
            _ => {}
        }
    }
    false
}

#[test]
fn a_request_that_drips_in_is_given_up_however_it_is_cut() {
    let engine = Engine::ok();
    let router = Router::start(SHORT, &worker(&engine, 1));
    let length = format!("POST {PATH} HTTP/1.1\r\nHost: t\r\nContent-Length: 99999\r\n\r\n");
    let chunks = format!("POST {PATH} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n");
    std::thread::scope(|scope| {
        let drips = [
            ("GET / HTTP/1.1\r\nX: ", "x"),
            ("G", "G"),
            ("GET / HTTP/1.1\r\n", "X: y\r\n"),
            ("\r\n", "\r\n"),
            (length.as_str(), " "),
            (chunks.as_str(), "1\r\n \r\n"),
            (chunks.as_str(), "1"),
        ];
        for (begin, drop) in drips {
            let stream = router.client().stream;
            scope.spawn(move || {
                assert!(drips_to_its_end(stream, begin, drop), "{begin:?} {drop:?} goes on");
            });
        }
        for _ in 0..20 {
            assert_eq!(router.client().post(PATH, "", &chat("x")).status, 200);
        }
    });
}

#[test]
fn who_goes_on_sending_behind_a_refusal_is_not_listened_to_for_ever() {
    let router = Router::start(SHORT, &worker(&Engine::ok(), 1));
    let announced =
        format!("POST {PATH} HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999999\r\n\r\n");
    let mut client = router.client();
    client.send(announced);
    assert_eq!(client.answer().status, 413);
    // The end of the sending side alone is no end of the connection: only writes tell.
    let mut stream = client.stream;
    let ended = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        stream.write_all(b"x").is_err()
    });
    assert!(ended, "the router still listens");
}

#[test]
fn idle_connections_end_and_make_room_for_those_that_wait() {
    let keys = "[router.limits]\nconnections_per_core_max = 3\nclient_idle_s_max = 1\n";
    let router = Router::start(keys, &worker(&Engine::ok(), 1));
    let idle: Vec<_> = (0..10).map(|_| router.client()).collect();
    std::thread::sleep(Duration::from_millis(300));
    // Two cores with three each, one more each that was accepted before the last was counted, and the one
    // that asks; one core alone has three at least.
    let open = router.metric("cgn_router_client_connections");
    assert!((3.0..=9.0).contains(&open), "{open} connections");
    assert_eq!(router.client().get("/healthz").status, 200);
    for mut client in idle {
        assert!(client.rest().is_empty());
    }
}

#[test]
fn a_client_that_takes_nothing_stops_the_engine_and_costs_no_memory() {
    let (ended, saw_end) = mpsc::channel();
    let engine = Engine::start(move |_, stream| {
        let event = chunk(&format!("data: {}\n\n", "x".repeat(8_000)));
        stream.write_all(STREAM_HEAD.as_bytes()).unwrap();
        let sent = (0..50_000).take_while(|_| stream.write_all(event.as_bytes()).is_ok()).count();
        ended.send(sent).unwrap();
        false
    });
    let router = Router::start(SHORT, &worker(&engine, 1));
    let before = resident_bytes(&router);
    let mut client = router.client();
    client.send(post(PATH, "", &chat("x")));
    // 400 MB were on their way.
    assert!(saw_end.recv_timeout(PATIENCE).unwrap() < 50_000);
    assert!(resident_bytes(&router) < before + (16 << 20));
    assert_eq!(router.client().get("/healthz").status, 200);
}

#[test]
fn a_client_that_ends_its_sending_side_counts_as_gone() {
    let (ended, saw_end) = mpsc::channel();
    let engine = Engine::start(move |_, stream| {
        ended.send(matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_))).unwrap();
        false
    });
    let router = Router::start("", &worker(&engine, 1));
    let mut client = router.client();
    client.send(post(PATH, "", &chat("x")));
    while engine.asked().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(saw_end.recv_timeout(PATIENCE), Ok(true));
}

#[test]
fn a_deep_body_is_a_400_and_not_the_end_of_the_process() {
    let engine = Engine::ok();
    let router = Router::start("", &worker(&engine, 1));
    let mut client = router.client();
    for (open, levels) in [("[", 200), ("[", 10_000), ("[", 10_000_000), ("{\"a\":", 5_000_000)] {
        let body = format!("{{\"model\":\"m\",\"messages\":{}", open.repeat(levels));
        let answer = client.post(PATH, "", &body);
        assert_eq!(
            (answer.status, answer.error()["type"].as_str()),
            (400, Some("invalid_request_error"))
        );
    }
    let closed =
        format!(r#"{{"model":"m","x":{}{},"messages":[]}}"#, "[".repeat(6_000), "]".repeat(6_000));
    assert_eq!(client.post(PATH, "", &closed).status, 400);
    assert!(engine.asked().is_empty());
    // What a person would write passes, and so do brackets in text.
    let deep =
        format!(r#"{{"model":"m","x":{}{},"messages":[]}}"#, "[".repeat(100), "]".repeat(100));
    assert_eq!(client.post(PATH, "", &deep).status, 200);
    assert_eq!(client.post(PATH, "", &chat(&"[{".repeat(10_000))).status, 200);
}

#[test]
fn odd_json_is_refused_or_passed_on_as_it_is() {
    let engine = Engine::ok();
    let router = Router::start("", &worker(&engine, 1));
    let mut client = router.client();
    let bytes = |body: &[u8]| {
        let head =
            format!("POST {PATH} HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    };
    for bad in [
        &b""[..],
        b"\xef\xbb\xbf{\"model\":\"m\",\"messages\":[]}",
        b"{\"model\":\"m\",\"messages\":[],\"x\":\"\xff\xfe\"}",
        b"{\"model\":\"m\",\"messages\":[],\"x\":\"\xed\xa0\x80\"}",
        b"{\"model\":\"m\",\"messages\":[],\"x\":\"\xc0\xaf\"}",
        b"{\"model\":\"m\",\"messages\":[],\"x\":01}",
        b"{\"model\":\"m\",\"messages\":[],\"x\":NaN}",
        b"{\"model\":\"m\",\"messages\":[],\"x\":\"a\nb\"}",
        b"{\"model\":\"m\",\"messages\":[],\"x\":\"\\q\"}",
        b"{\"model\":\"\\ud800\",\"messages\":[]}",
        b"{\"model\":\"m\",\"messages\":[]}\0",
    ] {
        client.send(bytes(bad));
        let answer = client.answer();
        assert_eq!(answer.status, 400, "{:?}", String::from_utf8_lossy(bad));
        assert!(answer.error()["message"].is_string());
    }
    assert!(engine.asked().is_empty());
    let passed = [
        r#"{"model":"x","model":"m","messages":3,"messages":[]}"#.to_owned(),
        format!(r#"{{"model":"m","messages":[],"x":1{}e-99999}}"#, "0".repeat(5_000)),
        r#"{"model":"m","messages":[{"role":"user","content":"\ud800 \u0000"}]}"#.to_owned(),
    ];
    for (at, good) in passed.iter().enumerate() {
        client.send(bytes(good.as_bytes()));
        assert_eq!(client.answer().status, 200, "{good:.80}");
        assert_eq!(engine.asked()[at].body, good.as_bytes());
    }
}

/// One engine that answers so, and what its client hears.
fn heard(answer: impl Fn(&mut TcpStream) -> bool + Send + Sync + 'static) -> (u16, Option<String>) {
    let engine = Engine::start(move |_, stream| answer(stream));
    let router = Router::start(SHORT, &worker(&engine, 1));
    let answer = router.client().post(PATH, "", &chat("x"));
    assert_eq!(router.client().get("/healthz").status, 200);
    (answer.status, answer.error()["code"].as_str().map(str::to_owned))
}

/// The same bytes until the router hangs up.
fn for_ever(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    while stream.write_all(bytes).is_ok() {}
    false
}

/// Says nothing more until the router hangs up.
pub fn in_silence(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0; 16]), Ok(read) if read > 0)
}

fn failed() -> (u16, Option<String>) {
    (502, Some("engine_failed".to_owned()))
}

fn late() -> (u16, Option<String>) {
    (504, Some("engine_timeout".to_owned()))
}

#[test]
fn an_engine_whose_head_is_no_head_is_a_502() {
    let long = "x".repeat(64 << 10);
    for head in [
        "\0\0\0\0".to_owned(),
        "HTTP/1.1 OK\r\n\r\n".to_owned(),
        format!("HTTP/1.1 200 OK\r\nX: {long}{long}\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(200)),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n{}".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n".to_owned(),
        format!("{STREAM_HEAD}1;{long}\r\n"),
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{} and more".to_owned(),
    ] {
        let begin = head.chars().take(70).collect::<String>();
        let said = heard(move |stream| {
            let _ = stream.write_all(head.as_bytes());
            false
        });
        assert_eq!(said, failed(), "{begin:?}");
    }
}

#[test]
fn an_engine_that_never_stops_talking_before_its_answer_is_bounded() {
    let lines = |stream: &mut TcpStream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n").is_ok()
            && for_ever(stream, b"X: yyyyyyyyyyyyyyyyyyyyyy\r\n")
    };
    assert_eq!(heard(lines), failed());
    let line = |stream: &mut TcpStream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nX: ").is_ok() && for_ever(stream, &[b'y'; 4096])
    };
    assert_eq!(heard(line), failed());
    assert_eq!(heard(|stream| for_ever(stream, b"HTTP/1.1 102 Wait\r\n\r\n")), late());
}

#[test]
fn an_engine_that_falls_silent_is_a_504_until_the_first_byte() {
    assert_eq!(heard(in_silence), late());
    for part in [
        "HTTP/1.1 200 OK\r\nContent-",
        "HTTP/1.1 100 Continue\r\n\r\n",
        STREAM_HEAD,
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
    ] {
        let said =
            heard(move |stream| stream.write_all(part.as_bytes()).is_ok() && in_silence(stream));
        assert_eq!(said, late(), "{part:?}");
    }
}

/// A stream that begins well and then goes `on`; what its client sees.
fn stream(on: impl Fn(&mut TcpStream) -> bool + Send + Sync + 'static) -> String {
    let engine = Engine::start(move |_, stream| {
        let begin = format!("{STREAM_HEAD}{}", chunk("data: 1\n\n"));
        stream.write_all(begin.as_bytes()).is_ok() && on(stream)
    });
    let router = Router::start(SHORT, &worker(&engine, 1));
    let mut client = router.client();
    client.send(post(PATH, "", &chat("x")));
    assert_eq!(client.head().0, 200);
    String::from_utf8(client.rest()).unwrap()
}

/// The error event at the end of a stream whose chunks are whole.
fn ends_with_an_error_event(stream: &str) {
    let event = stream.lines().rfind(|line| line.starts_with("data: ")).unwrap();
    let event: serde_json::Value = serde_json::from_str(&event[6..]).unwrap();
    assert!(event["error"]["code"].is_string(), "{event}");
    assert!(stream.ends_with("\n\n\r\n0\r\n\r\n"), "{stream:?}");
}

#[test]
fn an_engine_that_falls_silent_in_a_stream_or_streams_for_ever_ends_in_an_error_event() {
    ends_with_an_error_event(&stream(in_silence));
    let endless = stream(|stream| {
        let event = chunk("data: again\n\n");
        while stream.write_all(event.as_bytes()).is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    });
    assert!(endless.matches("again").count() > 10);
    ends_with_an_error_event(&endless);
}

#[test]
fn an_engine_that_breaks_its_own_chunks_in_a_stream_never_ends_it_well() {
    for bad in ["zz\r\n", "5\r\ntoo long\r\n", "9\r\ndata: x", "fffffffffffffffff\r\n"] {
        let seen = stream(move |stream| {
            // Apart from the first event, which must be on its way.
            std::thread::sleep(Duration::from_millis(100));
            let _ = stream.write_all(bad.as_bytes());
            false
        });
        assert!(seen.starts_with(&chunk("data: 1\n\n")), "{seen:?}");
        let whole = seen.ends_with("0\r\n\r\n");
        assert!(!whole || seen.contains("\"error\""), "{bad:?} {seen:?}");
    }
}

#[test]
fn interim_answers_are_passed_over_and_odd_answers_passed_on() {
    let gzip =
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\0\xff";
    for (answer, status, body) in [
        (&b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"[..], 200, &b"{}"[..]),
        (gzip, 200, b"\x1f\x8b\0\xff"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<p/>", 200, b"<p/>"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n", 200, b""),
        (b"HTTP/1.1 599 Odd\r\nContent-Length: 1\r\n\r\nx", 599, b"x"),
    ] {
        let router = Router::start("", &worker(&Engine::fixed(answer), 1));
        let mut client = router.client();
        for _ in 0..2 {
            let answer = client.post(PATH, "", &chat("x"));
            assert_eq!((answer.status, &answer.body[..]), (status, body));
            assert_eq!(answer.field("link"), None);
        }
    }
    for empty in ["204 No Content", "304 Not Modified"] {
        let router =
            Router::start("", &worker(&Engine::fixed(format!("HTTP/1.1 {empty}\r\n\r\n")), 1));
        let mut client = router.client();
        for _ in 0..2 {
            client.send(post(PATH, "", &chat("x")));
            let (status, head) = client.head();
            assert_eq!(status.to_string(), empty[..3]);
            assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "{head}");
        }
    }
}

#[test]
fn a_long_answer_flows_through_without_being_kept() {
    const LENGTH: usize = 64 << 20;
    let engine = Engine::start(|_, stream| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
        stream.write_all(head.as_bytes()).is_ok()
            && (0..LENGTH / 4096).all(|_| stream.write_all(&[b'y'; 4096]).is_ok())
    });
    let router = Router::start("", &worker(&engine, 1));
    let before = resident_bytes(&router);
    let mut client = router.client();
    client.send(post(PATH, "", &chat("x")));
    client.head();
    std::thread::sleep(Duration::from_millis(300));
    assert!(resident_bytes(&router) < before + (16 << 20));
    // A second answer behind it says that the first was as long as it said.
    let mut left = LENGTH;
    let mut part = vec![0; 1 << 20];
    left -= client.until("y").len();
    while left > 0 {
        let room = left.min(part.len());
        left -= client.stream.read(&mut part[..room]).unwrap();
    }
    assert!(resident_bytes(&router) < before + (16 << 20));
    assert_eq!(client.get("/healthz").text(), "ok\n");
}

#[test]
fn an_answer_cut_off_beyond_what_is_held_never_looks_whole() {
    let engine = Engine::start(|_, stream| {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n";
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&[b'y'; 1_000_000]);
        false
    });
    let router = Router::start("", &worker(&engine, 1));
    let mut client = router.client();
    client.send(post(PATH, "", &chat("x")));
    assert_eq!(client.head().0, 200);
    assert_eq!(client.rest().len(), 1_000_000);
}

#[test]
fn a_good_engine_answers_while_another_misbehaves() {
    let bad = Engine::start(|_, stream| for_ever(stream, b"HTTP/1.1 102 Wait\r\n\r\n"));
    let good = Engine::fixed(json("{}"));
    let router = Router::start("", &(worker(&bad, 1) + &worker(&good, 1)));
    let stuck: Vec<_> = (0..8)
        .map(|_| {
            let mut client = router.client();
            client.send(post(PATH, "", &chat("x")));
            client
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(router.client().get("/healthz").status, 200);
    }
    drop(stuck);
}

/// What the router's process has in memory.
pub fn resident_bytes(router: &Router) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid(router))).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// The child of ours that holds the socket which listens where the router says that it does.
fn pid(router: &Router) -> u32 {
    let port = format!(":{:04X}", router.http.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let sockets: Vec<String> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|columns| columns[1].ends_with(&port) && columns[3] == "0A")
        .map(|columns| format!("socket:[{}]", columns[9]))
        .collect();
    let holds = |pid: &u32| {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files
            .filter_map(|file| std::fs::read_link(file.path()).ok())
            .any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid| *pid != std::process::id() && holds(pid)).unwrap()
}
