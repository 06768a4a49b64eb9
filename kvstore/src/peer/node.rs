//! What the peers' thread owns: who is connected, who holds what, what is on its way.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use dataplane::identity::Identity;
use rustls::pki_types::UnixTime;

use super::backoff::Addresses;
use super::blocks::Blocks;
use super::config::PeersConfig;
use super::directory::{Directory, PLACES_MAX, Place, Places};
use super::endpoint::Endpoint;
use super::fetch::Flight;
use super::gossip::Log;
use super::heat::Heat;
use super::limits::Egress;
use super::link::{Close, Link};
use super::offer::{Offers, Takes};
use super::pace::Pace;
use super::serve::Allowance;
use super::stats::PeerStats;
use super::thread::Shared;
use super::tls::Credentials;
use super::wire::Offered;
use crate::key::Key;

/// One connected peer.
pub(super) struct Peer {
    pub(super) place: Place,
    pub(super) identity: Identity,
    pub(super) link: Link,
    /// Whether this daemon dialled.
    pub(super) is_dialled: bool,
    pub(super) pace: RefCell<Pace>,
    pub(super) allowance: Allowance,
    /// Where it can be dialled, once it has said so.
    pub(super) address: RefCell<Option<String>>,
    /// Hot blocks it is to be offered; at most one frame's worth.
    pub(super) hot: RefCell<Vec<Offered>>,
    /// Whether blocks that it offered are being fetched.
    pub(super) is_promoting: Cell<bool>,
}

/// The thread's state.
pub(super) struct Node<B> {
    pub(super) blocks: B,
    pub(super) endpoint: Endpoint,
    pub(super) credentials: RefCell<Credentials>,
    pub(super) config: RefCell<PeersConfig>,
    pub(super) stats: PeerStats,
    pub(super) directory: RefCell<Directory>,
    pub(super) log: RefCell<Log>,
    pub(super) heat: RefCell<Heat>,
    pub(super) offers: RefCell<Offers>,
    pub(super) takes: RefCell<Takes>,
    pub(super) egress: RefCell<Egress>,
    pub(super) flights: RefCell<HashMap<Key, Rc<Flight>>>,
    pub(super) addresses: RefCell<Addresses>,
    peers: RefCell<[Option<Rc<Peer>>; PLACES_MAX]>,
    shared: Arc<Shared>,
    chance: RandomState,
    chances: Cell<u64>,
}

impl<B: Blocks> Node<B> {
    pub(super) fn new(
        blocks: B,
        endpoint: Endpoint,
        credentials: Credentials,
        config: PeersConfig,
        shared: Arc<Shared>,
        now: Instant,
    ) -> Rc<Node<B>> {
        let mut addresses = Addresses::default();
        for address in &config.connect {
            addresses.learn(address, true, now);
        }
        Rc::new(Node {
            blocks,
            endpoint,
            credentials: RefCell::new(credentials),
            stats: shared.stats.clone(),
            shared,
            directory: RefCell::new(Directory::new(config.directory_entries_max)),
            log: RefCell::new(Log::new(config.directory_entries_max)),
            heat: RefCell::new(Heat::new(config.hot_fetches, now)),
            offers: RefCell::new(Offers::new(config.hot_bytes_s_max(), now)),
            takes: RefCell::new(Takes::new(config.hot_bytes_s_max(), now)),
            egress: RefCell::new(Egress::new(config.rates(), now)),
            flights: RefCell::default(),
            addresses: RefCell::new(addresses),
            config: RefCell::new(config),
            peers: RefCell::new([const { None }; PLACES_MAX]),
            chance: RandomState::new(),
            chances: Cell::new(0),
        })
    }

    /// The peer at a place.
    pub(super) fn peer(&self, place: Place) -> Option<Rc<Peer>> {
        self.peers.borrow()[place.number()].clone()
    }

    /// All that are connected.
    pub(super) fn peers(&self) -> Vec<Rc<Peer>> {
        self.peers.borrow().iter().flatten().cloned().collect()
    }

    /// Whether `identity` is connected.
    pub(super) fn is_there(&self, identity: &Identity) -> bool {
        self.peers.borrow().iter().flatten().any(|peer| peer.identity == *identity)
    }

