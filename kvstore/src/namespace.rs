//! Namespaces: whose blocks they are, how much they may hold, when they reach the disk.
//!
//! The table is shared by all threads and looked at when a client comes in, not when a block does.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};

use serde::Deserialize;

use crate::key::NamespaceId;

/// Longest name, in bytes: it stands in every record on disk.
pub const NAME_BYTES_MAX: usize = 256;

/// When a block reaches the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WritePolicy {
    /// When it leaves RAM, if it was used: the disk is not worn by what nobody asks for again.
    #[default]
    Back,
    /// Before the client is told that it is stored.
    Through,
    /// Never.
    RamOnly,
}

/// What the file says of a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rules {
    /// Bytes of RAM its blocks may fill, over all shards; none: no limit of its own.
    pub quota_bytes: Option<u64>,
    /// When its blocks reach the disk.
    pub write: WritePolicy,
}

/// One namespace and what it holds now.
#[derive(Debug)]
pub struct Namespace {
    /// Its id.
    pub id: NamespaceId,
    /// Its name.
    pub name: String,
    /// What it may; [`Namespaces::set_rules`] changes it.
    rules: LiveRules,
    /// Bytes of RAM its blocks fill. Shards add and subtract; only the quota reads it.
    used_bytes: AtomicU64,
}

/// [`Rules`] that shards read while they may change.
#[derive(Debug)]
struct LiveRules {
    /// `u64::MAX`: no quota.
    quota_bytes: AtomicU64,
    write: AtomicU8,
}

const WRITE_POLICIES: [WritePolicy; 3] =
    [WritePolicy::Back, WritePolicy::Through, WritePolicy::RamOnly];

impl LiveRules {
    fn new(rules: Rules) -> LiveRules {
        let live = LiveRules { quota_bytes: AtomicU64::new(0), write: AtomicU8::new(0) };
        live.set(rules);
        live
    }

    fn set(&self, rules: Rules) {
        self.quota_bytes.store(rules.quota_bytes.unwrap_or(u64::MAX), Relaxed);
        self.write.store(rules.write as u8, Relaxed);
    }
}

impl Namespace {
    /// What it may, now.
    pub fn rules(&self) -> Rules {
        let quota = self.rules.quota_bytes.load(Relaxed);
        let write = usize::from(self.rules.write.load(Relaxed));
        Rules {
            quota_bytes: (quota != u64::MAX).then_some(quota),
            write: WRITE_POLICIES.get(write).copied().unwrap_or_default(),
        }
    }

    /// Bytes of RAM its blocks fill.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Relaxed)
    }

    /// Takes `bytes` from the quota. False if they are not there.
    pub fn charge(&self, bytes: u64) -> bool {
        let quota = self.rules.quota_bytes.load(Relaxed);
        self.used_bytes
            .fetch_update(Relaxed, Relaxed, |used| {
                used.checked_add(bytes).filter(|&sum| sum <= quota)
            })
            .is_ok()
    }

    /// Gives `bytes` back.
    pub fn discharge(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Relaxed);
    }
}

/// Why a namespace could not be had.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NamespaceError {
    /// The name is empty or too long, or holds control characters.
    #[error("`{0}` is not a namespace: 1 to {NAME_BYTES_MAX} bytes without control characters")]
    Name(String),
    /// There are as many as may be.
    #[error("there are {0} namespaces already; raise kv.limits.namespaces_max")]
    TooMany(usize),
}

/// All namespaces of the daemon.
#[derive(Debug)]
pub struct Namespaces {
    /// Those named, and those of all others.
    rules: RwLock<(BTreeMap<String, Rules>, Rules)>,
    namespaces_max: AtomicUsize,
    known: RwLock<BTreeMap<NamespaceId, Arc<Namespace>>>,
}

impl Namespaces {
    /// A table that holds at most `namespaces_max`; names without `rules` get `standard`.
    pub fn new(
        rules: BTreeMap<String, Rules>,
        standard: Rules,
        namespaces_max: usize,
    ) -> Namespaces {
        Namespaces {
            rules: RwLock::new((rules, standard)),
            namespaces_max: AtomicUsize::new(namespaces_max),
            known: RwLock::default(),
        }
    }

