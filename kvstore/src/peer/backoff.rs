//! Whom to dial and when: addresses from the configuration and from gossip, with growing pauses.
//!
//! Pure; time and chance come in.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dataplane::identity::Identity;

/// The first pause after a failure.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest one: a node that comes back is found within this time.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Addresses known at a time; what gossip brings beyond is not believed.
pub const ADDRESSES_MAX: usize = 256;
/// Failures in a row after which an address that gossip brought is forgotten.
const FAILURES_MAX: u32 = 20;

/// What is known of one address.
#[derive(Clone, Debug)]
struct Address {
    is_configured: bool,
    is_dialling: bool,
    failures: u32,
    next: Instant,
    /// Who answered there last.
    peer: Option<Identity>,
}

/// All addresses.
#[derive(Debug, Default)]
pub struct Addresses {
    known: BTreeMap<String, Address>,
}

impl Addresses {
    /// One to dial, from the configuration or from gossip.
    pub fn learn(&mut self, address: &str, is_configured: bool, now: Instant) {
        if let Some(known) = self.known.get_mut(address) {
            known.is_configured |= is_configured;
        } else if self.known.len() < ADDRESSES_MAX {
            let fresh =
                Address { is_configured, is_dialling: false, failures: 0, next: now, peer: None };
            self.known.insert(address.to_owned(), fresh);
        }
    }

    /// The configuration names these from here on. Others that it named are as if gossip had brought them.
    pub fn configure(&mut self, names: &[String], now: Instant) {
        self.known.values_mut().for_each(|address| address.is_configured = false);
        names.iter().for_each(|name| self.learn(name, true, now));
    }

    /// `peer`, which is connected, says that it can be dialled at `name` when it no longer is.
    pub fn learn_of(&mut self, name: &str, peer: &Identity, now: Instant) {
        self.learn(name, false, now);
        if let Some(address) = self.known.get_mut(name) {
            address.peer.get_or_insert_with(|| peer.clone());
        }
    }

    /// Those to dial now; each is marked until [`Addresses::reached`] or [`Addresses::failed`]. `is_there`
    /// says who is connected already.
    pub fn due(&mut self, now: Instant, is_there: impl Fn(&Identity) -> bool) -> Vec<String> {
        let mut due = Vec::new();
        for (name, address) in &mut self.known {
            let is_connected = address.peer.as_ref().is_some_and(&is_there);
            if !address.is_dialling && !is_connected && address.next <= now {
                address.is_dialling = true;
                due.push(name.clone());
            }
        }
        due
    }

    /// `peer` answered there.
    pub fn reached(&mut self, name: &str, peer: Identity, now: Instant) {
        if let Some(address) = self.known.get_mut(name) {
            address.is_dialling = false;
            address.failures = 0;
            address.peer = Some(peer);
            // If it goes away again at once, it is not dialled in a tight loop.
            address.next = now + PAUSE_MIN;
        }
    }

    /// Nobody, or nobody who may be a peer, answered. `chance` in 0..1 spreads those who failed at the
    /// same time.
    pub fn failed(&mut self, name: &str, now: Instant, chance: f64) {
        let Some(address) = self.known.get_mut(name) else { return };
        address.is_dialling = false;
        address.failures += 1;
        if !address.is_configured && address.failures >= FAILURES_MAX {
            self.known.remove(name);
            return;
        }
        let doubled = PAUSE_MIN.saturating_mul(1 << (address.failures - 1).min(10));
        address.next = now + doubled.min(PAUSE_MAX).mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_who_is_connected_is_not_dialled() {
        let mut now = Instant::now();
        let mut addresses = Addresses::default();
        addresses.learn("a:1", true, now);
        let mut last = Duration::ZERO;
        for _ in 0..30 {
            assert_eq!(addresses.due(now, |_| false), ["a:1"]);
            assert!(addresses.due(now, |_| false).is_empty(), "one dial at a time");
            addresses.failed("a:1", now, 1.0);
            let wait = addresses.known["a:1"].next - now;
            assert!(wait >= last && wait <= PAUSE_MAX);
            (last, now) = (wait, now + wait);
        }
        assert_eq!(last, PAUSE_MAX);
        let peer: Identity = "cognitora://c/node/a".parse().unwrap();
        addresses.due(now, |_| false);
        addresses.reached("a:1", peer.clone(), now);
        now += PAUSE_MIN;
        assert!(addresses.due(now, |_| true).is_empty());
        assert_eq!(addresses.due(now, |_| false), ["a:1"]);
        addresses.learn_of("b:1", &peer, now);
        assert!(addresses.due(now, |_| true).is_empty());
        assert_eq!(addresses.due(now, |_| false), ["b:1"]);
    }

    #[test]
    fn gossip_is_bounded_and_what_never_answers_is_forgotten() {
        let mut now = Instant::now();
        let mut addresses = Addresses::default();
        addresses.learn("mine:1", true, now);
        (0..1_000).for_each(|number| addresses.learn(&format!("h{number}:1"), false, now));
        assert_eq!(addresses.known.len(), ADDRESSES_MAX);
        for _ in 0..FAILURES_MAX {
            for name in addresses.due(now, |_| false) {
                addresses.failed(&name, now, 0.5);
            }
            now += PAUSE_MAX;
        }
        assert_eq!(addresses.known.keys().collect::<Vec<_>>(), ["mine:1"]);
        addresses.configure(&["yours:1".to_owned()], now);
        for _ in 0..FAILURES_MAX {
            for name in addresses.due(now, |_| false) {
                addresses.failed(&name, now, 0.5);
            }
            now += PAUSE_MAX;
        }
        assert_eq!(addresses.known.keys().collect::<Vec<_>>(), ["yours:1"]);
    }
}
