//! Phase *relay*: the engine's answer → the client, as it comes.
//!
//! The head is passed on with the router's fields added. A body that is no resumable stream passes byte
//! for byte, the engine's chunks included. A stream that another engine could go on with passes event
//! by event: what the client was sent is written down (`resume::Tape`), and the beginning of an event is
//! held back until its end is there. Where the engine dies, `onward.rs` goes on; where that cannot be, the
//! client gets a well-formed error event and the end, or a broken connection.

use std::time::Instant;

use crate::access::End;
use crate::account;
use crate::admit::Ticket;
use crate::candidates::Seat;
use crate::connection::Client;
use crate::dispatch::{self, Wanted};
use crate::forward::{Answer, is_ours};
use crate::http::body::{BodyScanner, Framing};
use crate::http::head::is_hop_by_hop;
use crate::onward::{self, Onward};
use crate::openai::{self, Endpoint};
use crate::record::Record;
use crate::reply::{ClientGone, Framed};
use crate::resume::{Tape, Transcript};
use crate::shard::Shard;
use crate::tokenize::{Cut, Prefix};
use crate::watch::{Phase, Verdict};

/// Streams with fewer parts say nothing of a worker's pace.
const PACE_PARTS_MIN: u32 = 8;

/// How the relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relayed {
    /// Complete; the client's connection may be used again.
    KeepAlive,
    /// Complete or not, the client's connection ends here.
    Close,
}

/// Who ended an exchange early.
#[derive(Debug)]
pub enum Broken {
    /// The client hung up or takes no bytes.
    Client,
    /// The engine died, stalled or talked nonsense.
    Engine,
}

impl From<ClientGone> for Broken {
    fn from(_: ClientGone) -> Self {
        Broken::Client
    }
}

/// The client's side of one answer.
pub struct Passage {
    /// Takes the engine's chunks apart, where the client is not given them as they are.
    dechunk: Option<BodyScanner>,
    /// What the client was sent, while another engine could go on from it.
    pub tape: Option<Tape>,
    /// Payload not yet passed on: at most the beginning of an event.
    held: Vec<u8>,
    keep_alive: bool,
    speech: Option<Speech>,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Parts passed on: tokens, or a few at once.
    pub parts: u32,
    /// Events passed on, where the stream passes by events: a token each, but for a few.
    events: u64,
}

/// Where an engine left off, as far as something of ours can stand there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speech {
    /// Between two events.
    BetweenEvents,
    /// Within an event that must be ended first.
    InEvent,
}

/// Passes `answer` on to the client, to its end.
pub async fn answer(
    shard: &Shard,
    client: &mut Client,
    wanted: &Wanted<'_>,
    ticket: &mut Ticket,
    seat: Seat,
    mut answer: Answer,
    record: &mut Record,
) -> Relayed {
    let mut passage = Passage::of(shard, client, wanted, &answer);
    passage.write_head(client, wanted, &seat, &mut answer, record);
    let endpoint = wanted.call.endpoint.as_str();
    shard.counters.answered(&shard.stats, endpoint, record.status);
    let ended =
        passage.pass_on(shard, client, &seat, &mut answer, wanted.call.endpoint, record).await;
    let ended = match ended {
        Ok(()) => {
            learn(shard, wanted.prefix, &seat, &answer, record);
            answer.finish(shard, Instant::now());
            Ok(())
        }
        Err(Broken::Engine) => {
            dispatch::blame(shard, &client.watch, &seat);
            passage.left_off(client, &answer);
            // Closes the connection: an engine that only stalls stops working on this.
            drop(answer);
            go_on(shard, client, wanted, ticket, &seat, &mut passage, record).await
        }
        Err(Broken::Client) => Err(Broken::Client),
    };
    passage.settle(shard, &seat, ticket, wanted, record);
    match ended {
        Ok(()) if passage.keep_alive => Relayed::KeepAlive,
        Ok(()) => Relayed::Close,
        Err(Broken::Client) => {
            shard.stats.clients_gone.inc();
            record.end = End::ClientGone;
            Relayed::Close
        }
        Err(Broken::Engine) => {
            record.end = End::EngineFailed;
            Relayed::Close
        }
    }
}

