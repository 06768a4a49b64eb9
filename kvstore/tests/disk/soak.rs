//! The daemon under mixed load in a cgroup with little more memory than it was given: it stays inside.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use kvclient::{Block, Client, Options};

use crate::daemon::{Connection, Daemon, Settings, bytes};
use crate::fault_device::Dice;

/// How long, or as long as `CGN_KV_SOAK_SECONDS` says.
const SECONDS: u64 = 8;
const RAM_BYTES: u64 = 256 << 20;
/// What the daemon takes beyond `kv.ram_gib`, as docs/CONFIGURATION.md derives it for one core and the
/// clients below.
const BEYOND_BYTES: u64 = 128 << 20;
const BLOCK_BYTES_MIN: usize = 4 << 10;
/// Sizes are 4 KiB times a power of two up to this one, and a little less: 32 MiB.
const DOUBLINGS_MAX: u64 = 13;
const RESP_CLIENTS: u64 = 4;
const NATIVE_CLIENTS: u64 = 2;
const KEYS_OF_CLIENT: u64 = 24;

/// A cgroup with a limit, of whichever version the machine has.
struct Group {
    folder: PathBuf,
    is_unified: bool,
}

impl Group {
    /// None, with a line that says why, where it cannot be made.
    fn new(limit_bytes: u64) -> Option<Group> {
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers");
        let is_unified =
            std::fs::read_to_string(unified).is_ok_and(|names| names.contains("memory"));
        let parent = if is_unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" };
        let folder = Path::new(parent).join(format!("cognitora-soak-{}", std::process::id()));
        if is_unified {
            // Says no where it is on already, or not ours to say: then the limit's file is missing.
            _ = std::fs::write(Path::new(parent).join("cgroup.subtree_control"), "+memory");
        }
        let limit = if is_unified { "memory.max" } else { "memory.limit_in_bytes" };
        let made = std::fs::create_dir(&folder);
        let group = Group { folder, is_unified };
        match made.and_then(|()| group.set(limit, &limit_bytes.to_string())) {
            Ok(()) => Some(group),
            Err(error) => {
                println!("skipped: no cgroup with a memory limit: {error}");
                None
            }
        }
    }

