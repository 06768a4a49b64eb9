//! What the daemon's own user may: list, verify, evict, drain.

use crate::daemon::{Daemon, block, bytes, name};

#[test]
fn the_daemons_own_user_sees_and_forgets_all_namespaces() {
    let daemon = Daemon::on(2, "");
    let (one, other) = (daemon.client_of("one"), daemon.client_of("other"));
    for number in 0..1000 {
        let client = if number % 2 == 0 { &one } else { &other };
        client.put(&[block(number, &bytes(number, 100))], false).unwrap();
    }
    let (mut seen, mut cursor) = (Vec::new(), 0);
    loop {
        let (page, next) = one.list(true, cursor, 64).unwrap();
        seen.extend(page.into_iter().map(|line| line.place.1));
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    seen.sort_unstable();
    let mut all: Vec<_> = (0..1000).map(name).collect();
    all.sort_unstable();
    assert_eq!(seen, all);
    let (own, next) = one.list(false, 0, 900).unwrap();
    assert!(next == 0 || !own.is_empty());
    assert!(own.iter().all(|line| line.len == 100));

    let (mut looked_at, mut cursor) = (0, 0);
    loop {
        let (seen, wrong, next) = one.verify(true, cursor, 900).unwrap();
        assert_eq!(wrong, 0);
        looked_at += seen;
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    assert_eq!(looked_at, 1000);

    let (mut forgotten, mut cursor) = (0, 0);
    loop {
        let (_, dropped, next) = other.evict(false, cursor, 900).unwrap();
        forgotten += dropped;
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    assert_eq!(forgotten, 500);
    assert_eq!(other.lookup(&[name(1)]).unwrap().len(), 0);
    assert_eq!(one.lookup(&[name(0)]).unwrap().len(), 1);
}

#[test]
fn stats_are_the_metrics() {
    let daemon = Daemon::start();
    let client = daemon.client();
    client.put(&[block(1, &bytes(1, 5000))], false).unwrap();
    drop(client.get(&[name(1), name(1)], None).unwrap());
    assert_eq!(daemon.stat(&client, "cgn_kvcached_served_bytes_total"), 10_000);
    assert_eq!(daemon.stat(&client, "cgn_kvcached_connections{door=\"native\"}"), 1);
}

#[test]
fn a_drained_daemon_takes_nothing_new_and_ends() {
    let mut daemon = Daemon::start();
    let client = daemon.client();
    client.put(&[block(1, b"bytes")], false).unwrap();
    let lease = client.get(&[name(1)], None).unwrap().pop().unwrap().lease().unwrap();
    client.drain().unwrap();
    assert!(daemon.child.wait().unwrap().success());
    assert!(!daemon.uds().exists());
    // What was leased stays readable.
    assert_eq!(&*lease, b"bytes");
    assert!(client.lookup(&[name(1)]).is_err());
}
