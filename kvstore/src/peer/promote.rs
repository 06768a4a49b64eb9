//! Hot blocks, both ways: copies are offered to peers, and what peers offer is taken.
//!
//! It does; what is hot [`heat`](super::heat) decides, who is offered it and what is taken
//! [`offer`](super::offer), what is worth its memory the store.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::blocks::Blocks;
use super::fetch::{Fetched, fetch};
use super::node::{Node, Peer};
use super::offer::{Candidate, Declined};
use super::wire::{HOT_BLOCKS_MAX, Offered};
use crate::key::Key;
use crate::store::Claim;

/// How long offered blocks may take to come here.
const PATIENCE: Duration = Duration::from_secs(5);

/// Offers what became hot, each block to one peer. When it is hot in the next window still, another one is
/// offered it, and who took a copy does the same: copies grow as fast as the need for them.
pub(super) fn offer<B: Blocks>(node: &Node<B>, now: Instant) {
    let hot = node.heat.borrow_mut().take();
    for offered in hot {
        let print = offered.key.fingerprint();
        let holders = node.directory.borrow_mut().holders(print, now);
        // Other clusters have their own limit, and ask when they need something.
        let peers = node.peers().into_iter().filter(|peer| peer.allowance.foreign.is_none());
        let candidates = peers.filter_map(|peer| {
            let offers = peer.hot.borrow().len();
            (offers < HOT_BLOCKS_MAX).then(|| Candidate {
                place: peer.place,
                has_it: holders.contains(peer.place),
                offers,
                cost: peer.pace.borrow().cost(),
            })
        });
        let chosen = node.offers.borrow_mut().choose(print, offered.bytes, candidates, now);
        if let Some(peer) = chosen.and_then(|place| node.peer(place)) {
            peer.hot.borrow_mut().push(offered);
            node.stats.offered.inc();
        }
    }
}

/// Takes copies of what a peer offers, one batch of each peer at a time.
pub(super) fn take<B: Blocks>(node: &Rc<Node<B>>, peer: &Rc<Peer>, offered: &[Offered]) {
    let now = Instant::now();
    let is_busy = peer.is_promoting.get();
    let mut taken = Vec::new();
    for &block in offered {
        let print = block.key.fingerprint();
        node.directory.borrow_mut().add(peer.place, &[print]);
        let is_here =
            node.log.borrow().holds(print) || node.flights.borrow().contains_key(&block.key);
        let declined = match (peer.allowance.foreign.is_some() || is_busy, is_here) {
            (true, _) => Some("busy"),
            (_, true) => Some("here"),
            _ => match node.takes.borrow_mut().take(print, block.bytes, now) {
                Ok(()) => None,
                Err(Declined::Again) => Some("again"),
                Err(Declined::Rate) => Some("busy"),
            },
        };
        match declined {
            Some(why) => node.stats.copies.with_label_values(&[why]).inc(),
            None => taken.push(block),
        }
    }
    if !taken.is_empty() {
        peer.is_promoting.set(true);
        tokio::task::spawn_local(bring(node.clone(), peer.clone(), taken));
    }
}

/// Fetches what was taken, as far as the store welcomes it.
async fn bring<B: Blocks>(node: Rc<Node<B>>, peer: Rc<Peer>, taken: Vec<Offered>) {
    let mut welcome: Vec<(Key, u64)> = Vec::with_capacity(taken.len());
    for Offered { key, bytes } in &taken {
        match node.blocks.welcomes(*key, *bytes).await {
            true => welcome.push((*key, *bytes)),
            false => node.stats.copies.with_label_values(&["refused"]).inc(),
        }
    }
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for fetched in fetch(&node, &welcome, Claim::Offered, deadline).await {
        let outcome = match fetched {
            Fetched::Kept => "kept",
            Fetched::Busy => "refused",
            Fetched::Missing | Fetched::Late => "lost",
        };
        node.stats.copies.with_label_values(&[outcome]).inc();
    }
    let mut takes = node.takes.borrow_mut();
    taken.iter().for_each(|block| takes.came(block.bytes));
    peer.is_promoting.set(false);
}
