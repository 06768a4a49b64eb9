//! What may be written: a scan does not wear the device, nor does any client beyond a rate.
//!
//! Pure: time comes in.

use std::time::{Duration, Instant};

/// How often a block must have been asked for before it is worth its writing: once is a scan.
const TOUCHES_MIN: u8 = 2;
/// How much of the rate may be saved up: a burst of leaving blocks is written, an hour of it is not.
const BURST: Duration = Duration::from_secs(1);

/// The gate before one shard's writer.
#[derive(Debug)]
pub struct Admission {
    /// Bytes per second; none: no limit.
    rate: Option<u64>,
    /// Bytes that may be written now. Below zero after a block larger than what was there.
    saved: i128,
    last: Instant,
}

impl Admission {
    /// A gate for `rate` bytes per second, the burst saved up.
    pub fn new(rate: Option<u64>, now: Instant) -> Admission {
        let saved = rate.map_or(0, |rate| i128::from(rate) * BURST.as_millis() as i128 / 1000);
        Admission { rate, saved, last: now }
    }

    /// Another rate from here on. What was saved up at the old one counts up to the new one's burst.
    pub fn set_rate(&mut self, rate: Option<u64>) {
        self.rate = rate;
        let burst = rate.map_or(0, |rate| i128::from(rate) * BURST.as_millis() as i128 / 1000);
        self.saved = self.saved.min(burst);
    }

    /// Whether a block of `bytes` that was asked for `touches` times may be written; if so it counts.
    /// One that a client was promised is written in any case, and counts too.
    pub fn admits(&mut self, bytes: u64, touches: u8, is_promised: bool, now: Instant) -> bool {
        let Some(rate) = self.rate else { return is_promised || touches >= TOUCHES_MIN };
        let passed = now.saturating_duration_since(self.last).as_micros() as i128;
        let burst = i128::from(rate) * BURST.as_millis() as i128 / 1000;
        // What passed is counted when it is worth a byte, so that frequent calls lose nothing.
        let gained = passed.saturating_mul(i128::from(rate)) / 1_000_000;
        if gained > 0 {
            self.saved = (self.saved + gained).min(burst);
            self.last = now;
        }
        // A block larger than the burst would never fit: it goes when anything may, and is paid for.
        let is_admitted = is_promised || (touches >= TOUCHES_MIN && self.saved > 0);
        if is_admitted {
            self.saved -= i128::from(bytes);
        }
        is_admitted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_not_promised_stays_within_the_rate_the_burst_and_one_block(
            steps in proptest::collection::vec((0u64..50_000, 1u64..3_000_000), 1..200),
        ) {
            let (rate, start) = (10_000_000u64, Instant::now());
            let mut gate = Admission::new(Some(rate), start);
            let (mut now, mut written) = (start, 0u64);
            for (wait_us, bytes) in steps {
                now += Duration::from_micros(wait_us);
                if gate.admits(bytes, 2, false, now) {
                    written += bytes;
                }
                let allowed = (now - start).as_secs_f64() * rate as f64 + rate as f64 + 3e6;
                prop_assert!(written as f64 <= allowed);
            }
        }
    }

    #[test]
    fn a_scan_is_not_admitted_and_a_promise_is() {
        let now = Instant::now();
        for rate in [None, Some(1000)] {
            let mut gate = Admission::new(rate, now);
            assert!(!gate.admits(10, 0, false, now));
            assert!(!gate.admits(10, 1, false, now));
            assert!(gate.admits(10, 2, false, now));
            assert!(gate.admits(1 << 30, 0, true, now));
            assert_eq!(gate.admits(10, 9, false, now), rate.is_none());
        }
    }

    #[test]
    fn another_rate_holds_from_then_on() {
        let start = Instant::now();
        let mut gate = Admission::new(None, start);
        gate.set_rate(Some(1000));
        assert!(!gate.admits(10, 2, false, start), "nothing is saved up yet");
        assert!(gate.admits(10, 2, false, start + Duration::from_secs(1)));
        gate.set_rate(None);
        assert!(gate.admits(1 << 40, 2, false, start + Duration::from_secs(1)));
    }

    #[test]
    fn the_rate_comes_back_with_time_however_often_it_asks() {
        let start = Instant::now();
        let mut gate = Admission::new(Some(1000), start);
        assert!(gate.admits(2000, 2, false, start));
        let mut now = start;
        for _ in 0..1_100_000 {
            now += Duration::from_micros(1);
            if gate.admits(1, 2, false, now) {
                break;
            }
        }
        assert!(now - start > Duration::from_millis(999));
        assert!(now - start < Duration::from_millis(1100));
    }
}
