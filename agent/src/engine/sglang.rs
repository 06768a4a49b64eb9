//! SGLang's command line (flags as of 0.5.23; `sglang serve` on a model folder).
//!
//! Read off its sources; it has no CPU build we can run, so no test of ours has started it. With the
//! page size it would pick by itself, often 1, every token would be an event of its own: ours is 16
//! unless the recipe sets `--page-size`.

use control::api::EngineSpec;
use dataplane::wire::{Capability, EngineKind};

use super::events::{Dialect, EventSource};
use super::{
    Expected, KvCapacity, Model, Place, Rendering, SpecError, environment, hugging_face,
    refuse_owned, value_of,
};

/// Flags the agent sets; in `extra_args` they are refused. Each data-parallel engine is a worker of
/// its own, by `replicas`.
const OWNED: [&str; 14] = [
    "--model-path",
    "--model",
    "--served-model-name",
    "--host",
    "--port",
    "--max-running-requests",
    "--context-length",
    "--enable-metrics",
    "--enable-cache-report",
    "--kv-events-config",
    "--dp-size",
    "--data-parallel-size",
    "--dp",
    "--disable-radix-cache",
];
/// Tokens of one page, and so of one KV event, where the recipe says nothing.
const PAGE_TOKENS_DEFAULT: &str = "16";
/// SGLang reads many settings from the environment; a recipe's `env` is where to set one.
const ENV_PREFIX: &str = "SGLANG_";

pub(super) fn render(
    spec: &EngineSpec,
    model: Option<&Model>,
    place: &Place<'_>,
) -> Result<Rendering, SpecError> {
    refuse_owned(&spec.extra_args, &OWNED)?;
    let folder = hugging_face::folder(model)?;
    let events = EventSource::at(place.socket_dir, place.port, Dialect::Sglang)?;
    let mut args: Vec<String> = ["serve", "--model-path", &folder]
        .into_iter()
        .chain(["--served-model-name", &spec.model])
        .chain(["--host", "127.0.0.1", "--port", &place.port.to_string()])
        .chain(["--max-running-requests", &spec.slots.to_string()])
        .map(str::to_owned)
        .collect();
    if spec.context_length_tokens > 0 {
        args.extend(["--context-length".into(), spec.context_length_tokens.to_string()]);
    }
    args.extend(["--enable-metrics", "--enable-cache-report"].map(str::to_owned));
    if value_of(&spec.extra_args, &["--page-size"]).is_none() {
        args.extend(["--page-size".into(), PAGE_TOKENS_DEFAULT.into()]);
    }
    args.extend(["--kv-events-config".into(), events.sglang_config()]);
    args.extend(spec.extra_args.iter().cloned());
    let is_embedding = spec.extra_args.iter().any(|word| word == "--is-embedding");
    let capabilities = if is_embedding {
        vec![Capability::Embeddings]
    } else {
        vec![Capability::Chat, Capability::Completions]
    };
    let expected = Expected {
        kind: EngineKind::Sglang,
        capabilities,
        slots: spec.slots,
        kv: KvCapacity::Said,
        model_files: Some(folder),
    };
    let env = environment(spec, &own_variables(spec))?;
    let env_prefix_removed = Some(ENV_PREFIX);
    Ok(Rendering {
        args,
        env,
        env_prefix_removed,
        expected,
        events: Some(events),
        slot_layout: None,
    })
}

/// Liveness is asked every second: `/health` must not run a token through the model for it.
fn own_variables(spec: &EngineSpec) -> Vec<(&'static str, String)> {
    let mut own = hugging_face::offline();
    own.push(("SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", "false".to_owned()));
    if spec.threads > 0 {
        own.push(("OMP_NUM_THREADS", spec.threads.to_string()));
    }
    own
}
