//! A `llama-server` that can be killed and started again on its port, stopped and let go on.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::Client;

const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// The engine's folder in the cache is named after the package it was built from.
const ENGINE_PREFIX: &str = "llama.cpp-0.3.36";
/// The model loads in about a second.
const START_MAX: Duration = Duration::from_secs(100);

/// Engine and model.
#[derive(Clone)]
pub struct Found {
    server: PathBuf,
    model: PathBuf,
}

/// Where they are, if they are.
pub fn find() -> Option<Found> {
    let models = variable("CGN_MODEL_DIR").or_else(|| Some(cache()?.join("models")))?;
    let model = models.join(FILE);
    let server = match variable("CGN_LLAMA_SERVER") {
        Some(server) => server,
        None => built()?,
    };
    (server.is_file() && model.is_file()).then_some(Found { server, model })
}

fn built() -> Option<PathBuf> {
    let engines = std::fs::read_dir(cache()?.join("engines")).ok()?.flatten();
    let is_ours = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(ENGINE_PREFIX))
    };
    let folders = engines.map(|entry| entry.path()).filter(|path| is_ours(path));
    folders.map(|folder| folder.join("llama-server")).find(|server| server.is_file())
}

fn cache() -> Option<PathBuf> {
    variable("CGN_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("cognitora")))
        .or_else(|| Some(variable("HOME")?.join(".cache/cognitora")))
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// One engine; it ends with its owner.
pub struct Llama {
    found: Found,
    pub address: SocketAddr,
    process: Mutex<Child>,
}

impl Llama {
    /// Starts one and waits until it is ready.
    pub fn start(found: &Found) -> Llama {
        // The listener is closed before the engine binds; nobody else is given the port that soon.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let process = Mutex::new(spawn(found, address));
        let llama = Llama { found: found.clone(), address, process };
        let deadline = Instant::now() + START_MAX;
        while !llama.is_ready() {
            assert!(Instant::now() < deadline, "the engine did not get ready");
            std::thread::sleep(Duration::from_millis(100));
        }
        llama
    }

    fn is_ready(&self) -> bool {
        TcpStream::connect(self.address).is_ok()
            && Client::connect(self.address).get("/health").status == 200
    }

    /// As the kernel ends one that ran out of memory.
    pub fn kill(&self) {
        let mut process = self.process.lock().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Starts it again, and does not wait for it.
    pub fn restart(&self) {
        *self.process.lock().unwrap() = spawn(&self.found, self.address);
    }

    /// It does nothing more, and its sockets stay open.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// It goes on.
    pub fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = self.process.lock().unwrap().id();
        kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
    }
}

impl Drop for Llama {
    fn drop(&mut self) {
        // It may be dead already.
        let mut process = self.process.lock().unwrap_or_else(|poison| poison.into_inner());
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// One slot and one thread: what it says depends on the prompt alone.
fn spawn(found: &Found, address: SocketAddr) -> Child {
    Command::new(&found.server)
        .arg("--model")
        .arg(&found.model)
        .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
        .args(["--parallel", "1", "-c", "512", "--threads", "1", "--threads-batch", "1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
