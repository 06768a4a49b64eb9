//! Phase *forward*: the client's bytes → one engine, up to the head of its answer.
//!
//! The body goes out as it came in. A kept connection that turns out closed is replaced by a fresh
//! one to the same engine; any other failure before the head is the caller's to retry elsewhere.
//! An answer that is no stream and is short enough is read whole here, and of a stream the first
//! event is awaited, so that an engine that dies until then is a failure before the first byte too.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::candidates::Seat;
use crate::http::body::BodyScanner;
use crate::http::head::{Field, ResponseHead, is_hop_by_hop};
use crate::read::Request;
use crate::shard::Shard;
use crate::trace::context::TRACEPARENT_BYTES;
use crate::upstream::{Connection, UpstreamError};
use crate::usage::Tail;
use crate::watch::{Phase, Watch};

/// A body up to this size is copied behind the head and leaves in one write: at 64 KiB the copy costs
/// about 5 µs, a second write about as much and a second wake-up of the engine.
const ONE_WRITE_BYTES_MAX: usize = 64 << 10;

/// An engine that has begun to answer. Its connection holds the head and what followed it.
pub struct Answer {
    /// What the head says.
    pub head: ResponseHead,
    /// Follows the body.
    pub scanner: BodyScanner,
    /// The end of the payload.
    pub tail: Tail,
    /// Bytes of the body that lie in the connection's buffer, behind the head.
    pub body_bytes: usize,
    connection: Option<Connection>,
    watch: Rc<Watch>,
    lane: usize,
}

impl Answer {
    /// The connection's buffer: head, then body so far. Later parts replace the whole of it.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.connection_mut().buffer
    }

    fn connection_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("an answer has its connection until it is finished")
    }

    /// Drops what was passed on and reads the next part. `Ok(false)` at a clean end by closing.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn next_part(&mut self) -> Result<bool, UpstreamError> {
        self.buffer().clear();
        self.watch.enter(Phase::EngineNext);
        let read = self.connection_mut().read().await;
        self.watch.enter(Phase::Busy);
        match read {
            Ok(read) if read > 0 => {
                self.follow(0)?;
                Ok(true)
            }
            _ if self.scanner.may_close() && self.watch.verdict().is_none() => Ok(false),
            _ => Err(UpstreamError::Ended),
        }
    }

    /// Runs the scanner over the buffer from `at`; bytes behind the body's end are an error.
    fn follow(&mut self, at: usize) -> Result<(), UpstreamError> {
        let Answer { scanner, tail, connection, body_bytes, .. } = self;
        let Some(connection) = connection else { return Err(UpstreamError::Ended) };
        let bytes = &connection.buffer[at..];
        let taken =
            scanner.feed(bytes, |run| tail.push(run)).map_err(|_| UpstreamError::Malformed)?;
        if taken < bytes.len() {
            return Err(UpstreamError::Malformed);
        }
        *body_bytes = bytes.len();
        Ok(())
    }

    /// Reads until the body is complete or longer than `max`.
    async fn hold(&mut self, max: usize) -> Result<(), UpstreamError> {
        while !self.scanner.is_done() && self.body_bytes <= max {
            let before = self.connection_mut().buffer.len();
            // Of a stream the head alone is no sign of life: its first event is.
            let is_first = self.body_bytes == 0;
            self.watch.enter(if is_first { Phase::EngineFirst } else { Phase::EngineNext });
            let read = self.connection_mut().read().await;
            self.watch.enter(Phase::Busy);
            match read {
                Ok(read) if read > 0 => {
                    let so_far = self.body_bytes;
                    self.follow(before)?;
                    self.body_bytes += so_far;
                }
                _ if self.scanner.may_close() && self.watch.verdict().is_none() => break,
                _ => return Err(UpstreamError::Ended),
            }
        }
        Ok(())
    }

    /// Gives the connection back to the pool if the answer was read to its end and it stays open.
    pub fn finish(mut self, shard: &Shard, now: Instant) {
        self.watch.set_engine(self.lane, None);
        if let Some(connection) = self.connection.take()
            && self.scanner.is_done()
            && self.head.keep_alive
        {
            shard.pool.keep(connection, now, &shard.config.limits);
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // Before the connection's socket is closed: the watchdog must not meet its number again.
        self.watch.set_engine(self.lane, None);
    }
}

/// One request on its way to one engine.
#[derive(Clone)]
pub struct Outgoing<'a> {
    /// As the client sent it.
    pub request: &'a Request,
    /// Its id.
    pub request_id: Rc<str>,
    /// The trace's context for this attempt, where traces are recorded; else the client's own passes.
    pub traceparent: Option<[u8; TRACEPARENT_BYTES]>,
    /// The client's credential is for us and stays here.
    pub drops_credentials: bool,
    /// A body and path that replace the client's, for a stream that goes on.
    pub instead: Option<(&'a str, &'a [u8])>,
    /// Which of two engines asked at once this is.
    pub lane: usize,
}

