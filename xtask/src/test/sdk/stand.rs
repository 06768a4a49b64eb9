//! One engine and one router before it, on free ports, for as long as a suite runs.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::cache::{self, Cache};
use crate::failure::Failure;
use crate::node::process;
use crate::{llama, model, step};

/// The engine loads its model and the router finds it ready within this time.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What runs. Dropping it ends both processes.
pub struct Stand {
    /// `llama_cpp` or `sim`: also the name of the suite's own part.
    pub engine: &'static str,
    model: &'static str,
    engine_port: u16,
    router_port: u16,
    running: Running,
}

/// Processes that end with this value.
struct Running(Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended by itself; then there is nothing to do.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Stand {
    /// A real engine, then the simulated one; each starts when the loop reaches it.
    pub fn all(cache: &Cache) -> impl Iterator<Item = Result<Stand, Failure>> {
        [llama_cpp, sim].into_iter().map(|start| start(cache))
    }

    /// Tells a suite where everything is.
    pub fn describe(&self, command: &mut Command) {
        assert_eq!(self.running.0.len(), 2, "an engine and a router");
        command
            .env("CGN_BASE_URL", format!("http://127.0.0.1:{}", self.router_port))
            .env("CGN_ENGINE_URL", format!("http://127.0.0.1:{}", self.engine_port))
            .env("CGN_MODEL", self.model);
    }
}

fn llama_cpp(cache: &Cache) -> Result<Stand, Failure> {
    let port = free_port()?;
    let mut command = Command::new(llama::ensure(cache)?);
    command.arg("-m").arg(model::ensure(cache)?);
    command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--alias", "smollm2-135m"]);
    command.args(["-np", "2", "-c", "4096", "--jinja"]);
    // llama.cpp tells what it can do only when a request fails; the operator says it here.
    let capabilities = "capabilities = [\"chat\", \"completions\"]\n";
    stand(cache, "llama_cpp", "smollm2-135m", port, &mut command, ("llama_cpp", capabilities))
}

fn sim(cache: &Cache) -> Result<Stand, Failure> {
    let port = free_port()?;
    let mut command = Command::new(cache.binary("cgn-sim-engine"));
    command.args(["--listen", &format!("127.0.0.1:{port}"), "--model", "sim"]);
    command.args(["--speedup-ratio", "0"]);
    stand(cache, "sim", "sim", port, &mut command, ("vllm", ""))
}

fn stand(
    cache: &Cache,
    engine: &'static str,
    model: &'static str,
    engine_port: u16,
    command: &mut Command,
    (kind, more): (&str, &str),
) -> Result<Stand, Failure> {
    let folder = cache.root.join("run-sdk").join(engine);
    cache::make(&folder)?;
    let (router_port, admin_port) = (free_port()?, free_port()?);
    let config = folder.join("router.toml");
    let text = format!(
        "[router]\nlisten_http = \"127.0.0.1:{router_port}\"\n\
         listen_admin = \"127.0.0.1:{admin_port}\"\ncores = 1\n\n\
         [router.limits]\nbody_bytes_max = 1048576\n\n\
         [[workers]]\nurl = \"http://127.0.0.1:{engine_port}\"\nmodel = \"{model}\"\n\
         kind = \"{kind}\"\nslots = 2\n{more}"
    );
    fs::write(&config, text).map_err(|error| Failure::at(&config, "write", &error))?;
    let mut running = Running(Vec::new());
    let logs = ["engine.log", "router.log"].map(|name| folder.join(name));
    let mut router = Command::new(cache.binary("cgn-router"));
    router.arg("--config").arg(&config);
    for (command, log) in [command, &mut router].into_iter().zip(&logs) {
        let file = File::create(log).map_err(|error| Failure::at(log, "create", &error))?;
        running.0.push(process::spawn(&folder, command, file)?);
    }
    let mut stand = Stand { engine, model, engine_port, router_port, running };
    stand.wait_until_ready(&logs)?;
    Ok(stand)
}

impl Stand {
    fn wait_until_ready(&mut self, logs: &[PathBuf]) -> Result<(), Failure> {
        let url = format!("http://127.0.0.1:{}/readyz", self.router_port);
        let started = Instant::now();
        loop {
            for (child, log) in self.running.0.iter_mut().zip(logs) {
                if let Ok(Some(status)) = child.try_wait() {
                    return Err(Failure::new(format!(
                        "ended with {status}:{}\n  the whole log: {}",
                        process::tail(log),
                        log.display()
                    )));
                }
            }
            let mut curl = Command::new("curl");
            if step::output(curl.args(["-sf", "--max-time", "2", &url])).is_some() {
                return Ok(());
            }
            if started.elapsed() > READY_TIMEOUT {
                return Err(Failure::new(format!(
                    "the router before {} is not ready after {} s; see {}",
                    self.engine,
                    READY_TIMEOUT.as_secs(),
                    logs.iter().map(|log| log.display().to_string()).collect::<Vec<_>>().join(", ")
                )));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

fn free_port() -> Result<u16, Failure> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| Failure::new(format!("no free port on 127.0.0.1: {error}")))
}
