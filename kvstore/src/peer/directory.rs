//! Who holds what: fingerprints of blocks → peers. Bounded, and it may be wrong.
//!
//! Learned from gossip and put right by answers. A peer is a bit of a word, by the place it has while
//! it is connected. Being wrong costs a question in vain, never a wrong block: what a peer sends is
//! checked. Pure; time comes in.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Peers at a time: the bits of a word.
pub const PLACES_MAX: usize = 64;
/// How long a copy that was wrong is not asked for again.
const BLAMED: Duration = Duration::from_secs(60);
/// Copies remembered as wrong. More of them mean a sick peer; the oldest is forgotten.
const BLAMES_MAX: usize = 1024;

/// The place of a connected peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(u8);

impl Place {
    /// The place with this number, below [`PLACES_MAX`].
    pub fn new(number: usize) -> Option<Place> {
        (number < PLACES_MAX).then_some(Place(number as u8))
    }

    /// Its number.
    pub fn number(self) -> usize {
        usize::from(self.0)
    }

    fn bit(self) -> u64 {
        1 << self.0
    }
}

/// A set of peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places(u64);

impl Places {
    /// Adds one.
    pub fn insert(&mut self, place: Place) {
        self.0 |= place.bit();
    }

    /// All but one.
    pub fn less(self, place: Place) -> Places {
        Places(self.0 & !place.bit())
    }

    /// Whether it holds `place`.
    pub fn contains(self, place: Place) -> bool {
        self.0 & place.bit() != 0
    }

    /// Those of `self` that are not in `others`.
    pub fn without(self, others: Places) -> Places {
        Places(self.0 & !others.0)
    }

    /// Whether none is in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Place> {
        (0..PLACES_MAX as u8).map(Place).filter(move |place| self.contains(*place))
    }
}

/// The directory.
#[derive(Debug)]
pub struct Directory {
    entries_max: usize,
    holders: HashMap<u64, u64, foldhash::fast::RandomState>,
    /// In the order they came; some are gone from `holders` already.
    order: VecDeque<u64>,
    blames: VecDeque<(u64, Place, Instant)>,
}

impl Directory {
    /// An empty one, for `entries_max` fingerprints. It takes about 40 bytes for each.
    pub fn new(entries_max: usize) -> Directory {
        Directory {
            entries_max: entries_max.max(1),
            holders: HashMap::default(),
            order: VecDeque::new(),
            blames: VecDeque::new(),
        }
    }