    /// Gives a new connection a place, unless another to the same peer is to stay.
    pub(super) fn join(
        &self,
        identity: Identity,
        link: Link,
        is_dialled: bool,
        now: Instant,
    ) -> Result<Rc<Peer>, Close> {
        let mut peers = self.peers.borrow_mut();
        let own = self.credentials.borrow().identity.clone();
        let old = peers.iter().flatten().find(|peer| peer.identity == identity).cloned();
        let place = match &old {
            Some(old) if !replaces(&own, &identity, old.is_dialled, is_dialled) => {
                return Err(Close::Duplicate);
            }
            Some(old) => old.place,
            None => peers
                .iter()
                .take(self.config.borrow().peers_max)
                .position(Option::is_none)
                .and_then(Place::new)
                .ok_or(Close::Full)?,
        };
        let is_foreign = identity.cluster() != own.cluster();
        let allowance = Allowance {
            foreign: is_foreign.then(|| identity.cluster().to_owned()),
            bucket: RefCell::new(self.egress.borrow().peer_bucket(now)),
            answering: Cell::new(0),
        };
        let peer = Rc::new(Peer {
            place,
            identity,
            link,
            is_dialled,
            pace: RefCell::default(),
            allowance,
            address: RefCell::new(None),
            hot: RefCell::default(),
            is_promoting: Cell::new(false),
        });
        peers[place.number()] = Some(peer.clone());
        self.stats.connected.set(peers.iter().flatten().count() as i64);
        if let Some(old) = old {
            old.link.close(Close::Duplicate);
        }
        Ok(peer)
    }

    /// Takes a peer out whose connection has ended, and all that it was believed to hold.
    pub(super) fn leave(&self, peer: &Rc<Peer>) {
        let mut peers = self.peers.borrow_mut();
        let place = &mut peers[peer.place.number()];
        // Another connection to the same peer may have its place already.
        if place.as_ref().is_some_and(|there| Rc::ptr_eq(there, peer)) {
            *place = None;
            self.directory.borrow_mut().forget(peer.place);
        }
        self.stats.connected.set(peers.iter().flatten().count() as i64);
        self.count_known();
    }

    /// Writes down how many blocks of peers are known. While it is none, no shard asks.
    pub(super) fn count_known(&self) {
        let known = self.directory.borrow().len();
        self.shared.known.store(known, Relaxed);
        self.stats.directory.set(known as i64);
    }

    /// Goes on with another configuration and other certificates. Who is connected and would not be let in
    /// by them is sent away.
    pub(super) fn change(&self, config: PeersConfig, credentials: Credentials, now: Instant) {
        if let Err(error) = self.endpoint.set_credentials(&credentials) {
            tracing::error!(%error, "the peers' configuration stays as it is");
            return;
        }
        self.egress.borrow_mut().set_rates(config.rates(), now);
        self.heat.borrow_mut().set_fetches(config.hot_fetches);
        self.offers.borrow_mut().set_rate(config.hot_bytes_s_max(), now);
        self.takes.borrow_mut().set_rate(config.hot_bytes_s_max(), now);
        self.addresses.borrow_mut().configure(&config.connect, now);
        for peer in self.peers() {
            peer.allowance.bucket.replace(self.egress.borrow().peer_bucket(now));
            if let Err(refusal) =
                credentials.admit_again(&peer.link.certificates(), UnixTime::now())
            {
                tracing::warn!(peer = %peer.identity, %refusal, "a peer is sent away");
                self.stats.refused.with_label_values(&["identity"]).inc();
                peer.link.close(Close::Refused);
            }
        }
        self.credentials.replace(credentials);
        self.config.replace(config);
    }

    /// Whom to ask for a block: the cheapest of those that may hold it and were not asked yet.
    pub(super) fn candidate(&self, key: Key, asked: Places, now: Instant) -> Option<Rc<Peer>> {
        let holders = self.directory.borrow_mut().holders(key.fingerprint(), now).without(asked);
        let peers = holders.iter().filter_map(|place| self.peer(place));
        peers.min_by(|one, other| one.pace.borrow().cost().total_cmp(&other.pace.borrow().cost()))
    }

    /// A number in 0..1.
    pub(super) fn chance(&self) -> f64 {
        self.chances.set(self.chances.get().wrapping_add(1));
        let mut hasher = self.chance.build_hasher();
        hasher.write_u64(self.chances.get());
        (hasher.finish() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Whether a new connection takes the place of an old one between the same two. Of two that both dialled,
/// the smaller's call counts: both ends decide the same without a word. One who dials again has lost
/// the old connection.
fn replaces(own: &Identity, peer: &Identity, old_is_dialled: bool, new_is_dialled: bool) -> bool {
    old_is_dialled == new_is_dialled || new_is_dialled == (own < peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_keep_the_call_of_the_smaller_in_whatever_order_the_calls_arrive() {
        let small: Identity = "cognitora://c/node/a".parse().unwrap();
        let large: Identity = "cognitora://c/node/b".parse().unwrap();
        // At each end, whether the call of the smaller one was dialled there.
        for (own, peer) in [(&small, &large), (&large, &small)] {
            let smaller_call = own < peer;
            assert!(replaces(own, peer, !smaller_call, smaller_call));
            assert!(!replaces(own, peer, smaller_call, !smaller_call));
            assert!(replaces(own, peer, true, true) && replaces(own, peer, false, false));
        }
    }
}
