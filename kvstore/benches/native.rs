//! `cargo bench --workspace --bench native`: how long a GET takes by the native door.
//!
//! The real daemon on one core, the client on another. In each round every way runs once, in turn: a bare
//! Unix-socket ping-pong of frames as long as a GET's, a client that sleeps, and one that polls; for each size of
//! block. Then lookups of 1,024 names, pre-made and pipelined, so that the daemon is what limits them.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark that cannot go on ends")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use dataplane::kv::{self, Decoder, Request, VERSION};
use kvclient::{Block, Client, Found, Name, Options};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

const SIZES_KIB: [usize; 4] = [256, 2 << 10, 8 << 10, 32 << 10];
const ROUNDS: usize = 5;
const ASKED: usize = 2_000;
/// Bytes of a GET's frame with one name, and of its answer.
const PING_BYTES: usize = 57;
const PONG_BYTES: usize = 46;
const LOOKUP_NAMES: u32 = 1024;
const LOOKUPS: usize = 500;
const NAMESPACE: &str = "bench";

fn on_core(core: usize) {
    let mut set = CpuSet::new();
    set.set(core).unwrap();
    sched_setaffinity(Pid::from_raw(0), &set).unwrap();
}

struct Daemon {
    child: Child,
    folder: tempfile::TempDir,
    /// Open as long as the daemon lives, which may have more to say.
    _said: BufReader<ChildStdout>,
}

impl Daemon {
    fn start() -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kv.toml");
        let config = format!(
            "[kv]\nram_gib = 0.25\ncpus = [1]\nuds = \"{}/kv.sock\"\nmetrics_listen = \"127.0.0.1:0\"\n\
             resp_listen = \"127.0.0.1:0\"\n[kv.limits]\nblock_mib_max = 64\n",
            folder.path().display()
        );
        std::fs::write(&path, config).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_cgn-kvcached"))
            .arg("--config")
            .arg(&path)
            .env("RUST_LOG", "error")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut said, mut line) = (BufReader::new(child.stdout.take().unwrap()), String::new());
        said.read_line(&mut line).unwrap();
        Daemon { child, folder, _said: said }
    }

    fn uds(&self) -> std::path::PathBuf {
        self.folder.path().join("kv.sock")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Times in µs at the 50th and 99th of 100.
#[derive(Clone, Copy)]
struct Times {
    p50: f64,
    p99: f64,
}

fn times(mut once: impl FnMut() -> Duration) -> Times {
    for _ in 0..ASKED / 10 {
        once();
    }
    let mut all: Vec<f64> = (0..ASKED).map(|_| once().as_nanos() as f64 / 1e3).collect();
    all.sort_by(f64::total_cmp);
    Times { p50: all[ASKED / 2], p99: all[ASKED * 99 / 100] }
}

fn median(rounds: &[Times]) -> Times {
    let middle = |pick: fn(&Times) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(pick).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    Times { p50: middle(|times| times.p50), p99: middle(|times| times.p99) }
}

fn ping_pong() -> Times {
    let (mut near, mut far) = UnixStream::pair().unwrap();
    let echo = std::thread::spawn(move || {
        on_core(1);
        let mut ping = [0; PING_BYTES];
        while far.read_exact(&mut ping).is_ok() && far.write_all(&[1; PONG_BYTES]).is_ok() {}
    });
    let measured = times(|| {
        let (begun, mut pong) = (Instant::now(), [0; PONG_BYTES]);
        near.write_all(&[1; PING_BYTES]).unwrap();
        near.read_exact(&mut pong).unwrap();
        begun.elapsed()
    });
    drop(near);
    echo.join().unwrap();
    measured
}

fn sleeping(client: &Client, name: Name) -> Times {
    times(|| {
        let begun = Instant::now();
        let found = client.get(&[name], None).unwrap();
        let taken = begun.elapsed();
        assert!(matches!(found[..], [Found::Lease(_)]));
        taken
    })
}

fn polling(polling: &mut kvclient::Polling, name: Name) -> Times {
    times(|| {
        let begun = Instant::now();
        let found = polling.get(&name).unwrap();
        let taken = begun.elapsed();
        polling.release(found.lease().unwrap()).unwrap();
        taken
    })
}

/// CPU time of all of the daemon's threads, in µs.
fn cpu_us(daemon: &Daemon) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap();
    let spent = tasks.flatten().map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0)
    });
    spent.sum::<f64>() / 1e3
}

