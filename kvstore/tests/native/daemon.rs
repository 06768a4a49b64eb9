//! A daemon of one's own: started with a configuration, killed with the test.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use kvclient::{Block, Client, Name, Options};

pub struct Daemon {
    pub child: Child,
    folder: tempfile::TempDir,
    /// Open as long as the daemon lives, which may have more to say.
    _said: BufReader<ChildStdout>,
}

impl Daemon {
    /// 64 MiB of memory on one core, blocks to 8 MiB.
    pub fn start() -> Daemon {
        Daemon::with("")
    }

    /// With more lines in the section `[kv.limits]`.
    pub fn with(limits: &str) -> Daemon {
        Daemon::on(1, limits)
    }

    pub fn on(cores: usize, limits: &str) -> Daemon {
        Daemon::spawn(cores, "", limits)
    }

    /// With a socket that every user may open.
    pub fn open_to_all() -> Daemon {
        let daemon = Daemon::spawn(1, "uds_mode = 0o666\n", "");
        let all = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(daemon.folder.path(), all).unwrap();
        daemon
    }

    fn spawn(cores: usize, lines: &str, limits: &str) -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("ssd")).unwrap();
        let lines = lines.replace("FOLDER", &folder.path().display().to_string());
        let config = format!(
            "[kv]\nram_gib = 0.0625\ncores = {cores}\nuds = \"{}\"\nmetrics_listen = \"127.0.0.1:0\"\n\
             resp_listen = \"127.0.0.1:0\"\n{lines}[kv.limits]\nblock_mib_max = 8\nreserve_wait_ms = 200\n{limits}",
            folder.path().join("kv.sock").display()
        );
        std::fs::write(folder.path().join("kv.toml"), config).unwrap();
        Daemon::run(folder)
    }

    fn run(folder: tempfile::TempDir) -> Daemon {
        let mut child = Command::new(env!("CARGO_BIN_EXE_cgn-kvcached"))
            .arg("--config")
            .arg(folder.path().join("kv.toml"))
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut said, mut line) = (BufReader::new(child.stdout.take().unwrap()), String::new());
        said.read_line(&mut line).unwrap();
        assert!(line.starts_with("metrics http://"), "{line}");
        Daemon { child, folder, _said: said }
    }

    /// With a disk tier in its folder.
    pub fn with_disk() -> Daemon {
        let lines = "ssd_dir = [\"FOLDER/ssd\"]\nssd_gib = 0.25\nssd_segment_mib = 16\n";
        Daemon::spawn(1, lines, "")
    }

    /// Killed without a word, and started again on what it left.
    pub fn killed_and_started_again(mut self) -> Daemon {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let nowhere = tempfile::tempdir().unwrap();
        Daemon::run(std::mem::replace(&mut self.folder, nowhere))
    }

    pub fn uds(&self) -> PathBuf {
        self.folder.path().join("kv.sock")
    }

    pub fn client(&self) -> Client {
        self.client_of("model/fp8/0")
    }

    pub fn client_of(&self, namespace: &str) -> Client {
        Client::connect(&self.uds(), namespace, &options()).unwrap()
    }

    pub fn stat(&self, client: &Client, name: &str) -> u64 {
        let stats = client.stats().unwrap();
        let lines = stats.iter().filter(|(line, _)| line.starts_with(name));
        lines.map(|(_, value)| value).sum()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn options() -> Options {
    Options {
        client: "test".to_owned(),
        staging_bytes: 16 << 20,
        // Longer than any pause of a loaded machine.
        timeout: Duration::from_secs(60),
    }
}

/// The name of test block `number`.
pub fn name(number: u32) -> Name {
    let mut name = [0xA5; 32];
    name[..4].copy_from_slice(&number.to_le_bytes());
    name
}

/// Its bytes: all different from those of other numbers.
pub fn bytes(number: u32, len: usize) -> Vec<u8> {
    let mut state = u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
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

/// A block without a parent.
pub fn block(number: u32, bytes: &[u8]) -> Block<'_> {
    Block { name: name(number), parent: None, bytes, label: b"" }
}
