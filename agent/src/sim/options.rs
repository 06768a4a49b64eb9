//! The command line of `cgn-sim-engine`, checked as a whole before anything starts.

use std::net::SocketAddr;
use std::time::Duration;

use super::kv_events::{EventEncoding, EventForm, HashForm};
use super::scheduler::Limits;
use super::timing::Timing;

/// Sequences at once when vLLM is mimicked, as its own default.
const SEQS_DEFAULT_VLLM: usize = 256;
/// Slots when llama.cpp is mimicked, as its own default.
const SEQS_DEFAULT_LLAMA_CPP: usize = 4;
/// More sequences than this at once are surely a slip.
const SEQS_MAX: usize = 65_536;
/// Tokens of one sequence.
const CONTEXT_TOKENS_MAX: u32 = 16 << 20;

/// Whose dialect is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Dialect {
    /// `llama-server`: `timings`, `/props`, `/slots`, `llamacpp:` metrics, its errors.
    #[value(name = "llama_cpp")]
    LlamaCpp,
    /// `vllm serve`: `/version`, `/kv_event_sources`, `vllm:` metrics, its errors.
    #[value(name = "vllm")]
    Vllm,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

/// The flags as typed.
#[derive(Clone, Debug, clap::Parser)]
#[command(
    name = "cgn-sim-engine",
    version,
    about = "A simulated inference engine: OpenAI API, prefix cache and KV events without a model"
)]
pub struct Options {
    /// Address to listen on; port 0 lets the system choose, the line on stdout tells
    #[arg(long, default_value = "127.0.0.1:0", conflicts_with_all = ["host", "port"])]
    pub listen: SocketAddr,
    /// Host to listen on, instead of --listen
    #[arg(long)]
    pub host: Option<std::net::IpAddr>,
    /// Port to listen on, instead of --listen
    #[arg(long)]
    pub port: Option<u16>,
    /// Model name to serve
    #[arg(long, default_value = "sim")]
    pub model: String,
    /// Engine to behave like
    #[arg(long, value_enum, default_value = "vllm")]
    pub mimic: Dialect,
    /// Sequences worked on at once [default: 256 as vllm, 4 as llama_cpp]
    #[arg(long, visible_alias = "max-seqs")]
    pub slots: Option<usize>,
    /// Tokens one sequence may span, prompt and answer
    #[arg(long, default_value_t = 32_768)]
    pub context_length: u32,
    /// Tokens in a KV block
    #[arg(long, default_value_t = 16)]
    pub block_tokens: usize,
    /// KV blocks in the cache
    #[arg(long, default_value_t = 16_384)]
    pub cache_blocks: usize,
    /// Tokens computed in one step
    #[arg(long, default_value_t = 8192)]
    pub max_batched_tokens: usize,
    /// Times faster than the time model; 0 waits for nothing
    #[arg(long, default_value_t = 1.0)]
    pub speedup_ratio: f64,
    /// Seed of all texts
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Longest answer, in tokens, of a request without max_tokens
    #[arg(long, default_value_t = 256)]
    pub natural_tokens_max: u32,
    /// Milliseconds of simulated loading; until then requests get 503
    #[arg(long, default_value_t = 0)]
    pub startup_ms: u64,
    /// Whether /v1/embeddings is served
    #[arg(long, value_enum, default_value = "on")]
    pub embeddings: Switch,
    /// ZMQ endpoint to publish KV events on: tcp://127.0.0.1:PORT, tcp://*:PORT (loopback) or
    /// ipc://PATH
    #[arg(long)]
    pub kv_events_endpoint: Option<String>,
    /// ZMQ endpoint to replay KV events on; needs --kv-events-endpoint
    #[arg(long, requires = "kv_events_endpoint")]
    pub kv_events_replay_endpoint: Option<String>,
    /// Topic of the KV events
    #[arg(long, default_value = "")]
    pub kv_events_topic: String,
    /// Batches kept for replay
    #[arg(long, default_value_t = 10_000)]
    pub kv_events_buffer_steps: usize,
    /// Encoding of the KV events
    #[arg(long, value_enum, default_value = "map")]
    pub kv_event_encoding: EventEncoding,
    /// Form of the block hashes in KV events
    #[arg(long, value_enum, default_value = "int")]
    pub kv_event_hashes: HashForm,
    /// Sequences that may wait for a slot; more are refused with 503
    #[arg(long, default_value_t = 1024)]
    pub queue_max: usize,
    /// End abruptly, with exit code 86, when generation request N+1 arrives
    #[arg(long)]
    pub fail_after: Option<u64>,
    /// Largest request body
    #[arg(long, default_value_t = 16 << 20)]
    pub body_bytes_max: usize,
}