    /// Fingerprints known.
    pub fn len(&self) -> usize {
        self.holders.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    /// `place` holds these; the oldest make room.
    pub fn add(&mut self, place: Place, prints: &[u64]) {
        for &print in prints {
            if let Some(holders) = self.holders.get_mut(&print) {
                *holders |= place.bit();
                continue;
            }
            self.make_room();
            self.holders.insert(print, place.bit());
            self.order.push_back(print);
        }
    }

    /// Drops the oldest until there is room for one more, in `holders` and in `order`.
    fn make_room(&mut self) {
        while self.holders.len() >= self.entries_max {
            let Some(oldest) = self.order.pop_front() else { return };
            self.holders.remove(&oldest);
        }
        if self.order.len() >= self.entries_max * 2 {
            let holders = &self.holders;
            let mut seen = std::collections::HashSet::<u64, foldhash::fast::RandomState>::default();
            self.order.retain(|print| holders.contains_key(print) && seen.insert(*print));
        }
    }

    /// `place` no longer holds these.
    pub fn remove(&mut self, place: Place, prints: &[u64]) {
        for print in prints {
            if let Some(holders) = self.holders.get_mut(print) {
                *holders &= !place.bit();
                if *holders == 0 {
                    self.holders.remove(print);
                }
            }
        }
    }

    /// `place` is free: whoever had it holds nothing.
    pub fn forget(&mut self, place: Place) {
        self.holders.retain(|_, holders| {
            *holders &= !place.bit();
            *holders != 0
        });
        let holders = &self.holders;
        self.order.retain(|print| holders.contains_key(print));
        self.blames.retain(|(_, blamed, _)| *blamed != place);
    }

    /// The copy that `place` sent was wrong: it is not asked for it for a while.
    pub fn blame(&mut self, place: Place, print: u64, now: Instant) {
        if self.blames.len() >= BLAMES_MAX {
            self.blames.pop_front();
        }
        self.blames.push_back((print, place, now + BLAMED));
    }

    /// Who may hold the block, as far as is known.
    pub fn holders(&mut self, print: u64, now: Instant) -> Places {
        while self.blames.front().is_some_and(|(_, _, until)| *until <= now) {
            self.blames.pop_front();
        }
        let mut blamed = Places::default();
        for (of, place, _) in &self.blames {
            if *of == print {
                blamed.insert(*place);
            }
        }
        Places(self.holders.get(&print).copied().unwrap_or(0)).without(blamed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Add(usize, Vec<u64>),
        Remove(usize, Vec<u64>),
        Forget(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let prints = || vec(0u64..40, 0..12);
        prop_oneof![
            4 => (0..4usize, prints()).prop_map(|(place, prints)| Step::Add(place, prints)),
            2 => (0..4usize, prints()).prop_map(|(place, prints)| Step::Remove(place, prints)),
            1 => (0..4usize).prop_map(Step::Forget),
        ]
    }

    proptest! {
        #[test]
        fn with_room_for_all_it_knows_exactly_what_it_was_told(steps in vec(step(), 0..60)) {
            let now = Instant::now();
            let mut directory = Directory::new(40);
            let mut model = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Add(place, prints) => {
                        directory.add(Place::new(place).unwrap(), &prints);
                        model.extend(prints.into_iter().map(|print| (place, print)));
                    }
                    Step::Remove(place, prints) => {
                        directory.remove(Place::new(place).unwrap(), &prints);
                        model.retain(|pair| pair.0 != place || !prints.contains(&pair.1));
                    }
                    Step::Forget(place) => {
                        directory.forget(Place::new(place).unwrap());
                        model.retain(|pair| pair.0 != place);
                    }
                }
                for print in 0..40 {
                    let found: Vec<usize> =
                        directory.holders(print, now).iter().map(Place::number).collect();
                    let told: Vec<usize> =
                        (0..4).filter(|place| model.contains(&(*place, print))).collect();
                    prop_assert_eq!(found, told);
                }
                prop_assert!(directory.order.len() <= 80);
            }
        }

        #[test]
        fn it_never_holds_more_than_it_may_nor_what_it_was_not_told(steps in vec(step(), 0..60), entries_max in 1usize..12) {
            let mut directory = Directory::new(entries_max);
            let mut told = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Add(place, prints) => {
                        directory.add(Place::new(place).unwrap(), &prints);
                        told.extend(prints);
                    }
                    Step::Remove(place, prints) => directory.remove(Place::new(place).unwrap(), &prints),
                    Step::Forget(place) => directory.forget(Place::new(place).unwrap()),
                }
                prop_assert!(directory.len() <= entries_max);
                prop_assert!(directory.order.len() <= entries_max * 2);
                prop_assert!(directory.holders.keys().all(|print| told.contains(print)));
            }
        }
    }

    #[test]
    fn a_wrong_copy_is_not_asked_for_until_its_time_is_over() {
        let now = Instant::now();
        let (first, second) = (Place::new(0).unwrap(), Place::new(63).unwrap());
        let mut directory = Directory::new(4);
        directory.add(first, &[7, 8]);
        directory.add(second, &[7]);
        directory.blame(first, 7, now);
        assert_eq!(directory.holders(7, now).iter().collect::<Vec<_>>(), [second]);
        assert_eq!(directory.holders(8, now).iter().collect::<Vec<_>>(), [first]);
        let later = now + BLAMED;
        assert_eq!(directory.holders(7, later).iter().collect::<Vec<_>>(), [first, second]);
        assert_eq!(Place::new(PLACES_MAX), None);
    }
}
