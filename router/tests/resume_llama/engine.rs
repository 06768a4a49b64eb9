//! Two engines of the test's own, and answers read off their sockets.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use router::http::body::BodyScanner;
use router::http::head::parse_response;

const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// The engine's folder in the cache is named after the package it was built from.
const ENGINE_PREFIX: &str = "llama.cpp-0.3.36";
/// An engine that hangs fails the test instead of stalling it.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// The model loads in about a second; a busy machine gets a hundred times as long.
const STARTS_MAX: usize = 1000;

/// Two engines with the same model. One test at a time: they keep two cores busy.
pub struct Pair {
    pub first: Engine,
    pub second: Engine,
    _turn: MutexGuard<'static, ()>,
}

impl Pair {
    /// `None` says that the test is skipped, and why.
    pub fn start() -> Option<Pair> {
        static TURN: Mutex<()> = Mutex::new(());
        let models = variable("CGN_MODEL_DIR").or_else(|| Some(cache()?.join("models")));
        let model = models.map(|folder| folder.join(FILE)).filter(|file| file.is_file());
        let (Some(server), Some(model)) = (server(), model) else {
            println!("skipped: llama-server is not built: cargo xtask up");
            return None;
        };
        // A test that failed before has left nothing half done.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let start = || Engine::start(&server, &model);
        Some(Pair { first: start(), second: start(), _turn: turn })
    }
}

/// One `llama-server`; it ends with its owner.
pub struct Engine {
    process: Child,
    port: u16,
}

impl Engine {
    fn start(server: &Path, model: &Path) -> Engine {
        // The listener is closed before the engine binds; nobody else is given the port that soon.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new(server)
            .arg("--model")
            .arg(model)
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--parallel", "2", "-c", "2048", "--threads", "1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let engine = Engine { process, port };
        for _ in 0..STARTS_MAX {
            if engine.try_status("/health") == Some(200) {
                return engine;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("the engine did not get ready");
    }

    /// As the kernel ends one that ran out of memory.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn try_status(&self, path: &str) -> Option<u16> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(SILENCE_MAX)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: e\r\nconnection: close\r\n\r\n").ok()?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).ok()?;
        Some(parse_response(&bytes).ok()??.status)
    }

    /// The payload of the whole answer, which must be a 200.
    pub fn ask(&self, path: &str, body: &[u8]) -> Vec<u8> {
        let (mut stream, mut payload) = (self.begin(path, body), Vec::new());
        while stream.read(&mut payload) {}
        assert!(stream.is_complete(), "cut short: {}", String::from_utf8_lossy(&payload));
        payload
    }

    /// Sends the request and reads the head.
    pub fn begin(&self, path: &str, body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(SILENCE_MAX)).unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: e\r\ncontent-type: application/json\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut bytes = Vec::new();
        loop {
            assert!(read_more(&mut stream, &mut bytes), "no answer");
            if let Some(head) = parse_response(&bytes).unwrap() {
                assert_eq!(head.status, 200, "{}", String::from_utf8_lossy(&bytes));
                let scanner = BodyScanner::new(head.framing);
                return Answer { stream, scanner, unread: bytes.split_off(head.length) };
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An answer under way.
pub struct Answer {
    stream: TcpStream,
    scanner: BodyScanner,
    unread: Vec<u8>,
}

impl Answer {
    /// Appends the next payload. False at the end, clean or not.
    pub fn read(&mut self, payload: &mut Vec<u8>) -> bool {
        if self.unread.is_empty() && !read_more(&mut self.stream, &mut self.unread) {
            return false;
        }
        self.scanner.feed(&self.unread, |run| payload.extend_from_slice(run)).unwrap();
        self.unread.clear();
        true
    }

    pub fn is_complete(&self) -> bool {
        self.scanner.may_close()
    }
}

/// A broken connection is an end too: the engine may have been killed.
fn read_more(stream: &mut TcpStream, into: &mut Vec<u8>) -> bool {
    let mut part = [0; 4096];
    match stream.read(&mut part) {
        Ok(read) if read > 0 => {
            into.extend_from_slice(&part[..read]);
            true
        }
        _ => false,
    }
}

fn server() -> Option<PathBuf> {
    let built = || {
        let engines = std::fs::read_dir(cache()?.join("engines")).ok()?.flatten();
        let is_ours = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(ENGINE_PREFIX))
        };
        let mut folders = engines.map(|entry| entry.path()).filter(is_ours);
        folders.find_map(|folder| executable(&folder))
    };
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).find_map(|folder| executable(&folder))
    };
    match variable("CGN_LLAMA_SERVER") {
        Some(server) => Some(server).filter(|server| server.is_file()),
        None => built().or_else(on_path),
    }
}

fn executable(folder: &Path) -> Option<PathBuf> {
    Some(folder.join("llama-server")).filter(|file| file.is_file())
}

fn cache() -> Option<PathBuf> {
    variable("CGN_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("cognitora")))
        .or_else(|| Some(variable("HOME")?.join(".cache/cognitora")))
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
