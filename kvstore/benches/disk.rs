//! The NVMe tier beside `fio`, in one run: the same file system, block size, depth and bytes.
//!
//! `cargo bench --workspace --bench disk -- --folder=FOLDER` (default: a temporary folder). With
//! `--only=fio,ring` others are left out, with `--writes` nothing is read, with `--huge` the tier's memory
//! is huge pages (256 of them free: `sysctl vm.nr_hugepages=256`), and so is one `fio`'s. Rounds alternate; the ratios
//! of each round and their median are printed. `fio` reads and writes bytes that nobody looks
//! at; the tier hashes each block, writes its record, and says when it is durable. Two ways to the
//! device are compared: glommio's `DmaFile`, which copies, and the ring of our own, which does not.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use glommio::io::{DmaFile, OpenOptions};
use glommio::{LocalExecutorBuilder, spawn_local};
use kvstore::arena::{Arena, Memory, Pages as ArenaPages};
use kvstore::block::Block;
use kvstore::disk::cipher::DiskKey;
use kvstore::disk::device::{Buffer, Device, Pages};
use kvstore::disk::file::DiskFile;
use kvstore::disk::index::IndexThread;
use kvstore::disk::place::Place;
use kvstore::disk::record::PAGE_BYTES;
use kvstore::disk::ring::{Ring, RingDevice};
use kvstore::disk::start::start;
use kvstore::disk::{Disk, Limits};
use kvstore::key::{Key, Name, NamespaceId};
use kvstore::namespace::{Namespace, Namespaces, Rules};

const BLOCK_BYTES: usize = 2 << 20;
/// As the ring has it.
const PART_BYTES: usize = 512 << 10;
const BLOCKS: usize = 500;
const SEGMENT_BYTES: u64 = 256 << 20;
const DISK_BYTES: u64 = 6 * SEGMENT_BYTES;
const READ_FOR: Duration = Duration::from_secs(3);
const ROUNDS: usize = 3;
/// Blocks that leave RAM at once.
const WRITE_DEPTH: usize = 32;

/// glommio's own way, for the comparison.
struct Glommio {
    file: Rc<DmaFile>,
    bytes: u64,
}

impl Device for Glommio {
    async fn read_at(
        &self,
        offset: u64,
        mut into: Buffer,
        mut seen: impl FnMut(&[u8]),
    ) -> (io::Result<()>, Buffer) {
        let Some(bytes) = into.bytes_mut() else { panic!("read only") };
        let parts = bytes.chunks(PART_BYTES).zip((offset..).step_by(PART_BYTES));
        let parts: Vec<_> = parts
            .map(|(part, offset)| {
                let (file, len) = (self.file.clone(), part.len());
                spawn_local(async move { file.read_at_aligned(offset, len).await })
            })
            .collect();
        let mut result = Ok(());
        for (part, into) in parts.into_iter().zip(bytes.chunks_mut(PART_BYTES)) {
            match part.await {
                Ok(read) => {
                    into.copy_from_slice(&read);
                    seen(&read);
                }
                Err(error) => result = Err(error.into()),
            }
        }
        (result, into)
    }

    async fn write_at(&self, offset: u64, from: Buffer) -> io::Result<()> {
        let mut buffer = self.file.alloc_dma_buffer(from.bytes().len());
        buffer.as_bytes_mut().copy_from_slice(from.bytes());
        self.file.write_at(buffer, offset).await.map(drop).map_err(io::Error::from)
    }

    async fn write_record(
        &self,
        offset: u64,
        page: Pages,
        value: Option<Buffer>,
    ) -> io::Result<()> {
        let head = self.write_at(offset, Buffer::Pages(page));
        let rest = async {
            match value {
                Some(value) => self.write_at(offset + PAGE_BYTES as u64, value).await,
                None => Ok(()),
            }
        };
        let (head, rest) = futures_lite::future::zip(head, rest).await;
        head.and(rest)
    }

