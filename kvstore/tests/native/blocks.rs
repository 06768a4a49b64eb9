//! Blocks put are blocks got, whatever their number, size and namespace.

use std::time::Duration;

use kvclient::{Block, Error, Fault, Found, Tier, Written};

use crate::daemon::{Daemon, block, bytes, name};

fn lease(client: &kvclient::Client, number: u32) -> kvclient::Lease {
    client.get(&[name(number)], None).unwrap().pop().unwrap().lease().unwrap()
}

#[test]
fn blocks_of_all_sizes_come_back_as_they_were_put() {
    for cores in [1, 2] {
        let daemon = Daemon::on(cores, "");
        let client = daemon.client();
        let sizes = [1, 4095, 4096, 4097, 256 << 10, (2 << 20) + 1, 8 << 20];
        for (number, len) in (0..).zip(sizes) {
            let put = client.put(&[block(number, &bytes(number, len))], false).unwrap();
            assert_eq!(put, [Ok(())]);
        }
        for (number, len) in (0..).zip(sizes) {
            assert_eq!(&*lease(&client, number), bytes(number, len));
        }
    }
}

#[test]
fn a_block_made_in_place_is_put_without_a_copy_of_ones_own() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let made: Vec<Written> = (0..3)
        .map(|number| {
            let mut draft = client.reserve(100_000).unwrap();
            draft.copy_from_slice(&bytes(number, 100_000));
            let parent = number.checked_sub(1).map(name);
            Written { name: name(number), parent, label: b"label".to_vec(), draft }
        })
        .collect();
    assert_eq!(client.commit(made, false).unwrap(), [Ok(()); 3]);
    for number in 0..3 {
        assert_eq!(&*lease(&client, number), bytes(number, 100_000));
    }
    let (listed, next) = client.list(false, 0, 100).unwrap();
    assert_eq!((listed.len(), next), (3, 0));
    assert!(listed.iter().all(|line| line.len == 100_000 && line.label == b"label"));
}

#[test]
fn more_than_fits_the_staging_memory_is_put_in_turns() {
    let daemon = Daemon::start();
    let client = daemon.client();
    // 24 MiB through 16 MiB.
    let all: Vec<Vec<u8>> = (0..12).map(|number| bytes(number, 2 << 20)).collect();
    let blocks: Vec<Block<'_>> =
        (0..).zip(&all).map(|(number, bytes)| block(number, bytes)).collect();
    assert_eq!(client.put(&blocks, false).unwrap(), [Ok(()); 12]);
    for (number, bytes) in (0..).zip(&all) {
        assert_eq!(&*lease(&client, number), &bytes[..]);
    }
    let huge = vec![0; 17 << 20];
    assert!(matches!(client.put(&[block(0, &huge)], false), Err(Error::StagingFull { .. })));
    // All of the staging memory came back.
    drop(client.reserve(16 << 20).unwrap());
}

#[test]
fn a_lookup_says_how_deep_the_prefix_is() {
    for cores in [1, 2] {
        let daemon = Daemon::on(cores, "");
        let client = daemon.client();
        let small = bytes(0, 64);
        let blocks: Vec<Block<'_>> = (0..5000).map(|number| block(number, &small)).collect();
        let put = client.put(&blocks, false).unwrap();
        assert!(put.iter().all(Result::is_ok));
        let names: Vec<_> = (0..5000).map(name).collect();
        assert_eq!(client.lookup(&names).unwrap(), vec![Tier::Ram; 5000]);
        assert_eq!(client.remove(&[name(4500), name(9999)]).unwrap(), [Ok(true), Ok(false)]);
        assert_eq!(client.lookup(&names).unwrap().len(), 4500);
        assert_eq!(client.remove(&[name(10)]).unwrap(), [Ok(true)]);
        assert_eq!(client.lookup(&names).unwrap().len(), 10);
        assert_eq!(client.lookup(&names[10..]).unwrap(), []);
        assert_eq!(client.lookup(&[]).unwrap(), []);
        let found = client.get(&names, None).unwrap();
        let missing: Vec<usize> = found
            .iter()
            .enumerate()
            .filter_map(|(at, found)| matches!(found, Found::Missing).then_some(at))
            .collect();
        assert_eq!(missing, [10, 4500]);
        let there = client.prefetch(&names[..20], Duration::from_secs(60)).unwrap();
        assert_eq!(there, 19);
    }
}

#[test]
fn a_child_needs_its_parent() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let small = bytes(1, 64);
    let child = |number, parent| Block {
        name: name(number),
        parent: Some(name(parent)),
        bytes: &small,
        label: b"",
    };
    assert_eq!(client.put(&[child(2, 1)], false).unwrap(), [Err(Fault::ParentMissing)]);
    assert_eq!(client.put(&[child(2, 2)], false).unwrap(), [Err(Fault::ParentMissing)]);
    let put = client.put(&[block(1, &small), child(2, 1), child(3, 2)], false).unwrap();
    assert_eq!(put, [Ok(()); 3]);
    assert_eq!(client.lookup(&[name(1), name(2), name(3)]).unwrap().len(), 3);
}

#[test]
fn namespaces_do_not_see_each_other() {
    let daemon = Daemon::with("namespaces_max = 2\n");
    let (one, other) = (daemon.client_of("one"), daemon.client_of("other"));
    one.put(&[block(1, b"one's")], false).unwrap();
    assert!(other.lookup(&[name(1)]).unwrap().is_empty());
    assert!(matches!(other.get(&[name(1)], None).unwrap()[..], [Found::Missing]));
    other.put(&[block(1, b"other's")], false).unwrap();
    assert_eq!(&*lease(&one, 1), b"one's");
    assert_eq!(&*lease(&other, 1), b"other's");
    let third = kvclient::Client::connect(&daemon.uds(), "third", &crate::daemon::options());
    let fault = match third {
        Err(Error::Refused { fault, .. }) => fault,
        other => panic!("{other:?}"),
    };
    assert_eq!(fault, Fault::TooManyNamespaces);
}

#[test]
fn what_cannot_be_stored_is_refused_and_the_rest_is_stored() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let (small, large) = (bytes(1, 10), bytes(2, (8 << 20) + 1));
    let blocks = [block(1, &small), block(2, &large), block(3, &small)];
    assert_eq!(client.put(&blocks, false).unwrap(), [Ok(()), Err(Fault::TooLarge), Ok(())]);
    assert!(matches!(client.put(&[block(4, b"")], false), Err(Error::Invalid(_))));
    let none = kvclient::Options { staging_bytes: 0, ..crate::daemon::options() };
    let reader = kvclient::Client::connect(&daemon.uds(), "model/fp8/0", &none).unwrap();
    assert!(matches!(reader.put(&[block(4, b"x")], false), Err(Error::Invalid(_))));
    assert_eq!(&*lease(&reader, 3), small);
}

#[test]
fn threads_may_share_a_client() {
    let daemon = Daemon::on(2, "");
    let client = daemon.client();
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let client = &client;
            scope.spawn(move || {
                for turn in 0..50 {
                    let number = thread * 1000 + turn;
                    let bytes = bytes(number, 10_000);
                    assert_eq!(client.put(&[block(number, &bytes)], false).unwrap(), [Ok(())]);
                    assert_eq!(&*lease(client, number), bytes);
                }
            });
        }
    });
}
