//! HTTP/2 by hand (RFC 9113): frames as bytes, header blocks as literals, so that a test can break any rule.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;

/// Settings: no table of header fields, so that every answer's fields can be read alone.
const NO_TABLE: (u16, u32) = (1, 0);
pub const INITIAL_WINDOW: u16 = 4;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a RST_STREAM or GOAWAY; the bytes of a WINDOW_UPDATE.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    pub fn ends_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }

    /// The status of an answer's header block.
    pub fn status(&self) -> u16 {
        assert_eq!(self.kind, HEADERS);
        // Behind changes of the table's size.
        let block = &self.payload[self.payload.iter().take_while(|b| **b >> 5 == 1).count()..];
        match block[0] {
            indexed @ 0x88..=0x8e => {
                [200, 204, 206, 304, 400, 404, 500][usize::from(indexed) - 0x88]
            }
            _ => digits(&block[1..]),
        }
    }
}

/// A number as a literal, plain or in Huffman's code of HPACK, where 0 to 2 have five bits and the other
/// digits six.
fn digits(literal: &[u8]) -> u16 {
    let value = &literal[1..=usize::from(literal[0] & 0x7f)];
    if literal[0] & 0x80 == 0 {
        return std::str::from_utf8(value).unwrap().parse().unwrap();
    }
    let bits: String = value.iter().map(|byte| format!("{byte:08b}")).collect();
    let (mut number, mut at) = (0, 0);
    while bits.len() - at >= 5 && !bits[at..].chars().all(|bit| bit == '1') {
        let five = u16::from_str_radix(&bits[at..at + 5], 2).unwrap();
        let digit = if five < 3 {
            at += 5;
            five
        } else {
            at += 6;
            u16::from_str_radix(&bits[at - 6..at], 2).unwrap() - 0b01_1001 + 3
        };
        number = number * 10 + digit;
    }
    number
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block of literals that are never indexed.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0x10);
        for text in [name, value] {
            length(&mut bytes, text.len());
            bytes.extend(text.bytes());
        }
    }
    bytes
}

/// An integer with a prefix of seven bits (RFC 7541 §5.1).
fn length(bytes: &mut Vec<u8>, mut length: usize) {
    if length < 127 {
        return bytes.push(length as u8);
    }
    bytes.push(127);
    length -= 127;
    while length >= 128 {
        bytes.push((length % 128 + 128) as u8);
        length /= 128;
    }
    bytes.push(length as u8);
}

/// The fields of a POST.
pub fn post_fields(path: &str) -> Vec<(&str, &str)> {
    vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "t"),
        (":path", path),
        ("content-type", "application/json"),
    ]
}

/// The fields of a GET.
pub fn get_fields(path: &str) -> Vec<(&str, &str)> {
    vec![(":method", "GET"), (":scheme", "http"), (":authority", "t"), (":path", path)]
}

/// A connection of HTTP/2.
pub struct Http2<S> {
    pub io: S,
    bytes: Vec<u8>,
    /// What the other side lets a stream send before it opens its window again.
    their_window: usize,
    their_connection_window: usize,
}

impl Http2<TcpStream> {
    /// In clear text with prior knowledge, both settings exchanged and acknowledged.
    pub fn connect(address: SocketAddr) -> Self {
        Self::connect_with(address, &[])
    }

    pub fn connect_with(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Http2::begin(stream, settings)
    }
}

