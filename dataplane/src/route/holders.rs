//! Who holds one block, and since when. Most blocks have one holder, which needs no allocation.

/// One worker's use of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The worker's number.
    pub worker: u32,
    /// The worker's clock at the last use that was noted.
    pub used_at: u64,
}

/// The holders of one block: at least one, each worker once, by number.
#[derive(Clone, Debug)]
pub struct Holders {
    first: Holder,
    others: Vec<Holder>,
}

/// How far a walk over the holders came.
#[derive(Debug, Default)]
pub struct Cursor(usize);

impl Holders {
    /// A block with its first holder.
    pub fn new(first: Holder) -> Self {
        Holders { first, others: Vec::new() }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Holder> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// When the worker used the block, if it did.
    pub fn used_at(&self, worker: u32) -> Option<u64> {
        self.next_at(worker, &mut Cursor::default())
    }

    /// The same; who asks for all workers in the order of their numbers pays a step for each.
    pub fn next_at(&self, worker: u32, cursor: &mut Cursor) -> Option<u64> {
        if self.first.worker == worker {
            return Some(self.first.used_at);
        }
        let is_next = self.others.get(cursor.0).is_some_and(|holder| holder.worker == worker);
        if !is_next {
            cursor.0 = self.others.partition_point(|holder| holder.worker < worker);
        }
        let holder = self.others.get(cursor.0).filter(|holder| holder.worker == worker)?;
        cursor.0 += 1;
        Some(holder.used_at)
    }

    /// Notes a use. A later one that was noted before stays: cores may come out of order.
    pub fn note(&mut self, mut new: Holder) {
        if new.worker < self.first.worker {
            std::mem::swap(&mut self.first, &mut new);
            self.others.insert(0, new);
            return;
        }
        let known = if new.worker == self.first.worker {
            Ok(&mut self.first)
        } else {
            match self.others.binary_search_by_key(&new.worker, |holder| holder.worker) {
                Ok(at) => Ok(&mut self.others[at]),
                Err(at) => Err(at),
            }
        };
        match known {
            Ok(holder) => holder.used_at = holder.used_at.max(new.used_at),
            Err(at) => self.others.insert(at, new),
        }
    }

    /// Keeps those that `keep` names; false when none is left and the block is to go.
    pub fn retain(&mut self, keep: impl Fn(&Holder) -> bool) -> bool {
        self.others.retain(&keep);
        if keep(&self.first) {
            return true;
        }
        let is_left = !self.others.is_empty();
        if is_left {
            self.first = self.others.remove(0);
        }
        is_left
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a map from worker to its latest use.
        #[test]
        fn holders_are_a_small_map(
            notes in prop::collection::vec((0u32..5, 0u64..100), 1..20),
            gone in 0u32..5,
        ) {
            let (worker, used_at) = notes[0];
            let mut holders = Holders::new(Holder { worker, used_at });
            let mut map = BTreeMap::from([notes[0]]);
            for &(worker, used_at) in &notes[1..] {
                holders.note(Holder { worker, used_at });
                let latest = map.entry(worker).or_insert(used_at);
                *latest = used_at.max(*latest);
            }
            for worker in 0..5 {
                prop_assert_eq!(holders.used_at(worker), map.get(&worker).copied());
            }
            let mut cursor = Cursor::default();
            for worker in [0, 1, 2, 3, 4, 2, 0, 4] {
                prop_assert_eq!(holders.next_at(worker, &mut cursor), map.get(&worker).copied());
            }
            map.remove(&gone);
            prop_assert_eq!(holders.retain(|holder| holder.worker != gone), !map.is_empty());
            if !map.is_empty() {
                let left: BTreeMap<u32, u64> =
                    holders.iter().map(|holder| (holder.worker, holder.used_at)).collect();
                prop_assert_eq!(left, map);
            }
        }
    }
}
