//! The prefill work in front of a worker, as far as its router can know it: what it gave, less what first
//! tokens say is done. One value for one worker; the caller keeps it, shared or not.

/// Work given to a worker whose first tokens have not come. Times are ms of one clock.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    /// Requests that wait for their first token.
    pub waiting: u32,
    /// What their prefills were expected to take when they were given, in ms.
    pub given_ms: f64,
    /// Since when the first of them can be at work: the last first token there, or when it came to a
    /// worker that had nothing to do.
    pub since_ms: f64,
}

impl Backlog {
    /// A request is given to the worker.
    pub fn give(&mut self, now_ms: f64, prefill_ms: f64) {
        if self.waiting == 0 {
            *self = Backlog { waiting: 0, given_ms: 0.0, since_ms: now_ms };
        }
        self.waiting = self.waiting.saturating_add(1);
        self.given_ms += prefill_ms;
    }

    /// Its first token came, or it went away without one.
    pub fn take(&mut self, now_ms: f64, prefill_ms: f64) {
        self.waiting = self.waiting.saturating_sub(1);
        self.given_ms = (self.given_ms - prefill_ms).max(0.0);
        self.since_ms = now_ms;
    }

    /// Work that is left, in ms.
    ///
    /// Which request runs is not seen, so it is taken to be as long as they are on average, and to be at
    /// most half done: an engine slower than expected has not finished because it should have.
    pub fn left_ms(&self, now_ms: f64) -> f64 {
        if self.waiting == 0 {
            return 0.0;
        }
        let half_ms = self.given_ms / f64::from(self.waiting) / 2.0;
        self.given_ms - (now_ms - self.since_ms).clamp(0.0, half_ms.max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_runs_counts_less_as_it_goes_on_but_never_nothing() {
        let mut backlog = Backlog::default();
        backlog.give(1_000.0, 100.0);
        backlog.give(1_010.0, 300.0);
        assert_eq!(backlog.left_ms(1_000.0), 400.0);
        assert_eq!(backlog.left_ms(1_040.0), 360.0);
        assert_eq!(backlog.left_ms(9_000.0), 300.0);
        backlog.take(1_200.0, 100.0);
        assert_eq!(backlog.left_ms(1_200.0), 300.0);
        backlog.take(1_300.0, 300.0);
        assert_eq!(backlog.left_ms(1_300.0), 0.0);
    }

    proptest! {
        #[test]
        fn whatever_comes_and_goes_it_ends_empty_and_is_never_negative(
            works in prop::collection::vec((0f64..1e6, 0f64..1e6), 0..20),
        ) {
            let mut backlog = Backlog::default();
            let mut now_ms = 0.0;
            for (wait_ms, work_ms) in &works {
                now_ms += wait_ms;
                backlog.give(now_ms, *work_ms);
                let sum: f64 = backlog.given_ms;
                prop_assert!((0.0..=sum).contains(&backlog.left_ms(now_ms + wait_ms)));
            }
            for (wait_ms, work_ms) in works.iter().rev() {
                now_ms += wait_ms;
                backlog.take(now_ms, *work_ms);
                prop_assert!(backlog.left_ms(now_ms) >= 0.0);
            }
            prop_assert_eq!(backlog.waiting, 0);
            prop_assert_eq!(backlog.left_ms(now_ms), 0.0);
        }
    }
}
