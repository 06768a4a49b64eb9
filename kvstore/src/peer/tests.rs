//! Daemons' peers over loopback, with real certificates, and peers that misbehave.
//!
//! The store is plain memory here; on the real one it is tried by `tests/peers`.

mod cluster;
mod hostile;
mod rogue;

use std::time::{Duration, Instant};

use super::config::PeersConfig;
use super::fetch::Fetched;
use cluster::{Cluster, Daemon, eventually, key, run};

#[test]
fn blocks_are_fetched_whole_and_in_any_number() {
    let cluster = Cluster::new("rack");
    let first = Daemon::start(&cluster, "a", &[], |_| {});
    let sizes = [0, 1, 4_096, 300_000, 3 << 20];
    for (number, size) in sizes.into_iter().enumerate() {
        first.hold(number, size);
    }
    let second = Daemon::start(&cluster, "b", &[&first], |_| {});
    let keys: Vec<_> = (0..sizes.len()).map(key).collect();
    eventually(|| run(second.peers.fetch(keys.clone(), None)) == [Fetched::Kept; 5]);
    for number in 0..sizes.len() {
        assert_eq!(second.held(number), first.held(number));
    }
    assert_eq!(run(second.peers.fetch(vec![key(99)], None)), [Fetched::Missing]);
    assert!(second.held(99).is_none());
    assert!(second.peers.stats().fetched_bytes.get() >= sizes.iter().sum::<usize>() as u64);
}

#[test]
fn a_block_that_is_gone_is_missing_and_the_directory_learns_it() {
    let cluster = Cluster::new("rack");
    let first = Daemon::start(&cluster, "a", &[], |_| {});
    first.hold(1, 1_000);
    first.hold(2, 1_000);
    let second = Daemon::start(&cluster, "b", &[&first], |_| {});
    eventually(|| run(second.peers.fetch(vec![key(1)], None)) == [Fetched::Kept]);
    eventually(|| second.peers.stats().directory.get() == 2);
    first.store.drop_silently(2);
    assert_eq!(run(second.peers.fetch(vec![key(2)], None)), [Fetched::Missing]);
    eventually(|| second.peers.stats().directory.get() == 1);
}

#[test]
fn those_who_both_dial_end_with_one_connection() {
    let cluster = Cluster::new("rack");
    let first = Daemon::start(&cluster, "a", &[], |_| {});
    let second = Daemon::start(&cluster, "b", &[&first], |_| {});
    // The first hears where the second is and dials it too.
    let third = Daemon::start(&cluster, "c", &[&first, &second], |_| {});
    first.hold(1, 10);
    eventually(|| run(third.peers.fetch(vec![key(1)], None)) == [Fetched::Kept]);
    eventually(|| {
        [&first, &second, &third].iter().all(|daemon| daemon.peers.stats().connected.get() == 2)
    });
}

#[test]
fn peers_of_a_peer_are_found_by_gossip() {
    let cluster = Cluster::new("rack");
    let hub = Daemon::start(&cluster, "hub", &[], |_| {});
    let left = Daemon::start(&cluster, "left", &[&hub], |_| {});
    left.hold(1, 5_000);
    let right = Daemon::start(&cluster, "right", &[&hub], |_| {});
    eventually(|| run(right.peers.fetch(vec![key(1)], None)) == [Fetched::Kept]);
    assert_eq!(right.held(1), left.held(1));
    assert!(hub.held(1).is_none(), "the block went the direct way");
}

#[test]
fn a_hot_block_is_copied_to_one_that_lacks_it() {
    let cluster = Cluster::new("rack");
    let source = Daemon::start(&cluster, "a", &[], |config| config.hot_fetches = 2);
    source.hold(1, 20_000);
    let asker = Daemon::start(&cluster, "b", &[&source], |_| {});
    let other = Daemon::start(&cluster, "c", &[&source], |_| {});
    eventually(|| run(asker.peers.fetch(vec![key(1)], None)) == [Fetched::Kept]);
    eventually(|| source.peers.stats().directory.get() == 1);
    assert!(other.held(1).is_none());
    // Within a window or the next: the first fetch may have been the last of one.
    eventually(|| {
        run(asker.peers.fetch(vec![key(1)], None));
        other.held(1).is_some()
    });
    assert_eq!(other.held(1), source.held(1));
    assert_eq!(other.peers.stats().copies.with_label_values(&["kept"]).get(), 1);
    assert_eq!(asker.peers.stats().copies.with_label_values(&["here"]).get(), 0);
}

#[test]
fn a_store_that_has_better_blocks_takes_no_copy_and_is_sent_none() {
    let cluster = Cluster::new("rack");
    let source = Daemon::start(&cluster, "a", &[], |config| config.hot_fetches = 1);
    source.hold(1, 20_000);
    source.hold(2, 20_000);
    let asker = Daemon::start(&cluster, "b", &[&source], |_| {});
    let full = Daemon::start(&cluster, "c", &[&source], |_| {});
    full.store.allow(10_000);
    eventually(|| source.peers.stats().connected.get() == 2);
    // Each window two blocks are hot, and of two peers each is offered one.
    eventually(|| {
        run(asker.peers.fetch(vec![key(1), key(2)], None));
        full.peers.stats().copies.with_label_values(&["refused"]).get() > 0
    });
    assert!(full.held(1).is_none() && full.held(2).is_none());
    assert_eq!(full.peers.stats().fetched_bytes.get(), 0, "no byte moved");
}

