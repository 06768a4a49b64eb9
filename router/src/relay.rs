//! Phase *relay*: the engine's answer → the client, byte for byte, as it comes.
//!
//! The head is passed on with the router's three fields added; the body's bytes are not touched, the
//! engine's chunks included. Where the engine dies in the middle of a stream the client gets a
//! well-formed error event and the end; where that cannot be said any more, a broken connection.

use std::time::Instant;

use crate::candidates::Seat;
use crate::connection::Client;
use crate::forward::{Answer, is_ours};
use crate::http::body::{BodyScanner, Framing};
use crate::http::head::is_hop_by_hop;
use crate::openai;
use crate::read::Request;
use crate::shard::Shard;
use crate::socket::write_all;
use crate::tokenize::{Cut, Prefix};
use crate::watch::{Phase, Verdict};

/// How the relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relayed {
    /// Complete; the client's connection may be used again.
    KeepAlive,
    /// Complete or not, the client's connection ends here.
    Close,
}

/// What was decided for a request, for the answer's head and for learning from its end.
pub struct Decided<'a> {
    /// The worker.
    pub seat: &'a Seat,
    /// The prompt's name.
    pub prefix: &'a Prefix,
    /// The id of the exchange.
    pub request_id: &'a str,
    /// When the request had been read.
    pub started: Instant,
}

/// Passes `answer` on to the client.
pub async fn answer(
    shard: &Shard,
    client: &mut Client,
    request: &Request,
    decided: &Decided<'_>,
    mut answer: Answer,
) -> Relayed {
    let mut outward = Outward::of(request, &answer);
    let keep_alive = request.head.keep_alive && !outward.ends_by_closing();
    write_head(&mut client.out, request, decided, &mut answer, &outward, keep_alive);
    let ended = pass_on(shard, client, decided, &mut answer, &mut outward).await;
    let now = Instant::now();
    shard.stats.e2e_latency.observe((now - decided.started).as_secs_f64());
    match ended {
        Ok(()) => {
            learn(shard, decided, &answer);
            answer.finish(shard, now);
            if keep_alive { Relayed::KeepAlive } else { Relayed::Close }
        }
        Err(Broken::Client) => {
            shard.stats.clients_gone.inc();
            Relayed::Close
        }
        Err(Broken::Engine) => {
            shard.stats.streams_broken.inc();
            tracing::warn!(
                worker = decided.seat.worker.worker.id,
                request_id = decided.request_id,
                "the engine failed in the middle of an answer"
            );
            end_with_error_event(client, &answer, &outward).await;
            Relayed::Close
        }
    }
}

/// Who ended the exchange early.
enum Broken {
    Client,
    Engine,
}

/// Head and first part leave in one write; then each part as it comes.
async fn pass_on(
    shard: &Shard,
    client: &mut Client,
    decided: &Decided<'_>,
    answer: &mut Answer,
    outward: &mut Outward,
) -> Result<(), Broken> {
    let body_at = answer.buffer().len() - answer.body_bytes;
    outward.append(&mut client.out, &answer.buffer()[body_at..]);
    client.watch.enter(Phase::Client);
    write_all(&mut client.stream, &mut client.out).await.map_err(|_| Broken::Client)?;
    let mut last = None;
    if answer.body_bytes > 0 {
        last = stamp(shard, decided.started, last);
    }
    while !answer.scanner.is_done() {
        match answer.next_part().await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(_) if client.watch.verdict() == Some(Verdict::ClientGone) => {
                return Err(Broken::Client);
            }
            Err(_) => return Err(Broken::Engine),
        }
        last = stamp(shard, decided.started, last);
        client.watch.enter(Phase::Client);
        if outward.dechunk.is_some() {
            client.out.clear();
            outward.append(&mut client.out, answer.buffer());
            write_all(&mut client.stream, &mut client.out).await
        } else {
            write_all(&mut client.stream, answer.buffer()).await
        }
        .map_err(|_| Broken::Client)?;
    }
    Ok(())
}

/// TTFT for the first part, ITL for each later one.
fn stamp(shard: &Shard, started: Instant, last: Option<Instant>) -> Option<Instant> {
    let now = Instant::now();
    match last {
        None => shard.stats.time_to_first_token.observe((now - started).as_secs_f64()),
        Some(last) => shard.stats.inter_token_latency.observe((now - last).as_secs_f64()),
    }
    Some(now)
}

/// How the body is delimited towards the client.
struct Outward {
    framing: Framing,
    /// A client of HTTP/1.0 gets the payload of the engine's chunks, ended by closing.
    dechunk: Option<BodyScanner>,
}

impl Outward {
    fn of(request: &Request, answer: &Answer) -> Self {
        let framing = answer.head.framing;
        let dechunk = (framing == Framing::Chunked && request.head.is_http_10)
            .then(|| BodyScanner::new(framing));
        Outward { framing, dechunk }
    }

    fn ends_by_closing(&self) -> bool {
        self.framing == Framing::UntilClose || self.dechunk.is_some()
    }

