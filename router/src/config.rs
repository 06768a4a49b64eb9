//! The router's configuration: one TOML file, every key with its default, every limit by name.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use dataplane::config::{ConfigError, load, parse, require_loopback};
use dataplane::wire::{Capability, EngineKind, ScoreWeights, Worker, WorkerState};
use serde::{Deserialize, Serialize};

use crate::access::AccessConfig;
use crate::breaker::BreakerConfig;
use crate::decisions::DecisionConfig;
use crate::hedge::HedgeConfig;
use crate::identity::IdentityConfig;
use crate::queue::QueueConfig;
use crate::retry::RetryConfig;
use crate::steering::RoutingConfig;
use crate::tenant::{TenantConfig, Tenants};
use crate::tls::files::Tls;
use crate::tokenizer::shelf::ModelConfig;
use crate::trace::TraceConfig;

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[router]`
    #[serde(default)]
    pub router: Router,
    /// `[[workers]]`: a static list. With `control_socket` set, control's list replaces it.
    #[serde(default)]
    pub workers: Vec<StaticWorker>,
    /// `[[models]]`: where the files of models are.
    #[serde(default)]
    pub models: Vec<ModelConfig>,
    /// `[[tenants]]`
    #[serde(default)]
    pub tenants: Vec<TenantConfig>,
}

/// `[router]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Router {
    /// Where clients come in.
    pub listen_http: SocketAddr,
    /// Where metrics and health are served, apart from the clients' listener.
    pub listen_admin: SocketAddr,
    /// Threads, each with its own ring, listener and connections. 0: one per core of this process.
    pub cores: usize,
    /// Pins thread `i` to core `i`. For nodes whose cores the router does not share.
    pub pin_cores: bool,
    /// Control's Unix socket. Without it the router lives on `[[workers]]`.
    pub control_socket: Option<PathBuf>,
    /// Where a new process of this router asks a running one for its listening sockets.
    pub handover_socket: Option<PathBuf>,
    /// `[router.tls]`
    pub tls: Tls,
    /// `[router.identity]`
    pub identity: IdentityConfig,
    /// `[router.queue]`
    pub queue: QueueConfig,
    /// `[router.retry]`
    pub retry: RetryConfig,
    /// `[router.breaker]`
    pub breaker: BreakerConfig,
    /// `[router.hedge]`
    pub hedge: HedgeConfig,
    /// `[router.resume]`
    pub resume: ResumeConfig,
    /// `[router.trace]`
    pub trace: TraceConfig,
    /// `[router.access_log]`
    pub access_log: AccessConfig,
    /// `[router.decision_log]`
    pub decision_log: DecisionConfig,
    /// `[router.score_weights]`
    pub score_weights: ScoreWeights,
    /// `[router.routing]`
    pub routing: RoutingConfig,
    /// `[router.kv]`
    pub kv: Kv,
    /// `[router.limits]`
    pub limits: Limits,
}

impl Default for Router {
    fn default() -> Self {
        Router {
            listen_http: SocketAddr::from(([127, 0, 0, 1], 8080)),
            listen_admin: SocketAddr::from(([127, 0, 0, 1], 9091)),
            cores: 0,
            pin_cores: false,
            control_socket: None,
            handover_socket: None,
            tls: Tls::default(),
            identity: IdentityConfig::default(),
            queue: QueueConfig::default(),
            retry: RetryConfig::default(),
            breaker: BreakerConfig::default(),
            hedge: HedgeConfig::default(),
            resume: ResumeConfig::default(),
            trace: TraceConfig::default(),
            access_log: AccessConfig::default(),
            decision_log: DecisionConfig::default(),
            score_weights: ScoreWeights::default(),
            routing: RoutingConfig::default(),
            kv: Kv::default(),
            limits: Limits::default(),
        }
    }
}

/// `[router.resume]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResumeConfig {
    /// A stream whose engine dies goes on at another one.
    pub enabled: bool,
    /// It waits so long for a worker that can.
    pub wait_ms_max: u64,
}

impl Default for ResumeConfig {
    fn default() -> Self {
        ResumeConfig { enabled: true, wait_ms_max: 10_000 }
    }
}

impl Router {
    /// Beyond loopback only encrypted, and only for those who say who they are.
    pub fn can_leave_loopback(&self) -> bool {
        self.tls.is_on() && (self.identity.required || self.tls.client_cert_required)
    }
}

/// How prompts are cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KvMode {
    /// Token ids where the model's files are at hand or an engine of it can tokenize, else the text; the
    /// text path rests while a model has a single worker, since nothing is to be decided.
    Auto,
    /// Always the raw text of the prompt.
    Text,
    /// No KV-aware routing.
    Off,
}

