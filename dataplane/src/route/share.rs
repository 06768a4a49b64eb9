//! What several routers in front of the same engines tell each other of their load, and what one router
//! makes of it. Pure: who carries it is [`crate::feed`], who keeps it are agents and routers.
//!
//! Values are absolute, never changes: a word that is lost or comes twice is healed by the next one. A
//! router that is not heard of any more counts no more ([`LOAD_STALE_MS`]).

use super::backlog::Backlog;

/// A router tells a worker's agent of changes at most this often, and the agent the other routers: a
/// prefill is longer, and a hundred changes in one burst cost one frame.
pub const LOAD_INTERVAL_MS: u64 = 20;
/// Each load is told again after this time, changed or not: it says that the router is there, and heals
/// what was lost.
pub const LOAD_REPEAT_MS: u64 = 1_000;
/// A load that was not told again for so long is void: five repetitions.
pub const LOAD_STALE_MS: u64 = 5 * LOAD_REPEAT_MS;
/// Requests beyond this count as this many: far above what an engine is given, and sums stay sums.
pub const LOAD_REQUESTS_MAX: u32 = 1 << 20;
/// Queued work beyond an hour counts as an hour.
pub const LOAD_QUEUED_US_MAX: u64 = 3_600_000_000;

/// What one worker was given, by one router or by several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests in flight.
    pub inflight: u32,
    /// Of these, the ones whose first token has not come; never more than `inflight`.
    pub waiting: u32,
    /// Prefill work of those that wait, in µs.
    pub queued_us: u64,
}

impl Load {
    /// The nearest load that may be told. Counters of several cores may be a moment apart.
    pub fn bounded(self) -> Load {
        let inflight = self.inflight.min(LOAD_REQUESTS_MAX);
        Load {
            inflight,
            waiting: self.waiting.min(inflight),
            queued_us: self.queued_us.min(LOAD_QUEUED_US_MAX),
        }
    }

    /// Both together.
    pub fn plus(self, other: Load) -> Load {
        Load {
            inflight: self.inflight.saturating_add(other.inflight),
            waiting: self.waiting.saturating_add(other.waiting),
            queued_us: self.queued_us.saturating_add(other.queued_us),
        }
        .bounded()
    }
}

/// What the other routers gave a worker, as its agent told it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Others {
    /// All of them together.
    pub load: Load,
    /// How many they are, busy or not.
    pub routers: u32,
    /// When it was told, in ms of the reader's clock.
    pub told_ms: f64,
}

impl Others {
    /// What is left to believe: nothing once it is stale.
    pub fn at(self, now_ms: f64) -> Others {
        if now_ms - self.told_ms > LOAD_STALE_MS as f64 { Others::default() } else { self }
    }

    /// Their prefill work that is left in front of the worker, in ms: as if the first of their requests
    /// had come to its turn when it was told.
    pub fn left_ms(&self, now_ms: f64) -> f64 {
        let given_ms = self.load.queued_us as f64 / 1_000.0;
        let backlog =
            Backlog { waiting: self.load.waiting, given_ms, first_ms: 0.0, since_ms: self.told_ms };
        backlog.left_ms(now_ms)
    }
}

/// Places at a model's workers that this router may fill, of `places` for all routers.
///
/// It is what the `routers` others leave free, but never less than an equal share: who comes late to a
/// full house gets its share as soon as requests end there, because the others then may fill no more than
/// theirs. While that lasts, the workers have up to a share too many.
pub fn places(places: u32, others_inflight: u32, routers: u32) -> u32 {
    let share = places.div_ceil(routers.saturating_add(1));
    places.saturating_sub(others_inflight).max(share)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load() -> impl Strategy<Value = Load> {
        (any::<u32>(), any::<u32>(), any::<u64>()).prop_map(|(inflight, waiting, queued_us)| Load {
            inflight,
            waiting,
            queued_us,
        })
    }

    #[test]
    fn what_is_told_counts_less_as_it_gets_older_and_then_nothing() {
        let load = Load { inflight: 5, waiting: 2, queued_us: 400_000 };
        let told = Others { load, routers: 1, told_ms: 1_000.0 };
        assert_eq!(told.left_ms(1_000.0), 400.0);
        assert_eq!(told.left_ms(1_030.0), 370.0);
        // Half of one of the two, and no more until it is told again.
        assert_eq!(told.left_ms(3_000.0), 300.0);
        let last_ms = 1_000.0 + LOAD_STALE_MS as f64;
        assert_eq!(told.at(last_ms), told);
        assert_eq!(told.at(last_ms + 1.0), Others::default());
        assert_eq!(Others::default().left_ms(9.0), 0.0);
    }

    #[test]
    fn places_are_what_others_leave_and_at_least_a_share() {
        assert_eq!(places(8, 0, 0), 8);
        assert_eq!(places(8, 0, 1), 8, "an idle router takes nothing");
        assert_eq!(places(8, 3, 1), 5);
        assert_eq!(places(8, 8, 1), 4);
        assert_eq!(places(8, 100, 2), 3);
        assert_eq!(places(1, 1, 63), 1, "nobody is shut out");
        assert_eq!(places(0, 0, 3), 0);
    }

    proptest! {
        #[test]
        fn sums_are_within_bounds_and_do_not_depend_on_order(
            loads in prop::collection::vec(load(), 0..9),
        ) {
            let sum = |loads: &mut dyn Iterator<Item = &Load>| {
                loads.fold(Load::default(), |sum, load| sum.plus(load.bounded()))
            };
            let forth = sum(&mut loads.iter());
            prop_assert_eq!(forth.inflight, sum(&mut loads.iter().rev()).inflight);
            prop_assert_eq!(forth.queued_us, sum(&mut loads.iter().rev()).queued_us);
            prop_assert_eq!(forth, forth.bounded());
            let naive: u64 = loads.iter().map(|load| u64::from(load.bounded().inflight)).sum();
            prop_assert_eq!(u64::from(forth.inflight), naive.min(u64::from(LOAD_REQUESTS_MAX)));
        }

        #[test]
        fn their_queue_only_shrinks_and_never_below_half(
            load in load(), ages in prop::collection::vec(0f64..1e5, 1..9),
        ) {
            let told = Others { load: load.bounded(), routers: 1, told_ms: 7.0 };
            let (mut ages, mut last) = (ages, told.left_ms(7.0));
            ages.sort_by(f64::total_cmp);
            for age in ages {
                let left = told.left_ms(7.0 + age);
                prop_assert!(left <= last && left >= told.left_ms(7.0) / 2.0);
                last = left;
            }
        }

        /// Whoever was there first: when all always want more, each ends with its share.
        #[test]
        fn routers_that_always_want_more_end_with_equal_shares(
            total in 1u32..200, routers in 1usize..6, first in 0u32..400,
        ) {
            let mut running = vec![0u32; routers];
            running[0] = first;
            let others = u32::try_from(routers).unwrap() - 1;
            // Each in turn ends one request and takes what it may.
            for _ in 0..=(first + total) {
                for at in 0..routers {
                    running[at] = running[at].saturating_sub(1);
                    let rest: u32 = running.iter().sum::<u32>() - running[at];
                    running[at] = running[at].max(places(total, rest, others));
                }
            }
            let share = total.div_ceil(others + 1);
            prop_assert!(running.iter().all(|got| *got == share), "{running:?} of {total}");
        }
    }
}
