//! Blocks of 1 MiB between two daemons in two network namespaces, beside `iperf3` on the same wire in the same
//! run. Needs root, `ip`, `tc` and `iperf3`; without them it says so and is over.
//!
//! `cargo bench --workspace --bench peers`
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_lite::future::block_on;
use kvstore::config::Config;
use kvstore::key::{Key, Name, NamespaceId};
use kvstore::peer::Peers;
use kvstore::peer::config::PeersConfig;
use kvstore::peer::endpoint::Endpoint;
use kvstore::peer::fetch::Fetched;
use kvstore::peer::stats::PeerStats;
use kvstore::peer::tls::{Credentials, Files};
use kvstore::server::Server;
use kvstore::store::{About, Store};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

/// As the daemon has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NAMESPACE: &str = "bench";
const BLOCKS: usize = 128;
const BLOCK_BYTES: usize = 1 << 20;
const RUN: Duration = Duration::from_secs(4);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("source") => source(Path::new(&arguments[2])),
        Some("sink") => sink(Path::new(&arguments[2])),
        Some("bare-source") => block_on_tokio(bare_source(Path::new(&arguments[2]))),
        Some("bare-sink") => block_on_tokio(bare_sink(Path::new(&arguments[2]))),
        _ => bench(),
    }
}

fn key(number: usize) -> Key {
    Key::new(NamespaceId::of(NAMESPACE), Name::of(&number.to_le_bytes()))
}

fn files(folder: &Path, name: &str) -> Files {
    Files {
        ca: folder.join("ca.pem"),
        foreign_ca: None,
        cert: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key")),
    }
}

/// A store and its peers, as the daemon has them.
fn daemon(folder: &Path, name: &str, listen: &str, connect: &[&str]) -> (Server, Store, Peers) {
    let path = folder.join(format!("{name}.toml"));
    let text = "[kv]\nram_gib = 0.5\nhuge_pages = \"never\"\nmetrics_listen = \"127.0.0.1:0\"\n\
                resp_listen = \"127.0.0.1:0\"\n[kv.limits]\nblock_mib_max = 8\n";
    std::fs::write(&path, text).unwrap();
    let server = Server::start(Config::load(&path).unwrap()).unwrap();
    let store = Store::remote(server.house.clone());
    let files = files(folder, name);
    let connect = connect.iter().map(|address| (*address).to_owned()).collect();
    let config = PeersConfig { connect, hot_fetches: 0, ..PeersConfig::default() };
    let stats = PeerStats::new(&prometheus::Registry::new()).unwrap();
    let house = server.house.clone();
    let view = move || Store::remote(house);
    let (peers, thread) =
        Peers::start(listen.parse().unwrap(), config, &files, stats, view).unwrap();
    // The process is killed when it is over.
    std::mem::forget(thread);
    (server, store, peers)
}

/// Holds the blocks until its standard input ends.
fn source(folder: &Path) {
    let (_server, store, peers) = daemon(folder, "source", "10.77.0.1:7091", &[]);
    store.namespace(NAMESPACE).unwrap();
    for number in 0..BLOCKS {
        block_on(async {
            let mut slot = store.reserve(key(number), BLOCK_BYTES).await.unwrap();
            slot.bytes_mut().fill(number as u8);
            let about = About {
                key: key(number),
                parent: None,
                label: [].into(),
                is_durable: false,
                hash: None,
            };
            store.commit(slot, about).await.unwrap();
        });
        peers.added(&key(number));
    }
    println!("ready");
    let _ = std::io::stdin().read(&mut [0]);
}

