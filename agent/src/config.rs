//! The configuration of `cgn-agent`: one TOML file, read once, checked before anything starts.
//!
//! Every limit of the agent stands here with its default. Unknown keys are errors
//! ([`dataplane::config`]); values that parse but cannot be used are refused by [`load`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dataplane::config::{ConfigError, require_loopback};
use serde::{Deserialize, Serialize};

use crate::kv_events::serve::Address;
use crate::node;
use crate::slots::keeper::Settings;
use crate::supervise::Limits;

/// Smallest `log_bytes_max`: one rotated file must hold a few whole lines.
const LOG_BYTES_MIN: u64 = 4096;
/// Most log files an engine may keep.
const LOG_FILES_LIMIT: u32 = 100;
/// Longest node id: a DNS label.
const NODE_ID_BYTES_MAX: usize = 63;

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[agent]`
    #[serde(default)]
    pub agent: Agent,
    /// `[engines]`
    #[serde(default)]
    pub engines: Engines,
}

/// `[agent]`: the process itself and how it watches engines.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Agent {
    /// Name of this node, first part of each worker id. Default: the host name.
    pub node_id: String,
    /// Address of `cgn-control`. Default `http://127.0.0.1:9090`. Empty: the agent runs what it was
    /// last told and dials nobody.
    pub control: String,
    /// Where `/metrics` and `/healthz` are served. Default `127.0.0.1:9093`.
    pub metrics_listen: SocketAddr,
    /// Where routers hear what KV caches hold: `host:port` on loopback, or `unix:/path`. Default
    /// `127.0.0.1:9094`. Empty: nowhere.
    pub events_listen: String,
    /// Native door (`kv.uds`) of the node's KV daemon, where states of llama.cpp's slots are kept. Default
    /// empty: they are not.
    pub kv_socket: PathBuf,
    /// Tokens in a block of the names they are kept by; the routers' `kv.block_tokens`. Default 16.
    pub kv_block_tokens: u32,
    /// A slot that holds fewer tokens is not saved. Default 256.
    pub kv_save_tokens_min: u32,
    /// A state that takes more is neither saved nor restored. Default 4096.
    pub kv_state_mib_max: u64,
    /// Holds the last desired state over restarts. Default `/var/lib/cognitora/agent`.
    pub state_dir: PathBuf,
    /// Holds the engines' logs. Default `/var/log/cognitora/engines`.
    pub log_dir: PathBuf,
    /// Relative model files lie below it. Default `/var/lib/cognitora/models`.
    pub model_dir: PathBuf,
    /// First port an engine may be given. Default 18100.
    pub engine_port_min: u16,
    /// Last port an engine may be given. Default 18199.
    pub engine_port_max: u16,
    /// An engine's log is rotated before it grows beyond this. Default 16 MiB.
    pub log_bytes_max: u64,
    /// Log files kept for each worker, the current one included. Default 4.
    pub log_files_max: u32,
    /// Pause before the first restart; doubles with each failure. Default 1000.
    pub backoff_initial_ms: u64,
    /// Longest pause before a restart. Default 60000.
    pub backoff_max_ms: u64,
    /// After this long ready, an engine's earlier failures are forgotten. Default 300.
    pub backoff_reset_s: u64,
    /// Failures before an engine was ever ready, after which it is given up. Default 3.
    pub start_attempts_max: u32,
    /// Between two probes of a ready engine. Default 1000.
    pub probe_interval_ms: u64,
    /// Longest wait for one answer to a probe. Default 5000.
    pub probe_timeout_ms: u64,
    /// Failed probes in a row after which a ready engine counts as hung. Default 5.
    pub probe_failures_max: u32,
    /// Shortest time an engine drains, so that routers hear of it first. Default 1000.
    pub drain_settle_ms: u64,
    /// Between SIGTERM and SIGKILL. Default 5.
    pub stop_grace_s: u64,
    /// How long engines may drain when the agent itself is told to stop. Default 10.
    pub shutdown_timeout_s: u64,
}