    /// Other rules from here on. A namespace that is over its new quota comes down to it as blocks are stored
    /// in it; where there are more than `namespaces_max` already, they stay.
    pub fn set_rules(
        &self,
        rules: BTreeMap<String, Rules>,
        standard: Rules,
        namespaces_max: usize,
    ) {
        let known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        for namespace in known.values() {
            namespace.rules.set(rules.get(&namespace.name).copied().unwrap_or(standard));
        }
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = (rules, standard);
        self.namespaces_max.store(namespaces_max, Relaxed);
    }

    /// Finds the namespace called `name`, or makes it.
    ///
    /// # Errors
    /// [`NamespaceError`].
    pub fn open(&self, name: &str) -> Result<Arc<Namespace>, NamespaceError> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(NamespaceError::Name(name.chars().take(40).collect()));
        }
        let id = NamespaceId::of(name);
        if let Some(found) = self.find(id) {
            return Ok(found);
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(&id) {
            return Ok(found.clone());
        }
        if known.len() >= self.namespaces_max.load(Relaxed) {
            return Err(NamespaceError::TooMany(known.len()));
        }
        let rules = {
            let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
            LiveRules::new(rules.0.get(name).copied().unwrap_or(rules.1))
        };
        let made =
            Arc::new(Namespace { id, name: name.to_owned(), rules, used_bytes: AtomicU64::new(0) });
        known.insert(id, made.clone());
        Ok(made)
    }

    /// What a client without a namespace has: one of its own that is in no table and holds nothing.
    pub fn nameless() -> Arc<Namespace> {
        let (id, rules) = (NamespaceId::of(""), LiveRules::new(Rules::default()));
        Arc::new(Namespace { id, name: String::new(), rules, used_bytes: AtomicU64::new(0) })
    }

    /// The namespace with this id, if somebody opened it.
    pub fn find(&self, id: NamespaceId) -> Option<Arc<Namespace>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// All that were opened.
    pub fn all(&self) -> Vec<Arc<Namespace>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_bounded_and_finds_what_it_made() {
        let table = Namespaces::new(BTreeMap::new(), Rules::default(), 2);
        let first = table.open("a").unwrap();
        assert!(Arc::ptr_eq(&first, &table.open("a").unwrap()));
        assert!(Arc::ptr_eq(&first, &table.find(NamespaceId::of("a")).unwrap()));
        table.open("b").unwrap();
        assert_eq!(table.open("c").unwrap_err(), NamespaceError::TooMany(2));
        assert!(matches!(table.open("").unwrap_err(), NamespaceError::Name(_)));
        assert!(matches!(table.open("a\n").unwrap_err(), NamespaceError::Name(_)));
    }

    #[test]
    fn a_quota_is_never_exceeded_and_what_is_given_back_can_be_had_again() {
        let rules = Rules { quota_bytes: Some(10), ..Rules::default() };
        let table = Namespaces::new(BTreeMap::from([("a".to_owned(), rules)]), Rules::default(), 2);
        let namespace = table.open("a").unwrap();
        assert!(namespace.charge(6));
        assert!(!namespace.charge(5));
        assert!(namespace.charge(4));
        namespace.discharge(6);
        assert!(namespace.charge(6));
        assert_eq!(namespace.used_bytes(), 10);
        let less = Rules { quota_bytes: Some(8), write: WritePolicy::RamOnly };
        table.set_rules(BTreeMap::new(), less, 1);
        assert_eq!(namespace.rules(), less);
        namespace.discharge(3);
        assert!(!namespace.charge(2) && namespace.charge(1));
        assert_eq!(table.open("b").unwrap_err(), NamespaceError::TooMany(1));
        table.set_rules(BTreeMap::from([("b".to_owned(), rules)]), Rules::default(), 2);
        assert_eq!(
            (table.open("b").unwrap().rules(), namespace.rules()),
            (rules, Rules::default())
        );
    }
}
