//! Where the sessions of clients were last: session → worker, for affinity.
//!
//! A table of fixed size that is made with the first session: [`WAYS`] places to a bucket, a lock to
//! each. A session that is new takes the place in its bucket that was used the longest ago. So it is
//! bounded whatever clients send, nothing is allocated on the way, and no name of a session is kept: only
//! a keyed hash of tenant, model and name. Of two sessions with one hash, about one pair in 2^64, the
//! second would prefer the first one's worker, which costs little and breaks nothing.
//!
//! It decides nothing: how much a preference is worth is [`dataplane::route::pick`]'s.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Sessions that share a bucket, a lock and its 136 bytes.
const WAYS: usize = 8;

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// 0: free.
    key: u64,
    worker: u32,
    used_s: u32,
}

type Bucket = Mutex<[Place; WAYS]>;

/// All sessions of the process.
#[derive(Debug)]
pub struct Sessions {
    buckets: OnceLock<Box<[Bucket]>>,
    sessions_max: usize,
    idle_s_max: u32,
    hasher: RandomState,
}

/// The keyed hash of a session; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionKey(u64);

impl Sessions {
    /// A table for `sessions_max`, rounded up to a power of two of buckets; 0: none is remembered. A
    /// session that was silent for longer than `idle_s_max` is forgotten.
    pub fn new(sessions_max: usize, idle_s_max: u32) -> Self {
        Sessions { buckets: OnceLock::new(), sessions_max, idle_s_max, hasher: RandomState::new() }
    }

    /// The key of session `name`, which another tenant's or another model's of that name does not have.
    pub fn key(&self, tenant: &str, model: &str, name: &[u8]) -> SessionKey {
        SessionKey(self.hasher.hash_one((tenant, model, name)).max(1))
    }

    /// The number of the worker that session was at.
    pub fn find(&self, key: SessionKey, now_ms: u64) -> Option<u32> {
        let now_s = seconds(now_ms);
        let bucket = self.bucket(self.buckets.get()?, key)?;
        let places = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.iter().find(|place| place.key == key.0)?;
        (now_s.saturating_sub(place.used_s) <= self.idle_s_max).then_some(place.worker)
    }

    /// It is at that worker now.
    pub fn note(&self, key: SessionKey, worker: u32, now_ms: u64) {
        if self.sessions_max == 0 {
            return;
        }
        let buckets = self.buckets.get_or_init(|| {
            let count = self.sessions_max.div_ceil(WAYS).next_power_of_two();
            (0..count).map(|_| Bucket::default()).collect()
        });
        let Some(bucket) = self.bucket(buckets, key) else { return };
        let mut places = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let own = places.iter().position(|place| place.key == key.0);
        let oldest = || (0..WAYS).min_by_key(|at| (places[*at].key != 0, places[*at].used_s));
        if let Some(at) = own.or_else(oldest) {
            places[at] = Place { key: key.0, worker, used_s: seconds(now_ms) };
        }
    }

    fn bucket<'a>(&self, buckets: &'a [Bucket], key: SessionKey) -> Option<&'a Bucket> {
        // A power of two, so the mask takes the low bits.
        let mask = buckets.len().checked_sub(1)?;
        buckets.get(key.0 as usize & mask)
    }
}

fn seconds(now_ms: u64) -> u32 {
    u32::try_from(now_ms / 1_000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_session_is_found_until_it_was_silent_for_too_long() {
        let sessions = Sessions::new(100, 60);
        let key = sessions.key("t", "m", b"s");
        assert_eq!(sessions.find(key, 0), None);
        sessions.note(key, 7, 1_000);
        assert_eq!(sessions.find(key, 61_999), Some(7));
        assert_eq!(sessions.find(key, 62_000), None);
        sessions.note(key, 8, 62_000);
        assert_eq!(sessions.find(key, 62_000), Some(8));
        for other in [("u", "m", &b"s"[..]), ("t", "n", b"s"), ("t", "m", b"r")] {
            let other = sessions.key(other.0, other.1, other.2);
            assert_eq!(sessions.find(other, 62_000), None);
        }
    }

    #[test]
    fn churn_does_not_grow_it_and_the_youngest_stay() {
        let sessions = Sessions::new(1_000, 60);
        for number in 0..200_000u32 {
            let key = sessions.key("t", "m", &number.to_le_bytes());
            sessions.note(key, number, u64::from(number));
            assert_eq!(sessions.find(key, u64::from(number)), Some(number));
        }
        let places = sessions.buckets.get().map_or(0, |buckets| buckets.len() * WAYS);
        assert_eq!(places, 1_024);
        let found = |number: &u32| {
            let key = sessions.key("t", "m", &number.to_le_bytes());
            sessions.find(key, 200_000) == Some(*number)
        };
        assert!((0..200_000).filter(found).count() <= 1_024);
    }

    #[test]
    fn none_are_remembered_where_none_may_be() {
        let sessions = Sessions::new(0, 60);
        let key = sessions.key("t", "m", b"s");
        sessions.note(key, 7, 0);
        assert_eq!(sessions.find(key, 0), None);
        assert!(sessions.buckets.get().is_none());
    }

    proptest! {
        /// With room for all it is a map; with less it forgets, but is never wrong.
        #[test]
        fn it_is_a_map_that_may_forget(
            steps in prop::collection::vec((0u8..40, 0u32..9, 0u64..30_000), 1..200),
            sessions_max in 1usize..80,
        ) {
            let sessions = Sessions::new(sessions_max, 20);
            let (mut model, mut now_ms) = (HashMap::new(), 0u64);
            for (name, worker, wait_ms) in steps {
                now_ms += wait_ms;
                let key = sessions.key("t", "m", &[name]);
                if let Some(found) = sessions.find(key, now_ms) {
                    let (worker, used_ms) = model[&name];
                    prop_assert_eq!(found, worker);
                    prop_assert!(now_ms / 1_000 - used_ms / 1_000 <= 20);
                }
                sessions.note(key, worker, now_ms);
                model.insert(name, (worker, now_ms));
                prop_assert_eq!(sessions.find(key, now_ms), Some(worker));
            }
        }
    }
}
