//! The RESP door beside redis: server CPU for each GB, and throughput, as ratios of one run.
//!
//! `cargo bench --workspace --bench resp`. Both servers run on CPU 0, `redis-benchmark` on CPU 1; each
//! cell is run on both in turn. CPU is what the kernel counted for the server's threads, so a client
//! that is the limit does not hide it. Needs `redis-server`, `redis-benchmark` and `taskset`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a measurement that cannot go on ends"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes moved by one run of a cell, unless `RESP_BENCH_MB` says otherwise.
const CELL_MB: u64 = 2000;
/// Runs of each cell on each server, unless `RESP_BENCH_RUNS` says otherwise.
const RUNS: usize = 3;
const SIZES: [usize; 4] = [256 << 10, 2 << 20, 8 << 20, 32 << 20];
const CONNECTIONS: [usize; 3] = [1, 4, 16];
/// Keys that are asked for at random: more than a cache of the processor holds.
const KEYS_BYTES: usize = 256 << 20;

struct Server {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn redis() -> Server {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("taskset")
            .args(["-c", "0", "redis-server", "--save", "", "--appendonly", "no", "--port"])
            .arg(port.to_string())
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server");
        Server { child, port, _folder: folder }.ready()
    }

    fn ours() -> Server {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kv.toml");
        let huge = std::env::var("RESP_BENCH_HUGE").unwrap_or_else(|_| "auto".to_owned());
        let config = format!(
            "[kv]\nram_gib = 1.5\nresp_listen = \"127.0.0.1:0\"\nmetrics_listen = \"127.0.0.1:0\"\n\
             huge_pages = \"{huge}\"\n"
        );
        std::fs::write(&file, config).unwrap();
        let mut child = Command::new("taskset")
            .args(["-c", "0", env!("CARGO_BIN_EXE_cgn-kvcached"), "--config"])
            .arg(&file)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("resp ")));
        let line = line.unwrap().unwrap();
        let port = line.rsplit(':').next().unwrap().parse().unwrap();
        Server { child, port, _folder: folder }.ready()
    }

    fn ready(self) -> Server {
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "the server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        self
    }

    /// Stores every key that `redis-benchmark -r keys` may ask for.
    fn fill(&self, keys: usize, size: usize) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let value = vec![b'x'; size];
        for key in 0..keys {
            write!(stream, "*3\r\n$3\r\nSET\r\n$16\r\nkey:{key:012}\r\n${size}\r\n").unwrap();
            stream.write_all(&value).unwrap();
            stream.write_all(b"\r\n").unwrap();
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"+OK\r\n");
        }
    }

    /// Takes out everything, so that the next size finds room.
    fn clear(&self) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.write_all(b"FLUSHDB\r\n").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
    }

    /// CPU time of all its threads, in seconds.
    fn cpu_s(&self) -> f64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let of = |task: std::fs::DirEntry| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<f64>().ok()
        };
        tasks.flatten().filter_map(of).sum::<f64>() / 1e9
    }

    /// CPU seconds for each GB, and GB a second.
    fn run(&self, command: &str, size: usize, connections: usize, keys: usize) -> (f64, f64) {
        let megabytes = setting("RESP_BENCH_MB", CELL_MB);
        let requests = (megabytes * 1_000_000 / size as u64).max(connections as u64 * 2);
        let before = self.cpu_s();
        let output = Command::new("taskset")
            .args(["-c", "1", "redis-benchmark", "--csv", "-t", command, "-p"])
            .args([self.port.to_string(), "-d".into(), size.to_string(), "-c".into()])
            .args([connections.to_string(), "-n".into(), requests.to_string()])
            .args(["-r".to_owned(), keys.to_string()])
            .output()
            .expect("redis-benchmark");
        let cpu = self.cpu_s() - before;
        let text = String::from_utf8(output.stdout).unwrap();
        let line =
            text.lines().find(|line| line.to_lowercase().starts_with(&format!("\"{command}")));
        let rate = line.unwrap_or_else(|| panic!("{text}")).split('"').nth(3).unwrap();
        let gigabyte = size as f64 / 1e9;
        (cpu / (requests as f64 * gigabyte), rate.parse::<f64>().unwrap() * gigabyte)
    }
}

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn main() {
    // `cargo bench` passes flags for a harness that this is not.
    let (redis, ours) = (Server::redis(), Server::ours());
    let runs = setting("RESP_BENCH_RUNS", RUNS as u64);
    let most = setting("RESP_BENCH_CONNECTIONS", 16) as usize;
    // One size at a time, where the machine is to be had for a minute only.
    let only = setting("RESP_BENCH_KIB", 0) as usize * 1024;
    println!(
        "| op | size KiB | conns | redis CPU s/GB | ours | ratio | redis GB/s | ours | ratio |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for size in SIZES.into_iter().filter(|size| only == 0 || *size == only) {
        let keys = (KEYS_BYTES / size).clamp(1, 64);
        for server in [&redis, &ours] {
            server.clear();
            server.fill(keys, size);
        }
        for command in ["get", "set"] {
            for connections in CONNECTIONS.into_iter().filter(|count| *count <= most) {
                let mut cells = [(); 2].map(|()| (Vec::new(), Vec::new()));
                for _ in 0..runs {
                    for (server, cell) in [&redis, &ours].into_iter().zip(&mut cells) {
                        let (cpu, rate) = server.run(command, size, connections, keys);
                        cell.0.push(cpu);
                        cell.1.push(rate);
                    }
                }
                let [(cpu, rate), (our_cpu, our_rate)] =
                    cells.map(|(cpu, rate)| (median(cpu), median(rate)));
                println!(
                    "| {command} | {} | {connections} | {cpu:.3} | {our_cpu:.3} | {:.2} | {rate:.2} | {our_rate:.2} | {:.2} |",
                    size >> 10,
                    our_cpu / cpu,
                    our_rate / rate
                );
            }
        }
    }
}
