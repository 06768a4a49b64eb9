//! The store against a naive model: what it says is there is right, whatever was evicted.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};

use futures_lite::future::block_on;
use kvstore::config::Config;
use kvstore::key::{Key, Name, NamespaceId};
use kvstore::server::Server;
use kvstore::store::{About, Store, StoreError, Tier};
use proptest::prelude::*;

fn start(text: &str) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kv.toml");
    let text = format!(
        "[kv]\nmetrics_listen = \"127.0.0.1:0\"\nresp_listen = \"127.0.0.1:0\"\nhuge_pages = \"never\"\n{text}"
    );
    std::fs::write(&path, text).unwrap();
    Server::start(Config::load(&path).unwrap()).unwrap()
}

fn key(number: u64) -> Key {
    Key::new(NamespaceId::of("test"), Name::of(&number.to_le_bytes()))
}

fn about(number: u64, parent: Option<u64>) -> About {
    About {
        key: key(number),
        parent: parent.map(key),
        label: number.to_string().into_bytes().into(),
        is_durable: false,
        hash: None,
    }
}

fn put(store: &Store, number: u64, parent: Option<u64>, bytes: &[u8]) -> Result<(), StoreError> {
    block_on(async {
        let mut slot = store.reserve(key(number), bytes.len()).await?;
        slot.bytes_mut().copy_from_slice(bytes);
        store.commit(slot, about(number, parent)).await
    })
}

fn get(store: &Store, number: u64) -> Option<Vec<u8>> {
    block_on(store.get(key(number), None)).unwrap().map(|lease| lease.bytes().to_vec())
}

fn tier(store: &Store, number: u64) -> Option<Tier> {
    block_on(store.lookup(&[key(number)])).unwrap()[0]
}

#[test]
fn what_was_stored_is_found_replaced_and_removed() {
    let server = start("ram_gib = 0.125\ncores = 2\nlimits.block_mib_max = 16\n");
    let store = Store::remote(server.house.clone());
    assert_eq!(block_on(store.reserve(key(1), 1)).unwrap_err(), StoreError::UnknownNamespace);
    store.namespace("test").unwrap();
    for number in 0..20 {
        put(&store, number, None, &[number as u8; 100_000]).unwrap();
    }
    put(&store, 3, None, b"another").unwrap();
    assert_eq!(get(&store, 3).unwrap(), b"another");
    assert_eq!(get(&store, 4).unwrap(), [4; 100_000]);
    assert!(block_on(store.remove(key(4))).unwrap());
    assert!(!block_on(store.remove(key(4))).unwrap());
    assert_eq!(get(&store, 4), None);
    let keys: Vec<Key> = (0..21).map(key).collect();
    let tiers = block_on(store.lookup(&keys)).unwrap();
    assert!(tiers.iter().enumerate().all(|(at, tier)| tier.is_some() == (at != 4 && at != 20)));
    server.stop();
}

