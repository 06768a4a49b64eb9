//! What an answer costs its tenant, and what the client is told of its limits.

use std::fmt::Write;

use crate::admit::{Ticket, unix_ms};
use crate::connection::Client;
use crate::meter::Allowance;
use crate::record::Record;
use crate::shard::Shard;
use crate::tokenize::Prefix;

/// The names of one allowance's three fields: limit, remaining, reset.
type Names = [&'static str; 3];

const OF_REQUESTS: Names =
    ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
const OF_TOKENS: Names =
    ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];

/// Writes OpenAI's `x-ratelimit-*` fields, for a tenant that has limits.
pub fn tell(client: &mut Client, record: &Record) {
    // One piece of memory for all of them: this is on every answer.
    let mut value = String::with_capacity(24);
    for (name, number, unit) in numbers(record) {
        value.clear();
        // Writing to a string does not fail.
        let _ = write!(value, "{number}{unit}");
        client.field(name.as_bytes(), value.as_bytes());
    }
}

/// The same fields as names and values: a refusal tells them too.
pub fn fields(record: &Record) -> Vec<(&'static str, String)> {
    numbers(record).map(|(name, number, unit)| (name, format!("{number}{unit}"))).collect()
}

fn numbers(record: &Record) -> impl Iterator<Item = (&'static str, u64, &'static str)> {
    let meter = record.caller.as_ref().map(|caller| &caller.tenant.meter);
    let limited = meter.filter(|meter| {
        let limits = meter.limits();
        limits.requests_per_minute > 0 || limits.tokens_per_minute > 0
    });
    let view = limited.map(|meter| meter.headers(unix_ms()));
    let of = |names: Names, allowance: Option<Allowance>| {
        allowance.into_iter().flat_map(move |one| {
            [
                (names[0], one.limit, ""),
                (names[1], one.remaining, ""),
                (names[2], one.reset_ms, "ms"),
            ]
        })
    };
    of(OF_REQUESTS, view.and_then(|view| view.requests))
        .chain(of(OF_TOKENS, view.and_then(|view| view.tokens)))
}

/// Notes the tokens of an answer against its tenant: the engine's own counts, or where it said none
/// (a stream without `include_usage`, or one broken off) the prompt's estimate and the tokens that were
/// `said`, one an event.
pub fn charge(shard: &Shard, ticket: &Ticket, record: &Record, prefix: &Prefix, said: u64) {
    if record.status != 200 {
        return;
    }
    let usage = &record.usage;
    let estimated = || prefix.tokens_estimated(shard.cluster.tokens_per_byte());
    let prompt = usage.prompt_tokens.unwrap_or_else(estimated);
    let said = if record.stream { said } else { 0 };
    let completion = usage.completion_tokens.unwrap_or(said);
    ticket.tokens.set(prompt.saturating_add(completion));
    let counters = shard.counters.tenant(&shard.stats, &ticket.caller().tenant.name);
    counters.prompt.inc_by(prompt);
    counters.cached.inc_by(usage.cached_tokens.unwrap_or(0));
    counters.completion.inc_by(completion);
}
