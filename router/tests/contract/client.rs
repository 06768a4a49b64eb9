//! A client that sees bytes: what an SDK would hide is what these tests are about.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A test fails rather than hangs.
const READ_MAX: Duration = Duration::from_secs(20);

pub struct Client {
    pub stream: TcpStream,
    bytes: Vec<u8>,
}

/// One answer, its body with the framing still on.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The OpenAI error inside.
    pub fn error(&self) -> serde_json::Value {
        let value: serde_json::Value = serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("no JSON ({e}): {}", self.text()));
        value["error"].clone()
    }
}

/// A field's value in a head.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(READ_MAX)).unwrap();
        Client { stream, bytes: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Sends a POST and reads its answer.
    pub fn post(&mut self, path: &str, fields: &str, body: &str) -> Answer {
        self.send(post(path, fields, body));
        self.answer()
    }

    pub fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n"));
        self.answer()
    }

    /// Reads one answer: by length, by chunks (kept as they came) or to the end.
    pub fn answer(&mut self) -> Answer {
        let (status, head) = self.head();
        let body = if let Some(length) = field(&head, "content-length") {
            let length: usize = length.parse().unwrap();
            while self.bytes.len() < length {
                assert!(self.more(), "the body ended early: {head}");
            }
            self.bytes.drain(..length).collect()
        } else if field(&head, "transfer-encoding").is_some() {
            while !self.bytes.windows(5).any(|w| w == b"0\r\n\r\n") {
                assert!(
                    self.more(),
                    "the chunks ended early: {:?}",
                    String::from_utf8_lossy(&self.bytes)
                );
            }
            let end = self.bytes.windows(5).position(|w| w == b"0\r\n\r\n").unwrap() + 5;
            self.bytes.drain(..end).collect()
        } else {
            self.rest()
        };
        Answer { status, head, body }
    }

    /// Reads one head; interim answers (1xx) are returned too.
    pub fn head(&mut self) -> (u16, String) {
        let end = loop {
            if let Some(at) = self.bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(
                self.more(),
                "closed before an answer: {:?}",
                String::from_utf8_lossy(&self.bytes)
            );
        };
        let head = String::from_utf8(self.bytes.drain(..end).collect()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head)
    }

    /// Reads until `text` was seen; gives everything up to there.
    pub fn until(&mut self, text: &str) -> String {
        loop {
            let so_far = String::from_utf8_lossy(&self.bytes).into_owned();
            if so_far.contains(text) {
                self.bytes.clear();
                return so_far;
            }
            assert!(self.more(), "closed before {text:?}: {so_far:?}");
        }
    }

    /// Everything up to the end of the connection.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.more() {}
        std::mem::take(&mut self.bytes)
    }

    fn more(&mut self) -> bool {
        let mut part = [0; 64 << 10];
        match self.stream.read(&mut part) {
            Ok(0) => false,
            Ok(read) => {
                self.bytes.extend_from_slice(&part[..read]);
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("read: {error}"),
        }
    }
}

/// The bytes of a POST with a length.
pub fn post(path: &str, fields: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{fields}\r\n{body}",
        body.len()
    )
}

/// A chat body for model `m`.
pub fn chat(content: &str) -> String {
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{content}"}}]}}"#)
}
