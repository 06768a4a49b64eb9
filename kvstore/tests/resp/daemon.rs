//! A daemon of one's own, and a connection to it on which bytes are compared.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Daemon {
    pub child: Child,
    pub address: SocketAddr,
    pub folder: tempfile::TempDir,
}

impl Daemon {
    /// 64 MiB of memory on one core, blocks to 32 MiB.
    pub fn start() -> Daemon {
        Daemon::with("")
    }

    /// With more lines in `[kv.resp]`; `FOLDER` in them is the daemon's folder.
    pub fn with(resp: &str) -> Daemon {
        Daemon::on(1, resp, |_| ())
    }

    /// `prepare` writes files to the folder before the daemon starts.
    pub fn on(cores: usize, resp: &str, prepare: impl FnOnce(&Path)) -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        let resp = resp.replace("FOLDER", folder.path().to_str().unwrap());
        let config = format!(
            "[kv]\nram_gib = {}\ncores = {cores}\nmetrics_listen = \"127.0.0.1:0\"\n\
             resp_listen = \"127.0.0.1:0\"\nhuge_pages = \"never\"\n\
             [kv.limits]\nblock_mib_max = 32\nreserve_wait_ms = 200\n[kv.resp]\n{resp}",
            0.0625 * cores as f64
        );
        let path = folder.path().join("kv.toml");
        std::fs::write(&path, config).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_cgn-kvcached"))
            .arg("--config")
            .arg(&path)
            .env("RUST_LOG", "info")
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.find(|line| line.as_ref().unwrap().starts_with("resp ")).unwrap().unwrap();
        Daemon { child, address: line["resp ".len()..].parse().unwrap(), folder }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Changes the configuration's file.
    pub fn rewrite(&self, change: impl FnOnce(String) -> String) {
        let path = self.file("kv.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, change(text)).unwrap();
    }

    /// Has the daemon read its files again and waits until it has said `said` of it.
    pub fn reload(&self, said: &str) {
        let before = self.log().matches(said).count();
        let process = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGHUP).unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while self.log().matches(said).count() == before {
            assert!(Instant::now() < end, "`{said}` is not in {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the daemon wrote to its standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.file("log")).unwrap()
    }

    pub fn connect(&self) -> Connection<TcpStream> {
        let stream = TcpStream::connect(self.address).unwrap();
        // Longer than any pause of a loaded machine.
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
        Connection { stream }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection: what is sent and what must come back, byte for byte.
pub struct Connection<S> {
    pub stream: S,
}

impl<S: Read + Write> Connection<S> {
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Reads as many bytes as `expected` has and compares them.
    #[track_caller]
    pub fn expect(&mut self, expected: impl AsRef<[u8]>) {
        let expected = expected.as_ref();
        let mut read = vec![0; expected.len()];
        let mut filled = 0;
        while filled < read.len() {
            match self.stream.read(&mut read[filled..]) {
                Ok(count) if count > 0 => filled += count,
                end => panic!("{end:?} after {}", shown(&read[..filled])),
            }
        }
        assert!(read == expected, "{} instead of {}", shown(&read), shown(expected));
    }

    /// Sends words as stock clients do.
    pub fn command<W: AsRef<[u8]>>(&mut self, words: &[W]) {
        self.send(encoded(words));
    }

    /// Sends words separated by blanks; compares the answer.
    #[track_caller]
    pub fn ask(&mut self, words: &str, expected: impl AsRef<[u8]>) {
        self.command(&words.split(' ').collect::<Vec<_>>());
        self.expect(expected);
    }

    #[track_caller]
    pub fn set(&mut self, key: &str, value: &[u8]) {
        self.command(&[b"SET", key.as_bytes(), value]);
        self.expect("+OK\r\n");
    }

    #[track_caller]
    pub fn expect_bulk(&mut self, value: &[u8]) {
        self.expect(format!("${}\r\n", value.len()));
        self.expect(value);
        self.expect("\r\n");
    }

    /// One line, without its end.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        String::from_utf8(line[..line.len() - 2].to_vec()).unwrap()
    }

    /// What still comes before the daemon closes.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let mut piece = [0; 4096];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return rest,
                Ok(count) => rest.extend(&piece[..count]),
                // The daemon closed while bytes of ours were on their way.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return rest,
                Err(error) => panic!("{error} after {}", shown(&rest)),
            }
        }
    }
}

pub fn encoded<W: AsRef<[u8]>>(words: &[W]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        let word = word.as_ref();
        bytes.extend(format!("${}\r\n", word.len()).bytes());
        bytes.extend(word);
        bytes.extend(b"\r\n");
    }
    bytes
}

/// Bytes that differ from place to place and from number to number.
pub fn value(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) >> 3) as u8 ^ (number as u8) ^ at as u8).collect()
}

fn shown(bytes: &[u8]) -> String {
    let short = &bytes[..bytes.len().min(200)];
    format!("`{}` ({} bytes)", short.escape_ascii(), bytes.len())
}
