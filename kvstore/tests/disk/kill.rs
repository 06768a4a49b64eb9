//! `kill -9` at random points of writing, on the real devices: a child writes and says what it does,
//! the parent kills it and looks what is there.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;

use glommio::{LocalExecutorBuilder, spawn_local};
use kvstore::disk::device::{Buffer, Pages};
use kvstore::disk::file::DiskFile;
use kvstore::disk::place::Place;
use kvstore::disk::record::PAGE_BYTES;
use kvstore::disk::ring::{Ring, RingDevice};
use kvstore::disk::start::{Started, start};
use kvstore::disk::{Disk, DiskError, Event, Limits};
use kvstore::key::Key;

use crate::fault_device::Dice;
use crate::loop_device::{LoopDevice, sparse};
use crate::shelf::{about, key, key_of, pages, value};

/// Runs of one `cargo test`, or as many as `CGN_KILL_RUNS` says.
const RUNS: u64 = 300;
/// Disks that they are shared out to. A run waits for its disk most of the time.
const LANES: u64 = 6;
const FOLDER: &str = "CGN_KILL_FOLDER";
const DISK: &str = "CGN_KILL_DISK";
const SEED: &str = "CGN_KILL_SEED";
const WRITERS: u8 = 6;
const KEYS_OF_WRITER: u8 = 5;
const SEGMENT_BYTES: u64 = 1 << 20;
const DISK_BYTES: u64 = 9 << 20;

/// What the tier does within one executor of its own.
fn with_disk(
    folder: &Path,
    disk: &Path,
    lane: u64,
    test: impl AsyncFn(Rc<Disk<RingDevice>>, HashMap<Key, Place>),
) {
    let executor = LocalExecutorBuilder::default().make().unwrap();
    // Every other disk is encrypted.
    let disk_key = key_of((lane % 2 == 1).then_some(1));
    let disk_key = disk_key.as_ref();
    executor.run(async {
        let ring = Ring::new().unwrap();
        let driver = spawn_local(ring.clone().drive());
        let file = DiskFile::open(disk, DISK_BYTES).unwrap();
        let devices = vec![RingDevice::new(ring.clone(), &file)];
        let index_dir = folder.join("index");
        let started =
            start(&devices, &index_dir, SEGMENT_BYTES, disk_key, || [3; 32]).await.unwrap();
        let Started { tier, index, found, .. } = started;
        let places = found.iter().map(|found| (found.key, found.entry.place)).collect();
        let limits = Limits { shard: 0, shards: 1, free_segments_min: 2, write_bytes_per_s: None };
        let said = |event| match event {
            Event::Dropped { key, .. } => println!("dropped {}", key.name.0[0]),
            Event::Moved { key, to, .. } => {
                println!("moved {} {}", key.name.0[0], to.sequence);
            }
        };
        let disk = Rc::new(Disk::new(Arc::clone(&tier), devices, limits, said));
        test(disk.clone(), places).await;
        disk.close();
        driver.cancel().await;
        drop((disk, tier));
        index.join();
    });
}

#[test]
#[ignore = "the child of the test below"]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let disk = std::env::var_os(DISK).unwrap();
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    with_disk(Path::new(&folder), Path::new(&disk), seed >> 32, async |disk, places| {
        let cleaned = disk.clone();
        let cleaner =
            async move { cleaned.clean(async |pause| glommio::timer::sleep(pause).await).await };
        spawn_local(cleaner).detach();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| spawn_local(write_for_ever(disk.clone(), writer, seed, places.clone())))
            .collect();
        for writer in writers {
            writer.await;
        }
    });
}

async fn write_for_ever(
    disk: Rc<Disk<RingDevice>>,
    writer: u8,
    seed: u64,
    mut places: HashMap<Key, Place>,
) {
    let mut dice =
        Dice::new(seed.wrapping_mul(0x9E37_79B9).wrapping_add(u64::from(writer) * 77 + 1));
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        out.write_all(line.as_bytes()).unwrap();
        out.flush().unwrap();
    };
    loop {
        let number = writer * KEYS_OF_WRITER + dice.roll(u64::from(KEYS_OF_WRITER)) as u8;
        let seed = dice.roll(1 << 32) as u32;
        if let Some(place) = places.get(&key(number)).filter(|_| dice.roll(6) == 0).copied() {
            say(format!("remove {number}\n"));
            disk.remove(key(number), &place).await.unwrap();
            places.remove(&key(number));
            say(format!("removed {number}\n"));
            continue;
        }
        // What is read is moved when room is made.
        if let Some(place) = places.get(&key(number)) {
            let into = Pages::new(place.len.div_ceil(PAGE_BYTES as u64) as usize);
            match disk.read_buffer(key(number), place, Buffer::Pages(into)).await {
                Ok(_) | Err(DiskError::Gone) => {}
                Err(error) => panic!("{error}"),
            }
        }
        say(format!("put {number} {seed}\n"));
        let bytes = value(seed);
        let place = disk.write_buffer(key(number), about(&bytes), &|| pages(&bytes)).await.unwrap();
        if let Some(old) = places.insert(key(number), place) {
            disk.forget(key(number), &old);
        }
        say(format!("done {number} {seed} {}\n", place.sequence));
    }
}