/// The engine failed: another one goes on, or the client is told.
async fn go_on(
    shard: &Shard,
    client: &mut Client,
    wanted: &Wanted<'_>,
    ticket: &mut Ticket,
    seat: &Seat,
    passage: &mut Passage,
    record: &mut Record,
) -> Result<(), Broken> {
    passage.held.clear();
    let worker = seat.worker.worker.id.as_str();
    let onward = match passage.tape.take() {
        Some(tape) => {
            let seat = Onward { wanted, ticket, dead: &seat.worker };
            onward::go_on(shard, client, seat, &tape, passage, record).await
        }
        None => Err(onward::Stuck::Unsafe("not_resumable")),
    };
    match onward {
        Ok(way) => {
            shard.stats.resumed.with_label_values(&["resumed"]).inc();
            record.resumed = true;
            tracing::info!(
                worker,
                way,
                request_id = &*record.request_id,
                "a stream went on elsewhere"
            );
            Ok(())
        }
        Err(onward::Stuck::Client) => Err(Broken::Client),
        Err(onward::Stuck::Unsafe(reason) | onward::Stuck::Failed(reason)) => {
            shard.stats.resumed.with_label_values(&[reason]).inc();
            shard.stats.streams_broken.inc();
            tracing::warn!(
                worker,
                reason,
                request_id = &*record.request_id,
                "the engine failed in the middle of an answer"
            );
            let why = Why::of(client.watch.verdict());
            client.watch.forgive_all();
            passage.end_with_error_event(client, wanted.request.path(), why).await;
            Err(Broken::Engine)
        }
    }
}

/// What a client is told whose stream cannot be completed.
struct Why {
    message: &'static str,
    code: &'static str,
}

impl Why {
    fn of(verdict: Option<Verdict>) -> Self {
        let (message, code) = match verdict {
            Some(Verdict::TooLong) => {
                ("the answer took longer than a request may take here", "engine_timeout")
            }
            Some(Verdict::RouterStops) => {
                ("the server stops; send the request again", "server_stopping")
            }
            _ => (
                "the engine failed in the middle of the answer; send the request again",
                "engine_failed",
            ),
        };
        Why { message, code }
    }
}

impl Passage {
    fn of(shard: &Shard, client: &Client, wanted: &Wanted<'_>, answer: &Answer) -> Self {
        let is_resumable = shard.config.resume.enabled
            && wanted.call.stream
            && answer.head.status == 200
            && answer.head.is_event_stream
            && matches!(wanted.call.endpoint, Endpoint::Chat | Endpoint::Completions);
        // HTTP/1.0 and HTTP/2 know no chunks.
        let foreign = client.is_http2() || wanted.request.head.is_http_10;
        let by_payload = foreign || is_resumable;
        Passage {
            dechunk: by_payload.then(|| BodyScanner::new(answer.head.framing)),
            tape: is_resumable.then(Tape::default),
            held: Vec::new(),
            keep_alive: wanted.request.head.keep_alive && !shard.is_draining(),
            speech: None,
            first: None,
            last: None,
            parts: 0,
            events: 0,
        }
    }

    /// Writes the engine's head with ours in it.
    fn write_head(
        &mut self,
        client: &mut Client,
        wanted: &Wanted<'_>,
        seat: &Seat,
        answer: &mut Answer,
        record: &mut Record,
    ) {
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
        (record.status, record.prefix_tokens) = (status, seat.prefix_tokens);
        client.field(b"x-request-id", record.request_id.as_bytes());
        client.field(b"x-cgn-worker", seat.worker.worker.id.as_bytes());
        client.field(b"x-cgn-prefix-tokens", seat.prefix_tokens.to_string().as_bytes());
        account::tell(client, record);
        let is_http_10 = wanted.request.head.is_http_10;
        let framed = match framing {
            Framing::None if status == 204 || status == 304 => Framed::Nothing,
            Framing::None => Framed::Length(0),
            // A stream of announced length that goes on elsewhere would have another one.
            Framing::Length(length) if self.tape.is_none() => Framed::Length(length),
            _ if client.is_http2() => Framed::Frames,
            _ if is_http_10 => Framed::UntilClose,
            _ if self.tape.is_some() => Framed::Chunks,
            Framing::Chunked => {
                client.field(b"transfer-encoding", b"chunked");
                Framed::Raw
            }
            Framing::Length(_) | Framing::UntilClose => Framed::UntilClose,
        };
        self.keep_alive &= framed != Framed::UntilClose;
        let say = match self.keep_alive {
            false => Some(false),
            true => is_http_10.then_some(true),
        };
        client.end_head(framed, say);
    }