/// A flag that cannot be used. Displays as one line that says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flag}: {fault}")]
pub struct OptionError {
    flag: &'static str,
    fault: String,
}

/// Where KV events go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventSettings {
    /// PUB endpoint, with `*` already replaced.
    pub endpoint: String,
    /// ROUTER endpoint, if any.
    pub replay_endpoint: Option<String>,
    /// First frame of each message.
    pub topic: String,
    /// Batches kept for replay.
    pub buffer_steps: usize,
    /// How they are written.
    pub form: EventForm,
}

/// The options after checking, as the engine uses them.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// The model's name.
    pub model: String,
    /// Whose dialect is spoken.
    pub dialect: Dialect,
    /// Tokens one sequence may span.
    pub context_tokens: u32,
    /// What the scheduler may use.
    pub limits: Limits,
    /// Seed of all texts.
    pub seed: u64,
    /// Longest answer without `max_tokens`.
    pub natural_tokens_max: u32,
    /// Simulated loading.
    pub startup: Duration,
    /// Whether embeddings are served.
    pub embeddings: bool,
    /// Where KV events go, if anywhere.
    pub events: Option<EventSettings>,
    /// Requests before the abrupt end.
    pub fail_after: Option<u64>,
    /// Largest request body.
    pub body_bytes_max: usize,
}

impl Options {
    /// Checks the flags against each other.
    ///
    /// # Errors
    /// [`OptionError`], the first one.
    pub fn settings(&self) -> Result<Settings, OptionError> {
        let mut listen = self.listen;
        if let Some(host) = self.host {
            listen.set_ip(host);
        }
        if let Some(port) = self.port {
            listen.set_port(port);
        }
        check(listen.ip().is_loopback(), "--listen", || {
            format!("{listen} is not a loopback address; use 127.0.0.1 or [::1]")
        })?;
        let seqs_max = self.slots.unwrap_or(match self.mimic {
            Dialect::Vllm => SEQS_DEFAULT_VLLM,
            Dialect::LlamaCpp => SEQS_DEFAULT_LLAMA_CPP,
        });
        within("--slots", seqs_max as u64, SEQS_MAX as u64)?;
        within("--context-length", self.context_length.into(), CONTEXT_TOKENS_MAX.into())?;
        within("--block-tokens", self.block_tokens as u64, 4096)?;
        within("--cache-blocks", self.cache_blocks as u64, 1 << 26)?;
        within("--max-batched-tokens", self.max_batched_tokens as u64, 1 << 30)?;
        within("--natural-tokens-max", self.natural_tokens_max.into(), CONTEXT_TOKENS_MAX.into())?;
        within("--body-bytes-max", self.body_bytes_max as u64, 1 << 30)?;
        within("--kv-events-buffer-steps", self.kv_events_buffer_steps as u64, 1 << 20)?;
        check(self.queue_max <= 1 << 20, "--queue-max", || "use at most 1048576".to_owned())?;
        check(
            self.speedup_ratio.is_finite() && self.speedup_ratio >= 0.0,
            "--speedup-ratio",
            || "use a number from 0 (no waiting) upwards".to_owned(),
        )?;
        Ok(Settings {
            listen,
            model: self.model.clone(),
            dialect: self.mimic,
            context_tokens: self.context_length,
            limits: Limits {
                seqs_max,
                batched_tokens_max: self.max_batched_tokens,
                block_tokens: self.block_tokens,
                cache_blocks: self.cache_blocks,
                queue_max: self.queue_max,
                timing: Timing { speedup_ratio: self.speedup_ratio },
            },
            seed: self.seed,
            natural_tokens_max: self.natural_tokens_max,
            startup: Duration::from_millis(self.startup_ms),
            embeddings: self.embeddings == Switch::On,
            events: self.event_settings()?,
            fail_after: self.fail_after,
            body_bytes_max: self.body_bytes_max,
        })
    }

