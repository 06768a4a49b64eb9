//! Where an engine says which blocks it caches: its KV events, as it was told to publish them.
//!
//! vLLM and SGLang publish on ZMQ sockets. Ours are Unix sockets in the agent's own folder: no port is
//! opened, and nobody else on the machine needs to be trusted. The path must fit into a socket address.

use std::path::{Path, PathBuf};

use super::SpecError;

/// Longest path of a Unix socket: `sun_path` is 108 bytes, the last one is NUL.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
/// What the messages are published under.
pub const TOPIC: &str = "kv";

/// Whose events they are: the engines differ in encoding and in hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// vLLM, and the simulated engine.
    Vllm,
    /// SGLang.
    Sglang,
    /// TensorRT-LLM.
    TensorrtLlm,
}

/// Where an engine's KV events come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventSource {
    /// Endpoint of the PUB socket; for TensorRT-LLM the URL that is polled.
    pub live: String,
    /// Endpoint of the ROUTER socket that answers with earlier batches, where there is one.
    pub replay: Option<String>,
    /// What to subscribe to; empty is everything.
    pub topic: String,
    /// How to read them.
    pub dialect: Dialect,
}

impl EventSource {
    /// The two Unix sockets in `folder` of the engine at `port`.
    ///
    /// # Errors
    /// [`SpecError::SocketPath`].
    pub(super) fn at(folder: &Path, port: u16, dialect: Dialect) -> Result<Self, SpecError> {
        let endpoint = |name: &str| {
            let path = folder.join(format!("{port}{name}"));
            check(&path)?;
            Ok(format!("ipc://{}", path.display()))
        };
        let (live, replay) = (endpoint(".kv")?, Some(endpoint(".kvr")?));
        Ok(EventSource { live, replay, topic: TOPIC.to_owned(), dialect })
    }

    /// vLLM's `--kv-events-config`. An `ipc://` endpoint is bound by the engine.
    pub(super) fn vllm_config(&self) -> String {
        let mut config = self.shared_config();
        config["enable_kv_cache_events"] = true.into();
        config.to_string()
    }

    /// SGLang's `--kv-events-config`.
    pub(super) fn sglang_config(&self) -> String {
        self.shared_config().to_string()
    }

    fn shared_config(&self) -> serde_json::Value {
        serde_json::json!({
            "publisher": "zmq",
            "endpoint": self.live,
            "replay_endpoint": self.replay,
            "topic": self.topic,
        })
    }
}

/// A longer path would be cut off or refused by the engine, minutes after it was started. One that is
/// not UTF-8 or has a quote in it cannot be told to the engine.
fn check(path: &Path) -> Result<(), SpecError> {
    let is_fine =
        path.is_absolute() && path.to_str().is_some_and(|text| text.len() <= SOCKET_PATH_BYTES_MAX);
    if is_fine { Ok(()) } else { Err(SpecError::SocketPath { path: PathBuf::from(path) }) }
}
