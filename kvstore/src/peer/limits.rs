//! How fast blocks leave: a bucket for all, one for each peer, one for each foreign cluster.
//!
//! Pure: time comes in, a wait comes out. A piece leaves when its buckets are not empty, and may be more than
//! is in them: the next one waits longer, so that the rate holds over time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Seconds of its rate that a bucket holds: bursts shorter than this are not held back.
const BURST_S: f64 = 0.05;
/// Foreign clusters with a bucket of their own; more share the last one's fate: they wait as one.
const FOREIGN_MAX: usize = 64;

/// A rate, and what of it is unused.
#[derive(Clone, Debug)]
pub struct Bucket {
    bytes_s: f64,
    level_bytes: f64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket; a rate of 0 is no limit.
    pub fn new(bytes_s: u64, now: Instant) -> Bucket {
        let bytes_s = bytes_s as f64;
        Bucket { bytes_s, level_bytes: bytes_s * BURST_S, filled: now }
    }

    /// How long to wait until something may leave.
    pub fn wait(&mut self, now: Instant) -> Duration {
        if self.bytes_s <= 0.0 {
            return Duration::ZERO;
        }
        let passed_s = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now;
        self.level_bytes = (self.level_bytes + passed_s * self.bytes_s).min(self.bytes_s * BURST_S);
        match self.level_bytes < 0.0 {
            // A nanosecond more, so that rounding does not bring the waiter back too early.
            true => {
                Duration::from_secs_f64(-self.level_bytes / self.bytes_s) + Duration::from_nanos(1)
            }
            false => Duration::ZERO,
        }
    }

    /// `bytes` leave now.
    pub fn spend(&mut self, bytes: u64) {
        if self.bytes_s > 0.0 {
            self.level_bytes -= bytes as f64;
        }
    }
}

/// Rates in bytes a second; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// To all peers together.
    pub total_bytes_s: u64,
    /// To one peer.
    pub peer_bytes_s: u64,
    /// To all peers of one foreign cluster together.
    pub foreign_bytes_s: u64,
}

/// What may leave to all; a peer's own bucket lives with its connection.
#[derive(Debug)]
pub struct Egress {
    rates: Rates,
    total: Bucket,
    foreign: BTreeMap<String, Bucket>,
}

impl Egress {
    /// Full buckets.
    pub fn new(rates: Rates, now: Instant) -> Egress {
        Egress { rates, total: Bucket::new(rates.total_bytes_s, now), foreign: BTreeMap::new() }
    }

    /// Other rates from here on; a peer's own bucket is to be made anew.
    pub fn set_rates(&mut self, rates: Rates, now: Instant) {
        if rates != self.rates {
            *self = Egress::new(rates, now);
        }
    }

    /// A bucket for one peer.
    pub fn peer_bucket(&self, now: Instant) -> Bucket {
        Bucket::new(self.rates.peer_bytes_s, now)
    }

    /// Whether nothing is limited to peers of this cluster (`foreign` is none) or of another.
    pub fn is_unlimited(&self, foreign: Option<&str>) -> bool {
        let Rates { total_bytes_s, peer_bytes_s, foreign_bytes_s } = self.rates;
        total_bytes_s == 0 && peer_bytes_s == 0 && (foreign.is_none() || foreign_bytes_s == 0)
    }

    /// Lets `bytes` go to one peer, of the foreign cluster named if it is of one; or says how long to wait
    /// before asking again. Who waits owes nothing, so one that gives up holds nobody back.
    ///
    /// # Errors
    /// The wait.
    pub fn take(
        &mut self,
        peer: &mut Bucket,
        foreign: Option<&str>,
        bytes: u64,
        now: Instant,
    ) -> Result<(), Duration> {
        let mut none = Bucket::new(0, now);
        let Egress { rates, total, foreign: clusters } = self;
        let cluster = match foreign {
            None => &mut none,
            Some(cluster) => {
                let is_own = clusters.len() < FOREIGN_MAX || clusters.contains_key(cluster);
                let name = if is_own { cluster } else { "" };
                let fresh = || Bucket::new(rates.foreign_bytes_s, now);
                clusters.entry(name.to_owned()).or_insert_with(fresh)
            }
        };
        let buckets = [total, peer, cluster];
        let wait = buckets.into_iter().map(|bucket| (bucket.wait(now), bucket));
        let buckets: Vec<(Duration, &mut Bucket)> = wait.collect();
        let wait = buckets.iter().map(|(wait, _)| *wait).max().unwrap_or_default();
        if !wait.is_zero() {
            return Err(wait);
        }
        buckets.into_iter().for_each(|(_, bucket)| bucket.spend(bytes));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn who_waits_as_told_never_exceeds_rate_and_burst(
            rate in 1_000u64..1_000_000,
            pieces in proptest::collection::vec(1u64..50_000, 1..80),
        ) {
            let start = Instant::now();
            let mut bucket = Bucket::new(rate, start);
            let mut now = start;
            let mut sent = 0;
            for piece in pieces {
                now += bucket.wait(now);
                prop_assert_eq!(bucket.wait(now), Duration::ZERO);
                let allowed = (now - start).as_secs_f64() * rate as f64 + rate as f64 * BURST_S;
                prop_assert!(sent as f64 <= allowed + 1.0, "{sent} of {allowed}");
                bucket.spend(piece);
                sent += piece;
            }
        }
    }

    #[test]
    fn each_limit_holds_back_its_own() {
        let now = Instant::now();
        let rates = Rates { total_bytes_s: 0, peer_bytes_s: 0, foreign_bytes_s: 1000 };
        let mut egress = Egress::new(rates, now);
        let mut peer = egress.peer_bucket(now);
        assert!(egress.is_unlimited(None) && !egress.is_unlimited(Some("east")));
        assert_eq!(egress.take(&mut peer, None, 1 << 30, now), Ok(()));
        assert_eq!(egress.take(&mut peer, Some("east"), 1050, now), Ok(()));
        let wait = egress.take(&mut peer, Some("east"), 1, now).unwrap_err();
        assert!(wait > Duration::from_millis(900) && wait < Duration::from_millis(1100));
        assert_eq!(egress.take(&mut peer, Some("west"), 50, now), Ok(()));
        assert_eq!(egress.take(&mut peer, Some("east"), 1, now + wait), Ok(()));
        for number in 0..200 {
            let _ = egress.take(&mut peer, Some(&format!("c{number}")), 1, now);
        }
        assert!(egress.foreign.len() <= FOREIGN_MAX + 1);
    }
}