    async fn sync(&self) -> io::Result<()> {
        self.file.fdatasync().await.map_err(io::Error::from)
    }

    async fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// One round of one of the three.
#[derive(Clone, Copy, Debug)]
struct Round {
    write_mb_s: f64,
    read_mb_s: f64,
    p50_us: f64,
}

struct Bench<D> {
    /// Joined at the end: the next round opens the same index.
    index: IndexThread,
    disk: Rc<Disk<D>>,
    memory: Rc<RefCell<Memory>>,
    namespace: std::sync::Arc<Namespace>,
}

/// Whether memory is huge pages, as by `kv.huge_pages`.
fn is_huge() -> bool {
    std::env::args().any(|argument| argument == "--huge")
}

fn key(number: usize) -> Key {
    Key::new(NamespaceId::of("bench"), Name::of(&number.to_le_bytes()))
}

impl<D: Device> Bench<D> {
    async fn new(devices: Vec<D>, index_dir: &Path, key: Option<DiskKey>) -> Bench<D> {
        let started = start(&devices, index_dir, SEGMENT_BYTES, key.as_ref(), || [1; 32]);
        let started = started.await.unwrap();
        let limits = Limits { shard: 0, shards: 1, free_segments_min: 0, write_bytes_per_s: None };
        let index = started.index;
        let disk = Disk::new(started.tier, devices, limits, |_| {});
        let pages = if is_huge() { ArenaPages::Huge } else { ArenaPages::Plain };
        let memory = Arena::map(1, 256 << 20, 80 << 20, pages).unwrap().remove(0);
        let namespaces = Namespaces::new(BTreeMap::new(), Rules::default(), 4);
        let namespace = namespaces.open("bench").unwrap();
        Bench { index, disk: Rc::new(disk), memory: Rc::new(RefCell::new(memory)), namespace }
    }

    fn slot(&self) -> kvstore::arena::Slot {
        assert!(self.namespace.charge(BLOCK_BYTES as u64));
        self.memory.borrow_mut().alloc(BLOCK_BYTES, self.namespace.clone()).unwrap()
    }

    async fn write(&self) -> (f64, Vec<(Key, Place)>) {
        // Blocks lie in the arena before the clock starts, as they do when they leave it.
        let blocks: Vec<_> = (0..WRITE_DEPTH)
            .map(|number| {
                let mut slot = self.slot();
                for (at, byte) in slot.bytes_mut().iter_mut().enumerate() {
                    *byte =
                        (at as u64).wrapping_mul(0x9E37_79B9 + number as u64 * 2).to_le_bytes()[3];
                }
                Rc::new(RefCell::new(Some(slot)))
            })
            .collect();
        let begun = Instant::now();
        let tasks: Vec<_> = (0..WRITE_DEPTH)
            .map(|writer| {
                let (disk, slot) = (self.disk.clone(), blocks[writer].clone());
                spawn_local(async move {
                    let mut places = Vec::new();
                    let slot = slot.take().unwrap();
                    let mut lease = Some(Block::seal(slot, key(writer), None, Box::default()));
                    for number in (writer..BLOCKS).step_by(WRITE_DEPTH) {
                        // The block's key is the writer's; what it is stored as does not matter here.
                        let block = lease.clone().unwrap();
                        let about = kvstore::disk::record::About {
                            len: block.len() as u64,
                            hash: [0; 32],
                            parent: None,
                            namespace: "bench".into(),
                            label: Box::default(),
                        };
                        let source = || Buffer::Lease(block.clone());
                        let place = disk.write_buffer(key(number), about, &source).await.unwrap();
                        places.push((key(number), place));
                    }
                    lease.take();
                    places
                })
            })
            .collect();
        let mut places = Vec::new();
        for task in tasks {
            places.extend(task.await);
        }
        let mb = (BLOCKS * BLOCK_BYTES) as f64 / 1e6;
        (mb / begun.elapsed().as_secs_f64(), places)
    }

