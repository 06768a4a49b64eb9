//! The only reader of the time in this crate's control process.
//!
//! Everything that decides takes `now_ms` as an argument. The value never goes back within one life
//! of the process, and means the same to the next life, so "last seen" survives a restart.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch at the start, counted on with the monotonic clock.
#[derive(Debug)]
pub struct Clock {
    started: Instant,
    started_unix_ms: u64,
}

impl Clock {
    /// Starts counting from the system's time.
    pub fn start() -> Clock {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started_unix_ms = u64::try_from(unix.as_millis()).unwrap_or(u64::MAX);
        Clock { started: Instant::now(), started_unix_ms }
    }

    /// Now.
    pub fn now_ms(&self) -> u64 {
        let passed_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.started_unix_ms.saturating_add(passed_ms)
    }
}
