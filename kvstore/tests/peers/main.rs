//! Two daemons in two network namespaces: they fetch from each other, survive a cut of the wire, and refuse
//! a peer of a foreign authority. Needs root and `ip`; elsewhere it says so and is over.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod certificates;
mod hot;
mod namespaces;
mod node;
mod reload;

use std::time::{Duration, Instant};

use certificates::Authority;
use namespaces::Wire;
use node::{Node, block, bytes};

/// What is waited for comes within this time, or never.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long one look waits for a block.
const LOOK: Duration = Duration::from_secs(2);

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn daemons_fetch_from_each_other_survive_a_cut_and_refuse_strangers() {
    let wire = match Wire::lay() {
        Ok(wire) => wire,
        Err(reason) => return eprintln!("left out: {reason} (it needs root and ip)"),
    };
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("rack");
    let left = Node::start(&wire, 0, "left", &authority, folder.path(), &[]);
    let right = Node::start(&wire, 1, "right", &authority, folder.path(), &[&left]);

    // Both ways, though one of them dialled.
    left.put(1, 3 << 20);
    right.put(2, 300_000);
    let (at_left, at_right) = (left.client(), right.client());
    eventually("right reads what left has", || block(&at_right, 1, LOOK).is_some());
    eventually("left reads what right has", || block(&at_left, 2, LOOK).is_some());
    assert_eq!(block(&at_right, 1, LOOK).unwrap(), bytes(1, 3 << 20));
    assert_eq!(block(&at_left, 2, LOOK).unwrap(), bytes(2, 300_000));
    assert_eq!(block(&at_right, 99, LOOK), None);

    // A stock client that asks whether there is such a block has it when it is told so.
    assert_eq!(left.resp(&wire, 0, "SET prompt kv"), "+OK");
    eventually("right finds it", || right.resp(&wire, 1, "EXISTS prompt") == ":1");
    assert_eq!(right.resp(&wire, 1, "EXISTS another"), ":0");
    assert_eq!(right.resp(&wire, 1, "STRLEN prompt"), ":2");

    // A stranger with the same names, of another authority, that believes everybody.
    let foreign = Authority::new("rack");
    let both = format!("{}{}", foreign.pem(), authority.pem());
    let stranger = Node::believing(&wire, 1, "other", &foreign, &both, folder.path(), &[&left]);
    let at_stranger = stranger.client();
    eventually("left sends the stranger away", || {
        left.stat("cgn_kvcached_peer_refusals_total") > 0
    });
    assert_eq!(block(&at_stranger, 1, LOOK), None);
    assert_eq!(stranger.stat("cgn_kvcached_peer_fetched_bytes_total"), 0);

    // The wire is cut while a block is only at the other end.
    left.put(3, 200_000);
    wire.cut(true);
    assert_eq!(block(&at_right, 3, LOOK), None, "a deadline is kept without a wire");
    assert_eq!(block(&at_right, 2, LOOK).unwrap(), bytes(2, 300_000), "its own are still served");
    eventually("right notices", || right.stat("cgn_kvcached_peer_connections") == 0);
    wire.cut(false);
    eventually("they find each other again", || block(&at_right, 3, LOOK).is_some());
    assert_eq!(block(&at_right, 3, LOOK).unwrap(), bytes(3, 200_000));
}
