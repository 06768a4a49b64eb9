//! Asking an engine for the token ids of a prompt. What it answers is used; whether it should have been
//! asked is not decided here.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use dataplane::wire::EngineKind;
use serde::Deserialize;
use sonic_rs::JsonValueTrait;

use crate::cluster::{ModelView, WorkerView};
use crate::openai::Endpoint;
use crate::parse::{Call, Prompt, is_too_deep};
use crate::shard::Shard;

/// Fields of a request that say how its prompt is rendered and tokenized.
const CARRIED: [&str; 5] = [
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "chat_template",
    "chat_template_kwargs",
];

/// Engines that are asked for one prompt's tokens: a second one where the first could not be reached, as when it
/// has just died. Then the prompt goes by text.
pub const ASKED_MAX: usize = 2;

/// The engine could not be reached, or did not answer in time. Another one may.
#[derive(Debug)]
pub struct Unreachable;

/// The least busy worker whose engine can tokenize, but not the one called `but`.
pub fn that_tokenizes(
    model: &ModelView,
    endpoint: Endpoint,
    but: Option<&str>,
    now_ms: u64,
) -> Option<Arc<WorkerView>> {
    let is_other = |worker: &WorkerView| but != Some(worker.worker.id.as_str());
    model
        .workers
        .iter()
        .filter(|worker| worker.can_tokenize() && worker.exclusion(endpoint, now_ms).is_none())
        .filter(|worker| is_other(worker))
        .min_by_key(|worker| worker.life.inflight.load(Relaxed))
        .map(Arc::clone)
}

#[derive(Deserialize)]
struct Tokens {
    tokens: Vec<u32>,
}

/// Asks an engine for the exact token ids of the prompt; none if it has no answer to that.
///
/// # Errors
/// [`Unreachable`].
pub async fn ask(
    shard: &Shard,
    worker: &WorkerView,
    call: &Call,
    body: &[u8],
) -> Result<Option<Vec<u32>>, Unreachable> {
    let Some(question) = question(shard, worker, call, body).await? else { return Ok(None) };
    let Some(answer) = post(shard, worker, "/tokenize", question.as_bytes()).await? else {
        return Ok(None);
    };
    Ok(sonic_rs::from_slice::<Tokens>(&answer).ok().map(|answer| answer.tokens))
}

/// The body of `/tokenize` for this kind of engine.
async fn question(
    shard: &Shard,
    worker: &WorkerView,
    call: &Call,
    body: &[u8],
) -> Result<Option<String>, Unreachable> {
    if let (EngineKind::LlamaCpp, Prompt::Chat { .. }) = (worker.worker.kind, &call.prompt) {
        let answer = post(shard, worker, "/apply-template", body).await?;
        let rendered = answer.and_then(|answer| {
            let rendered = sonic_rs::get(answer.as_slice(), ["prompt"]).ok()?;
            rendered.is_str().then(|| llama_question(rendered.as_raw_str()))
        });
        return Ok(rendered);
    }
    Ok(plain_question(worker, call, body))
}

/// The same where no engine has to be asked for it.
fn plain_question(worker: &WorkerView, call: &Call, body: &[u8]) -> Option<String> {
    let raw = |range: &Range<usize>| String::from_utf8_lossy(&body[range.clone()]).into_owned();
    match (worker.worker.kind, &call.prompt) {
        (EngineKind::LlamaCpp, Prompt::Text(text)) => Some(llama_question(&raw(text))),
        (EngineKind::LlamaCpp, Prompt::Chat { .. })
        | (_, Prompt::Tokens(_) | Prompt::Opaque(_) | Prompt::Many) => None,
        (_, Prompt::Chat { messages, tools }) => {
            let model = serde_json::Value::from(call.model.as_str());
            let tools =
                tools.as_ref().map_or(String::new(), |range| format!(",\"tools\":{}", raw(range)));
            let messages = raw(messages);
            Some(format!("{{\"model\":{model},\"messages\":{messages}{tools}{}}}", carried(body)?))
        }
        (_, Prompt::Text(text)) => {
            let model = serde_json::Value::from(call.model.as_str());
            Some(format!("{{\"model\":{model},\"prompt\":{}{}}}", raw(text), carried(body)?))
        }
    }
}

/// The fields of `body` that change what is tokenized and that engines take at `/tokenize`, too.
fn carried(body: &[u8]) -> Option<String> {
    let mut carried = String::new();
    for entry in sonic_rs::to_object_iter(std::str::from_utf8(body).ok()?.trim_ascii()) {
        let (key, value) = entry.ok()?;
        if CARRIED.contains(&key.as_ref()) {
            carried += &format!(",\"{key}\":{}", value.as_raw_str());
        }
    }
    Some(carried)
}

/// As llama-server itself tokenizes a rendered prompt.
fn llama_question(content: &str) -> String {
    format!("{{\"content\":{content},\"add_special\":true,\"parse_special\":true}}")
}

async fn post(
    shard: &Shard,
    worker: &WorkerView,
    path: &str,
    body: &[u8],
) -> Result<Option<Vec<u8>>, Unreachable> {
    let limit = Duration::from_millis(shard.config.kv.tokenize_timeout_ms);
    let limits = &shard.config.limits;
    match shard.pool.exchange(&worker.target, "POST", path, body, limit, limits).await {
        Ok((200, answer)) if !is_too_deep(&answer) => Ok(Some(answer)),
        // The engine has no such endpoint; a bad request (400) says nothing of the next one.
        Ok((403 | 404 | 405 | 501, _)) => {
            worker.life.cannot_tokenize.store(true, Relaxed);
            tracing::warn!(worker = worker.worker.id, path, "cannot tokenize; routing by text");
            Ok(None)
        }
        Ok(_) => Ok(None),
        Err(_) => Err(Unreachable),
    }
}
