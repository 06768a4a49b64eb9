//! vLLM's command line (flags as of 0.32; `vllm serve` on a model folder).
//!
//! Prefix caching is on and its block hashes do not depend on the process: a fixed seed and a hash over
//! CBOR. KV events are on. Its metrics say how many tokens its cache holds. The block size is the
//! engine's own unless the recipe sets `--block-size`: KV events carry it.

use control::api::EngineSpec;
use dataplane::wire::{Capability, EngineKind};

use super::events::{Dialect, EventSource};
use super::{
    Expected, KvCapacity, Model, Place, Rendering, SpecError, environment, hugging_face,
    refuse_owned, value_of,
};

/// Flags the agent sets; in `extra_args` they are refused. So are a port and a rank for each of
/// several data-parallel engines in one process: each engine is a worker of its own, by `replicas`.
const OWNED: [&str; 17] = [
    "--model",
    "--served-model-name",
    "--host",
    "--port",
    "--uds",
    "--max-num-seqs",
    "--max-model-len",
    "--enable-prefix-caching",
    "--no-enable-prefix-caching",
    "--prefix-caching-hash-algo",
    "--enable-prompt-tokens-details",
    "--kv-events-config",
    "--data-parallel-size",
    "-dp",
    "--data-parallel-rank",
    "--api-server-count",
    "--root-path",
];
/// vLLM reads many settings from the environment; a recipe's `env` is where to set one.
const ENV_PREFIX: &str = "VLLM_";

pub(super) fn render(
    spec: &EngineSpec,
    model: Option<&Model>,
    place: &Place<'_>,
) -> Result<Rendering, SpecError> {
    refuse_owned(&spec.extra_args, &OWNED)?;
    let folder = hugging_face::folder(model)?;
    let events = EventSource::at(place.socket_dir, place.port, Dialect::Vllm)?;
    let mut args: Vec<String> = ["serve", &folder, "--served-model-name", &spec.model]
        .into_iter()
        .chain(["--host", "127.0.0.1", "--port", &place.port.to_string()])
        .chain(["--max-num-seqs", &spec.slots.to_string()])
        .map(str::to_owned)
        .collect();
    if spec.context_length_tokens > 0 {
        args.extend(["--max-model-len".into(), spec.context_length_tokens.to_string()]);
    }
    args.extend(
        ["--enable-prefix-caching", "--prefix-caching-hash-algo", "sha256_cbor"].map(str::to_owned),
    );
    args.push("--enable-prompt-tokens-details".into());
    // Probes come every second: without them the log says what the engine has to say.
    args.push("--disable-uvicorn-access-log".into());
    args.extend(["--kv-events-config".into(), events.vllm_config()]);
    args.extend(spec.extra_args.iter().cloned());
    let expected = Expected {
        kind: EngineKind::Vllm,
        capabilities: capabilities(&spec.extra_args),
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

/// The seed makes block hashes the same in every process, also before 0.29.
fn own_variables(spec: &EngineSpec) -> Vec<(&'static str, String)> {
    let mut own = hugging_face::offline();
    own.extend([("PYTHONHASHSEED", "0".to_owned()), ("VLLM_NO_USAGE_STATS", "1".to_owned())]);
    if spec.threads > 0 {
        own.push(("OMP_NUM_THREADS", spec.threads.to_string()));
    }
    own
}

/// `--runner pooling` (or the older `--task embed`) serves embeddings only.
fn capabilities(extra_args: &[String]) -> Vec<Capability> {
    match value_of(extra_args, &["--runner", "--task"]) {
        Some("pooling" | "embed" | "embedding") => vec![Capability::Embeddings],
        _ => vec![Capability::Chat, Capability::Completions],
    }
}
