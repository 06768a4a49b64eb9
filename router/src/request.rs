//! The life of one request, in order. Each phase is one function in the file of its name:
//!
//! `read → parse → authenticate → admit → tokenize → pick → forward → relay`
//!
//! It runs on one core from the first byte to the last. Everything up to the relay may still become
//! an OpenAI error with the right status; from the first byte of the relay on the status is the
//! engine's.

use std::time::Instant;

use crate::candidates::{Seat, Tried};
use crate::connection::Client;
use crate::error::RequestError;
use crate::forward::{self, Answer};
use crate::openai::Endpoint;
use crate::parse::{self, Call};
use crate::read::{self, Request};
use crate::relay::{self, Decided, Relayed};
use crate::shard::Shard;
use crate::tokenize::{self, Prefix};
use crate::upstream::UpstreamError;
use crate::watch::Verdict;
use crate::{admit, authenticate, candidates, local};

/// A request id of a client may have so many characters; longer ones are replaced.
const REQUEST_ID_CHARS_MAX: usize = 128;

/// Reads and serves one request of HTTP/1.1. The caller goes on while the answer is
/// [`Relayed::KeepAlive`].
pub async fn serve(shard: &Shard, client: &mut Client) -> Relayed {
    match read::request(shard, client).await {
        Ok(Some(request)) => run(shard, client, request).await,
        Ok(None) => Relayed::Close,
        Err(error) => refuse_unread(shard, client, &error).await,
    }
}

/// Serves a request that was read, over whichever protocol.
pub async fn run(shard: &Shard, client: &mut Client, request: Request) -> Relayed {
    let started = Instant::now();
    client.watch.begin();
    let request_id = request_id(shard, &request);
    let (endpoint, answered) = if local::is_local(&request) {
        let answered = match authenticate::peer(client.peer.address) {
            Ok(()) => Ok(local::answer(shard, client, &request, &request_id).await),
            Err(error) => Err(error),
        };
        ("local", answered)
    } else {
        let endpoint = Endpoint::at(request.path()).map_or("unknown", Endpoint::as_str);
        (endpoint, answer(shard, client, &request, &request_id, started).await)
    };
    let relayed = match answered {
        Ok(relayed) => relayed,
        Err(error) => {
            let keep_alive = request.head.keep_alive && !shard.is_draining();
            refuse(shard, client, endpoint, &request_id, &error, keep_alive).await
        }
    };
    client.watch.end();
    client.inbuf = request.into_rest();
    relayed
}

/// Refuses a request that could not be read.
pub async fn refuse_unread(shard: &Shard, client: &mut Client, error: &RequestError) -> Relayed {
    refuse(shard, client, "none", &fresh_id(shard), error, false).await
}

/// The phases behind *read*.
async fn answer(
    shard: &Shard,
    client: &mut Client,
    request: &Request,
    request_id: &str,
    started: Instant,
) -> Result<Relayed, RequestError> {
    let endpoint = local::endpoint(request)?;
    let call = parse::call(endpoint, request.body())?;
    authenticate::peer(client.peer.address)?;
    let mut ticket = admit::enter(shard, &call)?;
    let prefix = tokenize::prefix(shard, ticket.model(), &call, request.body()).await;
    let (seat, answer) =
        dispatch(shard, client, request, request_id, &call, &mut ticket, &prefix).await?;
    shard
        .stats
        .requests
        .with_label_values(&[endpoint.as_str(), &answer.head.status.to_string()])
        .inc();
    let decided = Decided { seat: &seat, prefix: &prefix, request_id, started };
    Ok(relay::answer(shard, client, request, &decided, answer).await)
}

/// *pick* and *forward*, on another worker after a failure, until one begins to answer.
async fn dispatch(
    shard: &Shard,
    client: &mut Client,
    request: &Request,
    request_id: &str,
    call: &Call,
    ticket: &mut admit::Ticket,
    prefix: &Prefix,
) -> Result<(Seat, Answer), RequestError> {
    let watch = client.watch.handle();
    let mut tried = Tried::default();
    let mut failure = UpstreamError::Connect;
    while tried.len() < shard.config.limits.attempts_max {
        let deciding = Instant::now();
        let Some(seat) = candidates::seat(shard, ticket, call.endpoint, prefix, &tried) else {
            break;
        };
        shard.stats.decision.observe(deciding.elapsed().as_secs_f64());
        match forward::send(shard, &watch, request, request_id, &seat).await {
            // Loading or overloaded: another worker may do better, if there is one.
            Ok(answer) if answer.head.status == 503 && has_other(shard, ticket, call, &tried) => {
                shard.stats.retries.with_label_values(&["engine_503"]).inc();
                tried.add(&seat.worker);
            }
            Ok(answer) => return Ok((seat, answer)),
            Err(error) => {
                match watch.verdict() {
                    Some(Verdict::FirstByteLate | Verdict::EngineStalled) => {
                        let limit = shard.config.limits.first_byte_s_max;
                        return Err(RequestError::EngineSilent(limit));
                    }
                    Some(Verdict::TooLong) => {
                        let limit = shard.config.limits.request_s_max;
                        return Err(RequestError::EngineSilent(limit));
                    }
                    // Nobody is left to hear it; the write of the refusal will fail.
                    Some(Verdict::ClientGone | Verdict::ClientSlow) => {
                        shard.stats.clients_gone.inc();
                        return Err(RequestError::EnginesFailed("the client hung up"));
                    }
                    Some(Verdict::Drained) | None => {}
                }
                if forward::is_down(error) {
                    seat.worker.life.healthy.store(false, std::sync::atomic::Ordering::Relaxed);
                }
                shard.stats.retries.with_label_values(&["engine_failed"]).inc();
                failure = error;
                tried.add(&seat.worker);
            }
        }
        ticket.refresh();
    }
    if tried.is_empty() {
        return Err(RequestError::NoneReady(call.model.clone()));
    }
    Err(RequestError::EnginesFailed(match failure {
        UpstreamError::Connect => "cannot connect",
        UpstreamError::Malformed => "malformed answer",
        UpstreamError::Ended | UpstreamError::Stale => "connection ended early",
        UpstreamError::TimedOut => "no answer in time",
    }))
}

/// Whether a worker would be left if the one just asked counted as tried.
fn has_other(shard: &Shard, ticket: &admit::Ticket, call: &Call, tried: &Tried) -> bool {
    let capability = call.endpoint.capability();
    let ready = ticket.model().workers.iter().filter(|w| w.exclusion(capability).is_none()).count();
    tried.len() + 1 < ready.min(shard.config.limits.attempts_max)
}

async fn refuse(
    shard: &Shard,
    client: &mut Client,
    endpoint: &str,
    request_id: &str,
    error: &RequestError,
    keep_alive: bool,
) -> Relayed {
    shard.stats.refusals.with_label_values(&[error.reason()]).inc();
    let status = error.status().to_string();
    shard.stats.requests.with_label_values(&[endpoint, &status]).inc();
    client.refuse(error, request_id, keep_alive).await
}

/// The client's own id where it can stand in a header again, else a fresh one.
fn request_id(shard: &Shard, request: &Request) -> String {
    let sent = request.head.request_id.clone().and_then(|range| {
        std::str::from_utf8(&request.head_bytes()[range]).ok().map(str::to_owned)
    });
    sent.filter(|id| {
        (1..=REQUEST_ID_CHARS_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
    })
    .unwrap_or_else(|| fresh_id(shard))
}

fn fresh_id(shard: &Shard) -> String {
    format!("req-{:016x}", shard.next_id())
}
