//! Whether a client sends its request fast enough. A limit on the silence between two bytes alone lets
//! one byte a minute hold a connection for ever.
//!
//! Decides only: the readers say when a request began and what has come of it.

use std::time::{Duration, Instant};

/// Beyond the first `client_stall_s_max` a body must come at so many bytes a second on average: slower
/// than any line a person would use, and 32 MiB still end within 70 minutes.
pub const BODY_BYTES_PER_S_MIN: u64 = 8 << 10;

/// The time one request takes to come.
#[derive(Debug)]
pub struct Pace {
    since: Option<Instant>,
    grace: Duration,
}

impl Pace {
    /// A request of which nothing has come; a head has `grace` as a whole.
    pub fn new(grace: Duration) -> Self {
        Pace { since: None, grace }
    }

    /// Time counts from the first call on. Not made for a request that comes in one piece, so that it
    /// need not look at the clock.
    pub fn begin(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// Whether the client is too slow, with `body_bytes` of the body here.
    pub fn is_too_slow(&self, body_bytes: usize, now: Instant) -> bool {
        let Some(since) = self.since else { return false };
        let earned = Duration::from_millis(body_bytes as u64 * 1_000 / BODY_BYTES_PER_S_MIN);
        now.saturating_duration_since(since) > self.grace + earned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_has_the_grace_and_a_body_as_much_as_it_brings() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let mut pace = Pace::new(Duration::from_secs(60));
        assert!(!pace.is_too_slow(0, after(1_000)), "not begun");
        pace.begin(begin);
        pace.begin(after(50));
        assert!(!pace.is_too_slow(0, after(60)));
        assert!(pace.is_too_slow(0, after(61)));
        let two_seconds = 2 * BODY_BYTES_PER_S_MIN as usize;
        assert!(!pace.is_too_slow(two_seconds, after(62)));
        assert!(pace.is_too_slow(two_seconds, after(63)));
    }
}
