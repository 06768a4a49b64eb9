//! A new process takes over, an old one drains: under load, and not one request fails.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use super::client::{Client, chat, field, post};
use super::engine::{Engine, STREAM_HEAD, chunk, json};
use super::process::{Router, worker};

const PATH: &str = "/v1/chat/completions";
const CLIENTS: usize = 16;
/// A kept connection is used so often before its client takes a new one by itself.
const REQUESTS_PER_CONNECTION: usize = 9;

/// One request over a connection; whether it may be used again. What is not a whole 200 is a failure.
fn ask(stream: &mut TcpStream, body: &str) -> Result<bool, String> {
    let said = |error: std::io::Error| error.to_string();
    stream.write_all(post(PATH, "", body).as_bytes()).map_err(said)?;
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    loop {
        if let Some(end) = bytes.windows(4).position(|part| part == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length: usize = field(&head, "content-length").unwrap_or("0").parse().unwrap();
            if bytes.len() >= end + 4 + length {
                let is_good = head.starts_with("HTTP/1.1 200") && bytes.ends_with(body.as_bytes());
                let keep = field(&head, "connection") != Some("close");
                return if is_good { Ok(keep) } else { Err(head) };
            }
        }
        match stream.read(&mut part).map_err(said)? {
            0 => return Err(format!("closed after {} bytes", bytes.len())),
            read => bytes.extend(&part[..read]),
        }
    }
}

fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    Ok(stream)
}

/// Asks again and again until told to stop, over connections that are kept and now and then replaced.
fn load(
    address: SocketAddr,
    client: usize,
    stop: &AtomicBool,
    served: &AtomicUsize,
) -> Result<(), String> {
    let mut kept: Option<(TcpStream, usize)> = None;
    while !stop.load(Ordering::Relaxed) {
        let (mut stream, used) = match kept.take() {
            Some(kept) => kept,
            None => (connect(address)?, 0),
        };
        let body = chat(&format!("{client} {used}"));
        if ask(&mut stream, &body)? && used < REQUESTS_PER_CONNECTION {
            kept = Some((stream, used + 1));
        }
        served.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis((client % 4) as u64));
    }
    Ok(())
}

/// Runs `change` while clients ask; how many requests were served, none of which failed.
fn under_load(address: SocketAddr, change: impl FnOnce()) -> usize {
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failures: Vec<String> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn({
                    let (stop, served) = (&stop, &served);
                    move || load(address, client, stop, served)
                })
            })
            .collect();
        change();
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().filter_map(|client| client.join().unwrap().err()).collect()
    });
    assert!(failures.is_empty(), "{failures:?}");
    served.into_inner()
}

fn echo() -> Engine {
    Engine::start(|asked, stream| {
        stream.write_all(&json(std::str::from_utf8(&asked.body).unwrap())).is_ok()
    })
}

fn keys(folder: &tempfile::TempDir) -> String {
    let path = folder.path().join("handover.sock");
    format!("handover_socket = \"{}\"\n[router.limits]\ndrain_idle_ms_max = 500\n", path.display())
}

#[test]
fn a_new_process_takes_over_under_load_and_no_request_fails() {
    let (folder, engine) = (tempfile::tempdir().unwrap(), echo());
    let mut old = Router::start(&keys(&folder), &worker(&engine, 64));
    let address = old.http;
    let mut between = 0;
    let served = under_load(address, || {
        // Twice: who took over can be taken over from.
        for _ in 0..2 {
            let new = Router::start(&keys(&folder), &worker(&engine, 64));
            assert_eq!((new.http, new.admin), (address, old.admin));
            assert_eq!(old.wait(), Some(0));
            old = new;
            between += 1;
        }
        std::thread::sleep(Duration::from_millis(100));
    });
    assert_eq!(between, 2);
    assert!(served > 10 * CLIENTS, "{served} requests are no load");
    assert!(old.metric("cgn_router_requests_total{endpoint=\"chat\",status=\"200\"}") > 0.0);
}

