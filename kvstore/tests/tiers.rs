//! The store with a disk under it: what left RAM is found again, also after the daemon ended.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;

use futures_lite::future::block_on;
use kvstore::config::Config;
use kvstore::key::{Key, Name, NamespaceId};
use kvstore::server::Server;
use kvstore::store::{About, Store, StoreError, Tier};
use proptest::prelude::*;

/// RAM for 8 MiB of blocks, disk for 64 segments of 9 MiB.
fn start(folder: &Path, more: &str) -> Server {
    let path = folder.join("kv.toml");
    let text = format!(
        "[kv]\nmetrics_listen = \"127.0.0.1:0\"\nresp_listen = \"127.0.0.1:0\"\nhuge_pages = \"never\"\n\
         ram_gib = 0.0078125\nssd_dir = [{:?}]\nssd_gib = 0.5625\nssd_segment_mib = 9\n\
         limits.block_mib_max = 8\n{more}",
        folder.display()
    );
    std::fs::write(&path, text).unwrap();
    Server::start(Config::load(&path).unwrap()).unwrap()
}

/// A folder on a file system that knows `O_DIRECT`, which that of temporary files may not.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn open(server: &Server) -> Store {
    let store = Store::remote(server.house.clone());
    store.namespace("test").unwrap();
    store
}

fn key(number: u64) -> Key {
    Key::new(NamespaceId::of("test"), Name::of(&number.to_le_bytes()))
}

fn put(
    store: &Store,
    number: u64,
    parent: Option<u64>,
    bytes: &[u8],
    is_durable: bool,
) -> Result<(), StoreError> {
    let (parent, label) = (parent.map(key), number.to_string().into_bytes().into());
    put_about(store, About { key: key(number), parent, label, is_durable, hash: None }, bytes)
}

fn put_about(store: &Store, about: About, bytes: &[u8]) -> Result<(), StoreError> {
    block_on(async {
        let mut slot = store.reserve(about.key, bytes.len()).await?;
        slot.bytes_mut().copy_from_slice(bytes);
        store.commit(slot, about).await
    })
}

fn get(store: &Store, number: u64) -> Option<Vec<u8>> {
    block_on(store.get(key(number), None)).unwrap().map(|lease| lease.bytes().to_vec())
}

fn tier(store: &Store, number: u64) -> Option<Tier> {
    block_on(store.lookup(&[key(number)])).unwrap()[0]
}

