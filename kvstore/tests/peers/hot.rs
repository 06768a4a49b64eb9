//! A block that peers fetch from one daemon gets a copy at another that nobody asked for it.

use crate::certificates::Authority;
use crate::namespaces::Wire;
use crate::node::{Node, block, bytes};
use crate::{LOOK, eventually};

#[test]
fn a_hot_block_is_copied_to_a_daemon_whose_clients_did_not_ask_for_it() {
    let wire = match Wire::lay() {
        Ok(wire) => wire,
        Err(reason) => return eprintln!("left out: {reason} (it needs root and ip)"),
    };
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("rack");
    let holder = Node::start(&wire, 0, "holder", &authority, folder.path(), &[]);
    let asker = Node::start(&wire, 1, "asker", &authority, folder.path(), &[&holder]);
    let other = Node::start(&wire, 1, "other", &authority, folder.path(), &[&holder]);
    // Whoever has no client that opened the namespace wants no block of it.
    let (at_asker, at_other) = (asker.client(), other.client());
    holder.change("hot_fetches = 8", "hot_fetches = 1");
    eventually("all are connected", || holder.stat("cgn_kvcached_peer_connections") == 2);
    let kept = "cgn_kvcached_peer_hot_offers_total{outcome=\"kept\"}";
    let mut count = 0;
    // The asker itself may be offered some of them, as long as the holder has not heard that it has them.
    eventually("a copy comes", || {
        count += 1;
        holder.put(count, 100_000);
        eventually("the asker reads it", || block(&at_asker, count, LOOK).is_some());
        other.stat(kept) > 0
    });
    assert!(holder.stat("cgn_kvcached_peer_hot_offered_total") > 0);
    let before = other.stat("cgn_kvcached_peer_fetches_total");
    let copied = other.blocks(count);
    assert!(!copied.is_empty());
    for number in copied {
        assert_eq!(block(&at_other, number, LOOK).unwrap(), bytes(number, 100_000));
    }
    assert_eq!(other.stat("cgn_kvcached_peer_fetches_total"), before, "they were there");
}