#[test]
fn a_stream_under_way_finishes_in_the_old_process() {
    let (tell, told) = mpsc::channel::<()>();
    let told = std::sync::Mutex::new(told);
    let engine = Engine::start(move |asked, stream| {
        if !asked.body.windows(6).any(|part| part == b"stream") {
            return stream.write_all(&json(std::str::from_utf8(&asked.body).unwrap())).is_ok();
        }
        stream.write_all(format!("{STREAM_HEAD}{}", chunk("data: 1\n\n")).as_bytes()).unwrap();
        told.lock().unwrap().recv().unwrap();
        stream.write_all(format!("{}0\r\n\r\n", chunk("data: [DONE]\n\n")).as_bytes()).is_ok()
    });
    let folder = tempfile::tempdir().unwrap();
    let mut old = Router::start(&keys(&folder), &worker(&engine, 64));
    let mut client = old.client();
    client.send(post(PATH, "", &chat("stream")));
    client.until("data: 1");
    let _new = Router::start(&keys(&folder), &worker(&engine, 64));
    // Idle connections of the old one are closed by now; the stream is not.
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(Client::connect(old.http).post(PATH, "", &chat("x")).status, 200);
    tell.send(()).unwrap();
    let rest = client.until("0\r\n\r\n");
    assert!(rest.contains("data: [DONE]") && !rest.contains("error"), "{rest}");
    assert_eq!(old.wait(), Some(0));
}

#[test]
fn a_successor_that_fails_to_start_changes_nothing() {
    let (folder, engine) = (tempfile::tempdir().unwrap(), echo());
    let router = Router::start(&keys(&folder), &worker(&engine, 8));
    let socket = folder.path().join("handover.sock");
    // Looks, takes the descriptors, and dies before it serves.
    drop(std::os::unix::net::UnixStream::connect(&socket).unwrap());
    let text = format!(
        "[router]\nlisten_http = \"127.0.0.1:0\"\nlisten_admin = \"127.0.0.1:0\"\nhandover_socket = \"{}\"\n[router.tls]\ncert_file = \"/nowhere/cert.pem\"\nkey_file = \"/nowhere/key.pem\"\n{}",
        socket.display(),
        worker(&engine, 8)
    );
    assert_eq!(super::process::run(&text).status.code(), Some(1));
    for _ in 0..20 {
        assert_eq!(router.client().post(PATH, "", &chat("x")).status, 200);
    }
    assert_eq!(router.client().get("/readyz").status, 200);
}

#[test]
fn a_drain_answers_whoever_is_here_and_says_that_it_is_not_ready() {
    let engine = Engine::start(|asked, stream| {
        std::thread::sleep(Duration::from_millis(700));
        stream.write_all(&json(std::str::from_utf8(&asked.body).unwrap())).is_ok()
    });
    let keys = "[router.limits]\ndrain_idle_ms_max = 1500\n";
    let mut router = Router::start(keys, &worker(&engine, 64));
    let mut waiting: Vec<_> = (0..32).map(|_| router.client()).collect();
    for (at, client) in waiting.iter_mut().enumerate() {
        client.send(post(PATH, "", &chat(&format!("{at}"))));
    }
    let mut idle = router.client();
    assert_eq!(idle.get("/readyz").status, 200);
    while engine.asked().len() < 32 {
        std::thread::sleep(Duration::from_millis(5));
    }
    router.terminate();
    // The next look at readiness is answered, whether the connection stood already or comes now.
    let mut late = loop {
        let mut client = router.client();
        let answer = client.get("/readyz");
        if answer.status == 503 {
            assert_eq!(answer.field("connection"), Some("close"));
            break router.client();
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(idle.get("/readyz").status, 503);
    assert_eq!(late.post(PATH, "", &chat("late")).status, 200);
    for (at, client) in waiting.iter_mut().enumerate() {
        let answer = client.answer();
        assert_eq!((answer.status, answer.text()), (200, chat(&format!("{at}")).as_str()));
    }
    assert_eq!(router.wait(), Some(0));
}
