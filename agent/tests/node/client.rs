//! An HTTP client that sees how an answer ended: one connection an exchange, bytes as they come.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// A test fails rather than hangs.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// A request that was sent.
pub struct Exchange {
    stream: TcpStream,
    bytes: Vec<u8>,
}

/// All that came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    /// Without the framing.
    pub body: String,
    /// The framing says that nothing is missing.
    pub is_whole: bool,
}

/// Sends a request and reads its answer to the end.
pub fn get(address: SocketAddr, path: &str) -> Option<Answer> {
    Exchange::begin(address, "GET", path, "")?.end()
}

/// Sends a request and reads its answer to the end.
pub fn post(address: SocketAddr, path: &str, body: &Value) -> Answer {
    let exchange = Exchange::begin(address, "POST", path, &body.to_string());
    exchange.and_then(Exchange::end).expect("no answer at all")
}

impl Exchange {
    /// Sends a request; `None` when nobody takes it.
    pub fn begin(address: SocketAddr, method: &str, path: &str, body: &str) -> Option<Exchange> {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(SILENCE_MAX)).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).ok()?;
        Some(Exchange { stream, bytes: Vec::new() })
    }

    /// Reads until an event of the stream is there.
    pub fn streams(&mut self) {
        while !String::from_utf8_lossy(&self.bytes).contains("\ndata: ") {
            let so_far = String::from_utf8_lossy(&self.bytes).into_owned();
            assert!(self.more(), "it ended before it streamed: {so_far:?}");
        }
    }

    /// Reads to the end; `None` when the connection ended within the head.
    pub fn end(mut self) -> Option<Answer> {
        while self.more() {}
        let at = self.bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&self.bytes[..at]).into_owned();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let payload = &self.bytes[at..];
        let (body, is_whole) = match field(&head, "content-length") {
            Some(length) => (payload.to_vec(), length.parse() == Ok(payload.len())),
            None if field(&head, "transfer-encoding") == Some("chunked") => dechunk(payload),
            None => (payload.to_vec(), true),
        };
        Some(Answer { status, head, body: String::from_utf8_lossy(&body).into_owned(), is_whole })
    }

    fn more(&mut self) -> bool {
        let mut part = [0; 16 << 10];
        match self.stream.read(&mut part) {
            Ok(0) => false,
            Ok(read) => {
                self.bytes.extend_from_slice(&part[..read]);
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("no byte within {SILENCE_MAX:?}: {error}"),
        }
    }
}

/// The payload of chunks, and whether the last one is there.
fn dechunk(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut payload = Vec::new();
    loop {
        let Some(line) = bytes.windows(2).position(|window| window == b"\r\n") else {
            return (payload, false);
        };
        let size = std::str::from_utf8(&bytes[..line]).ok();
        let size = size.and_then(|text| usize::from_str_radix(text, 16).ok());
        let rest = &bytes[line + 2..];
        match size {
            Some(0) => return (payload, rest == b"\r\n"),
            Some(size) if rest.len() >= size + 2 => {
                payload.extend_from_slice(&rest[..size]);
                bytes = &rest[size + 2..];
            }
            _ => return (payload, false),
        }
    }
}

/// A field's value in a head.
fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

impl Answer {
    /// A field of the head.
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }

    /// The worker the router chose; empty where it chose none.
    pub fn worker(&self) -> &str {
        self.field("x-cgn-worker").unwrap_or_default()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The data of each event of the stream that is JSON.
    pub fn events(&self) -> Vec<Value> {
        let data = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter_map(|data| serde_json::from_str(data).ok()).collect()
    }

    /// A stream that came to its proper end.
    pub fn is_done(&self) -> bool {
        self.is_whole && self.body.trim_end().ends_with("data: [DONE]")
    }
}