#[test]
fn all_blocks_are_listed_in_pieces_of_any_size() {
    let server = start("ram_gib = 0.125\ncores = 3\nlimits.block_mib_max = 16\n");
    let store = Store::remote(server.house.clone());
    store.namespace("test").unwrap();
    for number in 0..50 {
        put(&store, number, None, b"x").unwrap();
    }
    for piece in [1, 7, 50, 1000] {
        let (mut seen, mut cursor) = (BTreeSet::new(), 0);
        loop {
            let (listed, next) = block_on(store.list(None, cursor, piece)).unwrap();
            assert!(listed.len() <= piece);
            for block in listed {
                assert_eq!(block.bytes, 1);
                assert!(seen.insert(block.label));
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        assert_eq!(seen.len(), 50);
    }
    server.stop();
}

#[test]
fn a_leased_block_keeps_its_bytes_while_the_arena_is_filled_many_times() {
    let server = start("ram_gib = 0.03125\nlimits.block_mib_max = 8\n");
    let store = Store::remote(server.house.clone());
    store.namespace("test").unwrap();
    put(&store, 0, None, &vec![7; 8 << 20]).unwrap();
    let lease = block_on(store.get(key(0), None)).unwrap().unwrap();
    for number in 1..100 {
        put(&store, number, None, &vec![number as u8; 3 << 20]).unwrap();
    }
    assert!(lease.bytes().iter().all(|&byte| byte == 7));
    assert!(block_on(store.pin(key(99), true)).unwrap());
    for number in 100..200 {
        put(&store, number, None, &vec![number as u8; 3 << 20]).unwrap();
    }
    assert_eq!(get(&store, 99).unwrap(), vec![99; 3 << 20]);
    server.stop();
}

#[test]
fn when_all_is_leased_a_write_waits_and_then_is_refused() {
    let server =
        start("ram_gib = 0.0078125\n[kv.limits]\nblock_mib_max = 8\nreserve_wait_ms = 50\n");
    let store = Store::remote(server.house.clone());
    store.namespace("test").unwrap();
    put(&store, 0, None, &vec![7; 8 << 20]).unwrap();
    let lease = block_on(store.get(key(0), None)).unwrap().unwrap();
    assert_eq!(put(&store, 1, None, b"x").unwrap_err(), StoreError::Busy);
    drop(lease);
    put(&store, 1, None, b"x").unwrap();
    let too_large = block_on(store.reserve(key(2), (8 << 20) + 1)).unwrap_err();
    assert!(matches!(too_large, StoreError::TooLarge { .. }));
    server.stop();
}

#[test]
fn a_lease_given_back_wakes_a_write_that_waits() {
    let server =
        start("ram_gib = 0.0078125\n[kv.limits]\nblock_mib_max = 8\nreserve_wait_ms = 600000\n");
    let store = Store::remote(server.house.clone());
    store.namespace("test").unwrap();
    put(&store, 0, None, &vec![7; 8 << 20]).unwrap();
    let lease = block_on(store.get(key(0), None)).unwrap().unwrap();
    let house = server.house.clone();
    let waits = std::thread::spawn(move || put(&Store::remote(house), 1, None, b"x"));
    std::thread::sleep(std::time::Duration::from_millis(30));
    drop(lease);
    waits.join().unwrap().unwrap();
    server.stop();
}

/// With few blocks and many shards, a shard's blocks often all have their children elsewhere.
#[test]
fn a_shard_without_leaves_gets_room_from_the_others() {
    let server = start("ram_gib = 0.03125\ncores = 4\nlimits.block_mib_max = 4\n");
    let store = Store::remote(server.house.clone());
    store.namespace("test").unwrap();
    let mut stored = 0;
    for chain in 0..40 {
        for depth in 0..10 {
            let number = chain * 1000 + depth;
            let parent = (depth > 0).then(|| number - 1);
            match put(&store, number, parent, &[chain as u8; 900_000]) {
                Ok(()) => stored += 1,
                // Its parent was the only leaf there was.
                Err(StoreError::ParentMissing) => break,
                Err(other) => panic!("{other} at {depth} of {chain}"),
            }
        }
    }
    // Thirty-six fit at once.
    assert!(stored > 100, "{stored} stored");
    server.stop();
}

#[test]
fn a_namespace_stays_within_its_quota_and_leaves_others_alone() {
    let server = start(
        "ram_gib = 0.125\nlimits.block_mib_max = 16\n[kv.namespaces.test]\nquota_gib = 0.0078125\n",
    );
    let store = Store::remote(server.house.clone());
    let namespace = store.namespace("test").unwrap();
    store.namespace("other").unwrap();
    let other = Key::new(NamespaceId::of("other"), Name::of(b"o"));
    block_on(async {
        let slot = store.reserve(other, 1 << 20).await.unwrap();
        let about = About {
            key: other,
            parent: None,
            label: Box::default(),
            is_durable: false,
            hash: None,
        };
        store.commit(slot, about).await.unwrap();
    });
    for number in 0..40 {
        put(&store, number, None, &vec![1; 1 << 20]).unwrap();
        assert!(namespace.used_bytes() <= 8 << 20);
    }
    let too_large = block_on(store.reserve(key(99), 9 << 20)).unwrap_err();
    assert_eq!(too_large, StoreError::QuotaExceeded);
    assert!(block_on(store.get(other, None)).unwrap().is_some());
    server.stop();
}

/// What a client does next.
#[derive(Clone, Debug)]
enum Step {
    Put { chain: u64, depth: u64, len: usize },
    Get { chain: u64, depth: u64 },
    Remove { chain: u64, depth: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let at = || (0..6u64, 0..12u64);
    prop_oneof![
        6 => (at(), 1..1_500_000usize).prop_map(|((chain, depth), len)| Step::Put { chain, depth, len }),
        4 => at().prop_map(|(chain, depth)| Step::Get { chain, depth }),
        1 => at().prop_map(|(chain, depth)| Step::Remove { chain, depth }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is evicted on the way, a block found has the bytes stored last, and, as long as no
    /// client removes blocks, one that has a parent never stands without it.
    #[test]
    fn nothing_is_wrong_and_no_child_stands_alone(
        steps in prop::collection::vec(step(), 1..120),
        cores in 1..3usize,
    ) {
        let ram_gib = 0.0078125 * cores as f64;
        let server = start(&format!("ram_gib = {ram_gib}\ncores = {cores}\nlimits.block_mib_max = 8\n"));
        let store = Store::remote(server.house.clone());
        store.namespace("test").unwrap();
        let number = |chain: u64, depth: u64| chain * 100 + depth;
        let mut model: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut orphaned = BTreeSet::new();
        for (at, step) in steps.into_iter().enumerate() {
            match step {
                Step::Put { chain, depth, len } => {
                    let number = number(chain, depth);
                    let parent = (depth > 0).then(|| number - 1);
                    let bytes = vec![at as u8; len];
                    match put(&store, number, parent, &bytes) {
                        Ok(()) => {
                            model.insert(number, bytes);
                        }
                        Err(StoreError::ParentMissing) => {
                            prop_assert!(parent.is_some_and(|parent| tier(&store, parent).is_none()));
                        }
                        // Every other block may be a parent.
                        Err(error) => prop_assert_eq!(error, StoreError::Busy),
                    }
                }
                Step::Get { chain, depth } => {
                    if let Some(bytes) = get(&store, number(chain, depth)) {
                        prop_assert_eq!(Some(&bytes), model.get(&number(chain, depth)));
                    }
                }
                Step::Remove { chain, depth } => {
                    block_on(store.remove(key(number(chain, depth)))).unwrap();
                    model.remove(&number(chain, depth));
                    orphaned.insert(chain);
                }
            }
            for chain in (0..6).filter(|chain| !orphaned.contains(chain)) {
                let here = |depth| tier(&store, number(chain, depth)).is_some();
                prop_assert!((1..12).all(|depth| !here(depth) || here(depth - 1)));
            }
        }
        server.stop();
    }
}

#[test]
fn a_block_that_was_offered_takes_the_place_of_none_that_is_better() {
    let server = start("ram_gib = 0.03125\nlimits.block_mib_max = 8\n");
    let store = Store::remote(server.house.clone());
    let offer = |number: u64| {
        let welcome = block_on(store.welcomes(key(number), 1 << 20)).unwrap();
        let reserved = block_on(store.reserve_offered(key(number), 1 << 20));
        assert_eq!(welcome, reserved.is_ok(), "{number}");
        reserved
    };
    assert_eq!(offer(1).unwrap_err(), StoreError::UnknownNamespace);
    store.namespace("test").unwrap();
    assert!(offer(1).is_ok(), "there is room");
    for number in 0..32 {
        put(&store, number, None, &vec![1; 1 << 20]).unwrap();
    }
    for number in 0..32 {
        assert!(get(&store, number).is_some());
    }
    assert_eq!(offer(100).unwrap_err(), StoreError::Busy, "all of it was used a moment ago");
    assert!((0..32).all(|number| tier(&store, number).is_some()));
    for number in 32..64 {
        put(&store, number, None, &vec![2; 1 << 20]).unwrap();
    }
    let slot = offer(100).unwrap();
    block_on(store.commit(slot, about(100, None))).unwrap();
    assert!(tier(&store, 100).is_some(), "it took the place of one that nobody used");
    server.stop();
}
