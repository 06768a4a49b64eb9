//! The prefill work that this router gave one worker, as all cores count and read it.
//!
//! The order of the work and what is left of it are [`dataplane::route::backlog`]'s.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use dataplane::route::backlog::{Backlog, Line};

/// A [`Backlog`] that the cores share: each part is exact, all together may be a moment apart. A decision
/// reads atomics; only who gives or takes holds the lock, twice a request.
#[derive(Default)]
pub struct SharedBacklog {
    line: Mutex<Line>,
    waiting: AtomicU32,
    given_us: AtomicU64,
    first_us: AtomicU64,
    since_ms: AtomicU64,
}

impl SharedBacklog {
    /// A request is given to the worker, whose prefill should take so long.
    pub fn give(&self, now_ms: u64, prefill_us: u64) {
        self.change(|line| line.give(now_ms, prefill_us));
    }

    /// The same request's first token came, or it went away without one.
    pub fn take(&self, now_ms: u64, prefill_us: u64) {
        self.change(|line| line.take(now_ms, prefill_us));
    }

    fn change(&self, change: impl FnOnce(&mut Line)) {
        // A panic while the lock is held ends the process, so poison is never seen.
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut line);
        self.waiting.store(line.waiting(), Relaxed);
        self.given_us.store(line.given_us(), Relaxed);
        self.first_us.store(line.first_us(), Relaxed);
        self.since_ms.store(line.since_ms(), Relaxed);
    }

    /// Requests that wait, and the µs their prefills were given.
    pub fn counted(&self) -> (u32, u64) {
        (self.waiting.load(Relaxed), self.given_us.load(Relaxed))
    }

    /// As it is now.
    pub fn load(&self) -> Backlog {
        Backlog {
            waiting: self.waiting.load(Relaxed),
            given_ms: self.given_us.load(Relaxed) as f64 / 1_000.0,
            first_ms: self.first_us.load(Relaxed) as f64 / 1_000.0,
            since_ms: self.since_ms.load(Relaxed) as f64,
        }
    }
}