impl Default for Agent {
    fn default() -> Self {
        Agent {
            node_id: node::hostname(),
            control: "http://127.0.0.1:9090".to_owned(),
            metrics_listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9093),
            events_listen: "127.0.0.1:9094".to_owned(),
            kv_socket: PathBuf::new(),
            kv_block_tokens: 16,
            kv_save_tokens_min: 256,
            kv_state_mib_max: 4_096,
            state_dir: "/var/lib/cognitora/agent".into(),
            log_dir: "/var/log/cognitora/engines".into(),
            model_dir: "/var/lib/cognitora/models".into(),
            engine_port_min: 18100,
            engine_port_max: 18199,
            log_bytes_max: 16 << 20,
            log_files_max: 4,
            backoff_initial_ms: 1000,
            backoff_max_ms: 60_000,
            backoff_reset_s: 300,
            start_attempts_max: 3,
            probe_interval_ms: 1000,
            probe_timeout_ms: 5000,
            probe_failures_max: 5,
            drain_settle_ms: 1000,
            stop_grace_s: 5,
            shutdown_timeout_s: 10,
        }
    }
}

/// `[engines]`: where the engines' binaries are. A path, or a name that is looked up on `PATH`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Engines {
    /// Default `llama-server`.
    pub llama_cpp: String,
    /// Default `vllm`.
    pub vllm: String,
    /// Default `sglang`.
    pub sglang: String,
    /// Default `cgn-sim-engine`, looked for beside the agent's own binary first.
    pub sim: String,
}

impl Default for Engines {
    fn default() -> Self {
        Engines {
            llama_cpp: "llama-server".to_owned(),
            vllm: "vllm".to_owned(),
            sglang: "sglang".to_owned(),
            sim: "cgn-sim-engine".to_owned(),
        }
    }
}

/// Reads `path` and checks every value.
///
/// # Errors
/// Any [`ConfigError`]; nothing has been started.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let config: Config = dataplane::config::load(path)?;
    check(path, &config.agent)?;
    Ok(config)
}

fn check(path: &Path, agent: &Agent) -> Result<(), ConfigError> {
    let refuse = |key: &str, message: String| {
        Err(ConfigError::Value { path: path.to_owned(), key: format!("agent.{key}"), message })
    };
    require_loopback(path, "agent.metrics_listen", agent.metrics_listen)?;
    if let Err(why) = Address::parse(&agent.events_listen) {
        return refuse("events_listen", why);
    }
    if !is_node_id(&agent.node_id) {
        return refuse(
            "node_id",
            format!(
                "`{}` is not a node id; use 1 to {NODE_ID_BYTES_MAX} of A-Z a-z 0-9 . _ -",
                agent.node_id
            ),
        );
    }
    if !agent.control.is_empty() && !is_loopback_url(&agent.control) {
        return refuse(
            "control",
            format!(
                "`{}` is not http:// at a loopback address; without TLS control is dialled on this host only",
                agent.control
            ),
        );
    }
    if agent.engine_port_min == 0 || agent.engine_port_min > agent.engine_port_max {
        return refuse(
            "engine_port_max",
            format!(
                "ports {}..={} are no range; set engine_port_min to at least 1 and not above engine_port_max",
                agent.engine_port_min, agent.engine_port_max
            ),
        );
    }
    if agent.log_bytes_max < LOG_BYTES_MIN {
        return refuse("log_bytes_max", format!("must be at least {LOG_BYTES_MIN}"));
    }
    if !(1..=LOG_FILES_LIMIT).contains(&agent.log_files_max) {
        return refuse("log_files_max", format!("must be 1 to {LOG_FILES_LIMIT}"));
    }
    for (key, value) in [
        ("backoff_initial_ms", agent.backoff_initial_ms),
        ("start_attempts_max", u64::from(agent.start_attempts_max)),
        ("probe_interval_ms", agent.probe_interval_ms),
        ("probe_timeout_ms", agent.probe_timeout_ms),
        ("probe_failures_max", u64::from(agent.probe_failures_max)),
        ("kv_block_tokens", u64::from(agent.kv_block_tokens)),
        ("kv_state_mib_max", agent.kv_state_mib_max),
    ] {
        if value == 0 {
            return refuse(key, "must be at least 1".to_owned());
        }
    }
    if !agent.kv_socket.as_os_str().is_empty() && !agent.kv_socket.is_absolute() {
        let path = agent.kv_socket.display();
        return refuse(
            "kv_socket",
            format!("`{path}` is no absolute path; write the daemon's kv.uds"),
        );
    }
    if agent.backoff_max_ms < agent.backoff_initial_ms {
        return refuse("backoff_max_ms", "must not be below backoff_initial_ms".to_owned());
    }
    Ok(())
}