/// Bytes that tell blocks and their parts apart.
fn value(number: u64, len: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn blocks_that_were_used_leave_ram_for_the_disk_and_come_back_right() {
    let folder = folder();
    let server = start(folder.path(), "");
    let store = open(&server);
    for number in 0..40 {
        put(&store, number, None, &value(number, 1_000_003), false).unwrap();
        // Once is a scan, twice is a use.
        assert!(get(&store, number).is_some());
        assert!(get(&store, number).is_some());
    }
    let keys: Vec<Key> = (0..40).map(key).collect();
    let tiers = block_on(store.lookup(&keys)).unwrap();
    assert!(tiers.iter().filter(|tier| **tier == Some(Tier::Disk)).count() >= 30, "{tiers:?}");
    for number in 0..40 {
        assert!(get(&store, number) == Some(value(number, 1_000_003)), "block {number}");
    }
    server.stop();
}

#[test]
fn what_was_durable_is_there_after_the_end_with_its_parents_counted() {
    let folder = folder();
    let server = start(folder.path(), "cores = 1\n");
    let store = open(&server);
    for number in 0..20 {
        let parent = (number % 10 > 0).then(|| number - 1);
        put(&store, number, parent, &value(number, 700_001), true).unwrap();
    }
    assert!(block_on(store.remove(key(19))).unwrap());
    drop(store);
    server.stop();
    let server = start(folder.path(), "cores = 1\n");
    let store = open(&server);
    for number in 0..19 {
        assert_eq!(tier(&store, number), Some(Tier::Disk));
        assert!(get(&store, number) == Some(value(number, 700_001)), "block {number}");
    }
    assert_eq!(tier(&store, 19), None);
    put(&store, 20, Some(18), b"x", false).unwrap();
    assert_eq!(put(&store, 21, Some(19), b"x", false), Err(StoreError::ParentMissing));
    server.stop();
}

#[test]
fn a_stop_writes_down_what_was_used_and_another_number_of_shards_finds_it() {
    let folder = folder();
    let server = start(folder.path(), "");
    let store = open(&server);
    for number in 0..6 {
        put(&store, number, None, &value(number, 1 << 20), false).unwrap();
        get(&store, number).unwrap();
        get(&store, number).unwrap();
    }
    server.stop();
    let server = start(folder.path(), "cores = 1\n");
    let store = open(&server);
    for number in 0..6 {
        assert!(get(&store, number) == Some(value(number, 1 << 20)), "block {number}");
    }
    server.stop();
}

#[test]
fn an_overwritten_value_does_not_come_back() {
    let folder = folder();
    let server = start(folder.path(), "");
    let store = open(&server);
    put(&store, 1, None, b"old", true).unwrap();
    put(&store, 1, None, b"new", false).unwrap();
    put(&store, 2, None, b"old", true).unwrap();
    put(&store, 2, None, b"new", true).unwrap();
    server.stop();
    let server = start(folder.path(), "");
    let store = open(&server);
    assert_ne!(get(&store, 1).as_deref(), Some(&b"old"[..]));
    assert_eq!(get(&store, 2).as_deref(), Some(&b"new"[..]));
    server.stop();
}

#[test]
fn a_namespace_that_writes_through_is_durable_and_one_for_ram_never_is() {
    let folder = folder();
    let through = "[kv.namespaces.test]\nwrite = \"through\"\n";
    let server = start(folder.path(), through);
    put(&open(&server), 1, None, b"kept", false).unwrap();
    server.stop();
    let ram_only = "[kv.namespaces.test]\nwrite = \"ram_only\"\n";
    let server = start(folder.path(), ram_only);
    let store = open(&server);
    assert_eq!(get(&store, 1).as_deref(), Some(&b"kept"[..]));
    for number in 2..30 {
        put(&store, number, None, &value(number, 1 << 20), false).unwrap();
        get(&store, number).unwrap();
        get(&store, number).unwrap();
    }
    let keys: Vec<Key> = (2..30).map(key).collect();
    assert!(!block_on(store.lookup(&keys)).unwrap().contains(&Some(Tier::Disk)));
    server.stop();
}

#[test]
fn what_was_used_in_ram_outlives_on_disk_what_nobody_used() {
    let folder = folder();
    let server = start(folder.path(), "cores = 1\n");
    let store = open(&server);
    put(&store, 1, None, &value(1, 1 << 20), true).unwrap();
    put(&store, 2, None, &value(2, 1 << 20), true).unwrap();
    get(&store, 1).unwrap();
    get(&store, 1).unwrap();
    // Once around the disk's 576 MiB.
    for number in 3..600 {
        put(&store, number, None, &value(number, 1 << 20), true).unwrap();
    }
    assert_eq!(tier(&store, 2), None);
    assert_eq!(tier(&store, 1), Some(Tier::Disk));
    assert!(get(&store, 1) == Some(value(1, 1 << 20)));
    server.stop();
}

#[test]
fn a_hash_that_came_with_a_block_goes_to_the_disk_and_is_checked_there() {
    let folder = folder();
    let server = start(folder.path(), "");
    let store = open(&server);
    let bytes = value(1, 1 << 20);
    let right = *blake3::hash(&bytes).as_bytes();
    // Between the hash and the disk the memory went bad.
    for (number, hash) in [(1, right), (2, [7; 32])] {
        let (key, label, hash) = (key(number), Box::default(), Some(hash));
        let about = About { key, parent: None, label, is_durable: true, hash };
        put_about(&store, about, &bytes).unwrap();
    }
    for number in 3..30 {
        put(&store, number, None, &value(number, 1 << 20), true).unwrap();
    }
    assert_eq!((tier(&store, 1), tier(&store, 2)), (Some(Tier::Disk), Some(Tier::Disk)));
    assert!(get(&store, 1) == Some(bytes));
    assert_eq!(get(&store, 2), None);
    server.stop();
}

#[test]
fn a_damaged_block_is_never_served() {
    let folder = folder();
    let server = start(folder.path(), "");
    let store = open(&server);
    for number in 0..10 {
        put(&store, number, None, &value(number, 100_000), true).unwrap();
    }
    server.stop();
    let path = folder.path().join("cognitora.kv");
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut bytes = vec![0; 16 << 20];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let needle = &value(4, 100_000)[..64];
    let at = bytes.windows(64).position(|window| window == needle).unwrap() + 50_000;
    file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
    let server = start(folder.path(), "");
    let store = open(&server);
    for number in 0..10 {
        let expected = (number != 4).then(|| value(number, 100_000));
        assert!(get(&store, number) == expected, "block {number}");
    }
    assert_eq!(tier(&store, 4), None);
    server.stop();
}

/// What a client does next.
#[derive(Clone, Debug)]
enum Step {
    Put { number: u64, len: usize, is_durable: bool },
    Get { number: u64 },
    Remove { number: u64 },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..40u64, 1..1_500_000usize, any::<bool>())
            .prop_map(|(number, len, is_durable)| Step::Put { number, len, is_durable }),
        8 => (0..40u64).prop_map(|number| Step::Get { number }),
        1 => (0..40u64).prop_map(|number| Step::Remove { number }),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// A value found is the last one stored; one stored durably is found.
    #[test]
    fn nothing_is_wrong_and_nothing_durable_is_lost(
        steps in prop::collection::vec(step(), 1..100),
    ) {
        let folder = folder();
        let mut server = start(folder.path(), "");
        let mut store = open(&server);
        // The last value of each key, and whether it was durable.
        let mut model: BTreeMap<u64, (Vec<u8>, bool)> = BTreeMap::new();
        for (at, step) in steps.into_iter().enumerate() {
            match step {
                Step::Put { number, len, is_durable } => {
                    let bytes = value(at as u64, len);
                    put(&store, number, None, &bytes, is_durable).unwrap();
                    model.insert(number, (bytes, is_durable));
                }
                Step::Get { number } => match (get(&store, number), model.get(&number)) {
                    (Some(found), Some((bytes, _))) => prop_assert!(found == *bytes),
                    (Some(_), None) => prop_assert!(false, "{number} was removed"),
                    (None, stored) => prop_assert!(!stored.is_some_and(|stored| stored.1)),
                },
                Step::Remove { number } => {
                    block_on(store.remove(key(number))).unwrap();
                    model.remove(&number);
                }
                Step::Restart => {
                    server.stop();
                    server = start(folder.path(), "");
                    store = open(&server);
                }
            }
        }
        server.stop();
    }
}
