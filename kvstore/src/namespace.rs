//! Namespaces: whose blocks they are, how much they may hold, when they reach the disk.
//!
//! The table is shared by all threads and looked at when a client comes in, not when a block does.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
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
    /// What it may.
    pub rules: Rules,
    /// Bytes of RAM its blocks fill. Shards add and subtract; only the quota reads it.
    used_bytes: AtomicU64,
}

impl Namespace {
    /// Bytes of RAM its blocks fill.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Relaxed)
    }

    /// Takes `bytes` from the quota. False if they are not there.
    pub fn charge(&self, bytes: u64) -> bool {
        let quota = self.rules.quota_bytes.unwrap_or(u64::MAX);
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
    rules: BTreeMap<String, Rules>,
    standard: Rules,
    namespaces_max: usize,
    known: RwLock<BTreeMap<NamespaceId, Arc<Namespace>>>,
}

impl Namespaces {
    /// A table that holds at most `namespaces_max`; names without `rules` get `standard`.
    pub fn new(
        rules: BTreeMap<String, Rules>,
        standard: Rules,
        namespaces_max: usize,
    ) -> Namespaces {
        Namespaces { rules, standard, namespaces_max, known: RwLock::default() }
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
        if known.len() >= self.namespaces_max {
            return Err(NamespaceError::TooMany(known.len()));
        }
        let rules = self.rules.get(name).copied().unwrap_or(self.standard);
        let made =
            Arc::new(Namespace { id, name: name.to_owned(), rules, used_bytes: AtomicU64::new(0) });
        known.insert(id, made.clone());
        Ok(made)
    }

    /// What a client without a namespace has: one of its own that is in no table and holds nothing.
    pub fn nameless() -> Arc<Namespace> {
        let (id, rules) = (NamespaceId::of(""), Rules::default());
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
    }
}