/// CPU µs in the daemon for each lookup, as many on their way as the socket takes.
fn lookups(daemon: &Daemon) -> f64 {
    let mut socket = UnixStream::connect(daemon.uds()).unwrap();
    let (namespace, client) = (NAMESPACE.to_owned(), "bench".to_owned());
    let hello =
        Request::Hello { version: VERSION, namespace, client, staging_bytes: 0, ring: false };
    let mut frame = Vec::new();
    kv::encode(0, &hello, &mut frame);
    socket.write_all(&frame).unwrap();
    let mut reader = socket.try_clone().unwrap();
    let mut decoder = Decoder::default();
    let mut hear = |mut left: usize| {
        let mut bytes = vec![0; 256 << 10];
        while left > 0 {
            let read = reader.read(&mut bytes).unwrap();
            decoder.push(&bytes[..read]);
            while let Some((id, payload)) = decoder.poll_frame().unwrap() {
                // Kind and count, and a tier for each: all were found.
                assert!(id == 0 || payload.len() == 5 + LOOKUP_NAMES as usize);
                left -= 1;
            }
        }
    };
    hear(1);
    frame.clear();
    let names: Vec<Name> = (0..LOOKUP_NAMES).map(small).collect();
    kv::encode(1, &Request::Lookup { names }, &mut frame);
    let begun = cpu_us(daemon);
    let writer = std::thread::spawn(move || {
        (0..LOOKUPS).for_each(|_| socket.write_all(&frame).unwrap());
    });
    hear(LOOKUPS);
    writer.join().unwrap();
    (cpu_us(daemon) - begun) / LOOKUPS as f64
}

fn small(number: u32) -> Name {
    let mut name = [0x5A; 32];
    name[..4].copy_from_slice(&number.wrapping_mul(0x9E37_79B9).to_le_bytes());
    name
}

fn main() {
    on_core(0);
    let daemon = Daemon::start();
    let options = Options { staging_bytes: 64 << 20, ..Options::default() };
    let client = Client::connect_to_poll(&daemon.uds(), NAMESPACE, &options).unwrap();
    let mut poller = client.polling().unwrap();
    let tiny: Vec<Block<'_>> = (0..LOOKUP_NAMES)
        .map(|number| Block { name: small(number), parent: None, bytes: b"x", label: b"" })
        .collect();
    assert!(client.put(&tiny, false).unwrap().iter().all(Result::is_ok));
    println!("| block | ping-pong p50 | p99 | sleeping p50 | x | p99 | polling p50 | p99 |");
    println!("|--:|--:|--:|--:|--:|--:|--:|--:|");
    for kib in SIZES_KIB {
        let (name, bytes) = ([kib as u8 ^ 0x77; 32], vec![7; kib << 10]);
        client.put(&[Block { name, parent: None, bytes: &bytes, label: b"" }], false).unwrap();
        let (mut bare, mut slept, mut polled) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            bare.push(ping_pong());
            slept.push(sleeping(&client, name));
            polled.push(polling(&mut poller, name));
        }
        let (bare, slept, polled) = (median(&bare), median(&slept), median(&polled));
        println!(
            "| {kib} KiB | {:.1} | {:.1} | {:.1} | {:.2} | {:.1} | {:.2} | {:.1} |",
            bare.p50,
            bare.p99,
            slept.p50,
            slept.p50 / bare.p50,
            slept.p99,
            polled.p50,
            polled.p99
        );
        client.remove(&[name]).unwrap();
    }
    let begun = cpu_us(&daemon);
    std::thread::sleep(Duration::from_secs(1));
    println!("idle, a polling client connected: {:.0} µs of CPU in 1 s", cpu_us(&daemon) - begun);
    let mut all: Vec<f64> = (0..ROUNDS).map(|_| lookups(&daemon)).collect();
    all.sort_by(f64::total_cmp);
    println!("lookup of {LOOKUP_NAMES} names: {:.1} µs of the daemon's CPU", all[ROUNDS / 2]);
}
