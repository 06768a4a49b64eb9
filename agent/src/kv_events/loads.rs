//! What routers say they gave the workers of this node, and what that is for each of the others.
//!
//! Owned here: each router's last word of each worker, as long as its seat lasts and it repeats itself.
//! Bounded by the node's workers times the seats. Time comes in; nothing is sent from here.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dataplane::feed::Load;
use dataplane::route::share::LOAD_STALE_MS;

/// Words of routers, by worker and seat.
#[derive(Debug, Default)]
pub struct Loads {
    workers: BTreeMap<String, Told>,
}

#[derive(Debug, Default)]
struct Told {
    epoch: u64,
    by_seat: BTreeMap<u64, (Load, Instant)>,
}

impl Loads {
    /// The process `epoch` of a worker is there. What was told of an older one stands until it is told
    /// again: a request that fails with its engine is soon counted out by its router.
    pub fn open(&mut self, worker: &str, epoch: u64) {
        self.workers.entry(worker.to_owned()).or_default().epoch = epoch;
    }

    /// The process `epoch` of a worker has ended.
    pub fn close(&mut self, worker: &str, epoch: u64) {
        if self.workers.get(worker).is_some_and(|told| told.epoch == epoch) {
            self.workers.remove(worker);
        }
    }

    /// A router's word. True: it is another one than before, and the others are to hear of it. A worker
    /// that is not here is nobody's business.
    pub fn tell(&mut self, seat: u64, worker: &str, load: Load, now: Instant) -> bool {
        let Some(told) = self.workers.get_mut(worker) else { return false };
        let before = told.by_seat.insert(seat, (load.bounded(), now));
        before.is_none_or(|(before, _)| before != load.bounded())
    }

    /// A router is gone: which workers it spoke of.
    pub fn leave(&mut self, seat: u64) -> Vec<String> {
        let with_it = self.workers.iter_mut();
        let left = with_it.filter_map(|(worker, told)| {
            told.by_seat.remove(&seat)?;
            Some(worker.clone())
        });
        left.collect()
    }

    /// Forgets words that were not repeated for [`LOAD_STALE_MS`].
    pub fn expire(&mut self, now: Instant) {
        let most = Duration::from_millis(LOAD_STALE_MS);
        for told in self.workers.values_mut() {
            told.by_seat.retain(|_, (_, at)| now.saturating_duration_since(*at) <= most);
        }
    }

    /// Workers of the node.
    pub fn workers(&self) -> impl Iterator<Item = &String> {
        self.workers.keys()
    }

    /// What routers other than `seat` gave a worker, and how many they are; none if it is not here.
    pub fn others(&self, worker: &str, seat: u64) -> Option<(Load, u32)> {
        let told = self.workers.get(worker)?;
        let others = told.by_seat.iter().filter(|(other, _)| **other != seat);
        Some(others.fold((Load::default(), 0), |(sum, routers), (_, (load, _))| {
            (sum.plus(*load), routers + 1)
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load(inflight: u32) -> Load {
        Load { inflight, waiting: inflight / 2, queued_us: u64::from(inflight) * 1_000 }
    }

    #[test]
    fn each_hears_of_all_others_and_not_of_itself() {
        let (mut loads, now) = (Loads::default(), Instant::now());
        loads.open("w", 1);
        assert!(loads.tell(1, "w", load(4), now));
        assert!(!loads.tell(1, "w", load(4), now), "it repeats itself");
        assert!(loads.tell(2, "w", load(6), now));
        assert!(!loads.tell(2, "nobody", load(6), now));
        assert_eq!(loads.others("w", 1), Some((load(6), 1)));
        assert_eq!(loads.others("w", 2), Some((load(4), 1)));
        assert_eq!(loads.others("w", 3), Some((load(10), 2)));
        assert_eq!(loads.others("nobody", 1), None);
        assert_eq!(loads.leave(2), ["w"]);
        assert_eq!(loads.others("w", 1), Some((Load::default(), 0)));
        assert!(loads.leave(2).is_empty());
    }

    #[test]
    fn who_is_silent_for_long_counts_no_more() {
        let (mut loads, begin) = (Loads::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        loads.open("w", 1);
        loads.tell(1, "w", load(4), begin);
        loads.tell(2, "w", load(6), at(LOAD_STALE_MS));
        loads.expire(at(LOAD_STALE_MS));
        assert_eq!(loads.others("w", 9), Some((load(10), 2)));
        loads.expire(at(LOAD_STALE_MS + 1));
        assert_eq!(loads.others("w", 9), Some((load(6), 1)));
    }

    #[test]
    fn only_the_process_that_is_there_can_end() {
        let (mut loads, now) = (Loads::default(), Instant::now());
        loads.open("w", 1);
        loads.tell(1, "w", load(4), now);
        loads.open("w", 2);
        loads.close("w", 1);
        assert_eq!(loads.others("w", 2), Some((load(4), 1)));
        loads.close("w", 2);
        assert_eq!(loads.others("w", 2), None);
    }

    proptest! {
        /// Against a list of all that was ever said.
        #[test]
        fn sums_are_those_of_the_last_words(
            steps in prop::collection::vec((0u64..4, 0usize..3, 0u32..50, any::<bool>()), 0..40),
        ) {
            let names = ["a", "b", "c"];
            let (mut loads, now) = (Loads::default(), Instant::now());
            names.iter().for_each(|name| loads.open(name, 1));
            let mut said: Vec<(u64, usize, u32)> = Vec::new();
            for (seat, worker, inflight, leaves) in steps {
                if leaves {
                    loads.leave(seat);
                    said.retain(|(other, ..)| *other != seat);
                } else {
                    loads.tell(seat, names[worker], load(inflight), now);
                    said.push((seat, worker, inflight));
                }
                for (seat, worker) in (0..4).flat_map(|seat| (0..3).map(move |w| (seat, w))) {
                    let last = |other: u64| said.iter().rev().find(|(s, w, _)| (*s, *w) == (other, worker));
                    let words: Vec<u32> =
                        (0..4).filter(|other| *other != seat).filter_map(last).map(|(.., n)| *n).collect();
                    let (sum, routers) = loads.others(names[worker], seat).unwrap();
                    prop_assert_eq!(sum.inflight, words.iter().sum::<u32>());
                    prop_assert_eq!(routers as usize, words.len());
                }
            }
        }
    }
}
