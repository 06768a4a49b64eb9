//! Copies of hot blocks: to which peer one is offered, and which offers are taken.
//!
//! Pure; time comes in. Who offers names one peer at a time, who is offered fetches the block if it wants
//! it, so no byte comes unasked and each end keeps to its own rate. Whether a copy is worth its memory
//! the store decides, by its order of eviction. What keeps a block from going to and fro is memory: no block is
//! offered to the same peer, and none is taken, twice within [`REMEMBERED`].

use std::collections::{HashSet, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

use super::directory::Place;
use super::limits::Bucket;

/// How long an offer is remembered, at both ends: some windows of [`heat`](super::heat), so that a copy which
/// its taker soon lets go stays gone while the block may cool down.
pub const REMEMBERED: Duration = Duration::from_secs(60);
/// Offers remembered. While so many are, no more are made or taken.
const REMEMBERED_MAX: usize = 4_096;
/// Bytes of offered blocks on their way here at a time, or one block that is larger.
pub const COMING_BYTES_MAX: u64 = 64 << 20;

/// Things that happened a short while ago, bounded.
#[derive(Debug)]
struct Recent<T> {
    order: VecDeque<(Instant, T)>,
    known: HashSet<T, foldhash::fast::RandomState>,
}

impl<T: Copy + Eq + Hash> Recent<T> {
    fn new() -> Recent<T> {
        Recent { order: VecDeque::new(), known: HashSet::default() }
    }

    /// Whether `thing` may be noted: it is not known, and there is room.
    fn is_free(&mut self, thing: T, now: Instant) -> bool {
        while let Some((since, oldest)) = self.order.front()
            && now.saturating_duration_since(*since) >= REMEMBERED
        {
            self.known.remove(oldest);
            self.order.pop_front();
        }
        self.order.len() < REMEMBERED_MAX && !self.known.contains(&thing)
    }

    fn note(&mut self, thing: T, now: Instant) {
        if self.known.insert(thing) {
            self.order.push_back((now, thing));
        }
    }
}

/// A peer that could take a copy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its place.
    pub place: Place,
    /// Whether it holds the block, as far as is known.
    pub has_it: bool,
    /// Offers that wait to be told to it.
    pub offers: usize,
    /// What asking it costs: who answers quickly and is asked little has time for a copy.
    pub cost: f64,
}

/// Offers made.
#[derive(Debug)]
pub struct Offers {
    rate: Bucket,
    made: Recent<(u64, Place)>,
}

impl Offers {
    /// None made yet; blocks of at most `bytes_s` a second are offered, 0: no limit.
    pub fn new(bytes_s: u64, now: Instant) -> Offers {
        Offers { rate: Bucket::new(bytes_s, now), made: Recent::new() }
    }

    /// Another rate from here on.
    pub fn set_rate(&mut self, bytes_s: u64, now: Instant) {
        self.rate = Bucket::new(bytes_s, now);
    }

    /// Who is to be offered the block: of those that lack it and were not offered it lately the one with the
    /// fewest offers, then the least loaded, then, so that equal ones share the blocks, one by the
    /// block's own bits.
    pub fn choose(
        &mut self,
        print: u64,
        bytes: u64,
        candidates: impl Iterator<Item = Candidate>,
        now: Instant,
    ) -> Option<Place> {
        if !self.rate.wait(now).is_zero() {
            return None;
        }
        let lacking = candidates.filter(|candidate| !candidate.has_it);
        let free = lacking.filter(|candidate| self.made.is_free((print, candidate.place), now));
        let turn = |candidate: &Candidate| print.rotate_left(candidate.place.number() as u32);
        let best = free.min_by(|one, other| {
            let (offers, cost) = (one.offers.cmp(&other.offers), one.cost.total_cmp(&other.cost));
            offers.then(cost).then_with(|| turn(one).cmp(&turn(other)))
        })?;
        self.rate.spend(bytes);
        self.made.note((print, best.place), now);
        Some(best.place)
    }
}

/// Why an offer is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declined {
    /// It was taken, or tried to be, a short while ago.
    Again,
    /// Offers came faster than `hot_mib_s_max`, or too much of them is on its way.
    Rate,
}

/// Offers taken.
#[derive(Debug)]
pub struct Takes {
    rate: Bucket,
    taken: Recent<u64>,
    coming_bytes: u64,
}

impl Takes {
    /// None taken yet; blocks of at most `bytes_s` a second are, 0: no limit.
    pub fn new(bytes_s: u64, now: Instant) -> Takes {
        Takes { rate: Bucket::new(bytes_s, now), taken: Recent::new(), coming_bytes: 0 }
    }

    /// Another rate from here on.
    pub fn set_rate(&mut self, bytes_s: u64, now: Instant) {
        self.rate = Bucket::new(bytes_s, now);
    }

