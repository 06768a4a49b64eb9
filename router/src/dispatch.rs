//! Phases *pick*, *warm* and *forward*: on another worker after a failure, until one begins to answer.
//!
//! What may be tried again is decided by the retry budget and the breakers; what is tried twice at
//! once, by hedging. Nothing here has reached the client yet.

use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::admit::Ticket;
use crate::breaker::{FailureKind, Permit};
use crate::candidates::{self, Seat, Tried};
use crate::connection::Client;
use crate::error::RequestError;
use crate::forward::{self, Answer, Outgoing};
use crate::parse::Call;
use crate::read::Request;
use crate::record::Record;
use crate::shard::Shard;
use crate::steering::Steering;
use crate::tokenize::Prefix;
use crate::upstream::UpstreamError;
use crate::warm;
use crate::watch::{Phase, Verdict, Watch};

/// What a client wants.
pub struct Wanted<'a> {
    /// As it was sent.
    pub request: &'a Request,
    /// As far as it was read.
    pub call: &'a Call,
    /// The name of its prompt.
    pub prefix: &'a Prefix,
    /// What it says of where it goes.
    pub steering: &'a Steering,
}

/// Finds a worker that begins to answer.
///
/// # Errors
/// [`RequestError::NoneReady`], [`RequestError::EnginesFailed`], [`RequestError::EngineSilent`],
/// [`RequestError::ClientGone`].
pub async fn send(
    shard: &Shard,
    client: &Client,
    wanted: &Wanted<'_>,
    ticket: &mut Ticket,
    record: &mut Record,
) -> Result<(Seat, Answer), RequestError> {
    let watch = client.watch.handle();
    let mut tried = Tried::default();
    let mut failure = UpstreamError::Connect;
    // Of the next attempt: the first has none.
    let mut cause = None;
    shard.cluster.retries.deposit(shard.now_ms());
    while tried.len() < shard.config.limits.attempts_max {
        let Some(mut seat) = pick(shard, ticket, wanted, &mut tried) else { break };
        if let Some(cause) = cause {
            if !shard.cluster.retries.withdraw(shard.now_ms()) {
                seat.worker.life.breaker.on_unknown();
                shard.stats.retries_refused.inc();
                break;
            }
            shard.stats.retries.with_label_values(&[cause]).inc();
        }
        warm::worker(shard, &watch, ticket, wanted.prefix, &mut seat, record).await;
        if let Err(error) = give_up_for(shard, wanted, watch.verdict()) {
            // Nothing was asked of the engine.
            seat.worker.life.breaker.on_unknown();
            return Err(error);
        }
        let (seat, sent) = attempt(shard, &watch, wanted, ticket, seat, &mut tried, record).await;
        match sent {
            // Loading or overloaded: another worker may do better, if there is one.
            Ok(answer) if answer.head.status == 503 && has_other(shard, ticket, wanted, &tried) => {
                cause = Some("engine_503");
                tried.add(&seat.worker);
            }
            Ok(answer) => return Ok((seat, answer)),
            Err(error) => {
                give_up_for(shard, wanted, watch.verdict())?;
                watch.forgive_engine();
                cause = Some("engine_failed");
                failure = error;
                tried.add(&seat.worker);
            }
        }
        ticket.refresh();
    }
    if cause.is_none() {
        return Err(RequestError::NoneReady(wanted.call.model.clone()));
    }
    Err(RequestError::EnginesFailed(match failure {
        UpstreamError::Connect => "cannot connect",
        UpstreamError::Malformed => "malformed answer",
        UpstreamError::Ended | UpstreamError::Stale => "connection ended early",
        UpstreamError::TimedOut => "no answer in time",
    }))
}

/// A worker whose breaker lets the request through.
pub fn pick(
    shard: &Shard,
    ticket: &Ticket,
    wanted: &Wanted<'_>,
    tried: &mut Tried,
) -> Option<Seat> {
    loop {
        let deciding = Instant::now();
        let Wanted { call, prefix, steering, .. } = wanted;
        let seat = candidates::seat(shard, ticket, call.endpoint, prefix, steering, tried)?;
        shard.stats.decision.observe(deciding.elapsed().as_secs_f64());
        match seat.worker.life.breaker.permit(shard.now_ms()) {
            Permit::Yes | Permit::Probe => return Some(seat),
            // Another request took the probe's place in between.
            Permit::No { .. } => tried.add(&seat.worker),
        }
    }
}

