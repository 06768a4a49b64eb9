//! The daemon itself on a disk of the test's choice, and a client of its RESP door.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Longer than any pause of a loaded machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// A running daemon. What it logs goes to `log` in its folder.
pub struct Daemon {
    child: Child,
    folder: PathBuf,
    metrics: SocketAddr,
    resp: SocketAddr,
    /// Open as long as the daemon lives, which may have more to say.
    _said: BufReader<ChildStdout>,
}

/// How much memory it has, where its files lie and what else is in `[kv]`.
pub struct Settings<'a> {
    pub folder: &'a Path,
    pub ram_gib: f64,
    pub block_mib_max: u64,
    pub lines: String,
    /// The file its process number goes to before it begins: a cgroup's.
    pub enters: Option<&'a Path>,
}

impl Daemon {
    /// Starts it; what it says if it does not.
    pub fn start(settings: &Settings<'_>) -> Result<Daemon, String> {
        let Settings { folder, ram_gib, block_mib_max, lines, enters } = settings;
        let config = format!(
            "[kv]\nram_gib = {ram_gib}\nhuge_pages = \"never\"\nuds = {:?}\nwrite = \"through\"\n\
             metrics_listen = \"127.0.0.1:0\"\nresp_listen = \"127.0.0.1:0\"\n{lines}\
             [kv.limits]\nblock_mib_max = {block_mib_max}\n",
            folder.join("kv.sock"),
        );
        std::fs::write(folder.join("kv.toml"), config).unwrap();
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let enter = enters.map_or("/dev/null".into(), |path| path.display().to_string());
        let mut child = Command::new("sh")
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\"", &enter])
            .arg(env!("CARGO_BIN_EXE_cgn-kvcached"))
            .arg("--config")
            .arg(folder.join("kv.toml"))
            .env("RUST_LOG", "info")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let (mut metrics, mut resp, mut line) = (None, None, String::new());
        while metrics.is_none() || resp.is_none() {
            line.clear();
            if said.read_line(&mut line).unwrap() == 0 {
                child.wait().unwrap();
                return Err(std::fs::read_to_string(folder.join("log")).unwrap());
            }
            let address = |start: &str| line.trim().strip_prefix(start).map(str::to_owned);
            if let Some(address) = address("metrics http://") {
                let address = address.split('/').next().unwrap_or_default();
                metrics = Some(address.parse().unwrap());
            }
            if let Some(address) = address("resp ") {
                resp = Some(address.parse().unwrap());
            }
        }
        let (metrics, resp) = (metrics.unwrap(), resp.unwrap());
        Ok(Daemon { child, folder: folder.to_path_buf(), metrics, resp, _said: said })
    }

    /// A connection to the RESP door.
    pub fn connect(&self) -> Connection {
        let stream = TcpStream::connect(self.resp).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Connection { stream: BufReader::new(stream) }
    }

    pub fn uds(&self) -> PathBuf {
        self.folder.join("kv.sock")
    }

    /// The sum of a metric's lines.
    pub fn metric(&self, name: &str) -> f64 {
        let mut stream = TcpStream::connect(self.metrics).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let lines = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']))
        });
        let values: Vec<f64> =
            lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert!(!values.is_empty(), "no {name} in {text}");
        values.into_iter().sum()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap()
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(mut self) {
        let process = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
        let begun = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "it does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client of the RESP door.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    fn command(&mut self, words: &[&[u8]]) -> String {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend(format!("${}\r\n", word.len()).bytes());
            bytes.extend(*word);
            bytes.extend(b"\r\n");
        }
        self.stream.get_mut().write_all(&bytes).unwrap();
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Stores a value; the daemon's words if it refuses.
    pub fn set(&mut self, key: &str, value: &[u8]) -> Result<(), String> {
        match self.command(&[b"SET", key.as_bytes(), value]) {
            line if line == "+OK" => Ok(()),
            line => Err(line),
        }
    }

    pub fn get(&mut self, key: &str) -> Option<Vec<u8>> {
        let line = self.command(&[b"GET", key.as_bytes()]);
        let len = line.strip_prefix('$').unwrap_or_else(|| panic!("{line}"));
        let len = usize::try_from(len.parse::<i64>().unwrap()).ok()?;
        let mut value = vec![0; len + 2];
        self.stream.read_exact(&mut value).unwrap();
        value.truncate(len);
        Some(value)
    }

    pub fn remove(&mut self, key: &str) {
        let line = self.command(&[b"DEL", key.as_bytes()]);
        assert!(line.starts_with(':'), "{line}");
    }
}

/// Bytes that follow from `seed` and look like nothing else.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = vec![0; len.next_multiple_of(8)];
    for chunk in bytes.as_chunks_mut::<8>().0 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *chunk = state.to_le_bytes();
    }
    bytes.truncate(len);
    bytes
}