    async fn read(self: &Rc<Self>, places: &[(Key, Place)], depth: usize) -> (f64, f64) {
        let begun = Instant::now();
        let tasks: Vec<_> = (0..depth)
            .map(|reader| {
                let (bench, places) = (self.clone(), places.to_vec());
                spawn_local(async move {
                    let (mut dice, mut took) = (reader as u64 * 77 + 1, Vec::new());
                    while begun.elapsed() < READ_FOR {
                        dice = dice
                            .wrapping_mul(6364136223846793005)
                            .wrapping_add(1442695040888963407);
                        let (key, place) = places[(dice >> 33) as usize % places.len()];
                        let slot = bench.slot();
                        let asked = Instant::now();
                        bench.disk.read(key, &place, slot).await.unwrap();
                        took.push(asked.elapsed().as_secs_f64() * 1e6);
                    }
                    took
                })
            })
            .collect();
        let mut took = Vec::new();
        for task in tasks {
            took.extend(task.await);
        }
        let mb = (took.len() * BLOCK_BYTES) as f64 / 1e6;
        took.sort_by(f64::total_cmp);
        (mb / begun.elapsed().as_secs_f64(), took[took.len() / 2])
    }

    async fn round(self, is_read: bool) -> Round {
        let bench = Rc::new(self);
        let (write_mb_s, places) = bench.write().await;
        let (mut read_mb_s, mut p50_us) = (f64::NAN, f64::NAN);
        if is_read {
            (read_mb_s, _) = bench.read(&places, 32).await;
            (_, p50_us) = bench.read(&places, 1).await;
        }
        let Bench { index, disk, .. } = Rc::into_inner(bench).unwrap();
        drop(disk);
        index.join();
        Round { write_mb_s, read_mb_s, p50_us }
    }
}

fn on_ring(folder: &Path, is_read: bool, key: Option<DiskKey>) -> Round {
    std::fs::create_dir_all(folder).unwrap();
    LocalExecutorBuilder::default().make().unwrap().run(async {
        let ring = Ring::new().unwrap();
        let driver = spawn_local(ring.clone().drive());
        let file = DiskFile::open(folder, DISK_BYTES).unwrap();
        let devices = vec![RingDevice::new(ring, &file)];
        let round = Bench::new(devices, &folder.join("index-ring"), key).await.round(is_read).await;
        driver.cancel().await;
        round
    })
}

fn on_glommio(folder: &Path, is_read: bool) -> Round {
    LocalExecutorBuilder::default().make().unwrap().run(async {
        let path = folder.join("glommio.kv");
        if !path.exists() {
            // glommio finds out by a read whether the device can be polled. In a sparse file the read
            // touches no device and says yes, and every later one fails: it must find bytes.
            let mut file = std::fs::File::create(&path).unwrap();
            file.write_all(&vec![0; 1 << 20]).unwrap();
            file.sync_all().unwrap();
            file.set_len(DISK_BYTES).unwrap();
        }
        let file = OpenOptions::new().read(true).write(true).dma_open(&path).await.unwrap();
        file.pre_allocate(DISK_BYTES, true).await.unwrap();
        let devices = vec![Glommio { file: Rc::new(file), bytes: DISK_BYTES }];
        Bench::new(devices, &folder.join("index-glommio"), None).await.round(is_read).await
    })
}

/// What `fio` says at `place` in its JSON of the one job.
fn fio(path: &Path, arguments: &[&str]) -> serde_json::Value {
    let out = Command::new("fio")
        .args([
            "--name=bench",
            "--direct=1",
            "--ioengine=io_uring",
            "--bs=2m",
            "--output-format=json",
        ])
        .arg(format!("--filename={}", path.display()))
        .args(arguments)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let start = text.find('{').unwrap();
    serde_json::from_str::<serde_json::Value>(&text[start..]).unwrap()["jobs"][0].clone()
}

fn by_fio(folder: &Path, is_read: bool, fixed: &[&str]) -> Round {
    let path: PathBuf = folder.join("fio.kv");
    let size = format!("--size={}", BLOCKS * BLOCK_BYTES);
    let run_for = format!("--runtime={}", READ_FOR.as_secs());
    let depth = format!("--iodepth={WRITE_DEPTH}");
    let with = |more: &[&str]| -> serde_json::Value { fio(&path, &[more, fixed].concat()) };
    let write = with(&["--rw=write", &size, &depth, "--end_fsync=1", "--overwrite=1"]);
    let mb = |job: &serde_json::Value, way: &str| job[way]["bw_bytes"].as_f64().unwrap() / 1e6;
    if !is_read {
        let write_mb_s = mb(&write, "write");
        return Round { write_mb_s, read_mb_s: f64::NAN, p50_us: f64::NAN };
    }
    let read = with(&["--rw=randread", &size, "--iodepth=32", &run_for, "--time_based"]);
    let one = with(&["--rw=randread", &size, "--iodepth=1", &run_for, "--time_based"]);
    let p50 = one["read"]["clat_ns"]["percentile"]["50.000000"].as_f64().unwrap() / 1e3;
    Round { write_mb_s: mb(&write, "write"), read_mb_s: mb(&read, "read"), p50_us: p50 }
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// A way to the device: its name, and one round of it in a folder, with or without reads.
type Way = (&'static str, fn(&Path, bool) -> Round);

/// The first is what the others are compared with.
const WAYS: [Way; 6] = [
    ("fio", |folder, is_read| by_fio(folder, is_read, &[])),
    ("ring", |folder, is_read| on_ring(folder, is_read, None)),
    ("encrypted", |folder, is_read| {
        on_ring(&folder.join("encrypted"), is_read, DiskKey::parse(&"5c".repeat(32)))
    }),
    ("glommio", on_glommio),
    ("fio fixed", |folder, is_read| {
        by_fio(folder, is_read, &["--fixedbufs=1", "--registerfiles=1"])
    }),
    ("fio huge", |folder, is_read| by_fio(folder, is_read, &["--iomem=shmhuge"])),
];

fn main() {
    let argument = |name: &str| {
        std::env::args().find_map(|argument| argument.strip_prefix(name).map(str::to_owned))
    };
    let temporary = tempfile::tempdir().unwrap();
    let folder = argument("--folder=").map_or(temporary.path().to_owned(), PathBuf::from);
    let only = argument("--only=");
    let is_read = argument("--writes").is_none();
    let is_wanted = |name: &str| match &only {
        Some(only) => only.split(',').any(|wanted| wanted == name),
        None => name != "fio huge" || is_huge(),
    };
    let ways: Vec<Way> = WAYS.into_iter().filter(|(name, _)| is_wanted(name)).collect();
    let mut rounds: Vec<Vec<Round>> = Vec::new();
    println!("{:>10} {:>12} {:>12} {:>12}", "", "write MB/s", "read MB/s", "p50 us");
    // The first round makes the files, which later ones write over: that is how the tier lives.
    for round in 0..=ROUNDS {
        let all: Vec<Round> =
            ways.iter().map(|(_, way)| way(&folder, is_read && round > 0)).collect();
        if round == 0 {
            continue;
        }
        for ((name, _), Round { write_mb_s, read_mb_s, p50_us }) in ways.iter().zip(&all) {
            println!("{name:>10} {write_mb_s:>12.0} {read_mb_s:>12.0} {p50_us:>12.0}");
        }
        rounds.push(all);
    }
    for (which, (name, _)) in ways.iter().enumerate().skip(1) {
        let ratio = |of: fn(&Round) -> f64| {
            median(rounds.iter().map(|round| of(&round[which]) / of(&round[0])).collect())
        };
        println!(
            "{name} to {}, median of {ROUNDS}: write {:.2}, read at depth 32 {:.2}, p50 at depth 1 {:.2}",
            ways[0].0,
            ratio(|round| round.write_mb_s),
            ratio(|round| round.read_mb_s),
            ratio(|round| round.p50_us),
        );
    }
}