/// Asks the worker of `seat`, and a second one where the first is late and hedging is on.
async fn attempt(
    shard: &Shard,
    watch: &Rc<Watch>,
    wanted: &Wanted<'_>,
    ticket: &Ticket,
    seat: Seat,
    tried: &mut Tried,
    record: &mut Record,
) -> (Seat, Result<Answer, UpstreamError>) {
    let uncached = seat.uncached_tokens(shard, wanted.prefix);
    let hedging = &shard.cluster.hedging;
    hedging.deposit(shard.now_ms());
    let Some(delay_ms) = hedging.delay_ms(&ticket.life().ttft, uncached) else {
        let sent = ask(shard, watch, wanted, &seat, 0, record).await;
        return (seat, sent);
    };
    race(shard, watch, wanted, ticket, seat, tried, delay_ms, record).await
}

/// Asks a second worker when the first has said nothing for `delay_ms`; the first of both to answer wins,
/// the other one's connection is closed.
#[expect(clippy::too_many_arguments, reason = "what one request is made of, and the delay")]
async fn race(
    shard: &Shard,
    watch: &Rc<Watch>,
    wanted: &Wanted<'_>,
    ticket: &Ticket,
    seat: Seat,
    tried: &mut Tried,
    delay_ms: u64,
    record: &mut Record,
) -> (Seat, Result<Answer, UpstreamError>) {
    let traceparent = record.attempt(&seat.worker);
    let outgoing = Outgoing::of(wanted.request, record, traceparent, shard);
    let (rival, raced) = {
        let mut first = pin!(forward::send(shard, watch, &outgoing, &seat));
        let delay = Duration::from_millis(delay_ms);
        match monoio::time::timeout(delay, first.as_mut()).await {
            Ok(sent) => (None, Raced::alone(sent)),
            Err(_) => match rival(shard, ticket, wanted, tried, &seat) {
                None => (None, Raced::alone(first.await)),
                Some(rival) => {
                    let raced = both(shard, watch, &outgoing, first, &rival).await;
                    (Some(rival), raced)
                }
            },
        }
    };
    let Raced { rival_won, sent, other } = raced;
    let (seat, loser) = match rival {
        Some(rival) if rival_won => (rival, Some(seat)),
        rival => (seat, rival),
    };
    if let Some(loser) = loser {
        match &other {
            None => loser.worker.life.breaker.on_unknown(),
            Some(outcome) => {
                judge(shard, watch, &loser, outcome);
                tried.add(&loser.worker);
            }
        }
    }
    judge(shard, watch, &seat, &sent);
    record.attempted(sent.as_ref().ok().map(|answer| answer.head.status));
    record.worker = Some(Arc::clone(&seat.worker));
    (seat, sent)
}

/// A second worker, where the budget allows one.
fn rival(
    shard: &Shard,
    ticket: &Ticket,
    wanted: &Wanted<'_>,
    tried: &Tried,
    seat: &Seat,
) -> Option<Seat> {
    if !shard.cluster.hedging.withdraw(shard.now_ms()) {
        return None;
    }
    let mut others = tried.clone();
    others.add(&seat.worker);
    pick(shard, ticket, wanted, &mut others)
}

/// How a race ended.
struct Raced {
    /// The second worker's answer is the one to pass on.
    rival_won: bool,
    /// That answer.
    sent: Result<Answer, UpstreamError>,
    /// The other one's outcome, where it was not just too slow.
    other: Option<Result<Answer, UpstreamError>>,
}

impl Raced {
    fn alone(sent: Result<Answer, UpstreamError>) -> Self {
        Raced { rival_won: false, sent, other: None }
    }
}

/// Waits for the first of two answers. One that failed leaves the other the time it needs.
async fn both(
    shard: &Shard,
    watch: &Rc<Watch>,
    outgoing: &Outgoing<'_>,
    mut first: Pin<&mut impl Future<Output = Result<Answer, UpstreamError>>>,
    rival: &Seat,
) -> Raced {
    let rival_outgoing = Outgoing { lane: 1, ..outgoing.clone() };
    let mut second = pin!(forward::send(shard, watch, &rival_outgoing, rival));
    let (rival_was_first, sent) = monoio::select! {
        sent = first.as_mut() => (false, sent),
        sent = second.as_mut() => (true, sent),
    };
    let is_good = |sent: &Result<Answer, UpstreamError>| {
        sent.as_ref().is_ok_and(|answer| answer.head.status != 503)
    };
    let raced = match is_good(&sent) {
        true => Raced { rival_won: rival_was_first, sent, other: None },
        false => {
            // The one that failed had ended the watch for both.
            watch.enter(Phase::EngineFirst);
            let other = if rival_was_first { first.await } else { second.await };
            // Of two refusals the one that says something is passed on.
            match other.is_ok() || sent.is_err() {
                true => Raced { rival_won: !rival_was_first, sent: other, other: Some(sent) },
                false => Raced { rival_won: rival_was_first, sent, other: Some(other) },
            }
        }
    };
    shard.stats.hedges.with_label_values(&[if raced.rival_won { "won" } else { "lost" }]).inc();
    raced
}