    /// Head and first part leave in one write; then each part as it comes.
    async fn pass_on(
        &mut self,
        shard: &Shard,
        client: &mut Client,
        seat: &Seat,
        answer: &mut Answer,
        endpoint: Endpoint,
        record: &mut Record,
    ) -> Result<(), Broken> {
        let body_at = answer.buffer().len() - answer.body_bytes;
        self.append(client, &answer.buffer()[body_at..]);
        if answer.body_bytes > 0 {
            // Before the client has it: its next request may come at once, over another core.
            seat.first_token();
        }
        client.flush().await?;
        if answer.body_bytes > 0 {
            self.stamp(shard, record);
        }
        while !answer.scanner.is_done() {
            match answer.next_part().await {
                Ok(true) => seat.first_token(),
                Ok(false) => break,
                Err(_) if client.watch.verdict() == Some(Verdict::ClientGone) => {
                    return Err(Broken::Client);
                }
                Err(_) => return Err(Broken::Engine),
            }
            if self.dechunk.is_some() || client.is_http2() {
                self.append(client, answer.buffer());
                if client.out.is_empty() {
                    continue;
                }
                client.flush().await?;
            } else {
                client.watch.enter(Phase::Client);
                client.write(answer.buffer()).await.map_err(|_| Broken::Client)?;
            }
            self.stamp(shard, record);
        }
        self.end(client, answer, endpoint).await
    }

    /// The engine's answer is over: a resumable stream must have said so itself.
    async fn end(
        &mut self,
        client: &mut Client,
        answer: &Answer,
        endpoint: Endpoint,
    ) -> Result<(), Broken> {
        let ended_by_closing = answer.head.framing == Framing::UntilClose;
        if let Some(tape) = &self.tape
            && !answer.tail.ends_stream()
            && (ended_by_closing || is_cut_short(endpoint, tape))
        {
            return Err(Broken::Engine);
        }
        let held = std::mem::take(&mut self.held);
        client.push(&held);
        client.finish().await.map_err(Broken::from)
    }

    /// Notes where the engine left off.
    fn left_off(&mut self, client: &Client, answer: &Answer) {
        if !answer.head.is_event_stream {
            return;
        }
        let on_tape = self.tape.as_ref().is_some_and(Tape::is_whole);
        let can_speak = match client.framed {
            Framed::Raw => answer.scanner.at_chunk_boundary(),
            Framed::Chunks | Framed::Frames => true,
            Framed::UntilClose => self.dechunk.is_some(),
            Framed::Length(_) | Framed::Nothing => false,
        };
        self.speech = can_speak.then(|| match on_tape || answer.tail.ends_event() {
            true => Speech::BetweenEvents,
            false => Speech::InEvent,
        });
    }

    /// Lays one part of the engine's bytes down as the client is to see it.
    fn append(&mut self, client: &mut Client, part: &[u8]) {
        let Passage { dechunk, tape, held, events, .. } = self;
        let Some(scanner) = dechunk else { return client.push(part) };
        let before = held.len();
        // The answer's own scanner took these bytes already, so they are well formed.
        let taken = scanner.feed(part, |run| held.extend_from_slice(run));
        debug_assert_eq!(taken, Ok(part.len()));
        let incomplete = tape.as_mut().map_or(0, |tape| {
            tape.push(&held[before..]);
            if tape.is_whole() { tape.incomplete_bytes() } else { 0 }
        });
        let until = held.len().saturating_sub(incomplete);
        *events += memchr::memmem::find_iter(&held[..until], b"\n\n").count() as u64;
        client.push(&held[..until]);
        held.drain(..until);
    }

    /// TTFT for the first part, ITL for each later one.
    pub fn stamp(&mut self, shard: &Shard, record: &mut Record) {
        let now = Instant::now();
        shard.strike(now);
        match self.last {
            None => {
                self.first = Some(now);
                record.first_token(shard, now);
            }
            Some(last) => {
                shard.stats.inter_token_latency.observe((now - last).as_secs_f64());
            }
        }
        self.last = Some(now);
        self.parts += 1;
    }

