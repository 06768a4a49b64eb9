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
use crate::reply::Framed;
use crate::shard::Shard;
use crate::tokenize::{Cut, Prefix};
use crate::watch::Verdict;

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
    let mut payload_only = payload_only(client, request, &answer);
    let may_stay = request.head.keep_alive && !shard.is_draining();
    let keep_alive =
        write_head(client, request, decided, &mut answer, payload_only.is_some(), may_stay);
    let ended = pass_on(shard, client, decided, &mut answer, &mut payload_only).await;
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
            end_with_error_event(client, &answer, payload_only.is_some()).await;
            Relayed::Close
        }
    }
}

/// Who ended the exchange early.
enum Broken {
    Client,
    Engine,
}

/// A scanner of its own where the client cannot be given the engine's chunks: HTTP/1.0 and HTTP/2.
fn payload_only(client: &Client, request: &Request, answer: &Answer) -> Option<BodyScanner> {
    let foreign = client.is_http2() || request.head.is_http_10;
    (foreign && answer.head.framing == Framing::Chunked)
        .then(|| BodyScanner::new(answer.head.framing))
}

/// Head and first part leave in one write; then each part as it comes.
async fn pass_on(
    shard: &Shard,
    client: &mut Client,
    decided: &Decided<'_>,
    answer: &mut Answer,
    payload_only: &mut Option<BodyScanner>,
) -> Result<(), Broken> {
    let body_at = answer.buffer().len() - answer.body_bytes;
    append(client, payload_only, &answer.buffer()[body_at..]);
    client.flush().await.map_err(|_| Broken::Client)?;
    let mut last = None;
    if answer.body_bytes > 0 {
        last = stamp(shard, decided.started, last);
    }
    while !answer.scanner.is_done() {
        match answer.next_part().await {
            Ok(true) => {}
            Ok(false) => break,
            Err(_) if client.watch.verdict() == Some(Verdict::ClientGone) => {
                return Err(Broken::Client);
            }
            Err(_) => return Err(Broken::Engine),
        }
        last = stamp(shard, decided.started, last);
        if client.is_http2() || payload_only.is_some() {
            append(client, payload_only, answer.buffer());
            client.flush().await.map_err(|_| Broken::Client)?;
        } else {
            client.watch.enter(crate::watch::Phase::Client);
            client.write(answer.buffer()).await.map_err(|_| Broken::Client)?;
        }
    }
    client.finish().await.map_err(|_| Broken::Client)
}

/// Lays one part of the engine's bytes down as the client is to see it.
fn append(client: &mut Client, payload_only: &mut Option<BodyScanner>, part: &[u8]) {
    match payload_only {
        None => client.push(part),
        Some(scanner) => {
            // The answer's own scanner took these bytes already, so they are well formed.
            let taken = scanner.feed(part, |run| client.push(run));
            debug_assert_eq!(taken, Ok(part.len()));
        }
    }
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

/// Writes the engine's head with ours in it; whether the client's connection stays open.
fn write_head(
    client: &mut Client,
    request: &Request,
    decided: &Decided<'_>,
    answer: &mut Answer,
    payload_only: bool,
    may_stay: bool,
) -> bool {
    // Taken out for the time of the loop: the fields point into the answer's own buffer.
    let fields = std::mem::take(&mut answer.head.fields);
    let (status, reason) = (answer.head.status, answer.head.reason.clone());
    let framing = answer.head.framing;
    let bytes = answer.buffer();
    client.start_head(status, &bytes[reason]);
    for field in &fields {
        let name = &bytes[field.name.clone()];
        if !is_hop_by_hop(name) && !is_ours(name) {
            client.field(name, &bytes[field.value.clone()]);
        }
    }
    client.field(b"x-request-id", decided.request_id.as_bytes());
    client.field(b"x-cgn-worker", decided.seat.worker.worker.id.as_bytes());
    client.field(b"x-cgn-prefix-tokens", decided.seat.prefix_tokens.to_string().as_bytes());
    let framed = match framing {
        Framing::None if status == 204 || status == 304 => Framed::Nothing,
        Framing::None => Framed::Length(0),
        Framing::Length(length) => Framed::Length(length),
        _ if client.is_http2() => Framed::Frames,
        Framing::Chunked if payload_only => Framed::UntilClose,
        Framing::Chunked => {
            client.field(b"transfer-encoding", b"chunked");
            Framed::Raw
        }
        Framing::UntilClose => Framed::UntilClose,
    };
    let keep_alive = may_stay && framed != Framed::UntilClose;
    let say = match keep_alive {
        false => Some(false),
        true => request.head.is_http_10.then_some(true),
    };
    client.end_head(framed, say);
    keep_alive
}

/// Says what happened, where that can be said: an error event, then the end of the stream.
async fn end_with_error_event(client: &mut Client, answer: &Answer, payload_only: bool) {
    let between_chunks = client.framed == Framed::Raw && answer.scanner.at_chunk_boundary();
    if !answer.head.is_event_stream || !(between_chunks || payload_only || client.is_http2()) {
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
    if client.framed == Framed::Raw {
        client.framed = Framed::Chunks;
    }
    client.push(&event);
    // A client that is gone too needs no telling.
    let _ = client.finish().await;
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
