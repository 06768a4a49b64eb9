//! `[router.breaker]`: when a worker is left alone, and for how long.

use serde::{Deserialize, Serialize};

use super::outlier::OutlierConfig;

/// Failures remembered per worker at most, whatever `failures_max` says.
pub const FAILURES_LIMIT: u32 = 1_024;
/// `[router.breaker]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerConfig {
    /// So many failures within `window_ms` open it.
    pub failures_max: u32,
    /// How long a failure counts.
    pub window_ms: u64,
    /// It stays closed while less than this share of the requests since the oldest of these failed.
    pub failure_share_min: f64,
    /// So many connections refused in a row open it at once: a dead port needs no second opinion.
    pub connect_failures_max: u32,
    /// It stays open for this time, doubling with each failed probe.
    pub open_ms: u64,
    /// Up to this time.
    pub open_ms_max: u64,
    /// Requests let through at once while it is half open.
    pub half_open_probes: u32,
    /// A probe that nobody reported on makes room for the next after this time.
    pub probe_ms_max: u64,
    /// Successes in the half-open state that close it.
    pub successes_needed: u32,
    /// `[router.breaker.outlier]`
    pub outlier: OutlierConfig,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        BreakerConfig {
            failures_max: 5,
            window_ms: 10_000,
            failure_share_min: 0.1,
            connect_failures_max: 1,
            open_ms: 1_000,
            open_ms_max: 30_000,
            half_open_probes: 1,
            probe_ms_max: 30_000,
            successes_needed: 2,
            outlier: OutlierConfig::default(),
        }
    }
}

impl BreakerConfig {
    /// The first key that makes no sense, and what it must be.
    pub fn invalid(&self) -> Option<(&'static str, &'static str)> {
        let counts = [
            ("failures_max", self.failures_max),
            ("connect_failures_max", self.connect_failures_max),
            ("half_open_probes", self.half_open_probes),
            ("successes_needed", self.successes_needed),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, n)| !(1..=FAILURES_LIMIT).contains(n)) {
            return Some((key, "must be between 1 and 1024"));
        }
        if !(0.0..=1.0).contains(&self.failure_share_min) {
            return Some(("failure_share_min", "must be between 0 and 1"));
        }
        if self.open_ms == 0 || self.open_ms > self.open_ms_max {
            return Some(("open_ms", "must be between 1 and open_ms_max"));
        }
        self.outlier.invalid()
    }
}
