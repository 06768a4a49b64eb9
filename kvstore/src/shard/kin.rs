//! Parents and children: a block is of use only while the one before it is there.
//!
//! A parent counts its children, and those in RAM apart: it leaves RAM after they have, and the daemon
//! after they have. Parent and child may live on two shards, so the counts travel as requests. Every
//! change of an entry goes through [`Shard::alter`], which keeps counts and eviction true to it, and
//! tells peers what is here.

use std::rc::Rc;

use super::{Place, Shard, State};
use crate::index::Entry;
use crate::key::Key;
use crate::mesh::reply;
use crate::request::Request;
use crate::store::StoreError;

/// What of an entry its parent and the eviction care for.
struct Standing {
    parent: Option<Key>,
    is_present: bool,
    /// Where its block lies in RAM.
    offset: Option<u64>,
}

impl Standing {
    fn of(entry: &Entry<Place>) -> Standing {
        Standing {
            parent: entry.parent,
            is_present: entry.is_present(),
            offset: entry.ram.as_ref().map(|block| block.offset()),
        }
    }
}

impl State {
    /// Gives a block in RAM its place in the eviction's order.
    pub(super) fn rank(&mut self, id: u32) {
        let State { index, eviction, .. } = self;
        let Some(entry) = index.get(id) else { return };
        let Some(block) = &entry.ram else { return };
        let key = entry.key;
        eviction.insert(id, key.namespace, key.fingerprint(), block.charged_bytes());
        if entry.children_in_ram > 0 {
            eviction.park(id);
        }
    }
}

impl Shard {
    /// Changes an entry, and with it the eviction, the parent's counts, and whether it is kept at all.
    /// A new parent must have been asked by [`Shard::adopted`], which counts in advance.
    pub(super) fn alter<T>(
        &self,
        state: &mut State,
        id: u32,
        change: impl FnOnce(&mut Entry<Place>) -> T,
    ) -> Option<T> {
        let entry = state.index.get_mut(id)?;
        let key = entry.key;
        let before = Standing::of(entry);
        let result = change(entry);
        let after = Standing::of(entry);
        if before.offset != after.offset {
            if before.offset.is_some() {
                state.eviction.remove(id);
            }
            if entry.ram.is_none() {
                entry.is_pinned = false;
            }
            state.rank(id);
        }
        let (was, is) = (i32::from(before.is_present), i32::from(after.is_present));
        let (was_in_ram, is_in_ram) =
            (i32::from(before.offset.is_some()), i32::from(after.offset.is_some()));
        if let Some(peers) = self.house.peers.get().filter(|_| was != is) {
            if after.is_present { peers.added(&key) } else { peers.removed(&key) }
        }
        if before.parent == after.parent {
            self.tell_parent(before.parent, is - was, is_in_ram - was_in_ram);
        } else {
            self.tell_parent(before.parent, -was, -was_in_ram);
        }
        state.index.settle(id);
        Some(result)
    }

    /// Counts a new child of `parent` that will lie in RAM. False if no tier has the parent.
    pub fn adopt(&self, parent: Key) -> bool {
        let is_there = {
            let state = self.state.borrow();
            state.index.find(&parent).is_some_and(|(_, entry)| entry.is_present())
        };
        if is_there {
            self.relate(parent, 1, 1);
        }
        is_there
    }

    /// Asks the parent's shard to count a child. A key cannot be its own ancestor: digests are chained.
    pub(super) async fn adopted(self: &Rc<Self>, parent: Key) -> Result<bool, StoreError> {
        let inboxes = &self.house.inboxes;
        let shard = parent.shard(inboxes.len());
        if shard == self.number {
            return Ok(self.adopt(parent));
        }
        let (reply, waiting) = reply();
        inboxes[shard].send(Request::Adopt { parent, reply }).map_err(|_| StoreError::Busy)?;
        waiting.answer().await.ok_or(StoreError::Draining)
    }

    /// Changes the counts of `parent`, which is of this shard.
    pub fn relate(&self, parent: Key, children: i32, in_ram: i32) {
        let state = &mut *self.state.borrow_mut();
        let Some(id) = state.index.id(&parent) else { return };
        let Some(entry) = state.index.get_mut(id) else { return };
        let had = entry.children_in_ram > 0;
        entry.children = entry.children.saturating_add_signed(children);
        entry.children_in_ram = entry.children_in_ram.saturating_add_signed(in_ram);
        let has = entry.children_in_ram > 0;
        if entry.ram.is_some() {
            match (had, has) {
                (false, true) => state.eviction.park(id),
                (true, false) => state.eviction.unpark(id),
                _ => {}
            }
        }
        state.index.settle(id);
        // A write that waits may take the parent now.
        self.room.ring();
    }

    /// Tells the parent's shard, also if it is this one by its inbox: a chain of a thousand blocks must
    /// not become as deep a recursion.
    pub(super) fn tell_parent(&self, parent: Option<Key>, children: i32, in_ram: i32) {
        if let Some(parent) = parent.filter(|_| (children, in_ram) != (0, 0)) {
            self.house.tell(parent, Request::Relate { parent, children, in_ram });
        }
    }
}
