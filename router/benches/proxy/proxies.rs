//! The proxies under test and the stage they stand on: one bare engine, free ports, pinned cores.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cpu;

/// Load generator and engine.
pub const LOAD_CORE: &str = "0";
/// The proxy.
const PROXY_CORE: &str = "1";
const START_MAX: Duration = Duration::from_secs(10);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// No proxy: the floor.
    Direct,
    /// nginx, one worker, kept upstream connections, no buffering.
    Nginx,
    /// The router with its default configuration before one worker.
    Router,
    /// The router with KV-aware routing by text forced on before two workers.
    RouterKvText,
}

impl Proxy {
    /// In the order of a round.
    pub const ALL: [Proxy; 4] = [Proxy::Direct, Proxy::Nginx, Proxy::Router, Proxy::RouterKvText];

    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Proxy::Direct => "direct",
            Proxy::Nginx => "nginx",
            Proxy::Router => "cgn-router",
            Proxy::RouterKvText => "cgn-router, KV by text",
        }
    }
}

/// A process that ends with its owner.
pub struct Running {
    child: Option<Child>,
    /// The process whose CPU counts; none for `direct`.
    pub pid: Option<u32>,
    /// Where the load goes.
    pub port: u16,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // nginx's master takes its worker with it on SIGTERM; SIGKILL would orphan it.
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let _ = child.wait();
        }
    }
}

/// Everything a round needs.
pub struct Stage {
    directory: tempfile::TempDir,
    engine: Running,
    second_engine: Running,
}

impl Stage {
    /// Starts the engines.
    pub fn set_up() -> Result<Self, String> {
        for tool in ["nginx", "wrk", "taskset"] {
            let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output();
            if !found.is_ok_and(|found| found.status.success()) {
                return Err(format!(
                    "`{tool}` is missing: apt-get install nginx-light wrk util-linux"
                ));
            }
        }
        let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
        Ok(Stage { directory, engine: engine()?, second_engine: engine()? })
    }

    /// A path in the stage's own folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts one proxy and waits until it accepts.
    pub fn start(&self, proxy: Proxy) -> Result<Running, String> {
        match proxy {
            Proxy::Direct => Ok(Running { child: None, pid: None, port: self.engine.port }),
            Proxy::Nginx => self.nginx(),
            Proxy::Router => self.router("auto", &[self.engine.port]),
            Proxy::RouterKvText => {
                self.router("text", &[self.engine.port, self.second_engine.port])
            }
        }
    }

    fn nginx(&self) -> Result<Running, String> {
        let port = free_port()?;
        let folder = self.directory.path().display();
        let config = format!(
            "daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log crit;
             events {{ worker_connections 4096; }}
             http {{
               access_log off; keepalive_requests 1000000000; tcp_nodelay on; client_max_body_size 64m;
               client_body_buffer_size 128k; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
               fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
               upstream engine {{ server 127.0.0.1:{}; keepalive 256; keepalive_requests 1000000000; }}
               server {{ listen 127.0.0.1:{port}; location / {{
                 proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off; }} }}
             }}",
            self.engine.port
        );
        let path = self.path("nginx.conf");
        fs::write(&path, config).map_err(|e| e.to_string())?;
        let child = pinned(PROXY_CORE, "nginx").arg("-c").arg(&path).spawn();
        let mut running = wait(child.map_err(|e| e.to_string())?, port)?;
        // The worker does the work; the master only waits.
        running.pid = running.pid.and_then(|master| cpu::children(master).first().copied());
        Ok(running)
    }

    fn router(&self, mode: &str, engines: &[u16]) -> Result<Running, String> {
        let (port, admin) = (free_port()?, free_port()?);
        let mut config = format!(
            "[router]\nlisten_http = \"127.0.0.1:{port}\"\nlisten_admin = \"127.0.0.1:{admin}\"\ncores = 1\n[router.kv]\nmode = \"{mode}\"\n"
        );
        for engine in engines {
            config.push_str(&format!(
                "[[workers]]\nurl = \"http://127.0.0.1:{engine}\"\nmodel = \"m\"\nkind = \"openai_compat\"\nslots = 64\n"
            ));
        }
        let path = self.path("router.toml");
        fs::write(&path, config).map_err(|e| e.to_string())?;
        let child = pinned(PROXY_CORE, env!("CARGO_BIN_EXE_cgn-router"))
            .arg("--config")
            .arg(&path)
            .env("RUST_LOG", "warn")
            .spawn();
        wait(child.map_err(|e| e.to_string())?, port)
    }
}

fn engine() -> Result<Running, String> {
    let port = free_port()?;
    let this = std::env::current_exe().map_err(|e| e.to_string())?;
    let child =
        pinned(LOAD_CORE, &this.display().to_string()).args(["engine", &port.to_string()]).spawn();
    wait(child.map_err(|e| e.to_string())?, port)
}

/// A command on one core.
pub fn pinned(core: &str, program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", core, program]).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn wait(child: Child, port: u16) -> Result<Running, String> {
    // `taskset` replaces itself with the program, so the child's pid is the program's.
    let running = Running { pid: Some(child.id()), child: Some(child), port };
    let deadline = Instant::now() + START_MAX;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > deadline {
            return Err(format!("nothing listens on port {port} after {START_MAX:?}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // A router learns by its first probe that its engine is there.
    std::thread::sleep(Duration::from_millis(300));
    Ok(running)
}

fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    listener.local_addr().map(|address| address.port()).map_err(|e| e.to_string())
}