    /// Appends one part of the engine's bytes as the client is to see it.
    fn append(&mut self, out: &mut Vec<u8>, part: &[u8]) {
        match &mut self.dechunk {
            None => out.extend_from_slice(part),
            Some(scanner) => {
                // The answer's own scanner took these bytes already, so they are well formed.
                let taken = scanner.feed(part, |run| out.extend_from_slice(run));
                debug_assert_eq!(taken, Ok(part.len()));
            }
        }
    }
}

fn write_head(
    out: &mut Vec<u8>,
    request: &Request,
    decided: &Decided<'_>,
    answer: &mut Answer,
    outward: &Outward,
    keep_alive: bool,
) {
    // Taken out for the time of the loop: the fields point into the answer's own buffer.
    let fields = std::mem::take(&mut answer.head.fields);
    let (status, reason) = (answer.head.status, answer.head.reason.clone());
    let bytes = answer.buffer();
    out.clear();
    let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
    put(&[b"HTTP/1.1 ", status.to_string().as_bytes(), b" ", &bytes[reason], b"\r\n"]);
    for field in &fields {
        let name = &bytes[field.name.clone()];
        if !is_hop_by_hop(name) && !is_ours(name) {
            put(&[name, b": ", &bytes[field.value.clone()], b"\r\n"]);
        }
    }
    match outward.framing {
        Framing::None if status == 204 || status == 304 => {}
        Framing::None => put(&[b"content-length: 0\r\n"]),
        Framing::Length(length) => {
            put(&[b"content-length: ", length.to_string().as_bytes(), b"\r\n"]);
        }
        Framing::Chunked if outward.dechunk.is_none() => put(&[b"transfer-encoding: chunked\r\n"]),
        Framing::Chunked | Framing::UntilClose => {}
    }
    if !keep_alive {
        put(&[b"connection: close\r\n"]);
    } else if request.head.is_http_10 {
        put(&[b"connection: keep-alive\r\n"]);
    }
    put(&[
        b"x-request-id: ",
        decided.request_id.as_bytes(),
        b"\r\nx-cgn-worker: ",
        decided.seat.worker.worker.id.as_bytes(),
        b"\r\nx-cgn-prefix-tokens: ",
        decided.seat.prefix_tokens.to_string().as_bytes(),
        b"\r\n\r\n",
    ]);
}

/// Says what happened, where a chunk of ours can stand: an error event, then the end of the stream.
async fn end_with_error_event(client: &mut Client, answer: &Answer, outward: &Outward) {
    let can_speak = answer.head.is_event_stream
        && outward.framing == Framing::Chunked
        && outward.dechunk.is_none()
        && answer.scanner.at_chunk_boundary();
    if !can_speak {
        return;
    }
    let error = openai::error_body(
        "the engine failed in the middle of the answer; send the request again",
        "server_error",
        None,
        Some("engine_failed"),
    );
    let close_event: &[u8] = if answer.tail.ends_event() { b"" } else { b"\n\n" };
    let event = [close_event, b"data: ", &error, b"\n\n"].concat();
    client.out.clear();
    client.out.extend_from_slice(format!("{:x}\r\n", event.len()).as_bytes());
    client.out.extend_from_slice(&event);
    client.out.extend_from_slice(b"\r\n0\r\n\r\n");
    client.watch.enter(Phase::Client);
    // A client that is gone too needs no telling.
    let _ = write_all(&mut client.stream, &mut client.out).await;
}

/// On the text path a prediction is an estimate: only a miss of more than a quarter says something.
const TEXT_MISS_SHARE: f64 = 0.75;

/// Corrects the belief about the worker's cache by what the engine says it had.
fn learn(shard: &Shard, decided: &Decided<'_>, answer: &Answer) {
    let Decided { seat, prefix, .. } = decided;
    if answer.head.status != 200 {
        return;
    }
    let usage = answer.tail.usage();
    let stats = &shard.stats;
    stats.prompt_tokens.inc_by(usage.prompt_tokens.unwrap_or(0));
    stats.cached_tokens.inc_by(usage.cached_tokens.unwrap_or(0));
    stats.completion_tokens.inc_by(usage.completion_tokens.unwrap_or(0));
    stats.predicted_tokens.inc_by(seat.prefix_tokens);
    if let Some(tokens) = usage.prompt_tokens {
        shard.cluster.learn_tokens_per_byte(tokens, prefix.text_bytes);
    }
    if seat.matched.blocks == 0 {
        return;
    }
    let Some(cached) = usage.cached_tokens else { return };
    // An engine recomputes at least the last token, so a block may be missing from a full match.
    let expected = match prefix.cut {
        Cut::Text => (seat.prefix_tokens as f64 * TEXT_MISS_SHARE) as u64,
        Cut::Tokens | Cut::None => {
            seat.prefix_tokens.saturating_sub(2 * shard.config.kv.block_tokens as u64)
        }
    };
    seat.worker.life.cache.correct(seat.matched.age_blocks, cached >= expected);
}
