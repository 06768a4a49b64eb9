//! An engine that always says the same to the same prompt, and fails where the test says.
//!
//! It streams chats, completions and messages as engines do, can go on from a text it is given, and
//! notes when its connections ended. It can be stopped with all its connections and started again on its
//! port.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::field;

/// Words of every answer.
pub const WORDS: usize = 12;

/// How it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not at all.
    None,
    /// Ends the connection.
    Close,
    /// Resets it.
    Reset,
    /// Says no more and keeps the connection.
    Stall,
    /// Sends what is no chunk.
    Garbage,
    /// Sends the first half of an event, in a chunk of its own, and ends the connection.
    HalfEvent,
    /// The whole engine goes: listener and all connections.
    Dies,
    /// Ends the body as if it were whole.
    PoliteEnd,
    /// Never comes to an end.
    Endless,
    /// Answers 500.
    Status(u16),
}

/// What it does with one request.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    pub fault: Fault,
    /// Events sent before the fault.
    pub at: usize,
    /// Before each event.
    pub pause: Duration,
}

impl Turn {
    pub fn well() -> Turn {
        Turn { fault: Fault::None, at: 0, pause: Duration::ZERO }
    }

    pub fn fails(fault: Fault, at: usize) -> Turn {
        Turn { fault, at, ..Turn::well() }
    }

    pub fn slow(ms: u64) -> Turn {
        Turn { pause: Duration::from_millis(ms), ..Turn::well() }
    }
}

/// What it was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub body: Value,
    pub bytes: Vec<u8>,
}

type Plan = dyn Fn(usize, &Asked) -> Turn + Send + Sync;

struct State {
    address: SocketAddr,
    plan: Arc<Plan>,
    /// Requests of all engines of one group.
    count: Arc<AtomicUsize>,
    asked: Mutex<Vec<Asked>>,
    open: Mutex<Vec<TcpStream>>,
    stopped: AtomicBool,
    connections: AtomicUsize,
    /// When the other side ended a connection in the middle of an answer.
    cancelled: Mutex<Vec<Instant>>,
}

pub struct Speaker {
    pub address: SocketAddr,
    state: Arc<State>,
}

impl Speaker {
    /// `count` engines; `plan` is given the number of the request over all of them.
    pub fn group(
        count: usize,
        plan: impl Fn(usize, &Asked) -> Turn + Send + Sync + 'static,
    ) -> Vec<Speaker> {
        let (plan, requests): (Arc<Plan>, _) = (Arc::new(plan), Arc::default());
        let at_any_port = || TcpListener::bind("127.0.0.1:0").unwrap();
        let start = |_| Speaker::at(at_any_port(), Arc::clone(&plan), Arc::clone(&requests));
        (0..count).map(start).collect()
    }

    pub fn one(plan: impl Fn(usize, &Asked) -> Turn + Send + Sync + 'static) -> Speaker {
        Speaker::group(1, plan).remove(0)
    }