#[test]
fn no_copies_go_to_a_foreign_cluster() {
    let (home, away) = (Cluster::new("home"), Cluster::new("away"));
    let mut files = home.node("a");
    files.foreign_ca = Some(away.path().join("ca.pem"));
    let config = PeersConfig { hot_fetches: 1, ..PeersConfig::default() };
    let source = Daemon::with(config, &files);
    source.hold(1, 20_000);
    let guests = ["g", "h"].map(|name| {
        let mut guest = away.node(name);
        guest.foreign_ca = Some(home.path().join("ca.pem"));
        let connect = vec![source.address.to_string()];
        Daemon::with(PeersConfig { connect, ..PeersConfig::default() }, &guest)
    });
    eventually(|| source.peers.stats().connected.get() == 2);
    eventually(|| run(guests[0].peers.fetch(vec![key(1)], None)) == [Fetched::Kept]);
    // A peer of its own cluster that comes now is offered what is hot in the next window; the guest is not.
    let own = Daemon::start(&home, "b", &[&source], |_| {});
    eventually(|| {
        run(guests[0].peers.fetch(vec![key(1)], None));
        own.held(1).is_some()
    });
    assert!(guests[1].held(1).is_none());
}

#[test]
fn while_nobody_holds_anything_a_miss_asks_nobody() {
    let cluster = Cluster::new("rack");
    let alone = Daemon::start(&cluster, "a", &[], |_| {});
    assert_eq!(run(alone.peers.fetch(vec![key(1)], None)), [Fetched::Missing]);
    assert_eq!(alone.peers.stats().fetched.with_label_values(&["missing"]).get(), 0);
    let other = Daemon::start(&cluster, "b", &[&alone], |_| {});
    other.hold(1, 10);
    eventually(|| run(alone.peers.fetch(vec![key(1)], None)) == [Fetched::Kept]);
    drop(other);
    eventually(|| alone.peers.stats().directory.get() == 0);
}

#[test]
fn fetches_of_one_block_at_a_time_are_joined() {
    let cluster = Cluster::new("rack");
    let first = Daemon::start(&cluster, "a", &[], |_| {});
    first.hold(1, 100);
    first.hold(2, 2 << 20);
    let second = Daemon::start(&cluster, "b", &[&first], |_| {});
    eventually(|| run(second.peers.fetch(vec![key(1)], None)) == [Fetched::Kept]);
    eventually(|| second.peers.stats().directory.get() == 2);
    first.store.answer_after(Duration::from_millis(300));
    let sent = first.peers.stats().sent.get();
    let askers: Vec<_> = (0..8)
        .map(|_| {
            let peers = second.peers.clone();
            std::thread::spawn(move || run(peers.fetch(vec![key(2), key(2)], None)))
        })
        .collect();
    for asker in askers {
        assert_eq!(asker.join().unwrap(), [Fetched::Kept; 2]);
    }
    let sent = first.peers.stats().sent.get() - sent;
    // Those that came while the first was on its way did not ask again. On a machine so slow that some
    // came later, a few did.
    assert!(sent < 8, "{sent} of 16 fetches went out");
}

#[test]
fn what_may_leave_is_limited() {
    let cluster = Cluster::new("rack");
    let first = Daemon::start(&cluster, "a", &[], |config| config.egress_mib_s_max = 1);
    first.hold(1, 1 << 20);
    first.hold(2, 10);
    let second = Daemon::start(&cluster, "b", &[&first], |_| {});
    eventually(|| run(second.peers.fetch(vec![key(2)], None)) == [Fetched::Kept]);
    eventually(|| second.peers.stats().directory.get() == 2);
    let soon = Instant::now() + Duration::from_millis(200);
    // 1 MiB at 1 MiB/s less a burst of 50 ms cannot come within 200 ms, however fast the machine.
    assert_eq!(run(second.peers.fetch(vec![key(1)], Some(soon))), [Fetched::Late]);
    assert!(second.held(1).is_none());
    let later = Instant::now() + Duration::from_secs(30);
    eventually(|| run(second.peers.fetch(vec![key(1)], Some(later))) == [Fetched::Kept]);
}

#[test]
fn a_store_without_room_keeps_nothing_and_says_so() {
    let cluster = Cluster::new("rack");
    let first = Daemon::start(&cluster, "a", &[], |_| {});
    first.hold(1, 10);
    first.hold(2, 100_000);
    let second = Daemon::start(&cluster, "b", &[&first], |_| {});
    eventually(|| run(second.peers.fetch(vec![key(1)], None)) == [Fetched::Kept]);
    eventually(|| second.peers.stats().directory.get() == 2);
    second.store.allow(50_000);
    assert_eq!(run(second.peers.fetch(vec![key(2), key(1)], None)), [Fetched::Busy, Fetched::Kept]);
}
