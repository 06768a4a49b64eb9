//! Phase *read*: bytes from the client → one whole request, bounded.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::connection::Client;
use crate::error::RequestError;
use crate::http::body::{BodyScanner, Framing};
use crate::http::head::{HeadError, RequestHead, parse_request};
use crate::pace::Pace;
use crate::shard::Shard;
use crate::watch::Phase;

/// Room offered to each read while only a head is expected: most requests fit whole.
const READ_ROOM_BYTES: usize = 8 << 10;

/// Room given to a body on its announcement alone.
const ANNOUNCED_ROOM_BYTES: usize = 128 << 10;

/// Empty lines passed over before a request (RFC 9112 §2.2); more of them count as part of its head.
const BLANK_LINES_MAX: usize = 2;

/// One request with the bytes it was read from.
pub struct Request {
    bytes: Vec<u8>,
    /// What the head says.
    pub head: RequestHead,
    body: Body,
    /// Bytes of `bytes` that belong to this request.
    consumed: usize,
}

enum Body {
    InPlace(Range<usize>),
    Decoded(Vec<u8>),
}

impl Request {
    /// A request that came by other means: a head in the form of HTTP/1.1, and a whole body.
    ///
    /// # Errors
    /// The head cannot be one of HTTP/1.1 either.
    pub fn from_head(bytes: Vec<u8>, body: Vec<u8>) -> Result<Self, HeadError> {
        let head = parse_request(&bytes)?.ok_or(HeadError::Malformed)?;
        let consumed = bytes.len();
        Ok(Request { bytes, head, body: Body::Decoded(body), consumed })
    }

    /// The head's bytes, which its ranges point into.
    pub fn head_bytes(&self) -> &[u8] {
        &self.bytes[..self.head.length]
    }

    /// The method.
    pub fn method(&self) -> &str {
        std::str::from_utf8(&self.bytes[self.head.method.clone()]).unwrap_or_default()
    }

    /// Path and query as sent.
    pub fn target(&self) -> &str {
        std::str::from_utf8(&self.bytes[self.head.target.clone()]).unwrap_or_default()
    }

    /// The path without its query.
    pub fn path(&self) -> &str {
        let target = self.target();
        target.split_once('?').map_or(target, |(path, _)| path)
    }

    /// The body, its chunks joined.
    pub fn body(&self) -> &[u8] {
        match &self.body {
            Body::InPlace(range) => &self.bytes[range.clone()],
            Body::Decoded(bytes) => bytes,
        }
    }

    /// Whether the body is JSON, as far as the client says: anything but a form.
    pub fn is_json(&self) -> bool {
        let bytes = self.head_bytes();
        let is_type = |field: &&crate::http::head::Field| {
            bytes[field.name.clone()].eq_ignore_ascii_case(b"content-type")
        };
        let form = b"multipart/form-data";
        !self.head.fields.iter().find(is_type).is_some_and(|field| {
            let value = &bytes[field.value.clone()];
            value.len() >= form.len() && value[..form.len()].eq_ignore_ascii_case(form)
        })
    }

    /// The bytes behind this request: the beginning of the next one, if the client pipelines.
    pub fn into_rest(mut self) -> Vec<u8> {
        self.bytes.drain(..self.consumed);
        self.bytes
    }
}

/// Reads one request; `None` when the client closed between two.
///
/// # Errors
/// [`RequestError`]; the connection must be closed where [`crate::error::Refusal::close`] says so.
pub async fn request(shard: &Shard, client: &mut Client) -> Result<Option<Request>, RequestError> {
    let mut pace = Pace::new(Duration::from_secs(shard.config.limits.client_stall_s_max));
    client.is_head = false;
    let Some(head) = head(shard, client, &mut pace).await? else {
        return Ok(None);
    };
    client.is_head = head.is_head;
    let limit = shard.config.limits.body_bytes_max;
    match head.framing {
        Framing::Length(length) => {
            let length = usize::try_from(length)
                .ok()
                .filter(|&length| length <= limit)
                .ok_or(RequestError::BodyTooLong(limit))?;
            let end = head.length + length;
            invite(client, &head, end).await?;
            // Beyond a usual prompt, room grows with what has come, not with what was announced.
            while client.inbuf.len() < end {
                let missing = end - client.inbuf.len();
                let room = missing.min(client.inbuf.len().max(ANNOUNCED_ROOM_BYTES));
                let so_far = client.inbuf.len() - head.length;
                if !more(client, room, &mut pace, so_far).await? {
                    return Ok(None);
                }
            }
            let body = Body::InPlace(head.length..end);
            Ok(Some(Request {
                bytes: std::mem::take(&mut client.inbuf),
                head,
                body,
                consumed: end,
            }))
        }
        Framing::Chunked => chunked(client, head, limit, &mut pace).await,
        Framing::None | Framing::UntilClose => {
            let consumed = head.length;
            let body = Body::InPlace(consumed..consumed);
            Ok(Some(Request { bytes: std::mem::take(&mut client.inbuf), head, body, consumed }))
        }
    }
}

