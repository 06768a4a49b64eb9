//! Leases: bytes stay as they are while one is held, and memory comes back when none is.

use dataplane::kv::{Answer, Got, Request};
use kvclient::{Client, Fault, Found};

use crate::daemon::{Daemon, block, bytes, name};
use crate::hostile::Raw;

/// Puts blocks of 4 MiB until one is refused; how many were taken.
fn fill(client: &Client, from: u32) -> usize {
    let put = |number| client.put(&[block(number, &bytes(number, 4 << 20))], false).unwrap();
    (from..from + 40).map(put).take_while(|results| results[0].is_ok()).count()
}

#[test]
fn leased_bytes_stay_while_others_fill_the_memory() {
    let daemon = Daemon::start();
    let (client, other) = (daemon.client(), daemon.client());
    client.put(&[block(1, &bytes(1, 1 << 20))], false).unwrap();
    let lease = client.get(&[name(1)], None).unwrap().pop().unwrap().lease().unwrap();
    // More than the memory holds: everything that may go, goes.
    assert_eq!(fill(&other, 100), 40);
    client.remove(&[name(1)]).unwrap();
    assert_eq!(fill(&other, 200), 40);
    assert_eq!(&*lease, bytes(1, 1 << 20));
    drop(client);
    // The lease keeps the connection, and so itself.
    assert_eq!(fill(&other, 300), 40);
    assert_eq!(&*lease, bytes(1, 1 << 20));
}

#[test]
fn a_dead_clients_leases_are_taken_back() {
    let daemon = Daemon::start();
    let other = daemon.client();
    let mut holder = Raw::greeted(&daemon);
    // All of the memory is leased away.
    for number in 0..40 {
        let put = other.put(&[block(number, &bytes(number, 4 << 20))], false).unwrap();
        if put[0].is_err() {
            break;
        }
        holder.say(2, &Request::Get { names: vec![name(number)], deadline_ms: 0 });
        let Some((2, Answer::Get { blocks })) = holder.hear() else { panic!("no answer") };
        assert!(matches!(blocks[..], [Got::Leased { .. }]));
    }
    let refused = other.put(&[block(100, &bytes(0, 4 << 20))], false).unwrap();
    assert_eq!(refused, [Err(Fault::Busy)]);
    // The process ends without a word: its socket closes, and nothing is released.
    drop(holder);
    while fill(&other, 100) == 0 {}
}

#[test]
fn a_pinned_block_stays_until_it_is_let_go() {
    let daemon = Daemon::start();
    let client = daemon.client();
    client.put(&[block(1, &bytes(1, 4 << 20))], false).unwrap();
    assert_eq!(client.pin(&[name(1), name(2)], true).unwrap(), [Ok(true), Ok(false)]);
    assert_eq!(fill(&client, 100), 40);
    assert_eq!(client.lookup(&[name(1)]).unwrap().len(), 1);
    assert_eq!(client.pin(&[name(1)], false).unwrap(), [Ok(true)]);
    assert_eq!(fill(&client, 200), 40);
    assert_eq!(fill(&client, 300), 40);
    assert_eq!(client.lookup(&[name(1)]).unwrap().len(), 0);
}

#[test]
fn leases_are_bounded_and_come_back_one_by_one() {
    let daemon = Daemon::with("leases_per_client_max = 5\n");
    let client = daemon.client();
    client.put(&[block(1, b"bytes")], false).unwrap();
    let names = [name(1); 7];
    let mut found = client.get(&names, None).unwrap();
    let refused = found.iter().filter(|found| matches!(found, Found::Failed(Fault::TooManyLeases)));
    assert_eq!(refused.count(), 2);
    found.truncate(3);
    // Those dropped are told with the next request.
    let again = client.get(&names, None).unwrap();
    assert_eq!(again.iter().filter(|found| matches!(found, Found::Lease(_))).count(), 2);
    // Another client has its own.
    let other = daemon.client();
    let others = other.get(&names, None).unwrap();
    assert_eq!(others.iter().filter(|found| matches!(found, Found::Lease(_))).count(), 5);
}
