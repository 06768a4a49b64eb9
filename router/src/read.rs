//! Phase *read*: bytes from the client → one whole request, bounded.

use std::ops::Range;

use crate::connection::Client;
use crate::error::RequestError;
use crate::http::body::{BodyScanner, Framing};
use crate::http::head::{HeadError, RequestHead, parse_request};
use crate::shard::Shard;
use crate::watch::Phase;

/// Room offered to each read while only a head is expected: most requests fit whole.
const READ_ROOM_BYTES: usize = 8 << 10;

/// Room given to a body on its announcement alone.
const ANNOUNCED_ROOM_BYTES: usize = 128 << 10;

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
    let Some(head) = head(shard, client).await? else {
        return Ok(None);
    };
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
                if !more(client, room).await? {
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
        Framing::Chunked => chunked(client, head, limit).await,
        Framing::None | Framing::UntilClose => {
            let consumed = head.length;
            let body = Body::InPlace(consumed..consumed);
            Ok(Some(Request { bytes: std::mem::take(&mut client.inbuf), head, body, consumed }))
        }
    }
}

async fn head(shard: &Shard, client: &mut Client) -> Result<Option<RequestHead>, RequestError> {
    let limit = shard.config.limits.head_bytes_max;
    loop {
        // RFC 9112 §2.2: empty lines before a request line are passed over.
        let blank = client.inbuf.iter().take_while(|&&b| b == b'\r' || b == b'\n').count();
        if blank > 0 {
            client.inbuf.drain(..blank);
        }
        if !client.inbuf.is_empty() {
            match parse_request(&client.inbuf).map_err(RequestError::Head)? {
                Some(head) if head.length <= limit => return Ok(Some(head)),
                None if client.inbuf.len() <= limit => {}
                _ => return Err(RequestError::HeadTooLong(limit)),
            }
        }
        client.watch.enter(if client.inbuf.is_empty() { Phase::ClientIdle } else { Phase::Client });
        if !more(client, READ_ROOM_BYTES).await? {
            return Ok(None);
        }
    }
}

async fn chunked(
    client: &mut Client,
    head: RequestHead,
    limit: usize,
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
        if !more(client, READ_ROOM_BYTES).await? {
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

/// Reads more; false when the client closed, broke off or was too slow.
async fn more(client: &mut Client, room: usize) -> Result<bool, RequestError> {
    let read = client.read_more(room).await;
    client.watch.enter(Phase::Client);
    Ok(matches!(read, Ok(read) if read > 0))
}
