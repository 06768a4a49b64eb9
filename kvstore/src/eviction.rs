//! Which block of a shard goes when memory is needed: a queue for each worth, and the leaves go first.
//!
//! A request touches a chain of blocks from its root, so a block is worth at most what its parent is. Only
//! leaves are victims: a block with children is *parked*, and when the scan passes it, it waits aside until
//! its last child has gone; then it is next, for it is older than all the rest. No child outlives its parent.
//!
//! Blocks of one class (how often they were used) form a queue by last use. Time is counted in bytes
//! inserted. A class is worth a head start over the one below, and the victim is the block that has
//! waited longest after its head start. How long this is, the ghost teaches, as in ARC: blocks that come
//! back after they were evicted unused make it shorter, those that were used before make it longer. So a
//! scan pushes out scanned blocks, while a conversation is kept over a pause as by an LRU. A block that
//! came back goes on in the class it had. The last block of a request, which no other continues, has a
//! class of its own, like the small queue of S3-FIFO, with a handicap learned in the same way.
//!
//! Each namespace has queues of its own, so that one over its quota finds its next victim at once; for the
//! whole cache the firsts of all are compared.
//!
//! It knows ids and sizes; it touches no block and asks no clock.
mod ghost;
mod groups;
mod queue;

use std::ops::Range;

use ghost::Ghost;
use groups::Groups;
use queue::Queues;

use crate::key::NamespaceId;

/// Classes of worth: a newcomer no block continues, a newcomer, used once, twice, more often. More classes
/// changed nothing on the trace.
const CLASSES: usize = 5;
const NEWEST_LEAF: usize = 0;
const UNUSED: usize = 1;
const USED: usize = 2;
/// Blocks the scan came to and was refused, oldest first.
const REFUSED: usize = CLASSES;
/// Queues of a namespace.
const QUEUES: usize = CLASSES + 1;

/// Head start of one more use at first, in capacities: between what is best for small and for large
/// caches on the trace.
const HEAD_START: f64 = 0.5;
/// The head start never gets so short that uses mean nothing, for then nothing is learned of them.
const HEAD_START_MIN: f64 = 1.0 / 32.0;
/// Nor so long that what was hot once stays for ever: 16 capacities of new blocks push it out.
const HEAD_START_MAX: f64 = 16.0;
/// The largest handicap of a newest leaf, in capacities: it is the next to go.
const HANDICAP_MAX: f64 = 1.0;
/// A newest leaf is no victim while less than this part of the capacity has been inserted after it: the
/// block that continues it may be on its way.
const GRACE_PART: u64 = 16;

/// Blocks that one call of [`Eviction::victim`] looks at, parked and refused ones included: some tens of
/// microseconds.
pub const STEPS_MAX: usize = 1024;
/// Of these, refused blocks of earlier calls that are asked for again.
const REFUSED_STEPS_MAX: usize = 16;
/// Blocks that one call of [`Eviction::victim_spent`] looks at: who asks has no need.
const SPENT_STEPS_MAX: usize = 16;

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    fingerprint: u64,
    /// 0 of an id that is not in use.
    bytes: u64,
    /// Bytes inserted up to its last use.
    stamp: u64,
    /// Number of its namespace.
    group: u32,
    class: u8,
    is_parked: bool,
}

impl Entry {
    fn queue(&self) -> usize {
        queue(self.group as usize, usize::from(self.class))
    }
}

fn queue(group: usize, class: usize) -> usize {
    group * QUEUES + class
}

/// The order in which blocks go.
#[derive(Debug)]
pub struct Eviction {
    capacity_bytes: u64,
    entries: Vec<Entry>,
    /// Of each namespace one for each class, ordered by last use, and the refused. Parked blocks the scan
    /// has passed are in none.
    queues: Queues,
    groups: Groups,
    /// Whose refused blocks are asked for first; each call begins with the next.
    turn: usize,
    ghost: Ghost,
    /// Bytes ever inserted: the clock.
    clock_bytes: u64,
    bytes: u64,
    len: usize,
    parked: usize,
    head_start: f64,
    handicap: f64,
}

impl Eviction {
    /// An order for blocks of about `capacity_bytes` in all.
    #[must_use]
    pub fn new(capacity_bytes: u64) -> Eviction {
        Eviction {
            capacity_bytes: capacity_bytes.max(1),
            entries: Vec::new(),
            queues: Queues::new(),
            groups: Groups::new(),
            turn: 0,
            ghost: Ghost::new(),
            clock_bytes: 0,
            bytes: 0,
            len: 0,
            parked: 0,
            head_start: HEAD_START,
            handicap: 0.0,
        }
    }

