//! What LMCache's own client (`resp://`) sends and expects, byte for byte, and what its redis connector does.

use crate::daemon::{Daemon, value};

/// A chunk's key as LMCache writes it.
const KEY: &str = "meta-llama/Llama-3.1-8B@1@0@00000000deadbeef@bfloat16";

fn header(command: &str) -> String {
    format!("*2\r\n${}\r\n{command}\r\n${}\r\n{KEY}\r\n", command.len(), KEY.len())
}

#[test]
fn a_chunk_is_stored_found_fetched_and_deleted() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    let chunk = value(1, 2 << 20);
    client.send(header("EXISTS"));
    client.expect(":0\r\n");
    client.send(format!("*3\r\n$3\r\nSET\r\n${}\r\n{KEY}\r\n${}\r\n", KEY.len(), chunk.len()));
    client.send(&chunk);
    client.send("\r\n");
    client.expect("+OK\r\n");
    client.send(header("EXISTS"));
    client.expect(":1\r\n");
    client.send(header("GET"));
    client.expect(format!("${}\r\n", chunk.len()));
    client.expect(&chunk);
    client.expect("\r\n");
    client.send(header("DEL"));
    client.expect(":1\r\n");
    client.send(header("DEL"));
    client.expect(":0\r\n");
}

/// The client reads as many bytes as the header it expects has: nil would leave it waiting.
#[test]
fn what_exists_found_is_never_nil() {
    let daemon = Daemon::start();
    let (mut asking, mut fetching, mut other) =
        (daemon.connect(), daemon.connect(), daemon.connect());
    asking.set(KEY, b"chunk");
    asking.send(header("EXISTS"));
    asking.expect(":1\r\n");
    // 64 MiB of others push it out.
    let others = value(2, 8 << 20);
    for number in 0..16 {
        other.set(&format!("other{number}"), &others);
    }
    other.send(header("STRLEN"));
    other.expect(":0\r\n");
    let longest = format!("${}\r\n", 512 << 20).len();
    // Workers of the client have a connection each, so it may fetch on one that did not ask.
    for connection in [&mut fetching, &mut asking] {
        connection.send(header("GET"));
        let line = connection.line();
        assert!(line.starts_with("-ERR") && line.len() + 2 >= longest, "{line}");
        // It has been told: from here on nil is the truth.
        connection.send(header("GET"));
        connection.expect("$-1\r\n");
    }
}

#[test]
fn the_redis_connector_stores_two_keys_for_a_chunk() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    let (chunk, metadata) = (value(3, 1 << 20), value(4, 28));
    client.ask(&format!("EXISTS {KEY}metadata"), ":0\r\n");
    client.set(&format!("{KEY}kv_bytes"), &chunk);
    client.set(&format!("{KEY}metadata"), &metadata);
    client.ask(&format!("EXISTS {KEY}metadata"), ":1\r\n");
    client.ask(&format!("GET {KEY}metadata"), "");
    client.expect_bulk(&metadata);
    client.ask(&format!("GET {KEY}kv_bytes"), "");
    client.expect_bulk(&chunk);
    client.ask(&format!("DEL {KEY}metadata"), ":1\r\n");
    client.ask(&format!("GET {KEY}metadata"), "$-1\r\n");
}
