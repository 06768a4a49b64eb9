//! Engine kinds: how each is started and what is then expected of it.
//!
//! Rendering is pure: an [`EngineSpec`], a checked model and a port become a [`Rendering`]. One file
//! per kind below `engine/`. It starts nothing ([`crate::process`]) and asks nothing
//! ([`crate::probe`]).

use std::path::{Path, PathBuf};

use control::api::EngineSpec;
use dataplane::wire::{Capability, EngineKind};

mod environment;
pub mod events;
mod hugging_face;
mod llama_cpp;
mod sglang;
mod sim;
mod vllm;

use environment::{environment, is_variable};
pub use events::EventSource;

/// Most slots an engine may be asked for; a larger number is a mistake in a recipe.
pub const SLOTS_MAX: u32 = 4096;
/// Most tokens a slot may be asked for.
pub const CONTEXT_LENGTH_TOKENS_MAX: u32 = 16 << 20;
/// Most words `extra_args` may have.
pub const EXTRA_ARGS_MAX: usize = 256;
/// Most variables `env` may have.
pub const ENV_MAX: usize = 128;

/// What a recipe's `engine.kind` may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `llama-server`.
    LlamaCpp,
    /// `vllm serve`.
    Vllm,
    /// `sglang serve`.
    Sglang,
    /// `cgn-sim-engine`.
    Sim,
}

/// What a kind serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelForm {
    /// It has no model.
    None,
    /// One GGUF file.
    Gguf,
    /// A folder as Hugging Face libraries write it: `config.json`, weights, tokenizer.
    Folder,
}

impl Kind {
    /// Every kind the agent can start.
    pub const ALL: [Kind; 4] = [Kind::LlamaCpp, Kind::Vllm, Kind::Sglang, Kind::Sim];

    /// The name in recipes and in `[engines]`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::LlamaCpp => "llama_cpp",
            Kind::Vllm => "vllm",
            Kind::Sglang => "sglang",
            Kind::Sim => "sim",
        }
    }

    /// The kind a recipe names.
    ///
    /// # Errors
    /// [`SpecError::UnknownKind`].
    pub fn of(spec: &EngineSpec) -> Result<Kind, SpecError> {
        Kind::ALL.into_iter().find(|kind| kind.as_str() == spec.kind).ok_or_else(|| {
            let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
            SpecError::UnknownKind { kind: spec.kind.clone(), known: known.join(", ") }
        })
    }

    /// What a recipe's `model.file` must be for it.
    pub fn model_form(self) -> ModelForm {
        match self {
            Kind::LlamaCpp => ModelForm::Gguf,
            Kind::Vllm | Kind::Sglang => ModelForm::Folder,
            Kind::Sim => ModelForm::None,
        }
    }
}

/// Why an engine cannot be rendered. Only a new spec cures it.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum SpecError {
    /// No such kind.
    #[error("engine kind `{kind}` is not known here (known: {known}): change kind in the recipe")]
    UnknownKind {
        /// As asked.
        kind: String,
        /// All there are.
        known: String,
    },
    /// A flag that the agent itself sets.
    #[error("extra_args: `{flag}` is set by the agent: remove it from the recipe")]
    OwnedFlag {
        /// The flag.
        flag: String,
    },
    /// An environment variable that the agent itself sets.
    #[error("env: `{name}` is set by the agent: remove it from the recipe")]
    OwnedVariable {
        /// The variable.
        name: String,
    },
    /// No Unix socket can be there.
    #[error("{} cannot be the path of a Unix socket (absolute, UTF-8, at most {} bytes): set [agent] state_dir to a shorter absolute one", path.display(), events::SOCKET_PATH_BYTES_MAX)]
    SocketPath {
        /// The path.
        path: PathBuf,
    },
    /// A value no engine can be started with.
    #[error("{key} is {value}: {cure} in the recipe")]
    Value {
        /// The recipe's key.
        key: &'static str,
        /// As asked.
        value: String,
        /// What to write instead.
        cure: String,
    },
}

/// A model that passed [`crate::preflight`].
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The file, or the folder.
    pub path: PathBuf,
    /// Bytes one token takes in a KV cache of 16-bit floats; none where the file does not say.
    pub kv_bytes_per_token: Option<u64>,
}

/// Where an engine is put.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    /// Holds its Unix sockets; absolute.
    pub socket_dir: &'a Path,
    /// Where it may write states of its slots, absolute; none where nobody keeps them.
    pub slot_dir: Option<&'a Path>,
}

/// A command line, but for the binary, and what to expect of the process.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendering {
    /// The arguments.
    pub args: Vec<String>,
    /// Environment variables that are set for it, after the next rule.
    pub env: Vec<(String, String)>,
    /// Environment variables that begin with this are not passed on: the command line alone decides.
    pub env_prefix_removed: Option<&'static str>,
    /// What answers once it is up.
    pub expected: Expected,
    /// Where its KV events come from, if it has any.
    pub events: Option<EventSource>,
    /// What the states it writes to [`Place::slot_dir`] depend on, if it does.
    pub slot_layout: Option<String>,
}