impl Outgoing<'_> {
    fn body(&self) -> &[u8] {
        self.instead.map_or_else(|| self.request.body(), |(_, body)| body)
    }

    fn target(&self) -> &str {
        self.instead.map_or_else(|| self.request.target(), |(path, _)| path)
    }

    /// The head the engine gets: the client's fields without the hop-by-hop ones and ours.
    fn head(&self, seat: &Seat) -> Vec<u8> {
        let request = self.request;
        let bytes = request.head_bytes();
        let body = self.body();
        let room = if body.len() <= ONE_WRITE_BYTES_MAX { body.len() } else { 0 };
        let mut head = Vec::with_capacity(request.head.length + 192 + room);
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| head.extend_from_slice(part));
        put(&[request.method().as_bytes(), b" ", self.target().as_bytes()]);
        put(&[b" HTTP/1.1\r\nhost: ", seat.worker.target.authority.as_bytes()]);
        put(&[b"\r\ncontent-length: ", body.len().to_string().as_bytes()]);
        put(&[b"\r\nx-request-id: ", self.request_id.as_bytes(), b"\r\n"]);
        if let Some(traceparent) = &self.traceparent {
            put(&[b"traceparent: ", traceparent, b"\r\n"]);
        }
        let this_hop = named_by_connection(bytes, &request.head.fields);
        for field in &request.head.fields {
            let name = &bytes[field.name.clone()];
            let is_named = this_hop.iter().any(|option| name.eq_ignore_ascii_case(option));
            if !is_named && self.passes_on(name) {
                put(&[name, b": ", &bytes[field.value.clone()], b"\r\n"]);
            }
        }
        head.extend_from_slice(b"\r\n");
        head
    }

    fn passes_on(&self, name: &[u8]) -> bool {
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        !(is_hop_by_hop(name)
            || is_ours(name)
            || is(b"host")
            || self.drops_credentials && (is(b"authorization") || is(b"x-api-key"))
            || self.traceparent.is_some() && is(b"traceparent"))
    }
}

/// Sends the request to the engine of `seat` and waits for its answer to begin.
///
/// # Errors
/// [`UpstreamError`]; [`Watch::verdict`] may say more.
pub async fn send(
    shard: &Shard,
    watch: &Rc<Watch>,
    outgoing: &Outgoing<'_>,
    seat: &Seat,
) -> Result<Answer, UpstreamError> {
    let limits = &shard.config.limits;
    let address = &seat.worker.target.address;
    let kept = shard.pool.connect(address, limits).await?;
    match exchange(shard, watch, outgoing, seat, kept).await {
        // Ended by the watchdog, not by the engine: it got the request.
        Err(UpstreamError::Stale) if watch.verdict().is_some() => Err(UpstreamError::Ended),
        Err(UpstreamError::Stale) => {
            shard.stats.retries.with_label_values(&["stale_connection"]).inc();
            let fresh = Connection::open(address, limits).await?;
            exchange(shard, watch, outgoing, seat, fresh).await
        }
        other => other,
    }
}

async fn exchange(
    shard: &Shard,
    watch: &Rc<Watch>,
    outgoing: &Outgoing<'_>,
    seat: &Seat,
    connection: Connection,
) -> Result<Answer, UpstreamError> {
    let mut head = outgoing.head(seat);
    let body = outgoing.body();
    let mut answer = Answer {
        head: ResponseHead::none(),
        scanner: BodyScanner::new(crate::http::body::Framing::None),
        tail: Tail::default(),
        body_bytes: 0,
        connection: Some(connection),
        watch: Rc::clone(watch),
        lane: outgoing.lane,
    };
    let socket = answer.connection_mut().socket();
    watch.set_engine(outgoing.lane, Some((socket, Arc::clone(&seat.worker.life.given_up))));
    watch.enter(Phase::EngineFirst);
    if body.len() <= ONE_WRITE_BYTES_MAX {
        head.extend_from_slice(body);
        answer.connection_mut().send(&mut head).await?;
    } else {
        answer.connection_mut().send(&mut head).await?;
        answer.connection_mut().send(&mut body.to_vec()).await?;
    }
    let limit = shard.config.limits.head_bytes_max;
    let head = answer.connection_mut().read_head(limit).await;
    watch.enter(Phase::Busy);
    answer.head = head?;
    answer.scanner = BodyScanner::new(answer.head.framing);
    answer.follow(answer.head.length)?;
    // Of a stream only the head waits, for the first byte behind it: until then another worker can
    // still take over, and head and first event leave in one write.
    let hold = match answer.head.is_event_stream {
        true => 0,
        false => shard.config.limits.answer_hold_bytes_max,
    };
    answer.hold(hold).await?;
    Ok(answer)
}

/// The fields a client declares to be for this hop only (RFC 9110 §7.6.1).
fn named_by_connection<'a>(bytes: &'a [u8], fields: &[Field]) -> Vec<&'a [u8]> {
    let is_connection =
        |field: &&Field| bytes[field.name.clone()].eq_ignore_ascii_case(b"connection");
    fields
        .iter()
        .filter(is_connection)
        .flat_map(|field| bytes[field.value.clone()].split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .collect()
}

/// Fields that only the router sets.
pub fn is_ours(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"x-request-id")
        || name.len() >= 6 && name[..6].eq_ignore_ascii_case(b"x-cgn-")
}

/// Whether a failure says that the worker is down (and not that this request is).
pub fn is_down(error: UpstreamError) -> bool {
    matches!(error, UpstreamError::Connect | UpstreamError::Ended | UpstreamError::Stale)
}
