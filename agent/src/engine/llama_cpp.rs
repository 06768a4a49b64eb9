//! `llama-server`'s command line (flags as of llama.cpp in llama-cpp-python 0.3.36).
//!
//! Its `-c` is the sum over all slots. With `--embeddings` it serves embeddings only, without it chat
//! and completions only. `--cache-ram` (MiB, default 8192) is a prompt cache in host memory beside the
//! slots.

use control::api::EngineSpec;
use dataplane::wire::{Capability, EngineKind};

use super::{
    Expected, KvCapacity, Model, Place, Rendering, SpecError, environment, refuse_owned, value_of,
};
use crate::slots::layout;

/// Flags the agent sets; in `extra_args` they are refused.
const OWNED: [&str; 11] = [
    "-m",
    "--model",
    "-a",
    "--alias",
    "--host",
    "--port",
    "-np",
    "--parallel",
    "-c",
    "--ctx-size",
    "--api-prefix",
];
/// `--cache-ram` when it is not given.
const CACHE_RAM_MIB_DEFAULT: i64 = 8192;
/// `llama-server` reads each flag from the environment too.
const ENV_PREFIX: &str = "LLAMA_ARG_";

pub(super) fn render(
    spec: &EngineSpec,
    model: Option<&Model>,
    place: &Place<'_>,
) -> Result<Rendering, SpecError> {
    refuse_owned(&spec.extra_args, &OWNED)?;
    let Some(model) = model else {
        return Err(SpecError::Value {
            key: "model.file",
            value: "empty".to_owned(),
            cure: "name a GGUF file".to_owned(),
        });
    };
    let mut args: Vec<String> = vec![
        "-m".into(),
        model.path.display().to_string(),
        "--alias".into(),
        spec.model.clone(),
        "--host".into(),
        "127.0.0.1".into(),
        "--port".into(),
        place.port.to_string(),
        "-np".into(),
        spec.slots.to_string(),
    ];
    if spec.context_length_tokens > 0 {
        let tokens = u64::from(spec.slots) * u64::from(spec.context_length_tokens);
        args.extend(["-c".into(), tokens.to_string()]);
    }
    args.extend(["--metrics".into(), "--slots".into()]);
    if spec.threads > 0 {
        args.extend(["--threads".into(), spec.threads.to_string()]);
    }
    args.extend(spec.extra_args.iter().cloned());
    // A recipe with a folder of its own keeps it, and its slots are not kept by us.
    let slots = place.slot_dir.zip(layout::of_arguments(spec.slots, &spec.extra_args));
    if let Some((folder, _)) = &slots {
        args.extend(["--slot-save-path".into(), folder.display().to_string()]);
    }
    let slot_layout = slots.map(|(_, layout)| layout);
    let expected = Expected {
        kind: EngineKind::LlamaCpp,
        capabilities: capabilities(&spec.extra_args),
        slots: spec.slots,
        kv: KvCapacity::PerSlot { host_tokens: host_tokens(&spec.extra_args, model) },
        model_files: None,
    };
    let env = environment(spec, &[])?;
    let env_prefix_removed = Some(ENV_PREFIX);
    Ok(Rendering { args, env, env_prefix_removed, expected, events: None, slot_layout })
}

fn capabilities(extra_args: &[String]) -> Vec<Capability> {
    let given = |flag: &str| extra_args.iter().any(|word| word == flag);
    if given("--embeddings") || given("--embedding") {
        vec![Capability::Embeddings]
    } else {
        vec![Capability::Chat, Capability::Completions]
    }
}

/// `--cache-ram` over the bytes of one token. Known only for a model file that says its shape, with
/// the cache in its default type (16-bit floats) and of a stated size.
fn host_tokens(extra_args: &[String], model: &Model) -> u64 {
    const TYPE_FLAGS: [&str; 4] = ["-ctk", "--cache-type-k", "-ctv", "--cache-type-v"];
    if value_of(extra_args, &TYPE_FLAGS).is_some_and(|kind| kind != "f16" && kind != "bf16") {
        return 0;
    }
    let mib = match value_of(extra_args, &["-cram", "--cache-ram"]) {
        None => CACHE_RAM_MIB_DEFAULT,
        Some(text) => text.parse::<i64>().unwrap_or(0),
    };
    match (u64::try_from(mib), model.kv_bytes_per_token) {
        (Ok(mib), Some(bytes)) if bytes > 0 => mib.saturating_mul(1 << 20) / bytes,
        _ => 0,
    }
}