    fn at(listener: TcpListener, plan: Arc<Plan>, count: Arc<AtomicUsize>) -> Speaker {
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            address,
            plan,
            count,
            asked: Mutex::default(),
            open: Mutex::default(),
            stopped: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            cancelled: Mutex::default(),
        });
        let of_thread = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if of_thread.stopped.load(SeqCst) {
                    return;
                }
                stream.set_nodelay(true).unwrap();
                of_thread.connections.fetch_add(1, SeqCst);
                of_thread.open.lock().unwrap().push(stream.try_clone().unwrap());
                let state = Arc::clone(&of_thread);
                std::thread::spawn(move || state.serve(stream));
            }
        });
        Speaker { address, state }
    }

    /// Gone, with all its connections.
    pub fn stop(&self) {
        self.state.stop();
    }

    /// The same engine again, on the same port.
    pub fn restarted(&self) -> Speaker {
        assert!(self.state.stopped.load(SeqCst), "it still runs");
        let listener = loop {
            match TcpListener::bind(self.address) {
                Ok(listener) => break listener,
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        Speaker::at(listener, Arc::clone(&self.state.plan), Arc::clone(&self.state.count))
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    /// Connections it was sent, those of probes too.
    pub fn connections(&self) -> usize {
        self.state.connections.load(SeqCst)
    }

    /// When the router ended a connection before the answer was over.
    pub fn cancelled(&self) -> Vec<Instant> {
        self.state.cancelled.lock().unwrap().clone()
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        self.stop();
    }
}

impl State {
    fn stop(&self) {
        if !self.stopped.swap(true, SeqCst) {
            // Wakes the accepting thread, which drops the listener.
            let _ = TcpStream::connect(self.address);
            for stream in self.open.lock().unwrap().drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    fn serve(&self, mut stream: TcpStream) {
        self.converse(&mut stream);
        // Only the last handle closes it.
        let peer = stream.peer_addr().ok();
        self.open.lock().unwrap().retain(|open| open.peer_addr().ok() != peer);
    }

    fn converse(&self, stream: &mut TcpStream) {
        let mut bytes = Vec::new();
        while let Some((head, body)) = read(stream, &mut bytes) {
            if head.starts_with("GET ") {
                if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").is_err() {
                    return;
                }
                continue;
            }
            let asked = Asked {
                path: head.split(' ').nth(1).unwrap_or_default().to_owned(),
                body: serde_json::from_slice(&body).unwrap_or_default(),
                bytes: body,
            };
            if !asked.path.starts_with("/v1/") {
                let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
                continue;
            }
            self.asked.lock().unwrap().push(asked.clone());
            let turn = (self.plan)(self.count.fetch_add(1, SeqCst), &asked);
            if !self.answer(stream, &asked, turn) {
                return;
            }
        }
    }

    fn answer(&self, stream: &mut TcpStream, asked: &Asked, turn: Turn) -> bool {
        if let Fault::Status(status) = turn.fault {
            let body = format!(r#"{{"error":{{"message":"status {status}"}}}}"#);
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
            return stream.write_all((head + &body).as_bytes()).is_ok();
        }
        let id = format!("id-{}-{}", self.address.port(), self.count.load(SeqCst));
        if asked.body["stream"] != json!(true) {
            std::thread::sleep(turn.pause);
            let whole = whole(asked, &id);
            let whole = match turn.fault {
                Fault::None => whole.as_slice(),
                _ if turn.at == 0 => &[],
                _ => &whole[..whole.len() / 2],
            };
            return stream.write_all(whole).is_ok() && self.fail(stream, turn.fault);
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        if turn.at > 0 || turn.fault == Fault::None {
            std::thread::sleep(turn.pause);
            if stream.write_all(head.as_bytes()).is_err() {
                self.cancelled.lock().unwrap().push(Instant::now());
                return false;
            }
        }
        let events = events(asked, &id);
        for (at, event) in events.iter().enumerate() {
            if turn.fault != Fault::None && at == turn.at {
                // What was said is read before the end is seen.
                std::thread::sleep(Duration::from_millis(if at > 0 { 10 } else { 0 }));
                return self.fail_within(stream, turn, event);
            }
            if !self.say(stream, event, turn.pause) {
                return false;
            }
        }
        stream.write_all(b"0\r\n\r\n").is_ok()
    }

    /// One event in a chunk; false where the other side is gone.
    fn say(&self, stream: &mut TcpStream, event: &str, pause: Duration) -> bool {
        std::thread::sleep(pause);
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        stream.set_nonblocking(true).unwrap();
        let gone = matches!(stream.peek(&mut [0; 1]), Ok(0));
        stream.set_nonblocking(false).unwrap();
        if gone || stream.write_all(chunk.as_bytes()).is_err() {
            self.cancelled.lock().unwrap().push(Instant::now());
            return false;
        }
        true
    }

    fn fail_within(&self, stream: &mut TcpStream, turn: Turn, event: &str) -> bool {
        match turn.fault {
            Fault::HalfEvent => {
                let half = &event[..event.len() / 2];
                let _ = stream.write_all(format!("{:x}\r\n{half}\r\n", half.len()).as_bytes());
                // What was sent must not be lost in a reset.
                std::thread::sleep(Duration::from_millis(20));
                false
            }
            Fault::Garbage => {
                let _ = stream.write_all(b"zz\r\nthis is no chunk\r\n");
                std::thread::sleep(Duration::from_millis(20));
                false
            }
            Fault::PoliteEnd => stream.write_all(b"0\r\n\r\n").is_ok(),
            Fault::Endless => {
                while self.say(stream, event, turn.pause) {}
                false
            }
            other => self.fail(stream, other),
        }
    }

    fn fail(&self, stream: &mut TcpStream, fault: Fault) -> bool {
        match fault {
            Fault::None => return true,
            Fault::Reset => {
                let _ = socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
            }
            Fault::Stall => {
                let _ = stream.read(&mut [0; 16]);
                self.cancelled.lock().unwrap().push(Instant::now());
            }
            Fault::Dies => self.stop(),
            _ => {}
        }
        false
    }
}

/// The words said to `prompt`; they depend on nothing else.
pub fn answer_to(prompt: &str) -> String {
    let start = prompt
        .bytes()
        .fold(17u64, |hash, byte| hash.wrapping_mul(1_000_003).wrapping_add(u64::from(byte)));
    let word = |at: usize| format!("w{at}x{} ", (start >> (at % 16 * 3)) % 1_000);
    (0..WORDS).map(word).collect()
}

fn prompt(asked: &Asked) -> String {
    match asked.body["messages"].as_array() {
        Some(messages) => {
            let mut said = messages.iter().filter(|message| message["role"] != "assistant");
            said.next_back()
                .and_then(|message| message["content"].as_str())
                .unwrap_or("")
                .to_owned()
        }
        None => asked.body["prompt"].as_str().unwrap_or_default().to_owned(),
    }
}

/// What is still to be said: all of it, or what follows the text it is given to go on from.
fn words(asked: &Asked) -> Vec<String> {
    let last = asked.body["messages"].as_array().and_then(|messages| messages.last());
    let begun = last.filter(|last| last["role"] == "assistant");
    let whole = answer_to(&prompt(asked));
    let begun = begun.and_then(|last| last["content"].as_str()).unwrap_or_default();
    let rest = whole.strip_prefix(begun).expect("a text it did not say");
    rest.split_inclusive(' ').map(str::to_owned).collect()
}

fn events(asked: &Asked, id: &str) -> Vec<String> {
    let words = words(asked);
    if asked.path == "/v1/messages" {
        let delta = |word: &String| {
            let delta = json!({ "type": "content_block_delta", "index": 0,
                "delta": { "type": "text_delta", "text": word } });
            format!("event: content_block_delta\ndata: {delta}\n\n")
        };
        let stop = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n".to_owned();
        return words.iter().map(delta).chain([stop]).collect();
    }
    let is_chat = asked.path.ends_with("/chat/completions");
    let event = |choices: Value, usage: Value| {
        let event = json!({ "id": id, "object": "chunk", "created": 1, "model": "m",
            "choices": choices, "usage": usage });
        format!("data: {event}\n\n")
    };
    let choice = |delta: Value, text: &str, reason: Value| match is_chat {
        true => json!([{ "index": 0, "delta": delta, "finish_reason": reason }]),
        false => json!([{ "index": 0, "text": text, "finish_reason": reason }]),
    };
    let mut events = Vec::new();
    if is_chat {
        let role = json!({ "role": "assistant", "content": "" });
        events.push(event(choice(role, "", Value::Null), Value::Null));
    }
    for word in &words {
        events.push(event(choice(delta(asked, word), word, Value::Null), Value::Null));
    }
    events.push(event(choice(json!({}), "", json!("length")), Value::Null));
    let usage = json!({ "prompt_tokens": 7, "completion_tokens": words.len(), "total_tokens": 19 });
    events.push(event(json!([]), usage));
    events.push("data: [DONE]\n\n".to_owned());
    events
}

fn delta(asked: &Asked, word: &str) -> Value {
    match asked.body.get("tools") {
        None => json!({ "content": word }),
        Some(_) => json!({ "tool_calls": [{ "index": 0, "function": { "arguments": word } }] }),
    }
}

fn whole(asked: &Asked, id: &str) -> Vec<u8> {
    let text = words(asked).concat();
    let body = json!({ "id": id, "model": "m", "choices": [{ "index": 0, "finish_reason": "length",
        "message": { "role": "assistant", "content": text } }],
        "usage": { "prompt_tokens": 7, "completion_tokens": WORDS, "total_tokens": 19 } })
    .to_string();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length";
    format!("{head}: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn read(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        more(stream, bytes)?;
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
    let length: usize = field(&head, "content-length").map_or(0, |length| length.parse().unwrap());
    while bytes.len() < head_end + length {
        more(stream, bytes)?;
    }
    let body = bytes[head_end..head_end + length].to_vec();
    bytes.drain(..head_end + length);
    Some((head, body))
}

fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<()> {
    let mut part = [0; 64 << 10];
    match stream.read(&mut part) {
        Ok(read) if read > 0 => bytes.extend_from_slice(&part[..read]),
        _ => return None,
    }
    Some(())
}