    fn event_settings(&self) -> Result<Option<EventSettings>, OptionError> {
        let Some(endpoint) = &self.kv_events_endpoint else {
            return Ok(None);
        };
        let replay = self.kv_events_replay_endpoint.as_ref();
        Ok(Some(EventSettings {
            endpoint: bindable("--kv-events-endpoint", endpoint)?,
            replay_endpoint: replay
                .map(|endpoint| bindable("--kv-events-replay-endpoint", endpoint))
                .transpose()?,
            topic: self.kv_events_topic.clone(),
            buffer_steps: self.kv_events_buffer_steps,
            form: EventForm { encoding: self.kv_event_encoding, hashes: self.kv_event_hashes },
        }))
    }
}

/// The endpoint to bind: `*` is loopback here, and no other address is open to bind.
fn bindable(flag: &'static str, endpoint: &str) -> Result<String, OptionError> {
    let refuse = || OptionError {
        flag,
        fault: format!(
            "cannot use `{endpoint}`; use tcp://127.0.0.1:PORT, tcp://*:PORT or ipc://PATH"
        ),
    };
    if endpoint.strip_prefix("ipc://").is_some_and(|path| !path.is_empty()) {
        return Ok(endpoint.to_owned());
    }
    let address = endpoint.strip_prefix("tcp://").ok_or_else(refuse)?.replacen('*', "127.0.0.1", 1);
    let address: SocketAddr = address.parse().map_err(|_| refuse())?;
    check(address.ip().is_loopback(), flag, || refuse().fault)?;
    Ok(format!("tcp://{address}"))
}

fn within(flag: &'static str, value: u64, max: u64) -> Result<(), OptionError> {
    check((1..=max).contains(&value), flag, || format!("{value} is not in 1..={max}"))
}

fn check(
    holds: bool,
    flag: &'static str,
    fault: impl FnOnce() -> String,
) -> Result<(), OptionError> {
    if holds { Ok(()) } else { Err(OptionError { flag, fault: fault() }) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn settings(args: &[&str]) -> Result<Settings, String> {
        Options::try_parse_from(std::iter::once(&"x").chain(args))
            .map_err(|error| error.to_string())?
            .settings()
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_the_stated_ones() {
        let settings = settings(&[]).unwrap();
        assert_eq!(settings.limits.seqs_max, 256);
        assert_eq!(settings.limits.cache_blocks, 16_384);
        assert_eq!(settings.limits.batched_tokens_max, 8192);
        assert_eq!(settings.limits.block_tokens, 16);
    }

    #[test]
    fn host_and_port_stand_in_for_listen() {
        let args = ["--host", "::1", "--port", "99", "--mimic", "llama_cpp", "--max-seqs", "3"];
        let settings = settings(&args).unwrap();
        assert_eq!(settings.listen, "[::1]:99".parse().unwrap());
        assert_eq!(settings.limits.seqs_max, 3);
    }

    #[test]
    fn what_cannot_work_is_refused_by_the_name_of_its_flag() {
        for (args, flag) in [
            (&["--listen", "0.0.0.0:1"][..], "--listen"),
            (&["--slots", "0"], "--slots"),
            (&["--block-tokens", "0"], "--block-tokens"),
            (&["--speedup-ratio", "NaN"], "--speedup-ratio"),
            (&["--kv-events-endpoint", "tcp://10.0.0.1:5"], "--kv-events-endpoint"),
            (&["--kv-events-endpoint", "udp://x"], "--kv-events-endpoint"),
            (&["--kv-events-endpoint", "ipc://"], "--kv-events-endpoint"),
            (&["--kv-events-replay-endpoint", "ipc:///x"], "--kv-events-endpoint"),
            (&["--no-such-flag"], "--no-such-flag"),
        ] {
            let said = settings(args).unwrap_err();
            assert!(said.contains(flag), "{said}");
        }
    }

    #[test]
    fn a_star_is_loopback() {
        let settings = settings(&["--kv-events-endpoint", "tcp://*:0"]).unwrap();
        assert_eq!(settings.events.unwrap().endpoint, "tcp://127.0.0.1:0");
    }
}
