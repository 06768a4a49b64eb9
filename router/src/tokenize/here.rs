//! A prompt's exact tokens from the model's own files, on this core or, where it takes long, beside it.

use std::sync::Arc;
use std::time::Duration;

use dataplane::wire::EngineKind;

use super::check;
use crate::admit::unix_ms;
use crate::cluster::ModelView;
use crate::parse::Call;
use crate::shard::Shard;
use crate::tokenizer::side::SideError;
use crate::tokenizer::{Exact, ModelTokenizer, Naming, NotExact, Text};

/// A longer body is rendered beside the core: reading and rendering it takes about 5 ms.
const BODY_BYTES_HERE_MAX: usize = 1 << 20;
/// A longer conversation likewise: each message costs the template a few microseconds.
const MESSAGES_HERE_MAX: usize = 512;
/// More text is tokenized beside the core: this takes about 5 ms.
const TEXT_BYTES_HERE_MAX: usize = 16 << 10;

/// The tokens of `call`, where the model's files are at hand and can be trusted.
pub async fn exact(
    shard: &Shard,
    model: &ModelView,
    call: &Call,
    body: &[u8],
    naming: &Naming,
) -> Option<Exact> {
    let folders = model.workers.iter().filter_map(|worker| worker.worker.model_files.as_deref());
    let tokenizer = shard.shelf.of(&model.name, folders)?;
    if tokenizer.is_distrusted() {
        return None;
    }
    let kind = model.workers.first()?.worker.kind;
    let fallback = |reason: &str, error: &dyn std::error::Error| {
        shard.stats.tokenizer_fallbacks.with_label_values(&[reason]).inc();
        if tokenizer.is_first_failure() {
            tracing::warn!(model = model.name, %error, "a prompt without exact tokens; further ones are only counted");
        }
    };
    match tokens(shard, &tokenizer, kind, call, body, naming).await {
        Ok(Ok(exact)) => {
            let count = |source| shard.stats.tokenizer_tokens.with_label_values(&[source]);
            count("cached").inc_by(exact.cached_tokens);
            count("fresh").inc_by(exact.prompt_tokens - exact.cached_tokens);
            check::maybe(shard, model, &tokenizer, call, body, &exact);
            Some(exact)
        }
        Ok(Err(error)) => {
            fallback(error.reason(), &error);
            None
        }
        Err(error) => {
            fallback(error.reason(), &error);
            None
        }
    }
}

async fn tokens(
    shard: &Shard,
    tokenizer: &Arc<ModelTokenizer>,
    kind: EngineKind,
    call: &Call,
    body: &[u8],
    naming: &Naming,
) -> Result<Result<Exact, NotExact>, SideError> {
    let text = match text(shard, tokenizer, kind, call, body).await? {
        Ok(text) => text,
        Err(error) => return Ok(Err(error)),
    };
    let known = tokenizer.known(&shard.shelf.cache, &text, naming);
    if known.bytes_left(&text) <= TEXT_BYTES_HERE_MAX {
        return Ok(tokenizer.finish(&shard.shelf.cache, &text, naming, known));
    }
    let (tokenizer, cache) = (Arc::clone(tokenizer), Arc::clone(&shard.shelf.cache));
    let naming = *naming;
    let job = move || tokenizer.finish(&cache, &text, &naming, known);
    shard.shelf.side.run(limit(shard), job).await
}

async fn text(
    shard: &Shard,
    tokenizer: &Arc<ModelTokenizer>,
    kind: EngineKind,
    call: &Call,
    body: &[u8],
) -> Result<Result<Text, NotExact>, SideError> {
    let now_s = unix_ms() / 1_000;
    // Checked when it was parsed.
    let Ok(body) = std::str::from_utf8(body) else { return Ok(Err(NotExact::TooLong)) };
    if body.len() <= BODY_BYTES_HERE_MAX && !has_many_messages(body) {
        return Ok(tokenizer.text(kind, call, body, now_s));
    }
    let (tokenizer, call, body) = (Arc::clone(tokenizer), call.clone(), body.to_owned());
    shard.shelf.side.run(limit(shard), move || tokenizer.text(kind, &call, &body, now_s)).await
}

/// A guess, from above unless a client escapes the letters of `role`.
fn has_many_messages(body: &str) -> bool {
    memchr::memmem::find_iter(body.as_bytes(), b"\"role\"").nth(MESSAGES_HERE_MAX).is_some()
}

fn limit(shard: &Shard) -> Duration {
    Duration::from_millis(shard.config.kv.tokenize_timeout_ms)
}