/// Fetches one by one and then as fast as it can, and prints what that gave.
fn sink(folder: &Path) {
    let (_server, store, peers) = daemon(folder, "sink", "10.77.0.2:7091", &["10.77.0.1:7091"]);
    store.namespace(NAMESPACE).unwrap();
    while peers.stats().directory.get() < BLOCKS as i64 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let fetch = |keys: Vec<Key>| {
        let count = keys.len();
        let deadline = Instant::now() + Duration::from_secs(60);
        assert_eq!(block_on(peers.fetch(keys, Some(deadline))), vec![Fetched::Kept; count]);
    };
    // The window opens, the path's size is found.
    (0..4).for_each(|_| fetch((0..BLOCKS).map(key).collect()));
    let mut times: Vec<Duration> = (0..BLOCKS)
        .map(|number| {
            let began = Instant::now();
            fetch(vec![key(number)]);
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    let began = Instant::now();
    let mut bytes = 0usize;
    let used = cpu_s();
    while began.elapsed() < RUN {
        fetch((0..BLOCKS).map(key).collect());
        bytes += BLOCKS * BLOCK_BYTES;
    }
    let gbit_s = bytes as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e9;
    let cpu = (cpu_s() - used) / (bytes as f64 / 1e9);
    let ms = |at: usize| times[at].as_secs_f64() * 1e3;
    println!("{gbit_s} {} {} {cpu}", ms(BLOCKS / 2), ms(BLOCKS * 99 / 100));
}

fn block_on_tokio(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(work);
}

/// The same endpoint without store, hash and protocol: one block's memory is sent again and again.
async fn bare_source(folder: &Path) {
    let credentials = Credentials::load(&files(folder, "source")).unwrap();
    let endpoint = Endpoint::bind("10.77.0.1:7091".parse().unwrap(), &credentials).unwrap();
    println!("ready");
    let block = Bytes::from(vec![7; BLOCK_BYTES]);
    while let Some(dialled) = endpoint.dialled().await {
        // The first call is asked to prove its address and comes again.
        let Ok(link) = dialled.accept().await else { continue };
        while let Ok((mut sending, _)) = link.requested().await {
            for _ in 0..BLOCKS {
                sending.write_chunk(block.clone()).await.unwrap();
            }
            sending.finish().unwrap();
        }
    }
}

/// Reads what comes and lets it go.
async fn bare_sink(folder: &Path) {
    let credentials = Credentials::load(&files(folder, "sink")).unwrap();
    let endpoint = Endpoint::bind("10.77.0.2:7091".parse().unwrap(), &credentials).unwrap();
    let link = endpoint.dial("10.77.0.1:7091").await.unwrap();
    let read_all = async || {
        let (mut sending, mut receiving) = link.request().await.unwrap();
        sending.write_all(b"go").await.unwrap();
        sending.finish().unwrap();
        let (mut bytes, mut pieces) = (0, [const { Bytes::new() }; 64]);
        while let Some(count) = receiving.read_chunks(&mut pieces).await.unwrap() {
            bytes += pieces[..count].iter().map(Bytes::len).sum::<usize>();
        }
        bytes
    };
    for _ in 0..4 {
        read_all().await;
    }
    let (began, used, mut bytes) = (Instant::now(), cpu_s(), 0);
    while began.elapsed() < RUN {
        bytes += read_all().await;
    }
    let gbit_s = bytes as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e9;
    println!("{gbit_s} {}", (cpu_s() - used) / (bytes as f64 / 1e9));
}

/// Processor time of this process so far.
fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 =
        after.split_whitespace().skip(11).take(2).map(|n| n.parse::<f64>().unwrap()).sum();
    ticks / 100.0
}

/// Two namespaces with a wire between them; gone when dropped.
struct Wire {
    names: [String; 2],
}

impl Wire {
    fn lay(mtu: u32, tbf: Option<&str>) -> Result<Wire, String> {
        let id = std::process::id();
        let wire = Wire { names: [format!("cgn-a-{id}"), format!("cgn-b-{id}")] };
        let [a, b] = &wire.names;
        sh(&format!("ip netns add {a} && ip netns add {b}"))?;
        sh(&format!(
            "ip link add va netns {a} mtu {mtu} type veth peer name vb netns {b} mtu {mtu}"
        ))?;
        for (name, device, address) in [(a, "va", "10.77.0.1/24"), (b, "vb", "10.77.0.2/24")] {
            sh(&format!(
                "ip -n {name} addr add {address} dev {device} && ip -n {name} link set {device} up \
                 && ip -n {name} link set lo up"
            ))?;
        }
        if let Some(tbf) = tbf {
            sh(&format!("ip netns exec {a} tc qdisc add dev va root tbf {tbf}"))?;
        }
        Ok(wire)
    }

    fn inside(&self, end: usize, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[end], program]);
        command
    }

    /// What TCP gets from the first end to the second, in Gbit/s.
    fn tcp(&self) -> Result<f64, String> {
        let mut server = self.inside(1, "iperf3");
        let mut server = server.args(["-s", "-1"]).stdout(Stdio::null()).spawn().map_err(said)?;
        std::thread::sleep(Duration::from_millis(500));
        let mut client = self.inside(0, "iperf3");
        let seconds = RUN.as_secs().to_string();
        let out = client.args(["-c", "10.77.0.2", "-J", "-t", &seconds]).output().map_err(said)?;
        let _ = server.kill();
        let _ = server.wait();
        let said: serde_json::Value = serde_json::from_slice(&out.stdout).map_err(said)?;
        let bits = said["end"]["sum_received"]["bits_per_second"].as_f64();
        bits.map(|bits| bits / 1e9).ok_or_else(|| "iperf3 said nothing".to_owned())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let [a, b] = &self.names;
        let _ = sh(&format!("ip netns del {a}; ip netns del {b}"));
    }
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn sh(command: &str) -> Result<(), String> {
    let out = Command::new("sh").args(["-c", command]).output().map_err(said)?;
    match out.status.success() {
        true => Ok(()),
        false => Err(format!("{command}: {}", String::from_utf8_lossy(&out.stderr).trim())),
    }
}

