//! Engine kinds: how each is started and what is then expected of it.
//!
//! Rendering is pure: an [`EngineSpec`], a checked model and a port become a [`Rendering`]. One file
//! per kind below `engine/`. It starts nothing ([`crate::process`]) and asks nothing
//! ([`crate::probe`]).

use std::path::PathBuf;

use control::api::EngineSpec;
use dataplane::wire::{Capability, EngineKind};

mod llama_cpp;
mod sim;

/// Most slots an engine may be asked for; a larger number is a mistake in a recipe.
pub const SLOTS_MAX: u32 = 4096;
/// Most tokens a slot may be asked for.
pub const CONTEXT_LENGTH_TOKENS_MAX: u32 = 16 << 20;
/// Most words `extra_args` may have.
pub const EXTRA_ARGS_MAX: usize = 256;

/// What a recipe's `engine.kind` may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `llama-server`.
    LlamaCpp,
    /// `cgn-sim-engine`.
    Sim,
}

impl Kind {
    /// Every kind the agent can start.
    pub const ALL: [Kind; 2] = [Kind::LlamaCpp, Kind::Sim];

    /// The name in recipes and in `[engines]`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::LlamaCpp => "llama_cpp",
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

    /// Whether it serves a model file.
    pub fn needs_model_file(self) -> bool {
        self == Kind::LlamaCpp
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

/// A model file that passed [`crate::preflight`].
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The file.
    pub path: PathBuf,
    /// Bytes one token takes in a KV cache of 16-bit floats; none where the file does not say.
    pub kv_bytes_per_token: Option<u64>,
}

/// A command line, but for the binary, and what to expect of the process.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendering {
    /// The arguments.
    pub args: Vec<String>,
    /// Environment variables that begin with this are not passed on: the command line alone decides.
    pub env_prefix_removed: Option<&'static str>,
    /// What answers once it is up.
    pub expected: Expected,
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
}

/// What an engine says of itself once it is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Requests it works on at once.
    pub slots: u32,
    /// Tokens one request may span; 0 where it does not say.
    pub context_length_tokens: u32,
}

impl Expected {
    /// Tokens held over all slots and tiers of the engine; 0 is unknown.
    pub fn kv_cache_tokens(&self, facts: Facts) -> u64 {
        match self.kv {
            KvCapacity::Pool { tokens } => tokens,
            KvCapacity::PerSlot { host_tokens } => {
                let slots = u64::from(facts.slots) * u64::from(facts.context_length_tokens);
                slots.saturating_add(if slots == 0 { 0 } else { host_tokens })
            }
        }
    }
}

/// The command line of `spec` on 127.0.0.1:`port`.
///
/// # Errors
/// Any [`SpecError`].
pub fn render(spec: &EngineSpec, model: Option<&Model>, port: u16) -> Result<Rendering, SpecError> {
    check(spec)?;
    match Kind::of(spec)? {
        Kind::LlamaCpp => llama_cpp::render(spec, model, port),
        Kind::Sim => sim::render(spec, port),
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
