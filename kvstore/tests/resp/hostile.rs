//! Clients that mean no good: each gets an error or is cut off, and nobody else notices.

use std::io::Write;
use std::process::Command;

use crate::daemon::{Daemon, value};

#[track_caller]
fn is_refused(daemon: &Daemon, bytes: impl AsRef<[u8]>, error: &str) {
    let mut client = daemon.connect();
    // The daemon may have closed before all of it was sent.
    let _ = client.stream.write_all(bytes.as_ref());
    let said = String::from_utf8(client.rest()).unwrap();
    assert_eq!(said, format!("-ERR Protocol error: {error}\r\n"));
}

#[test]
fn what_is_no_resp_is_answered_and_closed() {
    let daemon = Daemon::start();
    let mut other = daemon.connect();
    is_refused(&daemon, "*1\r\n$-5\r\n", "invalid bulk length");
    is_refused(&daemon, "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$99999999999\r\n", "invalid bulk length");
    is_refused(&daemon, "*1000000\r\n", "invalid multibulk length");
    is_refused(&daemon, "*1\r\n:1\r\n", "expected '$', got ':'");
    is_refused(&daemon, "GET \"a\r\n", "unbalanced quotes in request");
    is_refused(&daemon, "POST / HTTP/1.1\r\n", "this is RESP, not HTTP");
    is_refused(&daemon, vec![b'x'; 17 << 10], "too big inline request");
    is_refused(&daemon, format!("*{}", "1".repeat(100)), "too big count string");
    other.ask("PING", "+PONG\r\n");
}

#[test]
fn who_stops_in_the_middle_is_cut_off_and_its_memory_comes_back() {
    let daemon = Daemon::with("stall_s = 1\n");
    let mut idle = daemon.connect();
    let mut stuck: Vec<_> = (0..8).map(|_| daemon.connect()).collect();
    for (number, client) in stuck.iter_mut().enumerate() {
        // Seven of them reserve 8 MiB each, which is all but 8 MiB.
        let half: &[u8] = if number == 0 {
            b"*2\r\n$3\r\nGE"
        } else {
            b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$8388608\r\nhalf"
        };
        client.send(half);
    }
    for client in &mut stuck {
        assert_eq!(client.rest(), b"");
    }
    let large = value(1, 30 << 20);
    idle.set("a", &large);
    idle.set("b", &large);
    idle.ask("STRLEN b", format!(":{}\r\n", large.len()));
}

#[test]
fn who_does_not_read_is_cut_off_and_leases_end() {
    let daemon = Daemon::with("stall_s = 1\n");
    let (mut greedy, mut other) = (daemon.connect(), daemon.connect());
    let large = value(1, 30 << 20);
    other.set("a", &large);
    // More than any socket buffer takes, and never read.
    greedy.send("GET a\r\n".repeat(4));
    // The lease keeps the block's memory, until the reader is cut off; then there is room for two.
    let mut tries = 0;
    loop {
        other.command(&[b"SET", &b"b"[..], &large]);
        let first = other.line();
        other.command(&[b"SET", &b"c"[..], &large]);
        let second = other.line();
        if first == "+OK" && second == "+OK" {
            break;
        }
        assert!(first.starts_with("-OOM") || second.starts_with("-OOM"), "{first} {second}");
        tries += 1;
        assert!(tries < 1000, "the lease of a client that does not read never ends");
    }
}

#[test]
fn more_clients_than_allowed_are_turned_away_and_places_come_back() {
    let daemon = Daemon::with("clients_max = 3\n");
    let mut clients: Vec<_> = (0..3).map(|_| daemon.connect()).collect();
    clients.iter_mut().for_each(|client| client.ask("PING", "+PONG\r\n"));
    let mut more = daemon.connect();
    assert_eq!(more.rest(), b"-ERR max number of clients reached\r\n");
    clients[1].ask("PING", "+PONG\r\n");
    clients[0].ask("QUIT", "+OK\r\n");
    assert_eq!(clients[0].rest(), b"");
    loop {
        let mut next = daemon.connect();
        let _ = next.stream.write_all(b"PING\r\n");
        let answer = next.line();
        if answer == "+PONG" {
            break;
        }
        assert_eq!(answer, "-ERR max number of clients reached");
    }
}

#[test]
fn hundreds_of_idle_connections_disturb_nobody() {
    let daemon = Daemon::start();
    let mut idle = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect(daemon.address) {
        idle.push(stream);
        // As many as the usual limit on open files lets a test have.
        if idle.len() == 800 {
            break;
        }
    }
    assert!(idle.len() > 200, "{}", idle.len());
    idle.iter_mut().step_by(2).for_each(|stream| stream.write_all(b"*2\r\n$3\r\nGE").unwrap());
    let mut client = daemon.connect();
    let value = value(1, 1 << 20);
    client.set("a", &value);
    client.ask("GET a", "");
    client.expect_bulk(&value);
    drop(idle);
    client.ask("PING", "+PONG\r\n");
}

#[test]
fn a_door_beyond_loopback_without_a_login_does_not_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kv.toml");
    std::fs::write(&path, "[kv]\nram_gib = 1\nresp_listen = \"0.0.0.0:7080\"\n").unwrap();
    let command = Command::new(env!("CARGO_BIN_EXE_cgn-kvcached"))
        .arg("--check")
        .arg("--config")
        .arg(&path)
        .output()
        .unwrap();
    let said = String::from_utf8(command.stderr).unwrap();
    assert!(!command.status.success());
    assert!(said.contains("kv.resp_listen") && said.contains("users_file"), "{said}");
}