    /// What the answer says of worker and tenant.
    fn settle(
        &self,
        shard: &Shard,
        seat: &Seat,
        ticket: &Ticket,
        wanted: &Wanted<'_>,
        record: &Record,
    ) {
        let prefix = wanted.prefix;
        let uncached = seat.uncached_tokens(shard, prefix);
        if let (Some(first), Some(placed), 200) = (self.first, ticket.placed(), record.status) {
            let ttft_ms = (first.saturating_duration_since(placed)).as_secs_f64() * 1_000.0;
            ticket.life().forecast.observe_ttft(uncached, ttft_ms, shard.now_ms());
            if shard.config.hedge.enabled {
                ticket.life().ttft.observe(uncached, ttft_ms);
            }
        }
        if let (Some(first), Some(last)) = (self.first, self.last)
            && self.parts >= PACE_PARTS_MIN
            && !record.resumed
        {
            let pace_ms = (last - first).as_secs_f64() * 1_000.0 / f64::from(self.parts - 1);
            seat.worker.life.window.record_latency(pace_ms);
        }
        shard.stats.e2e_latency.observe(record.started.elapsed().as_secs_f64());
        if wanted.call.stream {
            shard.stats.stream_parts.inc_by(u64::from(self.parts));
        }
        account::charge(shard, ticket, record, prefix, self.events.max(u64::from(self.parts)));
    }

    /// Says what happened, where that can be said: an error event, then the end of the stream.
    async fn end_with_error_event(&mut self, client: &mut Client, path: &str, why: Why) {
        let Some(speech) = self.speech else { return };
        client.out.clear();
        if client.framed == Framed::Raw {
            client.framed = Framed::Chunks;
        }
        if speech == Speech::InEvent {
            client.push(b"\n\n");
        }
        client.push(&openai::error_event(path, why.message, why.code));
        // A client that is gone too needs no telling.
        let _ = client.finish().await;
    }
}

/// Whether a stream that ended in good form says something and not how it ended: an engine that stops
/// may end its streams so. One that it ended by an error of its own is passed on as it is.
fn is_cut_short(endpoint: Endpoint, tape: &Tape) -> bool {
    Transcript::read(endpoint, tape).is_ok_and(|sent| !sent.finished)
}

/// On the text path a prediction is an estimate: only a miss of more than a quarter says something.
const TEXT_MISS_SHARE: f64 = 0.75;

/// Corrects the belief about the worker's cache by what the engine says it had.
fn learn(shard: &Shard, prefix: &Prefix, seat: &Seat, answer: &Answer, record: &mut Record) {
    if answer.head.status != 200 {
        return;
    }
    let usage = answer.tail.usage();
    record.usage = usage;
    let stats = &shard.stats;
    stats.prompt_tokens.inc_by(usage.prompt_tokens.unwrap_or(0));
    stats.cached_tokens.inc_by(usage.cached_tokens.unwrap_or(0));
    stats.completion_tokens.inc_by(usage.completion_tokens.unwrap_or(0));
    stats.predicted_tokens.inc_by(seat.prefix_tokens);
    if let Some(tokens) = usage.prompt_tokens {
        shard.cluster.learn_tokens_per_byte(tokens, prefix.text_bytes);
    }
    let Some(cached) = usage.cached_tokens else { return };
    if seat.source.is_engine() {
        let within = u64::from(prefix.block_tokens());
        let verdict = if cached + within <= seat.prefix_tokens {
            "fewer"
        } else if seat.prefix_tokens + within <= cached {
            "more"
        } else {
            "equal"
        };
        stats.kv_predictions.with_label_values(&[verdict]).inc();
        return;
    }
    if seat.matched.blocks == 0 {
        return;
    }
    // An engine recomputes at least the last token, so a block may be missing from a full match.
    let expected = match prefix.cut {
        Cut::Text => (seat.prefix_tokens as f64 * TEXT_MISS_SHARE) as u64,
        Cut::Tokens | Cut::None => {
            seat.prefix_tokens.saturating_sub(2 * shard.config.kv.block_tokens as u64)
        }
    };
    seat.worker.life.cache.correct(seat.matched.age_blocks, cached >= expected);
}
