//! Ports for engines: from a range, free at the moment of spawning, kept over restarts.
//!
//! Freeness is found by binding. Somebody else may still take the port before the engine does; then
//! the engine exits, and the next start finds another.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;

use crate::supervise::ReplicaId;

/// Which replica has which port.
#[derive(Debug)]
pub struct Ports {
    range: RangeInclusive<u16>,
    given: BTreeMap<ReplicaId, u16>,
}

impl Ports {
    /// Ports of `range`, none given.
    pub fn new(range: RangeInclusive<u16>) -> Self {
        Ports { range, given: BTreeMap::new() }
    }

    /// A free port for `id`: the one it had if that is free, else another. None: the range is used up.
    pub fn take(&mut self, id: &ReplicaId) -> Option<u16> {
        let earlier = self.given.remove(id);
        let taken = |port: &u16| self.given.values().any(|given| given == port);
        let port = earlier
            .into_iter()
            .chain(self.range.clone())
            .filter(|port| !taken(port))
            .find(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())?;
        self.given.insert(id.clone(), port);
        Some(port)
    }

    /// `id` needs none any more.
    pub fn release(&mut self, id: &ReplicaId) {
        self.given.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(replica: u32) -> ReplicaId {
        ReplicaId { deployment: "d".into(), replica }
    }

    #[test]
    fn a_replica_keeps_its_port_while_that_is_free() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let first = held.local_addr().unwrap().port();
        let mut ports = Ports::new(first..=first.saturating_add(50));
        let one = ports.take(&id(0)).unwrap();
        assert_ne!(one, first, "somebody listens there");
        assert_eq!(ports.take(&id(0)), Some(one));
        let busy = TcpListener::bind((Ipv4Addr::LOCALHOST, one)).unwrap();
        assert_ne!(ports.take(&id(0)), Some(one));
        drop(busy);
    }

    #[test]
    fn two_replicas_never_share_a_port_and_a_range_ends() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut ports = Ports::new(free..=free);
        assert_eq!(ports.take(&id(0)), Some(free));
        assert_eq!(ports.take(&id(1)), None);
        ports.release(&id(0));
        assert_eq!(ports.take(&id(1)), Some(free));
    }
}
