//! Tokens and certificates that one core verified a moment ago.
//!
//! A signature costs up to 100 µs, a lookup less than one. An entry lives for a minute at most, so a
//! key the issuer withdrew is not honoured for longer, and never beyond its token. Two generations
//! bound the memory without a list to keep: a full one becomes the old one, and what is asked for
//! again moves to the young one.

use std::collections::HashMap;
use std::sync::Arc;

use crate::identity::Caller;
use crate::identity::key::KeyHash;

/// Tokens one core remembers, in two generations; about 100 bytes each.
pub const RECENT_MAX: usize = 8_192;
/// An entry is believed for so long, in seconds.
pub const RECENT_S_MAX: u64 = 60;

struct Entry {
    caller: Arc<Caller>,
    verified_s: u64,
    refused_from_s: u64,
}

/// One core's memory of what it verified. Only what was verified gets in, so strangers cannot fill it.
#[derive(Default)]
pub struct IdentityCache {
    version: u64,
    young: HashMap<KeyHash, Entry>,
    old: HashMap<KeyHash, Entry>,
}

impl IdentityCache {
    /// Nothing remembered.
    pub fn new() -> Self {
        IdentityCache::default()
    }

    /// Who that hash was under this version of tenants and keys.
    pub(super) fn find(&mut self, hash: &KeyHash, version: u64, now_s: u64) -> Option<Arc<Caller>> {
        if self.version != version {
            self.young.clear();
            self.old.clear();
            self.version = version;
        }
        if let Some(entry) = self.young.get(hash) {
            if entry.is_valid(now_s) {
                return Some(Arc::clone(&entry.caller));
            }
            self.young.remove(hash);
            return None;
        }
        let entry = self.old.remove(hash).filter(|entry| entry.is_valid(now_s))?;
        let caller = Arc::clone(&entry.caller);
        self.put(*hash, entry);
        Some(caller)
    }

    /// Remembers what was verified just now.
    pub(super) fn add(
        &mut self,
        hash: KeyHash,
        caller: &Arc<Caller>,
        now_s: u64,
        refused_from_s: u64,
    ) {
        self.put(hash, Entry { caller: Arc::clone(caller), verified_s: now_s, refused_from_s });
    }

    fn put(&mut self, hash: KeyHash, entry: Entry) {
        if self.young.len() >= RECENT_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(hash, entry);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

impl Entry {
    fn is_valid(&self, now_s: u64) -> bool {
        // A clock that was set back must not make an entry live longer.
        self.verified_s <= now_s
            && now_s - self.verified_s < RECENT_S_MAX
            && now_s < self.refused_from_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::scope::Scopes;
    use crate::tenant::Tenants;

    fn caller(subject: &str) -> Arc<Caller> {
        let tenants = Tenants::build(&[], None).unwrap();
        Arc::new(Caller {
            tenant: Arc::clone(tenants.local()),
            scopes: Scopes::INFERENCE,
            subject: subject.to_owned(),
        })
    }

    fn hash(n: u32) -> KeyHash {
        crate::identity::key::hash_parts(&[&n.to_le_bytes()])
    }

    #[test]
    fn an_entry_lives_a_minute_or_until_its_token_ends() {
        let mut cache = IdentityCache::new();
        cache.add(hash(1), &caller("a"), 100, u64::MAX);
        cache.add(hash(2), &caller("b"), 100, 110);
        assert_eq!(cache.find(&hash(1), 0, 159).unwrap().subject, "a");
        assert_eq!(cache.find(&hash(2), 0, 109).unwrap().subject, "b");
        assert!(cache.find(&hash(2), 0, 110).is_none());
        assert!(cache.find(&hash(1), 0, 160).is_none());
        assert_eq!(cache.len(), 0);
        cache.add(hash(1), &caller("a"), 100, u64::MAX);
        assert!(cache.find(&hash(1), 0, 99).is_none());
    }

    #[test]
    fn new_keys_or_tenants_forget_everything() {
        let mut cache = IdentityCache::new();
        cache.add(hash(1), &caller("a"), 100, u64::MAX);
        assert!(cache.find(&hash(1), 1, 101).is_none());
        assert!(cache.find(&hash(1), 0, 101).is_none());
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let mut cache = IdentityCache::new();
        let one = caller("one");
        cache.add(hash(0), &one, 100, u64::MAX);
        for n in 1..40_000 {
            cache.add(hash(n), &one, 100, u64::MAX);
            assert!(cache.len() <= RECENT_MAX);
            if n % 1_000 == 0 {
                assert!(cache.find(&hash(0), 0, 100).is_some(), "{n}");
            }
        }
        assert!(cache.find(&hash(1), 0, 100).is_none());
    }
}