impl<S: Read + Write> Http2<S> {
    /// Speaks over whatever carries bytes.
    pub fn begin(io: S, settings: &[(u16, u32)]) -> Self {
        let mut connection =
            Http2 { io, bytes: Vec::new(), their_window: 65_535, their_connection_window: 65_535 };
        connection.raw(PREFACE);
        let values: Vec<u8> = [&[NO_TABLE], settings]
            .concat()
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat())
            .collect();
        connection.send(SETTINGS, 0, 0, &values);
        let (mut is_set, mut is_acknowledged) = (false, false);
        while !is_set || !is_acknowledged {
            let frame = connection.next();
            match (frame.kind, frame.flags & ACK) {
                (SETTINGS, 0) => {
                    for setting in frame.payload.chunks(6) {
                        if setting[..2] == INITIAL_WINDOW.to_be_bytes() {
                            let value = u32::from_be_bytes(setting[2..].try_into().unwrap());
                            connection.their_window = value as usize;
                        }
                    }
                    connection.send(SETTINGS, ACK, 0, &[]);
                    is_set = true;
                }
                (SETTINGS, _) => is_acknowledged = true,
                (WINDOW_UPDATE, _) => connection.their_connection_window += frame.code() as usize,
                _ => panic!("before the settings: {frame:?}"),
            }
        }
        connection
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).unwrap();
        self.io.flush().unwrap();
    }

    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.raw(&frame(kind, flags, stream, payload));
    }

    /// Opens a stream with a whole request.
    pub fn post(&mut self, stream: u32, path: &str, body: &[u8]) {
        self.send(HEADERS, END_HEADERS, stream, &block(&post_fields(path)));
        let mut parts = body.chunks(16_384).peekable();
        while let Some(part) = parts.next() {
            let flags = if parts.peek().is_none() { END_STREAM } else { 0 };
            self.send(DATA, flags, stream, part);
        }
    }

    /// The same for a body of any length: sends as the windows of both allow.
    pub fn post_within_windows(&mut self, stream: u32, path: &str, mut body: &[u8]) {
        self.send(HEADERS, END_HEADERS, stream, &block(&post_fields(path)));
        let (mut of_stream, mut of_all) = (self.their_window, self.their_connection_window);
        while !body.is_empty() {
            let room = body.len().min(16_384).min(of_stream).min(of_all);
            if room > 0 {
                let (part, rest) = body.split_at(room);
                let flags = if rest.is_empty() { END_STREAM } else { 0 };
                self.send(DATA, flags, stream, part);
                (body, of_stream, of_all) = (rest, of_stream - room, of_all - room);
                continue;
            }
            let frame = self.next_of(WINDOW_UPDATE);
            let more = frame.code() as usize;
            if frame.stream == 0 { of_all += more } else { of_stream += more }
        }
        self.their_connection_window = of_all;
    }

    pub fn get(&mut self, stream: u32, path: &str) {
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, &block(&get_fields(path)));
    }

    /// The next frame; `None` at the end of the connection.
    pub fn try_next(&mut self) -> Option<Frame> {
        loop {
            if self.bytes.len() >= 9 {
                let length = u32::from_be_bytes([0, self.bytes[0], self.bytes[1], self.bytes[2]]);
                let end = 9 + usize::try_from(length).unwrap();
                if self.bytes.len() >= end {
                    let bytes: Vec<u8> = self.bytes.drain(..end).collect();
                    return Some(Frame {
                        kind: bytes[3],
                        flags: bytes[4],
                        stream: u32::from_be_bytes(bytes[5..9].try_into().unwrap()),
                        payload: bytes[9..].to_vec(),
                    });
                }
            }
            let mut part = [0; 64 << 10];
            match self.io.read(&mut part) {
                Ok(read) if read > 0 => self.bytes.extend(&part[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    panic!("no frame comes")
                }
                _ => return None,
            }
        }
    }

    pub fn next(&mut self) -> Frame {
        self.try_next().expect("the connection ended")
    }

    /// The next frame of this kind; pings are answered, others are passed over.
    pub fn next_of(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next();
            if frame.kind == kind {
                return frame;
            }
            self.serve(&frame);
        }
    }

    /// Answers pings.
    pub fn serve(&mut self, frame: &Frame) {
        if frame.kind == PING && frame.flags & ACK == 0 {
            self.send(PING, ACK, 0, &frame.payload.clone());
        }
    }

    /// One whole answer on `stream`: status and body. Windows are opened again as bytes come.
    pub fn answer(&mut self, stream: u32) -> (u16, Vec<u8>) {
        let (mut status, mut body) = (0, Vec::new());
        loop {
            let frame = self.next();
            self.serve(&frame);
            if frame.stream != stream {
                continue;
            }
            match frame.kind {
                HEADERS => status = frame.status(),
                DATA => {
                    body.extend(&frame.payload);
                    self.open_window(stream, frame.payload.len());
                }
                RST_STREAM => panic!("reset with {}", frame.code()),
                _ => {}
            }
            if frame.ends_stream() {
                return (status, body);
            }
        }
    }

    pub fn open_window(&mut self, stream: u32, bytes: usize) {
        if let Ok(bytes @ 1..) = u32::try_from(bytes) {
            // The other side may have said its last and be gone.
            let both = [0, stream].map(|id| frame(WINDOW_UPDATE, 0, id, &bytes.to_be_bytes()));
            let _ = self.io.write_all(&both.concat());
        }
    }

    /// Whether the other side still answers, in order, behind all that was sent.
    pub fn is_alive(&mut self) -> bool {
        self.io.write_all(&frame(PING, 0, 0, b"still up")).is_ok()
            && std::iter::from_fn(|| self.try_next())
                .any(|frame| frame.kind == PING && frame.payload == b"still up")
    }
}
