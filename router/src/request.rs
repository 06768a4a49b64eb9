//! The life of one request, in order. Each phase is one function in the file of its name:
//!
//! `read → parse → authenticate → admit → tokenize → pick → warm → forward → relay`
//!
//! It runs on one core from the first byte to the last. Everything up to the relay may still become
//! an OpenAI error with the right status; from the first byte of the relay on the status is the
//! engine's.

use std::ops::Range;

use crate::admit::Wishes;
use crate::connection::Client;
use crate::dispatch::{self, Wanted};
use crate::error::RequestError;
use crate::openai::Endpoint;
use crate::read::{self, Request};
use crate::record::{Record, fresh_id};
use crate::relay::{self, Relayed};
use crate::shard::Shard;
use crate::steering::Steering;
use crate::tenant::PRIORITY_MAX;
use crate::trace::request_trace::Step;
use crate::{account, admit, authenticate, local, parse, tokenize};

/// A deadline further away than this is none: one day.
const DEADLINE_MS_MAX: u64 = 86_400_000;

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
    let mut record = Record::begin(shard, client, &request);
    client.watch.begin();
    let answered = match local::is_local(shard, &request) {
        true => answer_here(shard, client, &request, &mut record).await,
        false => answer(shard, client, &request, &mut record).await,
    };
    let relayed = match answered {
        Ok(relayed) => relayed,
        Err(error) => {
            // What the watchdog decided ends with this request: `Watch::begin` forgets it.
            let keep_alive = request.head.keep_alive && !shard.is_draining();
            record.refused(&error);
            refuse(shard, client, &record, &error, keep_alive).await
        }
    };
    client.watch.end();
    record.close(shard, client, &request);
    client.inbuf = request.into_rest();
    relayed
}

/// The router's own URLs. Health is for everybody, the rest for those who may.
async fn answer_here(
    shard: &Shard,
    client: &mut Client,
    request: &Request,
    record: &mut Record,
) -> Result<Relayed, RequestError> {
    record.endpoint = "local";
    if !local::is_open(request) {
        let caller = authenticate::caller(shard, &client.peer, request)?;
        record.called_by(&caller);
        local::may(&caller, request).map_err(RequestError::Denied)?;
    }
    local::answer(shard, client, request, record).await
}

/// The phases behind *read*.
async fn answer(
    shard: &Shard,
    client: &mut Client,
    request: &Request,
    record: &mut Record,
) -> Result<Relayed, RequestError> {
    let endpoint = local::endpoint(shard, request)?;
    record.endpoint = endpoint.as_str();
    let call = parse::call(endpoint, request).map_err(|error| match error {
        // Nothing says that this is an endpoint at all.
        RequestError::Field { param: "model", .. } if endpoint == Endpoint::Other => {
            RequestError::UnknownUrl {
                method: request.method().to_owned(),
                path: request.path().to_owned(),
            }
        }
        other => other,
    })?;
    record.called(&call);
    let caller = authenticate::caller(shard, &client.peer, request)?;
    record.called_by(&caller);
    let wishes = wishes(request)?;
    let steering = Steering::read(shard, request, &call, &caller, record)?;
    let mut ticket = admit::enter(shard, &call, caller)?;

    let tokenizing = record.enter(Step::Tokenize);
    let prefix = tokenize::prefix(shard, ticket.model(), &call, request.body()).await;
    record.leave(tokenizing);

    let queueing = record.enter(Step::Queue);
    let place = admit::place(shard, &mut ticket, &call, &prefix, wishes, &client.watch).await;
    record.leave(queueing);
    record.queued = ticket.placed().map(|placed| placed - record.started);
    place?;

    let wanted = Wanted { request, call: &call, prefix: &prefix, steering: &steering };
    let (seat, answer) = dispatch::send(shard, client, &wanted, &mut ticket, record).await?;
    Ok(relay::answer(shard, client, &wanted, &mut ticket, seat, answer, record).await)
}

/// Refuses a request that could not be read.
pub async fn refuse_unread(shard: &Shard, client: &mut Client, error: &RequestError) -> Relayed {
    count_refusal(shard, "none", error);
    client.refuse(error, &fresh_id(shard), &[], false).await
}

async fn refuse(
    shard: &Shard,
    client: &mut Client,
    record: &Record,
    error: &RequestError,
    keep_alive: bool,
) -> Relayed {
    count_refusal(shard, record.endpoint, error);
    let limits = account::fields(record);
    client.refuse(error, &record.request_id, &limits, keep_alive).await
}

fn count_refusal(shard: &Shard, endpoint: &'static str, error: &RequestError) {
    shard.stats.refusals.with_label_values(&[error.reason()]).inc();
    shard.counters.answered(&shard.stats, endpoint, error.status());
}

/// What the request's own fields say of its urgency.
fn wishes(request: &Request) -> Result<Wishes, RequestError> {
    let text = |range: &Option<Range<usize>>| {
        let bytes = range.clone().map(|range| &request.head_bytes()[range])?;
        // What is no text is no number either.
        Some(std::str::from_utf8(bytes).unwrap_or_default())
    };
    let mut wishes = Wishes::default();
    if let Some(value) = text(&request.head.deadline) {
        let ms = value.parse().ok().filter(|ms| (1..=DEADLINE_MS_MAX).contains(ms));
        wishes.deadline_ms = Some(ms.ok_or(RequestError::Header {
            field: "x-cgn-deadline-ms",
            message: "must be a whole number of milliseconds, 1 to 86400000",
        })?);
    }
    if let Some(value) = text(&request.head.priority) {
        let priority = value.parse().ok().filter(|wish| (0.0..=PRIORITY_MAX).contains(wish));
        wishes.priority = priority.ok_or(RequestError::Header {
            field: "x-cgn-priority",
            message: "must be a number, 0 to 1000",
        })?;
    }
    Ok(wishes)
}