/// `[router.kv]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kv {
    /// Which path.
    pub mode: KvMode,
    /// Tokens in a block on the exact path.
    pub block_tokens: usize,
    /// Bytes in a block on the text path: about 128 tokens of English.
    pub block_bytes: usize,
    /// Blocks the index remembers over all workers; 64 bytes each.
    pub index_blocks_max: usize,
    /// Blocks remembered of what engines say they hold, each counted once; 35 bytes each at most, taken
    /// when the first engine says something.
    pub event_blocks_max: usize,
    /// What was routed to an engine that tells of its blocks counts as there for so long, until the
    /// engine confirms or denies it.
    pub prediction_ms: u64,
    /// A worker that lacks so many tokens of a prompt is given them first, where its agent can.
    pub warm_tokens_min: u64,
    /// A request waits for that at most so long; 0: nobody is asked.
    pub warm_ms_max: u64,
    /// Blocks a worker is believed to hold when it does not say; learned from there.
    pub worker_blocks_default: u64,
    /// An engine gets this long to tokenize before the text path takes over.
    pub tokenize_timeout_ms: u64,
    /// Tokenized prompts each core remembers.
    pub token_cache_entries_max: usize,
    /// Bytes of prefixes that were tokenized from models' files, over all cores; about 7 a token.
    pub tokenizer_cache_bytes_max: usize,
    /// Share of the prompts tokenized from models' files that an engine tokenizes as well, to compare.
    pub tokenize_check_share: f64,
}

impl Default for Kv {
    fn default() -> Self {
        Kv {
            mode: KvMode::Auto,
            block_tokens: 16,
            block_bytes: 512,
            index_blocks_max: 1 << 20,
            event_blocks_max: 4 << 20,
            prediction_ms: 30_000,
            warm_tokens_min: 256,
            warm_ms_max: 1_000,
            worker_blocks_default: 16_384,
            tokenize_timeout_ms: 1_000,
            token_cache_entries_max: 1_024,
            tokenizer_cache_bytes_max: 256 << 20,
            tokenize_check_share: 0.001,
        }
    }
}

/// `[router.limits]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of a request or response head; more is a 431 (or a bad gateway).
    pub head_bytes_max: usize,
    /// Bytes of a request body; more is a 413.
    pub body_bytes_max: usize,
    /// Client connections per core; the listener stops accepting above it.
    pub connections_per_core_max: usize,
    /// Streams open at once on one HTTP/2 connection.
    pub http2_streams_max: u32,
    /// Requests in flight over all cores; more is a 429.
    pub requests_inflight_max: u32,
    /// Requests per slot of a model that may be at its engines; more wait in `[router.queue]`.
    pub requests_per_slot_max: u32,
    /// Workers tried for one request before the client hears of a failure.
    pub attempts_max: usize,
    /// A TCP connection to an engine must stand within this time.
    pub connect_timeout_ms: u64,
    /// An engine must begin to answer within this time.
    pub first_byte_s_max: u64,
    /// An engine that has begun may be silent so long between two parts of its answer.
    pub inter_token_s_max: u64,
    /// A request as a whole, from its last byte read to its last byte sent.
    pub request_s_max: u64,
    /// A client may take so long between two bytes of a request, or between two reads of an answer.
    pub client_stall_s_max: u64,
    /// A connection without a request is closed after this time.
    pub client_idle_s_max: u64,
    /// Idle connections kept to each worker, per core.
    pub engine_idle_connections_max: usize,
    /// They are closed after this time: below the 5 s after which llama-server closes its side.
    pub engine_idle_ms_max: u64,
    /// Answers up to this size that are not streams are held until complete, so that an engine
    /// that dies in the middle costs a retry, not an error.
    pub answer_hold_bytes_max: usize,
    /// Between two health probes of a worker.
    pub probe_interval_ms: u64,
    /// A probe must answer within this time.
    pub probe_timeout_ms: u64,
    /// After SIGTERM, requests in flight may finish within this time.
    pub drain_s_max: u64,
    /// While draining, a connection without a request is closed after this time. Until then a
    /// client that sends one more is answered, and told to close.
    pub drain_idle_ms_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            head_bytes_max: 64 << 10,
            body_bytes_max: 32 << 20,
            connections_per_core_max: 16_384,
            http2_streams_max: 256,
            requests_inflight_max: 8_192,
            requests_per_slot_max: 2,
            attempts_max: 3,
            connect_timeout_ms: 2_000,
            first_byte_s_max: 600,
            inter_token_s_max: 120,
            request_s_max: 3_600,
            client_stall_s_max: 60,
            client_idle_s_max: 120,
            engine_idle_connections_max: 256,
            engine_idle_ms_max: 4_000,
            answer_hold_bytes_max: 256 << 10,
            probe_interval_ms: 1_000,
            probe_timeout_ms: 2_000,
            drain_s_max: 600,
            drain_idle_ms_max: 5_000,
        }
    }
}

