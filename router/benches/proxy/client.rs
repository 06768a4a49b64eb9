//! A client of our own where `wrk` cannot see enough: one thread on the load core, completion I/O.
//!
//! It knows just enough HTTP/1.1 for the answers of this bench: a status, a length, or chunks of SSE.

use std::future::Future;
use std::io;

use memchr::memmem::find;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::TcpStream;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::engine::{STAMP_KEY, number_after};
use crate::house::KEY;
use crate::stage::LOAD_CORE;

/// An answer may not be longer: ours are below 1 KiB.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Runs what `work` makes to its end, in a thread of its own on the load core.
pub fn run<T: Send, F: Future<Output = T>>(work: impl FnOnce() -> F + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut cores = CpuSet::new();
            cores.set(LOAD_CORE).map_err(|e| e.to_string())?;
            sched_setaffinity(Pid::from_raw(0), &cores).map_err(|e| e.to_string())?;
            let mut flags = io_uring::IoUring::builder();
            flags.setup_coop_taskrun().setup_single_issuer();
            let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
                .uring_builder(flags)
                .with_entries(4096)
                .enable_timer()
                .build()
                .map_err(|e| e.to_string())?;
            Ok(runtime.block_on(work()))
        });
        thread.join().map_err(|_| "the client panicked".to_owned())?
    })
}

/// A chat request with its head.
pub fn request(key: &str, fields: &[(&str, &str)], body: &str) -> Vec<u8> {
    let more: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nauthorization: Bearer {key}\r\n{more}content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// A 1 KB prompt of conversation `at`, streamed.
pub fn streamed(fields: &[(&str, &str)], at: usize, tokens: u64, pause_ms: u64) -> Vec<u8> {
    let pause = match pause_ms {
        crate::engine::PAUSE_MS_DEFAULT => String::new(),
        other => format!("\"pause_ms\":{other},"),
    };
    let text = format!("conversation {at} has its own words; ").repeat(28);
    let body = format!(
        "{{\"model\":\"m\",\"stream\":true,\"max_tokens\":{tokens},{pause}\"messages\":[{{\"role\":\"user\",\"content\":\"{text}\"}}]}}"
    );
    request(KEY, fields, &body)
}

/// One kept connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Dials.
    pub async fn open(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, buffer: Vec::new() })
    }

    /// Sends bytes and gives them back.
    pub async fn send(&mut self, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let (sent, bytes) = self.stream.write_all(bytes).await;
        sent.map(|_| bytes)
    }

    /// Reads once; the bytes read, none at the end of the connection.
    pub async fn read(&mut self) -> io::Result<&[u8]> {
        self.buffer.clear();
        self.more().await?;
        Ok(&self.buffer)
    }

    /// Reads an answer that says its length. Answers its status.
    pub async fn answer(&mut self) -> io::Result<u16> {
        self.buffer.clear();
        loop {
            if let Some((status, end)) = answer_end(&self.buffer)
                && self.buffer.len() >= end
            {
                return Ok(status);
            }
            if self.buffer.len() > ANSWER_BYTES_MAX || self.more().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn more(&mut self) -> io::Result<usize> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.reserve(4 << 10);
        let (begin, capacity) = (buffer.len(), buffer.capacity());
        let slice = monoio::buf::IoBufMut::slice_mut(buffer, begin..capacity);
        let (read, slice) = self.stream.read(slice).await;
        self.buffer = slice.into_inner();
        read
    }
}

fn answer_end(bytes: &[u8]) -> Option<(u16, usize)> {
    let head = find(bytes, b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let status = text.split(' ').nth(1)?.parse().ok()?;
    let length: usize =
        text.split("content-length:").nth(1)?.lines().next()?.trim().parse().ok()?;
    Some((status, head + length))
}

/// What a client sees of a stream, line by line.
#[derive(Default)]
pub struct Stream {
    line: Vec<u8>,
    has_begun: bool,
    is_done: bool,
    is_last_chunk: bool,
    /// The last chunk has come.
    pub ended: bool,
}

impl Stream {
    /// Whether any bytes have come.
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Takes bytes in; calls `token` with the stamp of each event.
    pub fn take(&mut self, bytes: &[u8], mut token: impl FnMut(Option<u64>)) {
        self.has_begun |= !bytes.is_empty();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.last() == Some(&b'\n') {
                self.line_ended(&mut token);
                self.line.clear();
            }
        }
    }

    fn line_ended(&mut self, token: &mut impl FnMut(Option<u64>)) {
        let line = self.line.trim_ascii_end();
        if line.starts_with(b"data: {") {
            token(number_after(line, STAMP_KEY));
        } else if line == b"data: [DONE]" {
            self.is_done = true;
        } else if self.is_done && line == b"0" {
            self.is_last_chunk = true;
        } else if self.is_last_chunk && line.is_empty() {
            self.ended = true;
        }
    }
}
