//! `cgnctl kv` against the real `cgn-kvcached`, filled by its RESP door.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::house::free_port;

/// What the RESP door calls its namespace.
const NAMESPACE: &str = "resp";

struct Daemon {
    child: Child,
    dir: TempDir,
    resp: TcpStream,
}

impl Daemon {
    /// 64 MiB of memory and 128 MiB of disk, in `dir`.
    fn start(dir: TempDir) -> Daemon {
        let port = free_port();
        let folder = dir.path().display();
        let config = format!(
            "[kv]\nram_gib = 0.0625\nuds = \"{folder}/kv.sock\"\nmetrics_listen = \"127.0.0.1:0\"\n\
             resp_listen = \"127.0.0.1:{port}\"\nssd_dir = [\"{folder}/disk\"]\nssd_gib = 0.125\n\
             ssd_segment_mib = 16\nwrite = \"through\"\n[kv.limits]\nblock_mib_max = 8\n"
        );
        std::fs::create_dir_all(dir.path().join("disk")).unwrap();
        std::fs::write(dir.path().join("kv.toml"), config).unwrap();
        let binary = Path::new(env!("CARGO_BIN_EXE_cgnctl")).with_file_name("cgn-kvcached");
        assert!(binary.is_file(), "build the binaries first: cargo build --release --bins");
        let mut child = Command::new(binary)
            .arg("--config")
            .arg(dir.path().join("kv.toml"))
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("metrics http://"), "{line}");
        let resp = TcpStream::connect(("127.0.0.1", port)).unwrap();
        Daemon { child, dir, resp }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("kv.sock")
    }

    fn set(&mut self, key: &str, value: &[u8]) {
        let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), value.len());
        self.resp.write_all(&[head.as_bytes(), value, b"\r\n"].concat()).unwrap();
        let mut answer = [0; 5];
        self.resp.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"+OK\r\n");
    }

    fn kv(&self, args: &[&str]) -> Output {
        kv(&self.socket(), args)
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.kv(&[&["--output", "json"], args].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The one line of a command that ends with `code`.
    fn error(&self, code: i32, args: &[&str]) -> String {
        said(&self.kv(args), code)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn kv(socket: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cgnctl"));
    command.arg("kv").arg("--socket").arg(socket).args(args).stdin(Stdio::null());
    command.output().unwrap()
}

fn said(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(text.starts_with("error: "), "{text}");
    text
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 / 7) as u8).collect()
}

#[test]
fn blocks_are_listed_copied_verified_and_forgotten() {
    let mut daemon = Daemon::start(tempfile::tempdir().unwrap());
    let large = bytes(3_000_001);
    daemon.set("a", &large);
    daemon.set("b\u{1b}[2J", b"small");

    let listed = daemon.json(&["ls"]);
    let rows = listed["blocks"].as_array().unwrap();
    assert_eq!((rows.len(), &listed["is_cut"]), (2, &Value::Bool(false)));
    let of = |label: &str| rows.iter().find(|row| row["label"] == label).unwrap();
    assert_eq!(of("a")["bytes"], 3_000_001);
    assert_eq!((&of("a")["namespace"], &of("a")["tier"]), (&NAMESPACE.into(), &"ram".into()));
    of("b\\u{1b}[2J");
    assert_eq!(daemon.json(&["ls", "--namespace", NAMESPACE])["blocks"], listed["blocks"]);
    let one = daemon.json(&["ls", "--limit", "1"]);
    assert_eq!((one["blocks"].as_array().unwrap().len(), &one["is_cut"]), (1, &true.into()));
    let table = String::from_utf8(daemon.kv(&["ls"]).stdout).unwrap();
    assert!(table.starts_with("NAMESPACE  NAME ") && !table.contains('\u{1b}'), "{table}");

    let file = daemon.dir.path().join("copy");
    let out = file.to_str().unwrap();
    let name = of("a")["name"].as_str().unwrap();
    for key in ["a", name] {
        daemon.json(&["get", key, "--namespace", NAMESPACE, "--out", out]);
        assert!(std::fs::read(&file).unwrap() == large);
        let text = daemon.error(2, &["get", "a", "--namespace", NAMESPACE, "--out", out]);
        assert!(text.contains("not overwritten"), "{text}");
        std::fs::remove_file(&file).unwrap();
    }
    let text = daemon.error(4, &["get", "c", "--namespace", NAMESPACE, "--out", out]);
    assert!(text.contains("there is no block `c`") && !file.exists(), "{text}");

    let verified = daemon.json(&["verify"]);
    assert_eq!((&verified["seen"], &verified["dropped"]), (&2.into(), &0.into()));
    daemon.json(&["evict", "a", "--namespace", NAMESPACE]);
    daemon.error(4, &["evict", "a", "--namespace", NAMESPACE]);
    assert_eq!(daemon.json(&["evict", "--namespace", NAMESPACE])["dropped"], 1);
    assert_eq!(daemon.json(&["ls"])["blocks"], Value::Array(Vec::new()));
}

#[test]
fn statistics_name_namespaces_and_a_misspelt_one_is_not_made() {
    let mut daemon = Daemon::start(tempfile::tempdir().unwrap());
    daemon.set("a", &bytes(5_000));
    for command in [&["ls"][..], &["verify"], &["evict"]] {
        let text = daemon.error(4, &[command, &["--namespace", "rasp"]].concat());
        assert!(text.contains("no namespace `rasp`; it has resp"), "{text}");
    }
    let stats = daemon.json(&["stats"]);
    let namespaces = stats["namespaces"].as_array().unwrap();
    assert_eq!(namespaces.len(), 1, "{stats}");
    assert_eq!(namespaces[0]["name"], NAMESPACE);
    assert!(namespaces[0]["ram_bytes"].as_u64().unwrap() >= 5_000);
    assert_eq!(stats["metrics"]["blocks_stored_total"], 1);
    let table = String::from_utf8(daemon.kv(&["stats"]).stdout).unwrap();
    assert!(
        table.contains("blocks_stored_total") && table.contains("\nNAMESPACE  RAM_BYTES\nresp ")
    );
    daemon.error(2, &["evict"]);
}

#[test]
fn a_drained_daemon_ends_and_the_next_finds_its_blocks_and_their_damage() {
    let mut daemon = Daemon::start(tempfile::tempdir().unwrap());
    let value = bytes(1 << 20);
    daemon.set("whole", &value);
    daemon.set("damaged", b"a word that stands nowhere else");
    assert_eq!(daemon.json(&["drain"])["ended"], true);
    assert!(daemon.child.wait().unwrap().success());
    let text = daemon.error(3, &["stats"]);
    assert!(text.contains("is cgn-kvcached running with kv.uds?"), "{text}");

    damage(&daemon.dir.path().join("disk"), b"a word that stands nowhere else");
    let dir = std::mem::replace(&mut daemon.dir, tempfile::tempdir().unwrap());
    let daemon = Daemon::start(dir);
    let listed = daemon.json(&["ls"]);
    let tiers: Vec<_> =
        listed["blocks"].as_array().unwrap().iter().map(|row| &row["tier"]).collect();
    assert_eq!(tiers, ["disk", "disk"]);
    let text = daemon.error(1, &["verify"]);
    assert!(text.contains("blocks were damaged"), "{text}");
    let rest = daemon.json(&["ls"]);
    let rest = rest["blocks"].as_array().unwrap();
    assert_eq!((rest.len(), &rest[0]["bytes"]), (1, &(1 << 20).into()));
    // It was read and not brought into memory.
    assert_eq!(rest[0]["tier"], "disk");
    assert_eq!(daemon.json(&["verify"])["seen"], 1);
    let file = daemon.dir.path().join("copy");
    let out = file.to_str().unwrap();
    daemon.json(&["get", "whole", "--namespace", NAMESPACE, "--out", out]);
    assert!(std::fs::read(&file).unwrap() == value);
}

/// Flips a bit of `word`, which stands once in the files below `folder`.
fn damage(folder: &Path, word: &[u8]) {
    let mut found = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_file() {
            continue;
        }
        let mut text = std::fs::read(&path).unwrap();
        if let Some(at) = text.windows(word.len()).position(|window| window == word) {
            text[at] ^= 1;
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &text[at..=at], at as u64).unwrap();
            found += 1;
        }
    }
    assert_eq!(found, 1);
}

#[test]
fn a_socket_that_is_none_or_not_ours_is_exit_code_3_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("kv.sock");
    let text = said(&kv(&socket, &["ls"]), 3);
    assert!(text.contains("cannot reach cgn-kvcached at") && text.contains("--socket"), "{text}");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    if !rustix::process::geteuid().is_root() {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o000);
        std::fs::set_permissions(&socket, mode).unwrap();
        let text = said(&kv(&socket, &["ls"]), 3);
        assert!(text.contains("permission denied"), "{text}");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&socket, mode).unwrap();
    }
    drop(listener);
    let text = said(&kv(&socket, &["ls"]), 3);
    assert!(text.contains("nobody listens there"), "{text}");
}
