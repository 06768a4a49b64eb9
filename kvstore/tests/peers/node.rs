//! A daemon at one end of the wire, and a client on the same machine.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use kvclient::{Block, Client, Name, Options};

use super::certificates::Authority;
use super::namespaces::{ADDRESSES, Wire};

pub struct Node {
    child: Child,
    name: String,
    folder: PathBuf,
    uds: PathBuf,
    resp: String,
    pub quic: String,
}

impl Node {
    pub fn start(
        wire: &Wire,
        end: usize,
        name: &str,
        authority: &Authority,
        folder: &Path,
        connect: &[&Node],
    ) -> Node {
        Node::believing(wire, end, name, authority, &authority.pem(), folder, connect)
    }

    /// One that also believes other authorities.
    pub fn believing(
        wire: &Wire,
        end: usize,
        name: &str,
        authority: &Authority,
        believed: &str,
        folder: &Path,
        connect: &[&Node],
    ) -> Node {
        authority.issue(folder, name, ADDRESSES[end]);
        let ca = folder.join(format!("{name}-ca.pem"));
        std::fs::write(&ca, believed).unwrap();
        let uds = folder.join(format!("{name}.sock"));
        let connect: Vec<String> = connect.iter().map(|node| format!("{:?}", node.quic)).collect();
        let config = format!(
            "[kv]\nram_gib = 0.0625\nhuge_pages = \"never\"\nuds = {uds:?}\nmetrics_listen = \"127.0.0.1:0\"\n\
             resp_listen = \"127.0.0.1:0\"\nquic_listen = \"{}:0\"\n[kv.limits]\nblock_mib_max = 8\n\
             [kv.peers]\nconnect = [{}]\nca_file = {ca:?}\ncert_file = {:?}\nkey_file = {:?}\n\
             hot_fetches = 8\negress_mib_s_max = 0\n",
            ADDRESSES[end],
            connect.join(", "),
            folder.join(format!("{name}.pem")),
            folder.join(format!("{name}.key")),
        );
        let path = folder.join(format!("{name}.toml"));
        std::fs::write(&path, config).unwrap();
        let mut child = wire
            .at(end, env!("CARGO_BIN_EXE_cgn-kvcached"))
            .arg("--config")
            .arg(&path)
            .env("RUST_LOG", "info")
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(folder.join(format!("{name}.log"))).unwrap())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut after = |word| lines.find_map(|line| Some(line.strip_prefix(word)?.to_owned()));
        let (resp, quic) = (after("resp ").unwrap(), after("quic ").unwrap());
        let (name, folder) = (name.to_owned(), folder.to_owned());
        Node { child, name, folder, uds, resp, quic }
    }

    /// One of its files: `toml`, `pem`, `key`, `log`.
    pub fn file(&self, end: &str) -> PathBuf {
        self.folder.join(format!("{}.{end}", self.name))
    }

    /// Changes its configuration while it runs.
    pub fn change(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.file("toml")).unwrap();
        assert!(text.contains(from), "{from}");
        std::fs::write(self.file("toml"), text.replacen(from, to, 1)).unwrap();
        self.reload("the configuration is read again");
    }

    /// Gives it certificates of another authority, which it believes alone from then on.
    pub fn become_member(&self, authority: &Authority, address: &str) {
        authority.issue(&self.folder, &self.name, address);
        let ca = self.folder.join(format!("{}-ca.pem", self.name));
        std::fs::write(ca, authority.pem()).unwrap();
        self.reload("the configuration is read again");
    }

    /// Has it read its files again and waits until it has said `said` of it.
    pub fn reload(&self, said: &str) {
        let log = || std::fs::read_to_string(self.file("log")).unwrap();
        let before = log().matches(said).count();
        let process = Pid::from_raw(self.child.id().cast_signed());
        kill(process, Signal::SIGHUP).unwrap();
        crate::eventually(said, || log().matches(said).count() > before);
    }

    pub fn client(&self) -> Client {
        let options = Options {
            client: "test".to_owned(),
            staging_bytes: 16 << 20,
            timeout: Duration::from_secs(60),
        };
        Client::connect(&self.uds, "model/fp8/0", &options).unwrap()
    }

    /// What the RESP door answers to one line, at this node's end of the wire.
    pub fn resp(&self, wire: &Wire, end: usize, line: &str) -> String {
        let port = self.resp.rsplit_once(':').unwrap().1;
        let script = format!(
            "exec 3<>/dev/tcp/127.0.0.1/{port}; printf '{line}\\r\\n' >&3; read -r answer <&3; echo \"$answer\""
        );
        let out = wire.at(end, "bash").args(["-c", &script]).output().unwrap();
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    pub fn put(&self, number: u32, len: usize) {
        let bytes = bytes(number, len);
        let block = Block { name: name(number), parent: None, bytes: &bytes, label: b"" };
        assert_eq!(self.client().put(&[block], false).unwrap(), [Ok(())]);
    }

    /// Which of the test blocks up to `last` it has in a tier of its own.
    pub fn blocks(&self, last: u32) -> Vec<u32> {
        let client = self.client();
        let is_here = |number: &u32| !client.lookup(&[name(*number)]).unwrap().is_empty();
        (1..=last).filter(is_here).collect()
    }

    pub fn stat(&self, name: &str) -> u64 {
        let stats = self.client().stats().unwrap();
        let lines = stats.iter().filter(|(line, _)| line.starts_with(name));
        lines.map(|(_, value)| value).sum()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn name(number: u32) -> Name {
    let mut name = [0x5A; 32];
    name[..4].copy_from_slice(&number.to_le_bytes());
    name
}

/// The bytes of test block `number`: all different from those of other numbers.
pub fn bytes(number: u32, len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ number as u8).collect()
}

/// The block, if it can be had in time.
pub fn block(client: &Client, number: u32, within: Duration) -> Option<Vec<u8>> {
    let found = client.get(&[name(number)], Some(within)).unwrap().pop().unwrap();
    found.lease().map(|lease| lease.to_vec())
}
