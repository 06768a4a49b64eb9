//! Values of every size, in pieces and in pipelines: what was stored comes back.

use std::io::Write;

use crate::daemon::{Daemon, encoded, value};

#[test]
fn values_of_every_size_come_back() {
    let daemon = Daemon::on(2, "", |_| ());
    let mut client = daemon.connect();
    for (number, len) in [0, 1, 2, 4095, 4096, 4097, 65_535, 1 << 20, (8 << 20) + 1, 32 << 20]
        .into_iter()
        .enumerate()
    {
        let value = value(number, len);
        client.set("a", &value);
        client.ask("STRLEN a", format!(":{len}\r\n"));
        client.ask("GET a", "");
        client.expect_bulk(&value);
    }
}

#[test]
fn a_value_may_come_in_pieces() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    client.stream.set_nodelay(true).unwrap();
    let value = value(7, 5000);
    for piece in [1, 7, 64, 4096] {
        for part in encoded(&[b"SET", &b"a"[..], &value]).chunks(piece) {
            client.send(part);
        }
        client.expect("+OK\r\n");
        client.ask("GET a", "");
        client.expect_bulk(&value);
    }
}

#[test]
fn a_value_that_is_too_large_is_read_over() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    client.set("a", b"before");
    client.command(&[b"SET", &b"a"[..], &value(1, (32 << 20) + 1)]);
    let line = client.line();
    assert!(line.starts_with("-ERR a block of 335"), "{line}");
    client.ask("GET a", "$6\r\nbefore\r\n");
}

#[test]
fn a_pipeline_is_answered_in_order() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    let mut sent = Vec::new();
    for number in 0..500 {
        sent.extend(encoded(&[b"SET", format!("k{number}").as_bytes(), &value(number, 100)]));
        sent.extend(encoded(&["GET", &format!("k{number}")]));
        sent.extend(b"PING\r\n");
    }
    client.send(sent);
    for number in 0..500 {
        client.expect("+OK\r\n");
        client.expect_bulk(&value(number, 100));
        client.expect("+PONG\r\n");
    }
}

/// A client that writes all before it reads must not wait for a daemon that waits for it.
#[test]
fn a_pipeline_of_large_values_does_not_wait_for_itself() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    let large = value(9, 6 << 20);
    let mut writing = client.stream.try_clone().unwrap();
    for _ in 0..5 {
        writing.write_all(&encoded(&[b"SET", &b"a"[..], &large])).unwrap();
        writing.write_all(&encoded(&["GET", "a"])).unwrap();
    }
    for _ in 0..5 {
        client.expect("+OK\r\n");
        client.expect_bulk(&large);
    }
}

#[test]
fn a_block_that_is_replaced_while_it_is_sent_stays_what_it_was() {
    let daemon = Daemon::start();
    let (mut slow, mut other) = (daemon.connect(), daemon.connect());
    let (first, second) = (value(1, 16 << 20), value(2, 16 << 20));
    slow.set("a", &first);
    slow.ask("GET a", "$16777216\r\n");
    other.set("a", &second);
    other.ask("GET a", "");
    other.expect_bulk(&second);
    slow.expect(&first);
    slow.expect("\r\n");
}

#[test]
fn many_connections_see_one_store() {
    let daemon = Daemon::on(2, "", |_| ());
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let mut client = daemon.connect();
            std::thread::spawn(move || {
                for number in 0..40 {
                    let value = value(thread * 40 + number, 50_000);
                    client.set(&format!("t{thread}n{number}"), &value);
                    client.ask(&format!("GET t{thread}n{number}"), "");
                    client.expect_bulk(&value);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let mut client = daemon.connect();
    client.ask("GET t7n39", "");
    client.expect_bulk(&value(7 * 40 + 39, 50_000));
}
