//! The prefix cache: which KV blocks exist, who holds them, and which goes next.
//!
//! A block is either *private* (reserved by one request, not yet full) or *stored* under the
//! chained digest of the whole prefix it ends. A stored block is held by the requests that use it,
//! or idle; idle blocks stay until their place is needed, least recently used first. Three things
//! always hold:
//!
//! * private and stored blocks together never exceed the limit;
//! * a stored block's parent is stored, and is held at least as often: a child never outlives its
//!   parent, because a request holds whole prefixes and lets them go from the tail;
//! * equal content is stored once: a request that computes a block which is already there gives its
//!   own copy back and holds the other's.
//!
//! Pure: no clock, no I/O, and the order of everything depends on the order of the calls alone.

use std::collections::{BTreeMap, HashMap};

use dataplane::digest::Digest;

/// The cache. See the module for what it keeps true.
#[derive(Debug)]
pub struct BlockCache {
    blocks_max: usize,
    stored: HashMap<Digest, Stored>,
    /// Idle blocks by the time they became idle: the first goes first.
    idle: BTreeMap<u64, Digest>,
    private: usize,
    /// Counts releases; the cache's own clock.
    releases: u64,
}

#[derive(Debug)]
struct Stored {
    parent: Option<Digest>,
    children: usize,
    holders: usize,
    /// Key in `idle` while `holders` is 0.
    idle_since: u64,
}

impl BlockCache {
    /// An empty cache of `blocks_max` blocks.
    pub fn new(blocks_max: usize) -> Self {
        BlockCache {
            blocks_max,
            stored: HashMap::new(),
            idle: BTreeMap::new(),
            private: 0,
            releases: 0,
        }
    }

    /// Makes one more request hold the stored blocks `prefix`, which begins at the first block.
    ///
    /// # Panics
    /// If one of them is not stored; ask [`BlockCache::match_prefix`] first.
    pub fn hold(&mut self, prefix: &[Digest]) {
        for digest in prefix {
            self.hold_one(digest);
        }
    }

    /// Reserves `count` private blocks, removing idle ones where there is no free place. The
    /// digests removed are appended to `removed`. Nothing happens, and it says false, when there
    /// are too few.
    #[must_use]
    pub fn reserve(&mut self, count: usize, removed: &mut Vec<Digest>) -> bool {
        if count > self.available() {
            return false;
        }
        while self.private + self.stored.len() + count > self.blocks_max {
            self.remove_oldest(removed);
        }
        self.private += count;
        true
    }

    /// Turns a private block, now full, into the stored block `digest`, held by its request. Says
    /// whether it is new; if not, the request holds the block that was there and its own is freed.
    ///
    /// # Panics
    /// If no block is private or `parent` is not stored: the caller lost count.
    pub fn store(&mut self, digest: Digest, parent: Option<Digest>) -> bool {
        assert!(self.private > 0, "a block was stored that nobody had reserved");
        self.private -= 1;
        if self.stored.contains_key(&digest) {
            self.hold_one(&digest);
            return false;
        }
        if let Some(parent) = &parent {
            let parent = self.stored.get_mut(parent).expect("a stored block's parent is stored");
            assert!(parent.holders > 0, "the request that stores a child holds its parent");
            parent.children += 1;
        }
        self.stored.insert(digest, Stored { parent, children: 0, holders: 1, idle_since: 0 });
        true
    }

    /// Ends one request's hold on `prefix` and frees its `private` blocks. The tail is let go
    /// first, so that it is also removed first.
    ///
    /// # Panics
    /// If the request held less: the caller lost count.
    pub fn release(&mut self, prefix: &[Digest], private: usize) {
        assert!(private <= self.private, "more blocks came back than were reserved");
        self.private -= private;
        for digest in prefix.iter().rev() {
            let stored = self.stored.get_mut(digest).expect("a held block is stored");
            assert!(stored.holders > 0, "a block was released more often than held");
            stored.holders -= 1;
            if stored.holders == 0 {
                stored.idle_since = self.releases;
                self.idle.insert(self.releases, *digest);
                self.releases += 1;
            }
        }
    }

    /// Forgets everything. Refused, with false, while a request holds or has reserved a block.
    #[must_use]
    pub fn clear(&mut self) -> bool {
        if self.private > 0 || self.idle.len() < self.stored.len() {
            return false;
        }
        self.stored.clear();
        self.idle.clear();
        true
    }

    /// How many of the first blocks of `prefix` are stored.
    pub fn match_prefix(&self, prefix: &[Digest]) -> usize {
        prefix.iter().take_while(|digest| self.stored.contains_key(*digest)).count()
    }

    /// Whether a request could hold the first `matched` blocks of `prefix` and reserve `count`
    /// more.
    pub fn has_room(&self, prefix: &[Digest], count: usize) -> bool {
        let idle = prefix.iter().filter(|digest| self.stored[*digest].holders == 0).count();
        idle + count <= self.available()
    }

    /// Blocks neither private nor held: free places and idle blocks.
    pub fn available(&self) -> usize {
        self.blocks_max - self.used()
    }

    /// Blocks private or held.
    pub fn used(&self) -> usize {
        self.private + self.stored.len() - self.idle.len()
    }

    /// Blocks under a digest, held or idle.
    pub fn stored(&self) -> usize {
        self.stored.len()
    }

    /// Blocks there is place for.
    pub fn blocks_max(&self) -> usize {
        self.blocks_max
    }

    fn hold_one(&mut self, digest: &Digest) {
        let stored = self.stored.get_mut(digest).expect("only a stored block can be held");
        if stored.holders == 0 {
            self.idle.remove(&stored.idle_since);
        }
        stored.holders += 1;
    }

    fn remove_oldest(&mut self, removed: &mut Vec<Digest>) {
        let (_, digest) = self.idle.pop_first().expect("availability was checked");
        let stored = self.stored.remove(&digest).expect("an idle block is stored");
        assert_eq!(stored.children, 0, "a parent outlives its children");
        if let Some(parent) = stored.parent {
            self.stored.get_mut(&parent).expect("a child's parent is stored").children -= 1;
        }
        removed.push(digest);
    }
}

#[cfg(test)]
mod tests;
