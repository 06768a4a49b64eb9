//! The router under test: its configurations, and the API keys of its callers.

use std::fmt::Write;
use std::path::PathBuf;

use crate::stage::{PROXY_CORE, Running, Stage, free_port, pinned, start};

/// The key that every client of the main table shows, to whichever proxy.
pub const KEY: &str = "sk-cgn-bench-0123456789abcdef0123456789abcdef";
/// Limits of the tenant: counted for each request, never reached.
const NEVER: u64 = 100_000_000_000;

/// One configuration of the router.
#[derive(Clone, Debug)]
pub struct House {
    /// API keys required, and a tenant with limits.
    pub identity: bool,
    /// `[router.kv] mode`
    pub mode: &'static str,
    /// Certificate and key.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Ports of its engines.
    pub engines: Vec<u16>,
    /// Places at each.
    pub slots: u32,
    /// Control's socket instead of static engines.
    pub control: Option<PathBuf>,
    /// Other keys of `[router.kv]`.
    pub kv_more: String,
    /// Further tenants, `tenant-0` and so on.
    pub tenants: usize,
    /// A key file kept by somebody else.
    pub keys: Option<PathBuf>,
}

impl House {
    /// The defaults, before the first engine: a plain proxy with nobody to tell apart.
    pub fn plain(stage: &Stage) -> Self {
        House {
            identity: false,
            mode: "auto",
            tls: None,
            engines: stage.engine_ports()[..1].to_vec(),
            slots: 64,
            control: None,
            kv_more: String::new(),
            tenants: 0,
            keys: None,
        }
    }

    /// Everything on: hashed keys, a tenant with limits on requests, tokens and concurrency.
    /// Metrics, time limits, retries, breakers and resume are on by default.
    pub fn everything(stage: &Stage) -> Self {
        House { identity: true, ..Self::plain(stage) }
    }

    /// Everything, and KV-aware routing by text before two engines.
    pub fn kv_text(stage: &Stage) -> Self {
        let engines = stage.engine_ports().to_vec();
        House { mode: "text", engines, ..Self::everything(stage) }
    }

    /// Starts it.
    pub fn start(&self, stage: &Stage) -> Result<Running, String> {
        let port = free_port()?;
        if self.identity {
            stage.write("keys", key_line(KEY, "bench"))?;
        }
        let path = stage.write("router.toml", self.config(stage, port)?)?;
        start(
            pinned(PROXY_CORE, env!("CARGO_BIN_EXE_cgn-router"))
                .arg("--config")
                .arg(path)
                .env("RUST_LOG", "error"),
            port,
        )
    }

    fn config(&self, stage: &Stage, port: u16) -> Result<String, String> {
        let mut text = format!(
            "[router]\nlisten_http = \"127.0.0.1:{port}\"\nlisten_admin = \"127.0.0.1:{}\"\ncores = 1\n",
            free_port()?
        );
        if let Some(socket) = &self.control {
            let _ = writeln!(text, "control_socket = \"{}\"", socket.display());
        }
        let _ = writeln!(text, "[router.kv]\nmode = \"{}\"\n{}", self.mode, self.kv_more);
        if let Some((certificate, key)) = &self.tls {
            let (certificate, key) = (certificate.display(), key.display());
            let _ =
                writeln!(text, "[router.tls]\ncert_file = \"{certificate}\"\nkey_file = \"{key}\"");
        }
        if self.identity {
            let keys = self.keys.clone().unwrap_or_else(|| stage.path("keys"));
            let _ = writeln!(
                text,
                "[router.identity]\nrequired = true\napi_keys_file = \"{}\"\nreload_s = 2",
                keys.display()
            );
            let others = (0..self.tenants).map(|at| format!("tenant-{at}"));
            for name in ["bench".to_owned()].into_iter().chain(others) {
                let _ = writeln!(
                    text,
                    "[[tenants]]\nname = \"{name}\"\nrequests_per_minute = {NEVER}\ntokens_per_minute = {NEVER}\nconcurrent_requests_max = 100000"
                );
            }
        }
        for engine in &self.engines {
            let _ = writeln!(
                text,
                "[[workers]]\nurl = \"http://127.0.0.1:{engine}\"\nmodel = \"m\"\nkind = \"openai_compat\"\nslots = {}",
                self.slots
            );
        }
        Ok(text)
    }
}

/// One line of a key file.
pub fn key_line(key: &str, tenant: &str) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, key.as_bytes());
    let mut line = String::new();
    for byte in hash.as_ref() {
        let _ = write!(line, "{byte:02x}");
    }
    let _ = writeln!(line, " tenant={tenant}");
    line
}
