//! A bare engine: reads a request by its length and answers from a constant. It must cost less than
//! any proxy before it, so it parses nothing and keeps nothing.
//!
//! A body with `"stream":true` is answered with [`STREAM_TOKENS`] events, one each [`TOKEN_PAUSE`].

use std::time::Duration;

use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};

/// Tokens of a stream.
pub const STREAM_TOKENS: usize = 64;
/// Between two of them: 200 tokens a second for each client.
const TOKEN_PAUSE: Duration = Duration::from_millis(5);

/// Serves for ever.
pub fn run(port: u16) {
    let mut flags = io_uring::IoUring::builder();
    flags.setup_coop_taskrun().setup_single_issuer();
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .uring_builder(flags)
        .enable_timer()
        .build()
        .expect("an io_uring runtime for the bare engine");
    runtime.block_on(async move {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("the bare engine's port");
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            monoio::spawn(serve(stream));
        }
    });
}

async fn serve(mut stream: TcpStream) {
    let answer = answer();
    let (stream_head, event, stream_end) = stream_parts();
    let mut buffer: Vec<u8> = Vec::with_capacity(64 << 10);
    loop {
        buffer.clear();
        let end = loop {
            if let Some(end) = request_end(&buffer)
                && buffer.len() >= end
            {
                break end;
            }
            buffer.reserve(16 << 10);
            let (begin, capacity) = (buffer.len(), buffer.capacity());
            let slice = monoio::buf::IoBufMut::slice_mut(buffer, begin..capacity);
            let (read, slice) = stream.read(slice).await;
            buffer = slice.into_inner();
            if !matches!(read, Ok(read) if read > 0) {
                return;
            }
        };
        let sent = if memchr::memmem::find(&buffer[..end], b"\"stream\":true").is_some() {
            let mut sent = stream.write_all(stream_head).await.0;
            for _ in 0..STREAM_TOKENS {
                monoio::time::sleep(TOKEN_PAUSE).await;
                if sent.is_ok() {
                    sent = stream.write_all(event).await.0;
                }
            }
            match sent {
                Ok(_) => stream.write_all(stream_end).await.0,
                failed => failed,
            }
        } else {
            stream.write_all(answer).await.0
        };
        if sent.is_err() {
            return;
        }
    }
}

fn request_end(bytes: &[u8]) -> Option<usize> {
    let head = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).ok()?.to_ascii_lowercase();
    let length = text
        .split("content-length:")
        .nth(1)
        .and_then(|rest| rest.lines().next().and_then(|line| line.trim().parse::<usize>().ok()));
    Some(head + length.unwrap_or(0))
}

fn answer() -> &'static [u8] {
    let body = format!(
        r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{{"index":0,"message":{{"role":"assistant","content":"{}"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":256,"completion_tokens":64,"total_tokens":320,"prompt_tokens_details":{{"cached_tokens":128}}}}}}"#,
        "word ".repeat(64)
    );
    leak(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))
}

fn stream_parts() -> (&'static [u8], &'static [u8], &'static [u8]) {
    let event = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"finish_reason\":null}]}\n\n";
    (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
        leak(format!("{:x}\r\n{event}\r\n", event.len())),
        b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n",
    )
}

/// One small constant for the life of the process.
fn leak(text: String) -> &'static [u8] {
    String::leak(text).as_bytes()
}
