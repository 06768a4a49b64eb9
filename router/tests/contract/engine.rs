//! An engine on a thread: records what it was sent, answers as the test says.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What an engine was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub head: String,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        super::client::field(&self.head, name)
    }
}

type Script = dyn Fn(&Asked, &mut TcpStream) -> bool + Send + Sync;

/// A listening engine. Probes (`GET`) are answered 200 and not recorded.
pub struct Engine {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Engine {
    /// `script` writes the answer and says whether the connection stays open.
    pub fn start(
        script: impl Fn(&Asked, &mut TcpStream) -> bool + Send + Sync + 'static,
    ) -> Engine {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (script, record): (Arc<Script>, _) = (Arc::new(script), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (script, record) = (Arc::clone(&script), Arc::clone(&record));
                std::thread::spawn(move || serve(stream, &*script, &record));
            }
        });
        Engine { address, asked }
    }

    /// Answers every request with `response`, byte for byte.
    pub fn fixed(response: impl Into<Vec<u8>>) -> Engine {
        let response = response.into();
        Engine::start(move |_, stream| stream.write_all(&response).is_ok())
    }

    /// Answers 200 with a small JSON body.
    pub fn ok() -> Engine {
        Engine::fixed(json(r#"{"ok":true}"#))
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// A 200 with this JSON.
pub fn json(body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// The head of an event stream.
pub const STREAM_HEAD: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

/// One chunk.
pub fn chunk(payload: &str) -> String {
    format!("{:x}\r\n{payload}\r\n", payload.len())
}

fn serve(mut stream: TcpStream, script: &Script, record: &Mutex<Vec<Asked>>) {
    let mut bytes = Vec::new();
    loop {
        let Some(asked) = read(&mut stream, &mut bytes) else { return };
        if asked.head.starts_with("GET ") {
            if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").is_err() {
                return;
            }
            continue;
        }
        record.lock().unwrap().push(asked.clone());
        if !script(&asked, &mut stream) {
            return;
        }
    }
}

fn read(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<Asked> {
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        more(stream, bytes)?;
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
    let length: usize =
        super::client::field(&head, "content-length").map_or(0, |l| l.parse().unwrap());
    while bytes.len() < head_end + length {
        more(stream, bytes)?;
    }
    let body = bytes[head_end..head_end + length].to_vec();
    bytes.drain(..head_end + length);
    Some(Asked { head, body })
}

fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<()> {
    let mut part = [0; 64 << 10];
    match stream.read(&mut part) {
        Ok(read) if read > 0 => bytes.extend_from_slice(&part[..read]),
        _ => return None,
    }
    Some(())
}
