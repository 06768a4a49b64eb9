//! One shard's index: what each key has where. Pure: it moves no bytes and waits for nothing.
//!
//! An entry lives while a tier holds its block or while it has children: then it is the place where
//! they are counted, so that a parent that comes back knows them.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::block::Lease;
use crate::key::Key;
use crate::store::Tier;

/// Blocks one shard can name: ids are 32 bits.
pub const ENTRIES_MAX: usize = u32::MAX as usize - 1;

/// What a shard knows of one block.
#[derive(Debug)]
pub struct Entry<P> {
    /// Its name.
    pub key: Key,
    /// The block before it, which lives on the shard of that key.
    pub parent: Option<Key>,
    /// Blocks that come after it, on any shard, in any tier.
    pub children: u32,
    /// Those of them that lie in RAM: while there are any, this one does not leave RAM.
    pub children_in_ram: u32,
    /// Its bytes in RAM.
    pub ram: Option<Lease>,
    /// Its place on disk.
    pub disk: Option<P>,
    /// How often it was asked for since it came, up to 255.
    pub touches: u8,
    /// It does not leave RAM.
    pub is_pinned: bool,
    /// It is on its way from RAM to disk, and not to be chosen again.
    pub is_leaving: bool,
}

impl<P> Entry<P> {
    /// The fastest tier of this daemon that holds the block.
    pub fn tier(&self) -> Option<Tier> {
        match (&self.ram, &self.disk) {
            (Some(_), _) => Some(Tier::Ram),
            (None, Some(_)) => Some(Tier::Disk),
            (None, None) => None,
        }
    }

    /// Whether a tier of this daemon holds the block.
    pub fn is_present(&self) -> bool {
        self.tier().is_some()
    }
}

/// The entries of a shard. `P` is a place on disk.
#[derive(Debug)]
pub struct Index<P> {
    ids: HashMap<Key, u32, RandomState>,
    entries: Vec<Option<Entry<P>>>,
    free: Vec<u32>,
}

impl<P> Default for Index<P> {
    fn default() -> Self {
        Index { ids: HashMap::default(), entries: Vec::new(), free: Vec::new() }
    }
}

impl<P> Index<P> {
    /// The id of `key`.
    pub fn id(&self, key: &Key) -> Option<u32> {
        self.ids.get(key).copied()
    }

    /// The entry with this id.
    pub fn get(&self, id: u32) -> Option<&Entry<P>> {
        self.entries.get(id as usize)?.as_ref()
    }

    /// The entry with this id, to change.
    pub fn get_mut(&mut self, id: u32) -> Option<&mut Entry<P>> {
        self.entries.get_mut(id as usize)?.as_mut()
    }

    /// The entry of `key`.
    pub fn find(&self, key: &Key) -> Option<(u32, &Entry<P>)> {
        let id = self.id(key)?;
        Some((id, self.get(id)?))
    }

    /// The id of `key`, with an empty entry if it had none; none when ids are used up.
    pub fn enter(&mut self, key: Key) -> Option<u32> {
        if let Some(id) = self.id(&key) {
            return Some(id);
        }
        let entry = Entry {
            key,
            parent: None,
            children: 0,
            children_in_ram: 0,
            ram: None,
            disk: None,
            touches: 0,
            is_pinned: false,
            is_leaving: false,
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.entries[id as usize] = Some(entry);
                id
            }
            None if self.entries.len() < ENTRIES_MAX => {
                self.entries.push(Some(entry));
                (self.entries.len() - 1) as u32
            }
            None => return None,
        };
        self.ids.insert(key, id);
        Some(id)
    }

    /// Forgets the entry if nothing holds it any more. One with children stays as the place where they
    /// are counted, but is nobody's child until it is stored again.
    pub fn settle(&mut self, id: u32) {
        let Some(entry) = self.get_mut(id) else { return };
        if entry.is_present() || entry.is_leaving {
            return;
        }
        entry.parent = None;
        if entry.children == 0 {
            let key = entry.key;
            self.ids.remove(&key);
            self.entries[id as usize] = None;
            self.free.push(id);
        }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Entries from id `start` on, for going through all of them in pieces.
    pub fn from(&self, start: u32) -> impl Iterator<Item = (u32, &Entry<P>)> {
        let rest = self.entries.iter().enumerate().skip(start as usize);
        rest.filter_map(|(id, entry)| Some((id as u32, entry.as_ref()?)))
    }

    /// One more than the highest id ever given.
    pub fn ids_end(&self) -> u32 {
        self.entries.len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Name, NamespaceId};

    fn key(number: u8) -> Key {
        Key::new(NamespaceId([0; 16]), Name([number; 32]))
    }

    #[test]
    fn an_entry_goes_when_nothing_holds_it_and_its_id_is_used_again() {
        let mut index: Index<u64> = Index::default();
        let id = index.enter(key(1)).unwrap();
        assert_eq!(index.enter(key(1)), Some(id));
        index.get_mut(id).unwrap().disk = Some(7);
        index.settle(id);
        assert_eq!(index.len(), 1);
        index.get_mut(id).unwrap().disk = None;
        index.settle(id);
        assert!(index.is_empty());
        assert_eq!(index.enter(key(2)), Some(id));
    }

    #[test]
    fn a_parent_that_is_gone_still_counts_its_children_and_is_nobodys_child() {
        let mut index: Index<u64> = Index::default();
        let id = index.enter(key(1)).unwrap();
        let entry = index.get_mut(id).unwrap();
        entry.children = 1;
        entry.parent = Some(key(9));
        index.settle(id);
        assert_eq!(index.get(id).unwrap().parent, None);
        index.get_mut(id).unwrap().children = 0;
        index.settle(id);
        assert!(index.is_empty());
    }
}