/// What each key may be: one of some values, or nothing; and the use of a segment that it was last known
/// to be in.
#[derive(Default)]
struct Allowed {
    values: HashMap<u8, Vec<Option<u32>>>,
    sequences: HashMap<u8, u64>,
}

fn hear(line: &str, allowed: &mut Allowed) -> bool {
    let mut words = line.split(' ');
    let word = words.next().unwrap_or_default();
    let mut number = || words.next().and_then(|word| word.parse::<u32>().ok());
    let (key, seed) = (number().unwrap_or_default() as u8, number());
    let entry = allowed.values.entry(key).or_insert_with(|| vec![None]);
    let mut place = |sequence: Option<u32>| {
        allowed.sequences.extend(sequence.map(|sequence| (key, u64::from(sequence))));
    };
    match word {
        "put" => entry.push(seed),
        "remove" | "dropped" => entry.push(None),
        "moved" => place(seed),
        "done" => {
            *entry = vec![seed];
            place(number());
        }
        "removed" => *entry = vec![None],
        _ => {}
    }
    matches!(word, "done" | "removed")
}

fn run_and_kill(folder: &Path, disk: &Path, seed: u64, acknowledged: u64, allowed: &mut Allowed) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "kill::child", "--nocapture"])
        .env(FOLDER, folder)
        .env(DISK, disk)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut heard = 0;
    for line in lines.by_ref() {
        heard += u64::from(hear(&line.unwrap(), allowed));
        if heard >= acknowledged {
            break;
        }
    }
    assert_eq!(heard, acknowledged, "the child ended by itself");
    child.kill().unwrap();
    // What it said before it died counts, but for a line it did not end.
    let mut rest: Vec<String> = lines.map_while(Result::ok).collect();
    let last = rest.pop();
    rest.iter().for_each(|line| _ = hear(line, allowed));
    if let Some(last) = last
        && let Some((before, _)) = last.split_once(' ')
        && matches!(before, "put" | "remove" | "dropped")
    {
        hear(&last, allowed);
    }
    child.wait().unwrap();
}

fn look(folder: &Path, disk: &Path, lane: u64, allowed: &mut Allowed) {
    let found = std::cell::RefCell::new(HashMap::new());
    let oldest = std::cell::Cell::new(0);
    with_disk(folder, disk, lane, async |disk, places| {
        oldest.set(disk.tier().ledger.oldest().map_or(0, |(_, sequence)| sequence));
        for number in 0..WRITERS * KEYS_OF_WRITER {
            let sequence = places.get(&key(number)).map(|place| place.sequence);
            let value = read(&disk, &places, number).await;
            found.borrow_mut().insert(number, (value, sequence));
        }
    });
    for (number, (found, sequence)) in found.into_inner() {
        let values = allowed.values.entry(number).or_insert_with(|| vec![None]);
        // A segment that makes room is gone from the disk before anybody is told.
        if allowed.sequences.get(&number).is_some_and(|&sequence| sequence < oldest.get()) {
            values.push(None);
        }
        let is = values.iter().find(|seed| seed.map(value) == found);
        let Some(&is) = is else {
            let len = found.map(|found| found.len());
            panic!("{number} has {len:?} bytes, not those of {values:?}")
        };
        *values = vec![is];
        allowed.sequences.extend(sequence.map(|sequence| (number, sequence)));
    }
}

async fn read(
    disk: &Disk<RingDevice>,
    places: &HashMap<Key, Place>,
    number: u8,
) -> Option<Vec<u8>> {
    let place = places.get(&key(number))?;
    let into = Pages::new(place.len.div_ceil(PAGE_BYTES as u64) as usize);
    match disk.read_buffer(key(number), place, Buffer::Pages(into)).await {
        Ok((_, buffer)) => Some(buffer.bytes()[..place.len as usize].to_vec()),
        Err(DiskError::Corrupt) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Kills `runs` times on one disk, and looks after each.
fn kill_on(folder: &Path, disk: &Path, lane: u64, runs: u64) {
    let mut dice = Dice::new(0xC0FFEE + 2 * lane);
    let mut allowed = Allowed::default();
    for run in 0..runs {
        run_and_kill(folder, disk, lane << 32 | run, 1 + dice.roll(60), &mut allowed);
        if dice.roll(4) == 0 {
            std::fs::remove_dir_all(folder.join("index")).unwrap();
        }
        look(folder, disk, lane, &mut allowed);
    }
}

#[test]
fn what_was_acknowledged_before_a_kill_is_there_after_it() {
    let runs = std::env::var("CGN_KILL_RUNS").ok().and_then(|runs| runs.parse().ok());
    let runs = runs.unwrap_or(RUNS);
    std::thread::scope(|scope| {
        for lane in 0..LANES {
            scope.spawn(move || {
                let folder = tempfile::tempdir().unwrap();
                let runs = runs / LANES + u64::from(lane < runs % LANES);
                kill_on(folder.path(), folder.path(), lane, runs);
            });
        }
    });
}

#[test]
fn a_block_device_keeps_what_was_acknowledged_before_a_kill() {
    // One in clear and one that is encrypted.
    for lane in [LANES, LANES + 1] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk");
        sparse(&file, DISK_BYTES);
        let Some(device) = LoopDevice::over(&file) else { return };
        kill_on(folder.path(), &device.path, lane, 10);
    }
}