    /// Takes an offer of a block of `bytes`; [`Takes::came`] must follow.
    ///
    /// # Errors
    /// [`Declined`].
    pub fn take(&mut self, print: u64, bytes: u64, now: Instant) -> Result<(), Declined> {
        if !self.taken.is_free(print, now) {
            return Err(Declined::Again);
        }
        let is_first = self.coming_bytes == 0;
        let has_room = is_first || self.coming_bytes.saturating_add(bytes) <= COMING_BYTES_MAX;
        if !has_room || !self.rate.wait(now).is_zero() {
            return Err(Declined::Rate);
        }
        self.rate.spend(bytes);
        self.taken.note(print, now);
        self.coming_bytes = self.coming_bytes.saturating_add(bytes);
        Ok(())
    }

    /// A block of `bytes` came, or will not.
    pub fn came(&mut self, bytes: u64) {
        self.coming_bytes = self.coming_bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(place: usize) -> Candidate {
        Candidate { place: Place::new(place).unwrap(), has_it: false, offers: 0, cost: 1.0 }
    }

    #[test]
    fn the_least_loaded_of_those_that_lack_it_is_offered_it_and_each_only_once() {
        let now = Instant::now();
        let mut offers = Offers::new(0, now);
        let holder = Candidate { has_it: true, ..candidate(0) };
        let slow = Candidate { cost: 9.0, ..candidate(1) };
        let busy = Candidate { offers: 1, ..candidate(2) };
        let all = [holder, slow, busy, candidate(3)];
        let mut choose = |now| offers.choose(7, 1, all.into_iter(), now).map(Place::number);
        assert_eq!((choose(now), choose(now)), (Some(3), Some(1)));
        assert_eq!((choose(now), choose(now)), (Some(2), None));
        assert_eq!(choose(now + REMEMBERED), Some(3));
    }

    #[test]
    fn equal_peers_share_the_blocks() {
        let now = Instant::now();
        let mut offers = Offers::new(0, now);
        let mut counts = [0u32; 4];
        for number in 0..400u64 {
            let print =
                Key::new(NamespaceId::of("n"), Name::of(&number.to_le_bytes())).fingerprint();
            let place = offers.choose(print, 1, (0..4).map(candidate), now).unwrap();
            counts[place.number()] += 1;
        }
        assert!(counts.iter().all(|&count| count > 50), "{counts:?}");
    }

    use crate::key::{Key, Name, NamespaceId};

    #[test]
    fn a_block_is_taken_once_a_minute_however_often_it_is_offered() {
        let now = Instant::now();
        let mut takes = Takes::new(0, now);
        assert_eq!(takes.take(7, 100, now), Ok(()));
        takes.came(100);
        let before = now + REMEMBERED - Duration::from_nanos(1);
        assert_eq!(takes.take(7, 100, before), Err(Declined::Again));
        assert_eq!(takes.take(8, 100, before), Ok(()));
        assert_eq!(takes.take(7, 100, now + REMEMBERED), Ok(()));
    }

    #[test]
    fn what_is_on_its_way_is_bounded_and_one_large_block_is_not_kept_out_for_ever() {
        let now = Instant::now();
        let mut takes = Takes::new(0, now);
        assert_eq!(takes.take(1, COMING_BYTES_MAX * 2, now), Ok(()));
        assert_eq!(takes.take(2, 1, now), Err(Declined::Rate));
        takes.came(COMING_BYTES_MAX * 2);
        assert_eq!(takes.take(2, 1, now), Ok(()));
        assert_eq!(takes.take(3, u64::MAX, now), Err(Declined::Rate));
    }

    proptest! {
        #[test]
        fn rates_hold_at_both_ends_whatever_is_offered(
            blocks in proptest::collection::vec((any::<u64>(), 1u64..2_000_000, 0u64..50), 0..300),
        ) {
            let (rate, start) = (10_000_000u64, Instant::now());
            let (mut offers, mut takes) = (Offers::new(rate, start), Takes::new(rate, start));
            let (mut now, mut offered, mut taken) = (start, 0u64, 0u64);
            for (print, bytes, wait_ms) in blocks {
                now += Duration::from_millis(wait_ms);
                if offers.choose(print, bytes, (0..3).map(candidate), now).is_some() {
                    offered += bytes;
                }
                if takes.take(print, bytes, now).is_ok() {
                    takes.came(bytes);
                    taken += bytes;
                }
                // The burst of a bucket, and one block that was let go when something was left.
                let allowed = (now - start).as_secs_f64() * rate as f64 + 500_000.0 + 2_000_000.0;
                prop_assert!(offered as f64 <= allowed && taken as f64 <= allowed);
            }
        }

        #[test]
        fn memory_is_bounded(prints in proptest::collection::vec(any::<u64>(), 1..20)) {
            let now = Instant::now();
            let mut takes = Takes::new(0, now);
            for print in 0..REMEMBERED_MAX as u64 {
                prop_assert_eq!(takes.take(print, 1, now), Ok(()));
            }
            for print in prints {
                prop_assert_eq!(takes.take(print, 1, now), Err(Declined::Again));
            }
            prop_assert_eq!(takes.taken.order.len(), REMEMBERED_MAX);
        }
    }
}
