//! A bare engine: reads a request by its length and answers from a constant. It must cost less than
//! any proxy before it, so it parses nothing and keeps nothing.
//!
//! A body with `"stream":true` is answered with `"max_tokens":N` events: the first at once, then one
//! each `"pause_ms":N`. `created` in each event is the microsecond (Unix time) at which it was written.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use memchr::memmem::find;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};

/// Tokens of a stream that does not say.
const TOKENS_DEFAULT: u64 = 64;
/// Between two of them: 200 tokens a second for each client.
pub const PAUSE_MS_DEFAULT: u64 = 5;
/// Digits of a stamp.
pub const STAMP_DIGITS: usize = 16;
/// What stands before a stamp.
pub const STAMP_KEY: &[u8] = b"\"created\":";
/// Longer bodies say what they want at their beginning.
const SCAN_BYTES_MAX: usize = 40 << 10;

const STREAM_HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const STREAM_END: &[u8] = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
const EVENT: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":0000000000000000,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"finish_reason\":null}]}\n\n";

/// Serves for ever.
pub fn run(port: u16) {
    let mut flags = io_uring::IoUring::builder();
    flags.setup_coop_taskrun().setup_single_issuer();
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .uring_builder(flags)
        .with_entries(4096)
        .enable_timer()
        .build()
        .expect("an io_uring runtime for the bare engine");
    runtime.block_on(async move {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("the bare engine's port");
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            monoio::spawn(serve(stream));
        }
    });
}

/// Unix time in microseconds: comparable between processes of one machine.
pub fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(0)
}

async fn serve(mut stream: TcpStream) {
    let answer = answer();
    let mut buffer: Vec<u8> = Vec::with_capacity(16 << 10);
    loop {
        buffer.clear();
        let end = loop {
            let end = request_end(&buffer);
            match end {
                Some(end) if buffer.len() >= end => break end,
                Some(end) => buffer.reserve(end - buffer.len()),
                None => buffer.reserve(4 << 10),
            }
            let (begin, capacity) = (buffer.len(), buffer.capacity());
            let slice = monoio::buf::IoBufMut::slice_mut(buffer, begin..capacity);
            let (read, slice) = stream.read(slice).await;
            buffer = slice.into_inner();
            if !matches!(read, Ok(read) if read > 0) {
                return;
            }
        };
        let seen = &buffer[..end.min(SCAN_BYTES_MAX)];
        let sent = match Wanted::read(seen) {
            Some(wanted) => tell(&mut stream, wanted).await,
            None => stream.write_all(answer).await.0.map(|_| ()),
        };
        if sent.is_err() {
            return;
        }
    }
}

struct Wanted {
    tokens: u64,
    pause: Duration,
}

impl Wanted {
    /// `None`: no stream.
    fn read(request: &[u8]) -> Option<Self> {
        if find(request, b"\"stream\":true").is_none()
            && find(request, b"\"stream\": true").is_none()
        {
            return None;
        }
        let tokens = number_after(request, b"\"max_tokens\":").unwrap_or(TOKENS_DEFAULT);
        let pause_ms = number_after(request, b"\"pause_ms\":").unwrap_or(PAUSE_MS_DEFAULT);
        Some(Wanted { tokens, pause: Duration::from_millis(pause_ms) })
    }
}

/// The number behind the first `key`.
pub fn number_after(bytes: &[u8], key: &[u8]) -> Option<u64> {
    let rest = &bytes[find(bytes, key)? + key.len()..];
    let rest = rest.trim_ascii_start();
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

async fn tell(stream: &mut TcpStream, wanted: Wanted) -> std::io::Result<()> {
    let mut chunk = format!("{:x}\r\n{EVENT}\r\n", EVENT.len()).into_bytes();
    let stamp_at = find(&chunk, STAMP_KEY).map_or(0, |at| at + STAMP_KEY.len());
    stream.write_all(STREAM_HEAD).await.0?;
    for token in 0..wanted.tokens {
        if token > 0 {
            monoio::time::sleep(wanted.pause).await;
        }
        let stamp = format!("{:0>width$}", unix_us(), width = STAMP_DIGITS);
        chunk[stamp_at..stamp_at + STAMP_DIGITS].copy_from_slice(stamp.as_bytes());
        let (sent, back) = stream.write_all(chunk).await;
        chunk = back;
        sent?;
    }
    stream.write_all(STREAM_END).await.0.map(|_| ())
}

fn request_end(bytes: &[u8]) -> Option<usize> {
    let head = find(bytes, b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).ok()?.to_ascii_lowercase();
    let length = text
        .split("content-length:")
        .nth(1)
        .and_then(|rest| rest.lines().next().and_then(|line| line.trim().parse::<usize>().ok()));
    Some(head + length.unwrap_or(0))
}

fn answer() -> &'static [u8] {
    static ANSWER: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    ANSWER.get_or_init(|| {
        let body = format!(
            r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{{"index":0,"message":{{"role":"assistant","content":"{}"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":256,"completion_tokens":64,"total_tokens":320,"prompt_tokens_details":{{"cached_tokens":128}}}}}}"#,
            "word ".repeat(64)
        );
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    })
}