/// A child; its standard input stays open while this lives.
struct Started(Child, #[expect(dead_code, reason = "held, not read")] Option<ChildStdin>);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs this program at one end of the wire.
fn start(wire: &Wire, end: usize, role: &str, folder: &Path) -> Started {
    let own = std::env::current_exe().unwrap();
    let mut command = wire.inside(end, &own.to_string_lossy());
    command.arg(role).arg(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stdin = child.stdin.take();
    Started(child, stdin)
}

fn line(started: &mut Started) -> String {
    let mut line = String::new();
    BufReader::new(started.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    line.trim().to_owned()
}

fn certificates(folder: &Path) {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let write = |name: PathBuf, text: String| std::fs::write(folder.join(name), text).unwrap();
    write("ca.pem".into(), authority.pem());
    for (name, address) in [("source", "10.77.0.1"), ("sink", "10.77.0.2")] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![address.to_owned()]).unwrap();
        let uri = format!("cognitora://bench/node/{name}");
        params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().unwrap()));
        let certificate = params.signed_by(&key, &authority).unwrap();
        write(format!("{name}.pem").into(), certificate.pem());
        write(format!("{name}.key").into(), key.serialize_pem());
    }
}

/// What `source` and `sink` get over the wire, as the sink prints it.
fn pair<const N: usize>(wire: &Wire, roles: [&str; 2], folder: &Path) -> [f64; N] {
    let mut source = start(wire, 0, roles[0], folder);
    assert_eq!(line(&mut source), "ready");
    let mut sink = start(wire, 1, roles[1], folder);
    let text = line(&mut sink);
    let numbers: Vec<f64> = text.split(' ').map(|number| number.parse().unwrap()).collect();
    numbers.try_into().unwrap_or_else(|_| panic!("{text}"))
}

fn bench() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    println!(
        "wire              iperf3 Gbit/s   peers Gbit/s   ratio   1 MiB p50 ms   p99 ms   CPU s/GB   \
         bare QUIC Gbit/s   ratio   CPU s/GB"
    );
    let shaped = "rate 1gbit burst 128kb latency 20ms";
    for (name, mtu, tbf) in [
        ("mtu 1500", 1_500, None),
        ("mtu 9000", 9_000, None),
        ("mtu 1500 1 Gbit/s", 1_500, Some(shaped)),
        ("mtu 9000 1 Gbit/s", 9_000, Some(shaped)),
    ] {
        let wire = match Wire::lay(mtu, tbf) {
            Ok(wire) => wire,
            Err(reason) => return println!("left out: {reason} (it needs root, ip and tc)"),
        };
        let before = match wire.tcp() {
            Ok(gbit_s) => gbit_s,
            Err(reason) => return println!("left out: iperf3: {reason}"),
        };
        let [gbit_s, p50, p99, cpu] = pair(&wire, ["source", "sink"], folder.path());
        let [bare, bare_cpu] = pair(&wire, ["bare-source", "bare-sink"], folder.path());
        let tcp = (before + wire.tcp().unwrap_or(before)) / 2.0;
        println!(
            "{name:<17} {tcp:>13.2} {gbit_s:>14.2} {:>7.2} {p50:>14.2} {p99:>8.2} {cpu:>10.2} {bare:>18.2} \
             {:>7.2} {bare_cpu:>10.2}",
            gbit_s / tcp,
            bare / tcp
        );
    }
}
