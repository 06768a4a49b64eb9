//! Counting within windows that are numbered by the clock, without a lock, and the arithmetic of a
//! sliding window made of two fixed ones.
//!
//! A [`Counter`] keeps the counts of two neighbouring windows. Each is one word, the window's number
//! beside its count, so rolling to the next window and counting in it are one compare-exchange. The
//! rest of this file is pure.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bits of a count within its word. The other 26 hold the window's number: minutes of the Unix
/// epoch fit until 2097.
const COUNT_BITS: u32 = 38;
/// Counts stop here (2.7e11) and never wrap. A limit cannot be higher.
pub const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
const NUMBER_MAX: u64 = u64::MAX >> COUNT_BITS;

/// Counts of the window being filled and of the one before.
#[derive(Debug, Default)]
pub struct Counter {
    /// A window's word stands at its number's lowest bit.
    words: [AtomicU64; 2],
}

const fn pack(number: u64, count: u64) -> u64 {
    ((number & NUMBER_MAX) << COUNT_BITS) | if count > COUNT_MAX { COUNT_MAX } else { count }
}

const fn number_of(word: u64) -> u64 {
    word >> COUNT_BITS
}

const fn count_of(word: u64) -> u64 {
    word & COUNT_MAX
}

impl Counter {
    fn word(&self, number: u64) -> &AtomicU64 {
        &self.words[(number & 1) as usize]
    }

    /// What was counted in window `number`; 0 if it is not one of the two kept.
    pub fn at(&self, number: u64) -> u64 {
        let word = self.word(number).load(Relaxed);
        if number_of(word) == number & NUMBER_MAX { count_of(word) } else { 0 }
    }

    /// Counts `more` in window `number`, or in the newer one that took its place: clocks of cores
    /// differ a little, and nothing is to be lost by that.
    pub fn add(&self, number: u64, more: u64) {
        self.change(number, |count| Some(count.saturating_add(more)));
    }

    /// Takes up to `less` away from window `number`; says what could not be taken.
    pub fn take(&self, number: u64, less: u64) -> u64 {
        let mut rest = less;
        self.change(number, |count| {
            rest = less.saturating_sub(count);
            Some(count.saturating_sub(less))
        });
        rest
    }

    /// Counts one more in window `number` if `has_room` says so of the count so far; says whether.
    /// Of several callers at once, each sees the others' counts.
    pub fn add_one_if(&self, number: u64, has_room: impl Fn(u64) -> bool) -> bool {
        self.change(number, |count| has_room(count).then(|| count.saturating_add(1)))
    }

    /// Replaces the count of window `number`. An older window than the one kept is left out.
    pub fn set(&self, number: u64, count: u64) {
        // The error says that a newer one is kept, which is as good.
        let _ = self.word(number).fetch_update(Relaxed, Relaxed, |word| {
            (!is_next(number_of(word), number)).then_some(pack(number, count))
        });
    }

    fn change(&self, number: u64, mut change: impl FnMut(u64) -> Option<u64>) -> bool {
        self.word(number)
            .fetch_update(Relaxed, Relaxed, |word| {
                let kept = number_of(word);
                if kept == number & NUMBER_MAX || is_next(kept, number) {
                    Some(pack(kept, change(count_of(word))?))
                } else {
                    Some(pack(number, change(0)?))
                }
            })
            .is_ok()
    }
}

/// Whether a word already went on to the window after `number` (two further: it keeps every other
/// one). What is further ahead comes from a clock that was set back; waiting for it to be reached
/// again would block a tenant for as long.
const fn is_next(kept: u64, number: u64) -> bool {
    kept == (number + 2) & NUMBER_MAX
}

/// What a sliding window of [`WINDOW_MS`](super::WINDOW_MS) holds, as far as two fixed windows can
/// tell: all of the current one, and of the one before the share that still lies within.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sliding {
    /// Counted in the current fixed window.
    pub current: u64,
    /// Counted in the one before.
    pub previous: u64,
    /// How much of the current one is over, in ms.
    pub elapsed_ms: u64,
    /// Length of a fixed window and of the sliding one, in ms.
    pub window_ms: u64,
}

