//! A stream goes on after its engine died: on another worker, once.
//!
//! `resume.rs` decides what to ask and makes one stream of the two; here is the asking. What the client
//! was sent stays sent: until the second engine says something new, nothing is written, and another way
//! or another worker may still be tried.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::admit::Ticket;
use crate::candidates::{Seat, Tried};
use crate::cluster::WorkerView;
use crate::connection::Client;
use crate::dispatch::{self, Wanted};
use crate::forward::{self, Answer, Outgoing};
use crate::http::body::BodyScanner;
use crate::record::Record;
use crate::relay::Passage;
use crate::resume::{Ask, Broken, Plan, Rewriter, Tape, Transcript, Unsafe, plan};
use crate::shard::Shard;
use crate::trace::request_trace::Step;
use crate::upstream::UpstreamError;
use crate::watch::{Phase, Verdict};

/// Between two looks for a worker, while none is ready.
const LOOK: Duration = Duration::from_millis(50);

/// What goes on.
pub struct Onward<'a> {
    /// The request.
    pub wanted: &'a Wanted<'a>,
    /// Its place.
    pub ticket: &'a mut Ticket,
    /// The worker that failed.
    pub dead: &'a Arc<WorkerView>,
}

/// Why a stream does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// The client is gone.
    Client,
    /// What was sent does not allow it.
    Unsafe(&'static str),
    /// Nobody could go on.
    Failed(&'static str),
}

/// How one attempt failed.
enum Setback {
    /// The client is gone.
    Client,
    /// This way does not work there; nothing was written.
    Way,
    /// This worker does not work; nothing was written.
    Worker,
    /// It does not listen, or is not ready.
    Refused,
    /// It failed after something new was written.
    Again,
}

/// Goes on; the name of the way that worked.
///
/// # Errors
/// [`Stuck`].
pub async fn go_on(
    shard: &Shard,
    client: &mut Client,
    onward: Onward<'_>,
    tape: &Tape,
    passage: &mut Passage,
    record: &mut Record,
) -> Result<&'static str, Stuck> {
    let Onward { wanted, ticket, dead } = onward;
    let endpoint = wanted.call.endpoint;
    let sent =
        Transcript::read(endpoint, tape).map_err(|unsafe_| Stuck::Unsafe(unsafe_.reason()))?;
    client.watch.forgive_engine();
    // The stream may have begun long ago, and the workers it was decided on may be gone.
    ticket.refresh();
    let kind = dead.worker.kind;
    let other_kinds = || ticket.model().workers.iter().any(|worker| worker.worker.kind != kind);
    match plan(endpoint, kind, wanted.request.body(), &sent) {
        Ok(Plan::Finish(end)) => {
            client.push(end);
            client.finish().await.map_err(|_| Stuck::Client)?;
            return Ok("finish");
        }
        Err(Unsafe::Engine) if other_kinds() => {}
        // What nobody could go on with is not waited for.
        Err(unsafe_) => return Err(Stuck::Unsafe(unsafe_.reason())),
        Ok(Plan::Ask(_)) => {}
    }
    let step = record.enter(Step::Resume);
    let mut tried = Tried::default();
    tried.add(dead);
    let wait_max = Duration::from_millis(shard.config.resume.wait_ms_max);
    let mut waited = Duration::ZERO;
    let mut attempts = 0;
    while attempts < shard.config.limits.attempts_max {
        match client.watch.verdict() {
            None => {}
            Some(Verdict::ClientGone | Verdict::ClientSlow) => return Err(Stuck::Client),
            Some(Verdict::RouterStops) => return Err(Stuck::Failed("router_stops")),
            Some(_) => return Err(Stuck::Failed("too_late")),
        }
        let Some(seat) = dispatch::pick(shard, ticket, wanted, &mut tried) else {
            // Time spent at a worker that then failed too is no waiting.
            if waited >= wait_max {
                return Err(Stuck::Failed("no_worker"));
            }
            waited += LOOK;
            // The engine that died may be back before another one is.
            client.watch.stay(Phase::Queue);
            monoio::time::sleep(LOOK).await;
            shard.strike(Instant::now());
            ticket.refresh();
            tried = Tried::default();
            continue;
        };
        attempts += 1;
        let planned = plan(endpoint, seat.worker.worker.kind, wanted.request.body(), &sent);
        let Plan::Ask(asks) = planned.map_err(|unsafe_| Stuck::Unsafe(unsafe_.reason()))? else {
            return Err(Stuck::Failed("attempts"));
        };
        for ask in asks {
            let way = ask.way.as_str();
            match follow(shard, client, wanted, &seat, ask, passage, record).await {
                Ok(()) => {
                    record.leave(step);
                    return Ok(way);
                }
                Err(Setback::Client) => return Err(Stuck::Client),
                Err(Setback::Again) => return Err(Stuck::Failed("failed_again")),
                Err(Setback::Way) => {}
                Err(Setback::Worker) => break,
                // Nobody was asked: time limits this, not the number of attempts.
                Err(Setback::Refused) => {
                    attempts -= 1;
                    break;
                }
            }
        }
        tried.add(&seat.worker);
    }
    Err(Stuck::Failed("attempts"))
}