    /// Bytes of all blocks in the order.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Blocks in the order.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Blocks that have children, and so are no victims.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.parked
    }

    /// Whether there are no blocks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a block without children. Ids are dense: memory is taken for all ids up to the largest. The
    /// fingerprint is the same when the same block comes again. For an id that is there it is a use, and
    /// its size is what is said now.
    pub fn insert(&mut self, id: u32, namespace: NamespaceId, fingerprint: u64, bytes: u64) {
        let bytes = bytes.max(1);
        self.clock_bytes = self.clock_bytes.saturating_add(bytes);
        if let Some(entry) = self.entry(id) {
            let before = std::mem::replace(&mut entry.bytes, bytes);
            self.bytes = self.bytes - before + bytes;
            return self.touch(id);
        }
        let class = match self.ghost.class_of(fingerprint) {
            Some(class) => {
                self.learn(class, bytes);
                self.ghost.take(fingerprint);
                used_once_more(class)
            }
            None => NEWEST_LEAF,
        };
        if self.entries.len() <= id as usize {
            self.entries.resize(id as usize + 1, Entry::default());
        }
        let group = self.groups.enter(namespace);
        self.queues.have(queue(group + 1, 0));
        self.entries[id as usize] = Entry {
            fingerprint,
            bytes,
            stamp: self.clock_bytes,
            group: group as u32,
            class: class as u8,
            is_parked: false,
        };
        self.queues.push_last(queue(group, class), id);
        self.bytes += bytes;
        self.len += 1;
    }

    /// A block was used. In a chain the order does not matter.
    pub fn touch(&mut self, id: u32) {
        let clock_bytes = self.clock_bytes;
        let Some(entry) = self.entry(id) else { return };
        entry.stamp = clock_bytes;
        entry.class = used_once_more(usize::from(entry.class)) as u8;
        let queue = entry.queue();
        self.queues.push_last(queue, id);
    }

    /// Takes a block out that is gone for another reason than room.
    pub fn remove(&mut self, id: u32) {
        let Some(entry) = self.entry(id) else { return };
        let Entry { bytes, group, is_parked, .. } = std::mem::take(entry);
        self.parked -= usize::from(is_parked);
        self.queues.take(id);
        self.groups.leave(group as usize);
        self.bytes -= bytes;
        self.len -= 1;
    }

    /// A block got its first child: it is no victim from now on.
    pub fn park(&mut self, id: u32) {
        let Some(entry) = self.entry(id) else { return };
        let was_parked = std::mem::replace(&mut entry.is_parked, true);
        let before = entry.queue();
        entry.class = entry.class.max(UNUSED as u8);
        let after = entry.queue();
        if before != after && self.queues.queue_of(id) == Some(before) {
            self.queues.push_last(after, id);
        }
        self.parked += usize::from(!was_parked);
    }

    /// A block lost its last child. If the scan has passed it, it is the first of its class to go.
    pub fn unpark(&mut self, id: u32) {
        let Some(entry) = self.entry(id) else { return };
        let was_parked = std::mem::replace(&mut entry.is_parked, false);
        let queue = entry.queue();
        self.parked -= usize::from(was_parked);
        if self.queues.queue_of(id).is_none() {
            self.queues.push_first(queue, id);
        }
    }

    /// Takes the next block to go out of the order, of one namespace or of all, and remembers it as evicted.
    /// Never one that is parked or that `may_go` refuses (leased, pinned); those keep their turn. The caller
    /// unparks its parent if this was the last child. After [`STEPS_MAX`] blocks it gives up: ask
    /// [`Eviction::victim_thorough`].
    pub fn victim(
        &mut self,
        of: Option<NamespaceId>,
        may_go: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        self.seek(of, may_go, REFUSED_STEPS_MAX, STEPS_MAX, f64::NEG_INFINITY)
    }

    /// As [`Eviction::victim`], but only a block that has outlived its head start: for one that nobody asked
    /// for. A newcomer at its best has waited for nothing and has no head start, so what has
    /// some of its own left is worth more.
    pub fn victim_spent(
        &mut self,
        of: Option<NamespaceId>,
        may_go: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        self.seek(of, may_go, 0, SPENT_STEPS_MAX, 0.0)
    }

    /// Whether the block that is next to go has outlived its head start. It may be one that is parked, or that
    /// may not go.
    #[must_use]
    pub fn is_next_spent(&self, of: Option<NamespaceId>) -> bool {
        let next = self.groups_of(of).and_then(|groups| self.oldest(groups));
        next.is_some_and(|(waited, _)| waited > 0.0)
    }

    /// As [`Eviction::victim`], but looks at every block before it gives up.
    pub fn victim_thorough(
        &mut self,
        of: Option<NamespaceId>,
        may_go: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        self.seek(of, may_go, usize::MAX, usize::MAX, f64::NEG_INFINITY)
    }

    fn seek(
        &mut self,
        of: Option<NamespaceId>,
        mut may_go: impl FnMut(u32) -> bool,
        refused_max: usize,
        steps_max: usize,
        waited_min: f64,
    ) -> Option<u32> {
        let groups = self.groups_of(of)?;
        if let Some(id) = self.seek_refused(groups.clone(), &mut may_go, refused_max) {
            return Some(self.evict(id));
        }
        for _ in 0..steps_max {
            let (_, id) = self.oldest(groups.clone()).filter(|(waited, _)| *waited > waited_min)?;
            if self.passes(id, &mut may_go) {
                return Some(self.evict(id));
            }
        }
        None
    }

    /// The queues to look at; none if the namespace has no block.
    fn groups_of(&self, of: Option<NamespaceId>) -> Option<Range<usize>> {
        match of {
            Some(namespace) => self.groups.number(namespace).map(|number| number..number + 1),
            None => Some(0..self.groups.len()),
        }
    }

    /// Asks again for blocks that were refused: they are older than the rest. One that is refused again goes
    /// to the end of its queue, so that each has its turn, and each namespace.
    fn seek_refused(
        &mut self,
        groups: Range<usize>,
        may_go: &mut impl FnMut(u32) -> bool,
        steps_max: usize,
    ) -> Option<u32> {
        self.turn = self.turn.wrapping_add(1);
        let mut steps = steps_max;
        for at in 0..groups.len() {
            let refused = queue(groups.start + (at + self.turn) % groups.len(), REFUSED);
            for _ in 0..self.queues.len(refused) {
                steps = steps.checked_sub(1)?;
                let id = self.queues.first(refused)?;
                if self.passes(id, may_go) {
                    return Some(id);
                }
            }
        }
        None
    }

    /// Whether a block may go now; if not, it is put aside.
    fn passes(&mut self, id: u32, may_go: &mut impl FnMut(u32) -> bool) -> bool {
        if self.entries[id as usize].is_parked {
            self.queues.take(id);
            return false;
        }
        let may_go = may_go(id);
        if !may_go {
            self.queues.push_last(queue(self.entries[id as usize].group as usize, REFUSED), id);
        }
        may_go
    }

    fn evict(&mut self, id: u32) -> u32 {
        let Entry { fingerprint, bytes, class, .. } = self.entries[id as usize];
        self.ghost.put(fingerprint, usize::from(class), bytes, self.capacity_bytes);
        self.remove(id);
        id
    }

    /// Of the firsts of all queues the one that has waited longest after its head start, and how long.
    fn oldest(&self, groups: Range<usize>) -> Option<(f64, u32)> {
        let queues = groups.flat_map(|group| (0..CLASSES).map(move |class| (group, class)));
        let firsts = queues.filter_map(|(group, class)| {
            let id = self.queues.first(queue(group, class))?;
            Some((self.waited(class, self.entries[id as usize].stamp), id))
        });
        firsts.max_by(|one, other| one.0.total_cmp(&other.0))
    }

    /// How long a block of a class has waited since its last use, without its head start, in bytes.
    fn waited(&self, class: usize, stamp: u64) -> f64 {
        let age_bytes = self.clock_bytes - stamp;
        let start = match class {
            NEWEST_LEAF if age_bytes >= self.capacity_bytes / GRACE_PART => -self.handicap,
            NEWEST_LEAF | UNUSED => 0.0,
            used => self.head_start * (used - UNUSED) as f64,
        };
        age_bytes as f64 - start * self.capacity_bytes as f64
    }

    /// A block came back that had been evicted from `class`: what it lacked was room in that class. The
    /// step is its part of the capacity, times how much less of its kind the ghost holds than of the
    /// other: at rest a byte of either kind comes back as often.
    fn learn(&mut self, class: usize, bytes: u64) {
        let past = self.ghost.bytes();
        let unused: u64 = past[..USED].iter().sum();
        let used: u64 = past[USED..].iter().sum();
        let step = |of: u64, other: u64| {
            let rarer = (other as f64 / of.max(1) as f64).max(1.0);
            bytes as f64 / self.capacity_bytes as f64 * rarer
        };
        let head_start = if class < USED {
            self.head_start - step(unused, used)
        } else {
            self.head_start + step(used, unused)
        };
        let handicap = match class {
            NEWEST_LEAF => self.handicap - step(past[NEWEST_LEAF], past[UNUSED]),
            UNUSED => self.handicap + step(past[UNUSED], past[NEWEST_LEAF]),
            _ => self.handicap,
        };
        self.head_start = head_start.clamp(HEAD_START_MIN, HEAD_START_MAX);
        self.handicap = handicap.clamp(0.0, HANDICAP_MAX);
    }

    fn entry(&mut self, id: u32) -> Option<&mut Entry> {
        self.entries.get_mut(id as usize).filter(|entry| entry.bytes > 0)
    }
}

fn used_once_more(class: usize) -> usize {
    (class.max(UNUSED) + 1).min(CLASSES - 1)
}

#[cfg(test)]
mod tests;