/// What a started engine is.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// Whose endpoints it has.
    pub kind: EngineKind,
    /// What it can be asked for.
    pub capabilities: Vec<Capability>,
    /// Slots it was started with.
    pub slots: u32,
    /// How its cache is counted.
    pub kv: KvCapacity,
    /// Folder on this machine with the model's tokenizer and chat template, if it is served from one.
    pub model_files: Option<String>,
}

/// How many tokens an engine's caches hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvCapacity {
    /// Each slot holds one context; a prompt cache in host memory holds this many more.
    PerSlot {
        /// Tokens in host memory; 0 where that cannot be told.
        host_tokens: u64,
    },
    /// One pool.
    Pool {
        /// Its size.
        tokens: u64,
    },
    /// The engine says it once it is up.
    Said,
}

/// What an engine says of itself once it is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Requests it works on at once.
    pub slots: u32,
    /// Tokens one request may span; 0 where it does not say.
    pub context_length_tokens: u32,
    /// Tokens its cache holds; 0 where it does not say.
    pub kv_cache_tokens: u64,
}

impl Expected {
    /// Tokens held over all slots and tiers of the engine; 0 is unknown.
    pub fn kv_cache_tokens(&self, facts: Facts) -> u64 {
        match self.kv {
            KvCapacity::Pool { tokens } => tokens,
            KvCapacity::Said => facts.kv_cache_tokens,
            KvCapacity::PerSlot { host_tokens } => {
                let slots = u64::from(facts.slots) * u64::from(facts.context_length_tokens);
                slots.saturating_add(if slots == 0 { 0 } else { host_tokens })
            }
        }
    }
}

/// The command line of `spec` at `place`.
///
/// # Errors
/// Any [`SpecError`].
pub fn render(
    spec: &EngineSpec,
    model: Option<&Model>,
    place: &Place<'_>,
) -> Result<Rendering, SpecError> {
    check(spec)?;
    match Kind::of(spec)? {
        Kind::LlamaCpp => llama_cpp::render(spec, model, place),
        Kind::Vllm => vllm::render(spec, model, place),
        Kind::Sglang => sglang::render(spec, model, place),
        Kind::Sim => sim::render(spec, place),
    }
}

fn check(spec: &EngineSpec) -> Result<(), SpecError> {
    let refuse = |key, value: String, cure: &str| {
        Err(SpecError::Value { key, value, cure: cure.to_owned() })
    };
    if spec.model.is_empty() {
        return refuse("model.name", "empty".to_owned(), "name the model");
    }
    if spec.slots == 0 || spec.slots > SLOTS_MAX {
        return refuse("slots", spec.slots.to_string(), &format!("write 1 to {SLOTS_MAX}"));
    }
    if spec.context_length_tokens > CONTEXT_LENGTH_TOKENS_MAX {
        return refuse(
            "context_length_tokens",
            spec.context_length_tokens.to_string(),
            &format!("write at most {CONTEXT_LENGTH_TOKENS_MAX}"),
        );
    }
    if spec.extra_args.len() > EXTRA_ARGS_MAX {
        return refuse(
            "extra_args",
            format!("{} words", spec.extra_args.len()),
            &format!("write at most {EXTRA_ARGS_MAX}"),
        );
    }
    if let Some(word) = spec.env.iter().find(|word| !is_variable(word)) {
        return refuse("env", format!("{word:?}"), "write NAME=value, of A-Z a-z 0-9 _ =");
    }
    if spec.env.len() > ENV_MAX {
        let cure = format!("write at most {ENV_MAX}");
        return refuse("env", format!("{} variables", spec.env.len()), &cure);
    }
    if let Some(word) = spec.extra_args.iter().chain([&spec.model]).find(|w| w.contains('\0')) {
        return refuse("extra_args", format!("{word:?}"), "write no NUL byte");
    }
    Ok(())
}

/// Refuses flags the agent sets itself: an engine on another port or host could not be watched.
fn refuse_owned(extra_args: &[String], owned: &[&str]) -> Result<(), SpecError> {
    let flag = |word: &String| word.split('=').next().unwrap_or_default().to_owned();
    match extra_args.iter().map(flag).find(|flag| owned.contains(&flag.as_str())) {
        Some(flag) => Err(SpecError::OwnedFlag { flag }),
        None => Ok(()),
    }
}

/// Data-parallel ranks an engine of that command line has; each says what it caches on a port of its own.
pub fn data_parallel_ranks(args: &[String]) -> u32 {
    let names = ["--data-parallel-size", "-dp", "--dp-size", "--dp"];
    value_of(args, &names).and_then(|value| value.parse().ok()).unwrap_or(1)
}

/// The value of the last of `names` in `extra_args`, as `--name value` or `--name=value`.
fn value_of<'a>(extra_args: &'a [String], names: &[&str]) -> Option<&'a str> {
    let mut found = None;
    for (at, word) in extra_args.iter().enumerate() {
        if names.contains(&word.as_str()) {
            found = extra_args.get(at + 1).map(String::as_str);
        } else if let Some((name, value)) = word.split_once('=')
            && names.contains(&name)
        {
            found = Some(value);
        }
    }
    found
}

#[cfg(test)]
mod tests;
