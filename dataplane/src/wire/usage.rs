//! What routers used of a tenant's limits, and how counts of several are added. Pure.
//!
//! Windows are numbered by the clock: Unix time divided by their length. Routers of one control stand
//! on one machine, so they read one clock, and the same number means the same minute to all of them.
//! Each tells of two minutes, since a sliding minute looks into the one before, and since what was
//! counted in the last moments of a minute is told in the next.

use serde::{Deserialize, Serialize};

/// Tenants in one report: all that a router can have configured (4,096) and its two built-in ones.
pub const USAGE_TENANTS_MAX: usize = 4_098;

/// What one router, or several together, used of a tenant's limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantUsage {
    /// The tenant's name.
    pub tenant: String,
    /// Unix time divided by 60 s.
    pub minute: u64,
    /// Requests begun in that minute.
    pub requests: u64,
    /// Requests begun in the minute before.
    pub requests_before: u64,
    /// Prompt and completion tokens counted in that minute.
    pub tokens: u64,
    /// Tokens counted in the minute before.
    pub tokens_before: u64,
    /// Unix time divided by 86,400 s.
    pub day: u64,
    /// Tokens counted in that day.
    pub day_tokens: u64,
    /// Requests running now.
    pub running: u32,
}

impl TenantUsage {
    /// Whether nothing is counted and nothing runs.
    pub fn is_empty(&self) -> bool {
        self.requests == 0
            && self.requests_before == 0
            && self.tokens == 0
            && self.tokens_before == 0
            && self.day_tokens == 0
            && self.running == 0
    }

    /// The same counts as they stand towards another minute and day. What lies in neither window is
    /// left out.
    #[must_use]
    pub fn at(&self, minute: u64, day: u64) -> TenantUsage {
        let in_minute = |number: Option<u64>, now: u64, before: u64| match number {
            Some(number) if number == self.minute => now,
            Some(number) if number.checked_add(1) == Some(self.minute) => before,
            _ => 0,
        };
        let last = minute.checked_sub(1);
        TenantUsage {
            tenant: self.tenant.clone(),
            minute,
            requests: in_minute(Some(minute), self.requests, self.requests_before),
            requests_before: in_minute(last, self.requests, self.requests_before),
            tokens: in_minute(Some(minute), self.tokens, self.tokens_before),
            tokens_before: in_minute(last, self.tokens, self.tokens_before),
            day,
            day_tokens: if day == self.day { self.day_tokens } else { 0 },
            running: self.running,
        }
    }

    /// Adds what another router used, as far as it lies within this one's windows.
    pub fn add(&mut self, other: &TenantUsage) {
        let other = other.at(self.minute, self.day);
        self.requests = self.requests.saturating_add(other.requests);
        self.requests_before = self.requests_before.saturating_add(other.requests_before);
        self.tokens = self.tokens.saturating_add(other.tokens);
        self.tokens_before = self.tokens_before.saturating_add(other.tokens_before);
        self.day_tokens = self.day_tokens.saturating_add(other.day_tokens);
        self.running = self.running.saturating_add(other.running);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a router counted in each of the minutes and days 10 to 15.
    #[derive(Clone, Debug)]
    struct Counted {
        requests: [u64; 6],
        tokens: [u64; 6],
        day_tokens: [u64; 6],
        running: u32,
    }

    fn slot(counts: &[u64; 6], number: u64) -> u64 {
        number.checked_sub(10).and_then(|at| counts.get(at as usize)).copied().unwrap_or(0)
    }

    impl Counted {
        fn told(&self, minute: u64, day: u64) -> TenantUsage {
            TenantUsage {
                tenant: "t".to_owned(),
                minute,
                requests: slot(&self.requests, minute),
                requests_before: slot(&self.requests, minute - 1),
                tokens: slot(&self.tokens, minute),
                tokens_before: slot(&self.tokens, minute - 1),
                day,
                day_tokens: slot(&self.day_tokens, day),
                running: self.running,
            }
        }
    }

    fn counted() -> impl Strategy<Value = Counted> {
        let counts = || prop::array::uniform6(0_u64..100);
        (counts(), counts(), counts(), 0_u32..9).prop_map(
            |(requests, tokens, day_tokens, running)| Counted {
                requests,
                tokens,
                day_tokens,
                running,
            },
        )
    }

    proptest! {
        #[test]
        fn each_window_is_the_sum_of_what_was_told_of_it(
            told in prop::collection::vec((counted(), 10_u64..15, 10_u64..15), 0..6),
            minute in 10_u64..15,
            day in 10_u64..15,
        ) {
            let mut sum =
                TenantUsage { tenant: "t".into(), minute, day, ..TenantUsage::default() };
            for (router, its_minute, its_day) in &told {
                sum.add(&router.told(*its_minute, *its_day));
            }
            // A router tells of its minute and the one before; of these, what is asked for counts.
            let of = |number: u64, counts: fn(&Counted) -> &[u64; 6]| -> u64 {
                told.iter()
                    .filter(|(_, its, _)| number == *its || number + 1 == *its)
                    .map(|(router, ..)| slot(counts(router), number))
                    .sum()
            };
            prop_assert_eq!(sum.requests, of(minute, |router| &router.requests));
            prop_assert_eq!(sum.requests_before, of(minute - 1, |router| &router.requests));
            prop_assert_eq!(sum.tokens, of(minute, |router| &router.tokens));
            prop_assert_eq!(sum.tokens_before, of(minute - 1, |router| &router.tokens));
            let in_day = told.iter().filter(|(_, _, its)| *its == day);
            let day_tokens: u64 = in_day.map(|(router, ..)| slot(&router.day_tokens, day)).sum();
            prop_assert_eq!(sum.day_tokens, day_tokens);
            prop_assert_eq!(sum.running, told.iter().map(|(router, ..)| router.running).sum::<u32>());
        }
    }

    #[test]
    fn hostile_numbers_neither_wrap_nor_panic() {
        let most = TenantUsage {
            tenant: String::new(),
            minute: u64::MAX,
            requests: u64::MAX,
            requests_before: u64::MAX,
            tokens: u64::MAX,
            tokens_before: u64::MAX,
            day: u64::MAX,
            day_tokens: u64::MAX,
            running: u32::MAX,
        };
        let mut sum = most.clone();
        sum.add(&most);
        assert_eq!(sum, most);
        assert!(!most.is_empty() && most.at(0, 0).running == u32::MAX);
        assert_eq!(TenantUsage::default().at(u64::MAX, 0).requests_before, 0);
    }
}