/// Asks the worker of `seat`, and tells its breaker how that went.
pub async fn ask(
    shard: &Shard,
    watch: &Rc<Watch>,
    wanted: &Wanted<'_>,
    seat: &Seat,
    lane: usize,
    record: &mut Record,
) -> Result<Answer, UpstreamError> {
    let traceparent = record.attempt(&seat.worker);
    let outgoing = Outgoing { lane, ..Outgoing::of(wanted.request, record, traceparent, shard) };
    let sent = forward::send(shard, watch, &outgoing, seat).await;
    judge(shard, watch, seat, &sent);
    record.attempted(sent.as_ref().map(|answer| answer.head.status).ok());
    sent
}

/// What the outcome says of the worker.
pub fn judge(shard: &Shard, watch: &Watch, seat: &Seat, sent: &Result<Answer, UpstreamError>) {
    let life = &seat.worker.life;
    shard.strike(Instant::now());
    let now_ms = shard.now_ms();
    let kind = match sent {
        // A 500 may be the request's own fault: it must not close a worker to everybody else.
        Ok(answer) if !matches!(answer.head.status, 502 | 504) => None,
        Ok(_) | Err(UpstreamError::Malformed | UpstreamError::TimedOut) => {
            Some(FailureKind::Answer)
        }
        Err(_) => match watch.verdict() {
            Some(Verdict::FirstByteLate | Verdict::EngineStalled) => Some(FailureKind::Answer),
            Some(_) => return life.breaker.on_unknown(),
            // It does not listen.
            None if matches!(sent, Err(UpstreamError::Connect)) => Some(FailureKind::Connect),
            // It hung up without a word, perhaps on this request alone: that must not close a worker to
            // everybody else at once. If it is gone, the next connection says so.
            None => Some(FailureKind::Answer),
        },
    };
    life.window.record(kind.is_some(), now_ms);
    match kind {
        None => life.breaker.on_success(now_ms),
        Some(kind) => life.breaker.on_failure(kind, now_ms, shard.next_id()),
    }
}

/// The engine of `seat` broke off in the middle of an answer.
pub fn blame(shard: &Shard, watch: &Watch, seat: &Seat) {
    if matches!(watch.verdict(), None | Some(Verdict::EngineStalled)) {
        let (life, now_ms) = (&seat.worker.life, shard.now_ms());
        life.window.record(true, now_ms);
        life.breaker.on_failure(FailureKind::Answer, now_ms, shard.next_id());
    }
}

/// Verdicts that end a request; others allow another attempt.
fn give_up_for(
    shard: &Shard,
    wanted: &Wanted<'_>,
    verdict: Option<Verdict>,
) -> Result<(), RequestError> {
    match verdict {
        Some(Verdict::RouterStops) => Err(RequestError::NoneReady(wanted.call.model.clone())),
        Some(Verdict::TooLong) => {
            Err(RequestError::EngineSilent(shard.config.limits.request_s_max))
        }
        // It took the whole time an engine may take; a second one could take it again.
        Some(Verdict::FirstByteLate | Verdict::EngineStalled) => {
            Err(RequestError::EngineSilent(shard.config.limits.first_byte_s_max))
        }
        Some(Verdict::ClientGone | Verdict::ClientSlow) => {
            shard.stats.clients_gone.inc();
            Err(RequestError::ClientGone)
        }
        Some(Verdict::Drained) | None => Ok(()),
    }
}

/// Whether a worker would be left if the one just asked counted as tried.
fn has_other(shard: &Shard, ticket: &Ticket, wanted: &Wanted<'_>, tried: &Tried) -> bool {
    let now_ms = shard.now_ms();
    let ready = ticket
        .model()
        .workers
        .iter()
        .filter(|worker| worker.exclusion(wanted.call.endpoint, now_ms).is_none())
        .count();
    tried.len() + 1 < ready.min(shard.config.limits.attempts_max)
}

impl<'a> Outgoing<'a> {
    /// The client's request as it came.
    pub fn of(
        request: &'a Request,
        record: &Record,
        traceparent: Option<[u8; crate::trace::context::TRACEPARENT_BYTES]>,
        shard: &Shard,
    ) -> Self {
        Outgoing {
            request,
            request_id: Rc::clone(&record.request_id),
            traceparent,
            drops_credentials: shard.identity.reads_bearer(),
            instead: None,
            lane: 0,
        }
    }
}
