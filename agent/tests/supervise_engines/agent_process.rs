//! A real `cgn-agent` in a folder of its own, and questions about processes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::PATIENCE;

/// Ports an agent under test may give to engines.
const ENGINE_PORTS: u16 = 9;

/// Everything an agent needs on disk. Agents may be started from it one after the other.
pub struct Home {
    directory: tempfile::TempDir,
    state: PathBuf,
    pub metrics: SocketAddr,
    engine_port_min: u16,
}

impl Home {
    pub fn new() -> Self {
        let metrics = SocketAddr::from(([127, 0, 0, 1], free_port()));
        // The range must end within the ports there are.
        let engine_port_min = free_port().min(u16::MAX - ENGINE_PORTS);
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        Home { directory, state, metrics, engine_port_min }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Uses the state folder of `other`.
    pub fn share_state_of(&mut self, other: &Home) {
        self.state = other.state.clone();
    }

    /// Writes a script and gives its path.
    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Starts an agent that dials `control`. `agent` and `engines` are further lines of those
    /// sections.
    pub fn agent(&self, control: SocketAddr, agent: &str, engines: &str) -> Agent {
        let (min, max) = (self.engine_port_min, self.engine_port_min + ENGINE_PORTS);
        let text = format!(
            "[agent]\nnode_id = \"n\"\ncontrol = \"http://{control}\"\nmetrics_listen = \"{}\"\n\
             events_listen = \"unix:{}\"\nstate_dir = {:?}\nlog_dir = {:?}\nmodel_dir = {:?}\n\
             engine_port_min = {min}\nengine_port_max = {max}\n\
             backoff_initial_ms = 100\ndrain_settle_ms = 200\nprobe_interval_ms = 200\n\
             stop_grace_s = 2\n{agent}\n[engines]\n{engines}\n",
            self.metrics,
            self.path("kv.sock").display(),
            self.state,
            self.path("logs"),
            self.path("models"),
        );
        std::fs::write(self.path("agent.toml"), text).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_cgn-agent"))
            .arg("--config")
            .arg(self.path("agent.toml"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Agent { child }
    }

    /// The agent's metrics as text; empty while it does not listen.
    pub fn metrics(&self) -> String {
        http_get(self.metrics, "/metrics").unwrap_or_default()
    }
}

/// A running `cgn-agent`.
pub struct Agent {
    child: Child,
}

impl Agent {
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits for its end; gives the status and what it said.
    pub fn end(&mut self) -> (ExitStatus, String) {
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap(), said)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Whether `pid` runs. A zombie does not.
pub fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

/// Waits until `pid` does not run any more.
pub async fn gone(pid: u32) {
    eventually("a process is gone", || !is_running(pid)).await;
}

/// Waits until `holds`.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Processes whose command line has `word` in it.
pub fn processes_with(word: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(word) && is_running(pid) {
            found.push(pid);
        }
    }
    found
}

fn http_get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// A chat answer being streamed.
pub struct Streaming {
    lines: BufReader<TcpStream>,
}

impl Streaming {
    /// Asks for `tokens` tokens and returns when the first have come.
    pub fn begin(url: &str, model: &str, tokens: u32) -> Self {
        let body = format!(
            "{{\"model\":\"{model}\",\"stream\":true,\"max_tokens\":{tokens},\"ignore_eos\":true,\
             \"messages\":[{{\"role\":\"user\",\"content\":\"Tell me a long story.\"}}]}}"
        );
        let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
        write!(
            stream,
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut streaming = Streaming { lines: BufReader::new(stream) };
        assert!(streaming.next_line().contains("200"));
        while !streaming.next_line().starts_with("data:") {}
        streaming
    }

    /// Reads to the end: whether it ended as streams should.
    pub fn ends_well(mut self) -> bool {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).is_ok() && rest.contains("data: [DONE]")
    }

    fn next_line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.lines.read_line(&mut line).unwrap() > 0, "the stream ended early");
        line
    }
}