fn is_node_id(id: &str) -> bool {
    (1..=NODE_ID_BYTES_MAX).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn is_loopback_url(url: &str) -> bool {
    let Ok(uri) = url.parse::<hyper::Uri>() else {
        return false;
    };
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let loopback =
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    uri.scheme_str() == Some("http") && loopback
}

impl Agent {
    /// How slots are kept; none where no daemon is named.
    pub fn slots(&self) -> Option<Settings> {
        (!self.kv_socket.as_os_str().is_empty()).then(|| Settings {
            socket: self.kv_socket.clone(),
            block_tokens: self.kv_block_tokens,
            tokens_min: self.kv_save_tokens_min,
            bytes_max: self.kv_state_mib_max.saturating_mul(1 << 20),
        })
    }

    /// The part of the configuration that [`crate::supervise`] decides by.
    pub fn limits(&self) -> Limits {
        Limits {
            probe_interval: Duration::from_millis(self.probe_interval_ms),
            probe_failures_max: self.probe_failures_max,
            start_attempts_max: self.start_attempts_max,
            backoff_initial: Duration::from_millis(self.backoff_initial_ms),
            backoff_max: Duration::from_millis(self.backoff_max_ms),
            backoff_reset_after: Duration::from_secs(self.backoff_reset_s),
            drain_settle: Duration::from_millis(self.drain_settle_ms),
            stop_grace: Duration::from_secs(self.stop_grace_s),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        load(&path).map_err(|error| {
            error.to_string().replace(&format!("{}/", directory.path().display()), "")
        })
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = load_text("").unwrap();
        assert_eq!(config.agent.metrics_listen.port(), 9093);
        assert_eq!(config.engines.llama_cpp, "llama-server");
        assert!(is_node_id(&config.agent.node_id));
    }

    #[test]
    fn an_unknown_key_names_file_line_and_nearest_key() {
        let said = load_text("[agent]\nnode_id = \"n\"\nstate_dri = \"/x\"\n").unwrap_err();
        assert_eq!(
            said,
            "agent.toml:3: unknown key `state_dri`; the nearest known key is `state_dir`"
        );
        let said = load_text("[engines]\nllama = \"x\"\n").unwrap_err();
        assert!(said.contains("agent.toml:2:") && said.contains("`llama_cpp`"), "{said}");
    }

    #[test]
    fn values_that_cannot_be_used_are_refused_by_key() {
        for (text, key) in [
            ("metrics_listen = \"0.0.0.0:1\"", "agent.metrics_listen"),
            ("events_listen = \"0.0.0.0:1\"", "agent.events_listen"),
            ("events_listen = \"unix:x\"", "agent.events_listen"),
            ("node_id = \"a/b\"", "agent.node_id"),
            ("node_id = \"\"", "agent.node_id"),
            ("control = \"https://127.0.0.1:1\"", "agent.control"),
            ("control = \"http://10.0.0.1:1\"", "agent.control"),
            ("engine_port_min = 9\nengine_port_max = 8", "agent.engine_port_max"),
            ("log_bytes_max = 1", "agent.log_bytes_max"),
            ("log_files_max = 0", "agent.log_files_max"),
            ("probe_failures_max = 0", "agent.probe_failures_max"),
            ("backoff_max_ms = 5", "agent.backoff_max_ms"),
            ("kv_socket = \"kv.sock\"", "agent.kv_socket"),
            ("kv_block_tokens = 0", "agent.kv_block_tokens"),
            ("kv_state_mib_max = 0", "agent.kv_state_mib_max"),
        ] {
            let said = load_text(&format!("[agent]\n{text}\n")).unwrap_err();
            assert!(said.contains(key), "{text}: {said}");
        }
        assert!(load_text("[agent]\ncontrol = \"\"\n").is_ok());
        assert!(load_text("[agent]\ncontrol = \"http://[::1]:9090\"\n").is_ok());
    }

    /// `docs/CONFIGURATION.md` names every key, and with its default.
    #[test]
    fn the_documented_defaults_are_the_defaults() {
        let page = include_str!("../../docs/CONFIGURATION.md");
        let block = page.split("## cgn-agent").nth(1).and_then(|part| part.split("```toml").nth(1));
        let block = block.and_then(|part| part.split("```").next()).unwrap();
        let documented: toml::Table = block.parse().unwrap();
        let mut defaults = toml::Table::try_from(Config::default()).unwrap();
        // The host's name, different on each.
        defaults["agent"].as_table_mut().unwrap().remove("node_id");
        assert_eq!(documented, defaults);
    }
}
