//! `cgn-sim-engine`'s command line.
//!
//! The simulated engine speaks as vLLM or as llama.cpp (`--mimic` in `extra_args`); to the router it
//! is what it mimics. Its own option parser says what a command line means, so a flag it would refuse
//! is refused before it is started.

use clap::Parser;
use control::api::EngineSpec;
use dataplane::wire::{Capability, EngineKind};

use super::events::{self, EventSource};
use super::{
    Expected, KvCapacity, Place, Rendering, SpecError, environment, refuse_owned, value_of,
};
use crate::sim::options::{Dialect, Options, Settings};

/// Flags the agent sets; in `extra_args` they are refused.
const OWNED: [&str; 7] =
    ["--listen", "--host", "--port", "--model", "--slots", "--max-seqs", "--context-length"];

pub(super) fn render(spec: &EngineSpec, place: &Place<'_>) -> Result<Rendering, SpecError> {
    refuse_owned(&spec.extra_args, &OWNED)?;
    let mut args: Vec<String> = vec![
        "--listen".into(),
        format!("127.0.0.1:{}", place.port),
        "--model".into(),
        spec.model.clone(),
        "--slots".into(),
        spec.slots.to_string(),
    ];
    if spec.context_length_tokens > 0 {
        args.extend(["--context-length".into(), spec.context_length_tokens.to_string()]);
    }
    args.extend(spec.extra_args.iter().cloned());
    let mut settings = settings(&args)?;
    // llama.cpp has no KV events, and what mimics it should not be known better.
    if settings.dialect == Dialect::Vllm && settings.events.is_none() {
        let own = EventSource::at(place.socket_dir, place.port, events::Dialect::Vllm)?;
        let has_topic = value_of(&spec.extra_args, &["--kv-events-topic"]).is_some();
        args.extend(event_flags(&own, has_topic));
        settings = self::settings(&args)?;
    }
    let kind = match settings.dialect {
        Dialect::LlamaCpp => EngineKind::LlamaCpp,
        Dialect::Vllm => EngineKind::Vllm,
    };
    let mut capabilities = vec![Capability::Chat, Capability::Completions];
    if settings.embeddings {
        capabilities.push(Capability::Embeddings);
    }
    let limits = &settings.limits;
    let tokens = limits.cache_blocks.saturating_mul(limits.block_tokens) as u64;
    let expected = Expected {
        kind,
        capabilities,
        slots: spec.slots,
        kv: KvCapacity::Pool { tokens },
        model_files: None,
    };
    let env = environment(spec, &[])?;
    let events = settings.events.map(|events| EventSource {
        live: events.endpoint,
        replay: events.replay_endpoint,
        topic: events.topic,
        dialect: events::Dialect::Vllm,
    });
    Ok(Rendering { args, env, env_prefix_removed: None, expected, events, slot_layout: None })
}

fn event_flags(source: &EventSource, has_topic: bool) -> Vec<String> {
    let mut flags = vec!["--kv-events-endpoint".to_owned(), source.live.clone()];
    if let Some(replay) = &source.replay {
        flags.extend(["--kv-events-replay-endpoint".to_owned(), replay.clone()]);
    }
    if !has_topic {
        flags.extend(["--kv-events-topic".to_owned(), source.topic.clone()]);
    }
    flags
}

fn settings(args: &[String]) -> Result<Settings, SpecError> {
    let refuse = |said: String| SpecError::Value {
        key: "extra_args",
        value: "not what cgn-sim-engine takes".to_owned(),
        cure: format!("cure `{}`", said.lines().next().unwrap_or_default()),
    };
    let words = std::iter::once("cgn-sim-engine").chain(args.iter().map(String::as_str));
    let options = Options::try_parse_from(words).map_err(|error| refuse(error.to_string()))?;
    options.settings().map_err(|error| refuse(error.to_string()))
}