/// Asks one worker in one way, and passes on what is new.
async fn follow(
    shard: &Shard,
    client: &mut Client,
    wanted: &Wanted<'_>,
    seat: &Seat,
    ask: Ask<'_>,
    passage: &mut Passage,
    record: &mut Record,
) -> Result<(), Setback> {
    let watch = client.watch.handle();
    let traceparent = record.attempt(&seat.worker);
    let outgoing = Outgoing {
        instead: Some((wanted.request.target(), &ask.body)),
        ..Outgoing::of(wanted.request, record, traceparent, shard)
    };
    let sent = forward::send(shard, &watch, &outgoing, seat).await;
    dispatch::judge(shard, &watch, seat, &sent);
    record.attempted(sent.as_ref().ok().map(|answer| answer.head.status));
    let mut answer = match sent {
        Ok(answer) if answer.head.status == 200 && answer.head.is_event_stream => answer,
        // It loads its model, as one that was started anew.
        Ok(answer) if answer.head.status == 503 => return Err(Setback::Refused),
        // It understands the request and does not like it so, or has no room.
        Ok(_) => return Err(Setback::Way),
        Err(error) => {
            let gone = watch.is_client_lost();
            watch.forgive_engine();
            return Err(match error {
                _ if gone => Setback::Client,
                UpstreamError::Connect => Setback::Refused,
                _ => Setback::Worker,
            });
        }
    };
    let mut rewriter = ask.rewriter;
    match rewrite(shard, client, seat, &mut answer, &mut rewriter, passage, record).await {
        Ok(()) => {
            record.usage = answer.tail.usage();
            client.finish().await.map_err(|_| Setback::Client)?;
            answer.finish(shard, Instant::now());
            Ok(())
        }
        Err(Setback::Worker) => {
            dispatch::blame(shard, &watch, seat);
            let gone = watch.is_client_lost();
            watch.forgive_engine();
            match rewriter.is_past_what_was_sent() {
                _ if gone => Err(Setback::Client),
                true => Err(Setback::Again),
                false => Err(Setback::Worker),
            }
        }
        Err(other) => Err(other),
    }
}

/// Reads the second engine's stream to its end.
async fn rewrite(
    shard: &Shard,
    client: &mut Client,
    seat: &Seat,
    answer: &mut Answer,
    rewriter: &mut Rewriter,
    passage: &mut Passage,
    record: &mut Record,
) -> Result<(), Setback> {
    let mut scanner = BodyScanner::new(answer.head.framing);
    let (mut payload, mut events) = (Vec::new(), Vec::new());
    let mut begin = answer.buffer().len() - answer.body_bytes;
    loop {
        payload.clear();
        let part = &answer.buffer()[begin..];
        // The answer's own scanner took these bytes already, so they are well formed.
        let _ = scanner.feed(part, |run| payload.extend_from_slice(run));
        begin = 0;
        let pushed = rewriter.push(&payload, &mut events);
        if !events.is_empty() {
            client.push(&events);
            events.clear();
            seat.first_token();
            client.flush().await.map_err(|_| Setback::Client)?;
            passage.stamp(shard, record);
        }
        match pushed {
            Ok(()) => {}
            Err(Broken::Deviated) => return Err(Setback::Way),
            Err(Broken::Unreadable) => return Err(Setback::Worker),
        }
        if answer.scanner.is_done() || rewriter.is_done() {
            break;
        }
        match answer.next_part().await {
            Ok(true) => {}
            Ok(false) => break,
            Err(_) => return Err(Setback::Worker),
        }
    }
    // Without its `[DONE]` a stream is cut off, however politely.
    if rewriter.is_done() { Ok(()) } else { Err(Setback::Worker) }
}