/// One entry of `[[workers]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticWorker {
    /// `http://host:port`
    pub url: String,
    /// The model name clients ask for.
    pub model: String,
    /// Who answers there.
    pub kind: EngineKind,
    /// Requests it works on at once; 0 is what engines of its kind do when nothing is said.
    #[serde(default)]
    pub slots: u32,
    /// What it offers; all by default.
    #[serde(default = "all_capabilities")]
    pub capabilities: Vec<Capability>,
    /// Tokens its KV cache holds; 0 is unknown.
    #[serde(default)]
    pub kv_cache_tokens: u64,
}

fn all_capabilities() -> Vec<Capability> {
    vec![Capability::Chat, Capability::Completions, Capability::Embeddings]
}

/// vLLM's and SGLang's `max_num_seqs`, llama-server's `--parallel` when it may choose; of others nothing is
/// known.
fn usual_slots(kind: EngineKind) -> u32 {
    match kind {
        EngineKind::Vllm | EngineKind::Sglang | EngineKind::TensorrtLlm => 256,
        EngineKind::LlamaCpp => 4,
        EngineKind::OpenaiCompat => 64,
    }
}

impl StaticWorker {
    /// As control would say it. Its id is `model@host:port`. Probes find out whether it is ready.
    pub fn to_worker(&self) -> Worker {
        let authority = self.url.trim_start_matches("http://").trim_end_matches('/');
        Worker {
            id: format!("{}@{authority}", self.model),
            node: String::new(),
            url: self.url.trim_end_matches('/').to_owned(),
            model: self.model.clone(),
            kind: self.kind,
            slots: if self.slots == 0 { usual_slots(self.kind) } else { self.slots },
            context_length_tokens: 0,
            kv_cache_tokens: self.kv_cache_tokens,
            capabilities: self.capabilities.clone(),
            state: WorkerState::Ready,
            epoch: 0,
            power_watts: None,
            running_requests: None,
            kv_feed: None,
            kv_events: false,
            kv_block_tokens: 0,
            model_files: None,
        }
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`], as one line that says what to do.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        load::<Config>(path)?.checked(path)
    }

    /// Reads and checks `text`; `path` is for messages.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn from_text(path: &Path, text: &str) -> Result<Self, ConfigError> {
        parse::<Config>(path, text)?.checked(path)
    }

    /// What each section says of itself.
    fn check_parts(&self) -> Result<(), (String, String)> {
        let router = &self.router;
        let sections = [
            ("queue", router.queue.invalid()),
            ("retry", router.retry.invalid()),
            ("breaker", router.breaker.invalid()),
            ("hedge", router.hedge.invalid()),
            ("routing", router.routing.invalid()),
            ("decision_log", router.decision_log.check().err()),
        ];
        for (section, invalid) in sections {
            if let Some((key, message)) = invalid {
                return Err((format!("router.{section}.{key}"), message.to_owned()));
            }
        }
        let identity = &router.identity;
        identity.check().map_err(|message| ("router.identity".to_owned(), message))?;
        check_tls(&router.tls)?;
        let knows_somebody = identity.reads_bearer() || router.tls.client_ca_file.is_some();
        if identity.required && !knows_somebody {
            let message = "nobody could come in: set api_keys_file, [router.identity.jwt] or [router.tls] client_ca_file";
            return Err(("router.identity.required".to_owned(), message.to_owned()));
        }
        Tenants::build(&self.tenants, None).map_err(|message| ("tenants".to_owned(), message))?;
        let trace = router.trace.collector().map(drop);
        trace.map_err(|error| (format!("router.trace.{}", error.key()), error.to_string()))?;
        let access = router.access_log.check();
        access.map_err(|error| (format!("router.access_log.{}", error.key()), error.to_string()))
    }

    fn checked(self, path: &Path) -> Result<Self, ConfigError> {
        let refuse = |key: &str, message: String| {
            Err(ConfigError::Value { path: path.to_owned(), key: key.to_owned(), message })
        };
        let router = &self.router;
        if !router.can_leave_loopback() {
            require_loopback(path, "router.listen_http", router.listen_http)?;
        }
        require_loopback(path, "router.listen_admin", router.listen_admin)?;
        if let Err((key, message)) = self.check_parts() {
            return refuse(&key, message);
        }
        if !router.score_weights.is_valid() {
            return refuse(
                "router.score_weights",
                "the four weights must be 0 or more and sum to 1.0".into(),
            );
        }
        if router.kv.block_tokens == 0 || router.kv.block_bytes == 0 {
            return refuse("router.kv", "block_tokens and block_bytes must be 1 or more".into());
        }
        if !(0.0..=1.0).contains(&router.kv.tokenize_check_share) {
            return refuse("router.kv.tokenize_check_share", "must be 0.0 to 1.0".into());
        }
        for (i, model) in self.models.iter().enumerate() {
            if self.models[..i].iter().any(|other| other.name == model.name) {
                return refuse(&format!("models[{i}]"), format!("{} is listed twice", model.name));
            }
        }
        let limits = &router.limits;
        if limits.attempts_max == 0
            || limits.head_bytes_max < 1024
            || limits.requests_per_slot_max == 0
        {
            return refuse(
                "router.limits",
                "attempts_max and requests_per_slot_max must be 1 or more, head_bytes_max 1024 or more"
                    .into(),
            );
        }
        if router.control_socket.is_none() && self.workers.is_empty() {
            return refuse(
                "workers",
                "nothing to route to: add a [[workers]] entry or set [router] control_socket"
                    .into(),
            );
        }
        for (i, worker) in self.workers.iter().enumerate() {
            let key = format!("workers[{i}]");
            if worker.model.is_empty() {
                return refuse(&key, "model must not be empty".into());
            }
            if let Err(message) = crate::upstream::Target::resolve(&worker.url) {
                return refuse(&key, message);
            }
            if self.workers[..i].iter().any(|other| other.to_worker().id == worker.to_worker().id) {
                return refuse(&key, format!("the worker {} is listed twice", worker.url));
            }
        }
        Ok(self)
    }
}

/// What of `[router.tls]` means nothing without the rest.
fn check_tls(tls: &Tls) -> Result<(), (String, String)> {
    let refuse = |key: &str, message: &str| Err((format!("router.tls.{key}"), message.to_owned()));
    match (&tls.cert_file, &tls.key_file, &tls.client_ca_file) {
        (Some(_), None, _) => refuse("cert_file", "key_file must be set too"),
        (None, Some(_), _) => refuse("key_file", "cert_file must be set too"),
        (None, None, Some(_)) => refuse(
            "client_ca_file",
            "clients show certificates over TLS only: set cert_file and key_file",
        ),
        (_, _, None) if tls.client_cert_required => {
            refuse("client_cert_required", "client_ca_file must say whose certificates count")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Config::from_text(Path::new("router.toml"), text).unwrap_err().to_string()
    }

    const WORKER: &str = "[[workers]]\nurl = \"http://127.0.0.1:8001\"\nmodel = \"m\"\nkind = \"llama_cpp\"\nslots = 2\n";

    #[test]
    fn a_static_list_is_enough() {
        let text = format!("[router]\nlisten_http = \"127.0.0.1:8080\"\n{WORKER}");
        let config = Config::from_text(Path::new("router.toml"), &text).unwrap();
        assert_eq!(config.workers[0].to_worker().id, "m@127.0.0.1:8001");
        assert_eq!(config.router.score_weights, ScoreWeights::default());
    }

    #[test]
    fn bad_files_say_what_to_do() {
        assert_eq!(
            error(&format!("[router]\nlisten_htp = 1\n{WORKER}")),
            "router.toml:2: unknown key `listen_htp`; the nearest known key is `listen_http`"
        );
        assert!(error("").contains("nothing to route to"));
        assert!(
            error(&format!("[router]\nlisten_http = \"0.0.0.0:80\"\n{WORKER}"))
                .contains("loopback")
        );
        assert!(error(&format!("{WORKER}{WORKER}")).contains("listed twice"));
        assert!(error(&WORKER.replace("http://", "https://")).contains("http://"));
        assert!(error(&WORKER.replace("llama_cpp", "llama")).contains("router.toml:4"));
        assert!(error(&format!("[router.score_weights]\nkv = 1.0\nload = 1.0\npower = 0.0\ncapacity = 0.0\n{WORKER}")).contains("sum to 1.0"));
    }

    /// `docs/CONFIGURATION.md` names every key, and with its default.
    #[test]
    fn the_documented_defaults_are_the_defaults() {
        let page = include_str!("../../docs/CONFIGURATION.md");
        let block =
            page.split("## cgn-router").nth(1).and_then(|part| part.split("```toml").nth(1));
        let block = block.and_then(|part| part.split("```").next()).expect("a block of TOML");
        let documented: toml::Table = block.parse().expect("TOML");
        let defaults = toml::Table::try_from(Router::default()).expect("TOML");
        assert_eq!(documented["router"], toml::Value::Table(defaults));
    }
}