    fn set(&self, name: &str, value: &str) -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new().write(true).open(self.folder.join(name))?;
        std::io::Write::write_all(&mut file, value.as_bytes())
    }

    /// The number after `name` in a file of lines.
    fn number(&self, file: &str, name: &str) -> u64 {
        let text = std::fs::read_to_string(self.folder.join(file)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().parse().unwrap()
    }

    /// Memory that the daemon made: its own and its arena's. The page cache is the kernel's to take back.
    fn taken_bytes(&self) -> u64 {
        let own = if self.is_unified { "anon" } else { "rss" };
        self.number("memory.stat", own) + self.number("memory.stat", "shmem")
    }

    fn kills(&self) -> u64 {
        let file = if self.is_unified { "memory.events" } else { "memory.oom_control" };
        self.number(file, "oom_kill")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its last process may not be gone yet.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Either door, with keys of its own, and what it stored last under each.
struct User {
    door: Door,
    dice: Dice,
    number: u64,
    stored: Vec<Option<(u64, usize)>>,
}

enum Door {
    Resp(Connection),
    Native(Client),
}

impl Door {
    fn set(&mut self, key: &str, value: &[u8]) -> bool {
        match self {
            Door::Resp(client) => client.set(key, value).is_ok(),
            Door::Native(client) => {
                let name = *blake3::hash(key.as_bytes()).as_bytes();
                let block = Block { name, parent: None, bytes: value, label: b"" };
                client.put(&[block], false).unwrap()[0].is_ok()
            }
        }
    }

    fn get(&mut self, key: &str) -> Option<Vec<u8>> {
        match self {
            Door::Resp(client) => client.get(key),
            Door::Native(client) => {
                let name = *blake3::hash(key.as_bytes()).as_bytes();
                let found = client.get(&[name], Some(Duration::from_secs(10))).unwrap().remove(0);
                found.lease().map(|lease| lease.to_vec())
            }
        }
    }

    fn remove(&mut self, key: &str) {
        match self {
            Door::Resp(client) => client.remove(key),
            Door::Native(client) => {
                let name = *blake3::hash(key.as_bytes()).as_bytes();
                client.remove(&[name]).unwrap()[0].unwrap();
            }
        }
    }
}

impl User {
    fn step(&mut self) {
        let at = self.dice.roll(KEYS_OF_CLIENT) as usize;
        let key = format!("{}-{at}", self.number);
        match self.dice.roll(10) {
            0 => {
                self.door.remove(&key);
                self.stored[at] = None;
            }
            1..=4 => {
                let len = BLOCK_BYTES_MIN << self.dice.roll(DOUBLINGS_MAX + 1);
                let len = len - self.dice.roll(100) as usize;
                let seed = self.dice.roll(u64::MAX);
                // Refused while all memory is leased: then the key has the value it had.
                if self.door.set(&key, &bytes(seed, len)) {
                    self.stored[at] = Some((seed, len));
                }
            }
            _ => {
                let found = self.door.get(&key);
                let stored = self.stored[at].map(|(seed, len)| bytes(seed, len));
                assert!(found.is_none() || found == stored, "{key} is another value");
            }
        }
    }
}

#[test]
fn memory_stays_inside_its_limit_under_mixed_load() {
    let seconds = std::env::var("CGN_KV_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    let run_for = Duration::from_secs(seconds.unwrap_or(SECONDS));
    let Some(group) = Group::new(RAM_BYTES + BEYOND_BYTES) else { return };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = folder.path().join("ssd");
    std::fs::create_dir(&disk).unwrap();
    let lines = format!("ssd_dir = [{disk:?}]\nssd_gib = 1.0\nssd_segment_mib = 64\n");
    let daemon = Daemon::start(&Settings {
        folder: folder.path(),
        ram_gib: 0.25,
        block_mib_max: 32,
        lines,
        enters: Some(&group.folder.join("cgroup.procs")),
    })
    .unwrap();
    let is_over = AtomicBool::new(false);
    let (mut taken_max, mut steps) = (0, 0);
    std::thread::scope(|scope| {
        let users: Vec<_> = (0..RESP_CLIENTS + NATIVE_CLIENTS)
            .map(|number| {
                let (daemon, is_over) = (&daemon, &is_over);
                scope.spawn(move || {
                    let door = if number < RESP_CLIENTS {
                        Door::Resp(daemon.connect())
                    } else {
                        Door::Native(native(daemon))
                    };
                    let stored = vec![None; KEYS_OF_CLIENT as usize];
                    let mut user = User { door, dice: Dice::new(number * 2 + 1), number, stored };
                    let mut steps = 0u64;
                    while !is_over.load(Relaxed) {
                        user.step();
                        steps += 1;
                    }
                    steps
                })
            })
            .collect();
        let begun = Instant::now();
        while begun.elapsed() < run_for && users.iter().all(|user| !user.is_finished()) {
            std::thread::sleep(Duration::from_millis(100));
            taken_max = taken_max.max(group.taken_bytes());
        }
        is_over.store(true, Relaxed);
        for user in users {
            steps += user.join().unwrap();
        }
    });
    println!("{steps} steps, {} MiB at most", taken_max >> 20);
    assert!(taken_max <= RAM_BYTES + BEYOND_BYTES, "{taken_max} bytes");
    assert!(taken_max > RAM_BYTES / 2, "{taken_max} bytes are no load");
    assert_eq!(group.kills(), 0);
    assert!(daemon.metric("cgn_kvcached_disk_blocks_written_total") > 0.0);
    daemon.stop();
}

fn native(daemon: &Daemon) -> Client {
    let options = Options {
        client: "soak".to_owned(),
        staging_bytes: 64 << 20,
        timeout: Duration::from_secs(600),
    };
    Client::connect(&daemon.uds(), "soak", &options).unwrap()
}
