//! What EXISTS promised: keys that a GET must not answer with nil.
//!
//! LMCache's own client reads a reply of the length it expects; after nil, which is shorter, it waits
//! for ever. So a block that was evicted between EXISTS and GET is answered by an error line. A
//! connection keeps its own promises strictly; those of the client's other connections are kept in a
//! table for all, of fixed size, where a new promise may take an old one's place.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use foldhash::fast::RandomState;

use crate::key::Key;

/// Promises of one connection. A client that asks for more gets no nil any more.
const OWN_MAX: usize = 1024;
/// Promises to all clients: 512 KiB.
const SHARED_MAX: usize = 1 << 16;

/// Promises between the connections of a host.
#[derive(Debug)]
pub struct Shared(Box<[AtomicU64]>);

impl Default for Shared {
    fn default() -> Self {
        Self((0..SHARED_MAX).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Shared {
    fn at(&self, promise: u64) -> &AtomicU64 {
        // A remainder is below the length, which fits.
        &self.0[(promise % SHARED_MAX as u64) as usize]
    }
}

/// Promises of one connection.
#[derive(Debug)]
pub struct Promises {
    client: IpAddr,
    own: HashSet<u64, RandomState>,
    is_overflown: bool,
}

impl Promises {
    /// None yet, to a client of this host.
    pub fn new(client: IpAddr) -> Self {
        Self { client, own: HashSet::default(), is_overflown: false }
    }

    /// EXISTS found the key.
    pub fn make(&mut self, shared: &Shared, key: &Key) {
        let promise = self.promise(key);
        shared.at(promise).store(promise, Relaxed);
        if self.own.len() < OWN_MAX {
            self.own.insert(promise);
        } else {
            self.is_overflown |= !self.own.contains(&promise);
        }
    }

    /// The client itself changed the key: what EXISTS said is history.
    pub fn forget(&mut self, shared: &Shared, key: &Key) {
        let promise = self.promise(key);
        self.own.remove(&promise);
        let _ = shared.at(promise).compare_exchange(promise, 0, Relaxed, Relaxed);
    }

    /// Whether the client was told that the key is there. It is told otherwise now, so the promise ends.
    pub fn take(&mut self, shared: &Shared, key: &Key) -> bool {
        let promise = self.promise(key);
        let is_shared = shared.at(promise).load(Relaxed) == promise;
        let is_own = self.own.contains(&promise);
        self.forget(shared, key);
        is_own || is_shared || self.is_overflown
    }

    fn promise(&self, key: &Key) -> u64 {
        let mut hasher = blake3::Hasher::new();
        match self.client {
            IpAddr::V4(ip) => hasher.update(&ip.octets()),
            IpAddr::V6(ip) => hasher.update(&ip.octets()),
        };
        hasher.update(&key.namespace.0).update(&key.name.0);
        let mut first = [0; 8];
        hasher.finalize_xof().fill(&mut first);
        u64::from_le_bytes(first).max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::key::{Name, NamespaceId};

    fn key(number: usize) -> Key {
        Key::new(NamespaceId::of("n"), Name::of(&number.to_le_bytes()))
    }

    fn connection(host: u8) -> Promises {
        Promises::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, host)))
    }

    #[test]
    fn a_promise_holds_on_all_connections_of_the_host_and_once() {
        let shared = Shared::default();
        let (mut one, mut two, mut foreign) = (connection(1), connection(1), connection(2));
        one.make(&shared, &key(7));
        assert!(!foreign.take(&shared, &key(7)));
        assert!(!two.take(&shared, &key(8)));
        assert!(two.take(&shared, &key(7)));
        assert!(!two.take(&shared, &key(7)));
        // The other connection spent the shared one; this connection's own still holds.
        assert!(one.take(&shared, &key(7)));
        assert!(!one.take(&shared, &key(7)));
    }

    #[test]
    fn what_the_client_removed_itself_was_not_promised() {
        let shared = Shared::default();
        let mut one = connection(1);
        one.make(&shared, &key(7));
        one.forget(&shared, &key(7));
        assert!(!one.take(&shared, &key(7)));
    }

    #[test]
    fn more_promises_than_are_kept_are_still_not_broken() {
        let shared = Shared::default();
        let mut one = connection(1);
        for number in 0..OWN_MAX + 200 {
            one.make(&shared, &key(number));
        }
        assert!((0..OWN_MAX + 200).all(|number| one.take(&shared, &key(number))));
        assert!(one.own.len() <= OWN_MAX);
    }
}