impl Sliding {
    /// The estimate times the window's length, so that no fraction is lost. Counts are below 2^40
    /// and lengths below 2^17, so nothing overflows.
    fn scaled(&self) -> u64 {
        self.current * self.window_ms + self.previous * (self.window_ms - self.elapsed_ms)
    }

    /// Whether `more` fit below `limit`.
    pub fn has_room(&self, limit: u64, more: u64) -> bool {
        self.scaled() + more * self.window_ms <= limit.min(COUNT_MAX) * self.window_ms
    }

    /// What is left below `limit`, in whole units.
    pub fn remaining(&self, limit: u64) -> u64 {
        (limit.min(COUNT_MAX) * self.window_ms).saturating_sub(self.scaled()) / self.window_ms
    }

    /// After how many ms without traffic nothing is counted any more.
    pub fn empty_in_ms(&self) -> u64 {
        let to_end = self.window_ms - self.elapsed_ms;
        match (self.current, self.previous) {
            (0, 0) => 0,
            (0, _) => to_end,
            _ => to_end + self.window_ms,
        }
    }

    /// After how many ms without traffic one more fits below `limit` (at least 1). The estimate
    /// never rises on its own, so it also fits at any later time.
    pub fn room_in_ms(&self, limit: u64) -> u64 {
        if self.has_room(limit, 1) {
            return 0;
        }
        let limit = limit.min(COUNT_MAX);
        let to_end = self.window_ms - self.elapsed_ms;
        // Within this window: when enough of the previous one has slid out.
        if let Some(free) = limit.checked_sub(self.current + 1) {
            let at = self.window_ms - self.share_that_fits(free, self.previous);
            return at.saturating_sub(self.elapsed_ms);
        }
        // Within the next one, in which the current one is the previous.
        to_end + self.window_ms - self.share_that_fits(limit.saturating_sub(1), self.current)
    }

    /// The longest remainder of a window, in ms, in which `count` shrinks to at most `free`.
    fn share_that_fits(&self, free: u64, count: u64) -> u64 {
        (free * self.window_ms).checked_div(count).unwrap_or(self.window_ms).min(self.window_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_keeps_two_windows_and_rolls() {
        let counter = Counter::default();
        counter.add(100, 3);
        counter.add(101, 4);
        assert_eq!((counter.at(100), counter.at(101), counter.at(102)), (3, 4, 0));
        counter.add(102, 5);
        assert_eq!((counter.at(100), counter.at(101), counter.at(102)), (0, 4, 5));
        // A core whose clock is behind counts in what took the place.
        counter.add(100, 1);
        assert_eq!((counter.at(100), counter.at(102)), (0, 6));
        counter.set(100, 50);
        assert_eq!(counter.at(102), 6);
        counter.set(104, 50);
        assert_eq!((counter.at(102), counter.at(104)), (0, 50));
    }

    #[test]
    fn a_clock_that_was_set_back_blocks_nothing() {
        let counter = Counter::default();
        counter.add(1_000_000, 9);
        assert!(counter.add_one_if(100, |count| count == 0));
        assert_eq!((counter.at(100), counter.at(1_000_000)), (1, 0));
        counter.add(1_000_000, 9);
        counter.set(100, 2);
        assert_eq!(counter.at(100), 2);
    }

    #[test]
    fn counts_stop_at_their_ends() {
        let counter = Counter::default();
        counter.add(7, COUNT_MAX - 1);
        counter.add(7, u64::MAX);
        assert_eq!((counter.at(7), counter.at(6)), (COUNT_MAX, 0));
        assert_eq!(counter.take(7, 10), 0);
        assert_eq!(counter.take(7, COUNT_MAX), 10);
        assert_eq!(counter.at(7), 0);
        let full = Sliding {
            current: COUNT_MAX * 2,
            previous: COUNT_MAX * 2,
            elapsed_ms: 0,
            window_ms: 60_000,
        };
        assert!(!full.has_room(u64::MAX, 1));
        assert_eq!(full.remaining(u64::MAX), 0);
        assert!(full.room_in_ms(u64::MAX) <= 120_000);
    }

    #[test]
    fn several_threads_never_pass_a_bound_together() {
        let counter = Counter::default();
        let passed: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    let pass = || (0..500).filter(|_| counter.add_one_if(9, |n| n < 700)).count();
                    scope.spawn(pass)
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((passed, counter.at(9)), (700, 700));
    }
}