async fn head(
    shard: &Shard,
    client: &mut Client,
    pace: &mut Pace,
) -> Result<Option<RequestHead>, RequestError> {
    let limit = shard.config.limits.head_bytes_max;
    let (mut blank_lines, mut seen) = (0, 0);
    loop {
        while blank_lines < BLANK_LINES_MAX && client.inbuf.starts_with(b"\r\n") {
            client.inbuf.drain(..2);
            blank_lines += 1;
        }
        if may_be_whole(&client.inbuf, seen)
            && let Some(head) = parse_request(&client.inbuf).map_err(RequestError::Head)?
        {
            return if head.length <= limit {
                Ok(Some(head))
            } else {
                Err(RequestError::HeadTooLong(limit))
            };
        }
        seen = client.inbuf.len();
        if seen > limit {
            return Err(RequestError::HeadTooLong(limit));
        }
        client.watch.enter(if seen == 0 { Phase::ClientIdle } else { Phase::Client });
        if !more(client, READ_ROOM_BYTES, pace, 0).await? {
            return Ok(None);
        }
    }
}

/// Whether a parse could end otherwise than the one that has `seen` less. Without this, a head that
/// comes byte by byte is parsed as often as it has bytes.
fn may_be_whole(head: &[u8], seen: usize) -> bool {
    let fresh = head.get(seen..).unwrap_or(head);
    !head.is_empty() && (seen == 0 || memchr::memchr(b'\n', fresh).is_some())
}

async fn chunked(
    client: &mut Client,
    head: RequestHead,
    limit: usize,
    pace: &mut Pace,
) -> Result<Option<Request>, RequestError> {
    invite(client, &head, head.length + 1).await?;
    let mut scanner = BodyScanner::new(Framing::Chunked);
    let mut decoded = Vec::new();
    let mut consumed = head.length;
    loop {
        consumed += scanner
            .feed(&client.inbuf[consumed..], |run| decoded.extend_from_slice(run))
            .map_err(|_| RequestError::Chunks)?;
        if decoded.len() > limit {
            return Err(RequestError::BodyTooLong(limit));
        }
        if scanner.is_done() {
            let bytes = std::mem::take(&mut client.inbuf);
            return Ok(Some(Request { bytes, head, body: Body::Decoded(decoded), consumed }));
        }
        // What was decoded need not be kept twice.
        client.inbuf.drain(head.length..consumed);
        consumed = head.length;
        if !more(client, READ_ROOM_BYTES, pace, decoded.len()).await? {
            return Ok(None);
        }
    }
}

/// Says `100 Continue` to a client that waits for it with its body still at home.
async fn invite(client: &mut Client, head: &RequestHead, end: usize) -> Result<(), RequestError> {
    if head.expects_continue && !head.is_http_10 && client.inbuf.len() < end {
        // A client that is gone shows at the next read.
        let _ = client.write(&mut b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()).await;
    }
    client.watch.enter(Phase::Client);
    Ok(())
}

/// Reads more; false when the client closed, broke off or was too slow. `body_bytes` have come so far.
async fn more(
    client: &mut Client,
    room: usize,
    pace: &mut Pace,
    body_bytes: usize,
) -> Result<bool, RequestError> {
    if !client.inbuf.is_empty() {
        let now = Instant::now();
        pace.begin(now);
        if pace.is_too_slow(body_bytes, now) {
            return Ok(false);
        }
    }
    let read = client.read_more(room).await;
    client.watch.enter(Phase::Client);
    Ok(matches!(read, Ok(read) if read > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_parsed_at_once_and_then_line_by_line() {
        assert!(!may_be_whole(b"", 0));
        assert!(may_be_whole(b"SSH-2.0", 0));
        assert!(!may_be_whole(b"GET / HT", 4));
        assert!(may_be_whole(b"GET / HTTP/1.1\r\n", 4));
        assert!(!may_be_whole(b"GET / HTTP/1.1\r\nA", 16));
        // An empty line was dropped meanwhile.
        assert!(!may_be_whole(b"G", 2));
    }
}
