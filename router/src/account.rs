//! What an answer costs its tenant, and what the client is told of its limits.

use crate::admit::{Ticket, unix_ms};
use crate::connection::Client;
use crate::meter::Allowance;
use crate::record::Record;
use crate::shard::Shard;
use crate::tokenize::Prefix;

/// Writes OpenAI's `x-ratelimit-*` fields, for a tenant that has limits.
pub fn tell(client: &mut Client, record: &Record) {
    for (name, value) in fields(record) {
        client.field(name.as_bytes(), value.as_bytes());
    }
}

/// The same fields as names and values: a refusal tells them too.
pub fn fields(record: &Record) -> Vec<(&'static str, String)> {
    let mut fields = Vec::new();
    let Some(caller) = &record.caller else { return fields };
    let limits = caller.tenant.meter.limits();
    if limits.requests_per_minute == 0 && limits.tokens_per_minute == 0 {
        return fields;
    }
    let view = caller.tenant.meter.headers(unix_ms());
    let mut put = |names: [&'static str; 3], allowance: Option<Allowance>| {
        let Some(allowance) = allowance else { return };
        fields.push((names[0], allowance.limit.to_string()));
        fields.push((names[1], allowance.remaining.to_string()));
        fields.push((names[2], format!("{}ms", allowance.reset_ms)));
    };
    let of_requests = [
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
    ];
    put(of_requests, view.requests);
    let of_tokens =
        ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];
    put(of_tokens, view.tokens);
    fields
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
