//! The router as a process: configuration on disk, free ports, ended with its owner.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::client::Client;
use super::engine::Engine;

const START_MAX: Duration = Duration::from_secs(20);
const SETTLE_MAX: Duration = Duration::from_secs(2);
/// A first probe takes a few milliseconds; only those who have a key can see that it has ended.
const UNSEEN_PROBES: Duration = Duration::from_millis(300);

pub struct Router {
    child: Child,
    pub http: SocketAddr,
    pub admin: SocketAddr,
    _config: tempfile::TempDir,
}

/// A port nobody listens on.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// `[[workers]]` for model `m` without tokenizer.
pub fn worker(engine: &Engine, slots: u32) -> String {
    format!(
        "[[workers]]\nurl = \"http://{}\"\nmodel = \"m\"\nkind = \"openai_compat\"\nslots = {slots}\n",
        engine.address
    )
}

impl Router {
    /// Starts with `[router]` keys and worker entries, and waits until it is ready.
    pub fn start(keys: &str, workers: &str) -> Router {
        let router = Router::spawn(keys, workers);
        router.wait_until("/readyz", 200);
        router.settle(workers.matches("[[workers]]").count());
        router
    }

    /// Starts and waits only until it answers.
    pub fn spawn(keys: &str, workers: &str) -> Router {
        let config = tempfile::tempdir().unwrap();
        let path = config.path().join("router.toml");
        let text = format!(
            "[router]\nlisten_http = \"127.0.0.1:0\"\nlisten_admin = \"127.0.0.1:0\"\ncores = 2\n{keys}\n{workers}"
        );
        std::fs::write(&path, text).unwrap();
        let mut child =
            command(&path).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        // listening on http://127.0.0.1:1234 (admin http://127.0.0.1:1235)
        let mut addresses = line.split("http://").skip(1).map(|part| {
            part.trim_end_matches([')', '\n', ' '])
                .trim_end_matches("(admin")
                .trim()
                .parse()
                .unwrap()
        });
        let (http, admin) = (addresses.next().unwrap(), addresses.next().unwrap());
        let router = Router { child, http, admin, _config: config };
        router.wait_until("/healthz", 200);
        router
    }

    fn wait_until(&self, path: &str, status: u16) {
        let deadline = Instant::now() + START_MAX;
        loop {
            if TcpStream::connect(self.http).is_ok() && self.client().get(path).status == status {
                return;
            }
            assert!(Instant::now() < deadline, "{path} does not become {status}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Gives the other workers a moment too: readiness as a whole asks for one. Some tests have workers
    /// that never are.
    fn settle(&self, workers: usize) {
        let deadline = Instant::now() + SETTLE_MAX;
        let is_ready =
            |line: &&str| line.starts_with("cgn_router_worker_ready{") && line.ends_with(" 1");
        while Instant::now() < deadline {
            let metrics = Client::connect(self.admin).get("/metrics");
            let ready = metrics.text().lines().filter(is_ready).count();
            if metrics.status != 200 {
                return std::thread::sleep(UNSEEN_PROBES);
            }
            if ready == workers {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn client(&self) -> Client {
        Client::connect(self.http)
    }

    /// The value of a metric line that starts with `name`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = Client::connect(self.admin).get("/metrics");
        let line = text.text().lines().find(|line| line.starts_with(name)).map(str::to_owned);
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }

    pub fn terminate(&self) {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
    }

    /// Waits for the end; the exit code.
    pub fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + START_MAX;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the router does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(config: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cgn-router"));
    command.arg("--config").arg(config).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Runs the router with this file until it ends by itself.
pub fn run(text: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("router.toml");
    std::fs::write(&path, text).unwrap();
    let mut child = command(&path).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + START_MAX;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("the router did not refuse to start");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut stderr = Vec::new();
    child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
    Output { status: child.wait().unwrap(), stdout: Vec::new(), stderr }
}
