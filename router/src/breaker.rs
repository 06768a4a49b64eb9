//! The circuit breaker of one worker: whether it may be asked now. Shared by the cores, time comes in.
//!
//! It owns the memory of failures and the three states. It sends no probe itself and reads no clock.
//!
//! ```text
//!            failures in the window,              open_ms over
//!            or a refused connection             ┌────────────▶ half open ── successes_needed ──▶ closed
//! closed ─────────────────────────────▶ open ────┘                  │
//!                                        ▲                          │ one failure: open_ms doubles
//!                                        └──────────────────────────┘
//! ```
//!
//! Asking and reporting success cost one relaxed load each while nothing fails; the lock is for
//! failures, for half-open probes and for changes of state.
//!
//! Sources: the circuit breaker is Nygard's ("Release It!", 2007), half-open probes and the failure
//! window as in Hystrix and resilience4j, the share of failures so that a busy worker with a few errors
//! stays in, the jitter so that many routers do not probe at once.

mod config;
pub mod outlier;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

pub use config::{BreakerConfig, FAILURES_LIMIT};

/// An open breaker stays open up to one so many-th longer, by the seed.
const JITTER_PART: u64 = 8;

/// What went wrong with a worker. A refusal that is the client's fault (4xx) is none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The connection was refused or could not be made.
    Connect,
    /// Everything else: a broken or silent connection, nonsense, a 5xx.
    Answer,
}

/// Whether a worker may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// Yes.
    Yes,
    /// Yes, and the outcome decides: report success, failure, or [`Breaker::on_unknown`].
    Probe,
    /// Not before this time.
    No {
        /// Milliseconds on the caller's clock.
        until_ms: u64,
    },
}

/// The state, with the value of its metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Requests pass.
    Closed = 0,
    /// A few pass.
    HalfOpen = 1,
    /// None pass.
    Open = 2,
}

// The state word: as `State`, and closed with failures remembered.
const CLOSED: u8 = State::Closed as u8;
const HALF_OPEN: u8 = State::HalfOpen as u8;
const OPEN: u8 = State::Open as u8;
const CLOSED_MARKED: u8 = 3;

/// What only the lock may touch.
#[derive(Debug, Default)]
struct Memory {
    /// When the last failures were, and how many successes had been counted by then.
    failures: VecDeque<(u64, u64)>,
    /// How long it was open the last time; 0 after it closed.
    open_ms: u64,
    /// When the probes under way were let through.
    probes: VecDeque<u64>,
    /// Successes since it is half open.
    successes: u32,
}

/// The breaker of one worker.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    state: AtomicU8,
    /// While open: until when. While closed and marked: when the last failure is forgotten.
    until_ms: AtomicU64,
    /// Connections refused since the last success.
    refused: AtomicU32,
    /// Successes counted while failures are remembered.
    successes: AtomicU64,
    /// Times it opened, for a counter.
    opened: AtomicU64,
    memory: Mutex<Memory>,
}

impl Breaker {
    /// Closed.
    pub fn new(config: BreakerConfig) -> Self {
        Breaker {
            config,
            state: AtomicU8::new(CLOSED),
            until_ms: AtomicU64::new(0),
            refused: AtomicU32::new(0),
            successes: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            memory: Mutex::new(Memory::default()),
        }
    }

    /// Its state.
    pub fn state(&self) -> State {
        match self.state.load(Relaxed) {
            OPEN => State::Open,
            HALF_OPEN => State::HalfOpen,
            _ => State::Closed,
        }
    }

    /// How often it opened.
    pub fn opened(&self) -> u64 {
        self.opened.load(Relaxed)
    }

    /// Whether the worker would be asked, without taking a probe's place: for listing candidates.
    pub fn would_permit(&self, now_ms: u64) -> bool {
        match self.state.load(Relaxed) {
            OPEN => now_ms >= self.until_ms.load(Relaxed),
            HALF_OPEN => self.probe_place_at(&mut self.memory(), now_ms).is_none(),
            _ => true,
        }
    }

    /// Whether the worker may be asked now. [`Permit::Probe`] takes a place: ask for the worker that
    /// was picked, not for each candidate.
    pub fn permit(&self, now_ms: u64) -> Permit {
        let state = self.state.load(Relaxed);
        if state == CLOSED || state == CLOSED_MARKED {
            return Permit::Yes;
        }
        let until_ms = self.until_ms.load(Relaxed);
        if state == OPEN && now_ms < until_ms {
            return Permit::No { until_ms };
        }
        let mut memory = self.memory();
        match self.state.load(Relaxed) {
            OPEN if now_ms < self.until_ms.load(Relaxed) => {
                return Permit::No { until_ms: self.until_ms.load(Relaxed) };
            }
            OPEN => {
                memory.probes.clear();
                memory.successes = 0;
                self.state.store(HALF_OPEN, Relaxed);
            }
            HALF_OPEN => {}
            _ => return Permit::Yes,
        }
        if let Some(until_ms) = self.probe_place_at(&mut memory, now_ms) {
            return Permit::No { until_ms };
        }
        memory.probes.push_back(now_ms);
        Permit::Probe
    }

    /// The worker answered: its head came, and it was no failure of its own.
    pub fn on_success(&self, now_ms: u64) {
        match self.state.load(Relaxed) {
            CLOSED => {}
            CLOSED_MARKED => {
                self.refused.store(0, Relaxed);
                self.successes.fetch_add(1, Relaxed);
                if now_ms >= self.until_ms.load(Relaxed) {
                    self.forget(now_ms);
                }
            }
            HALF_OPEN => self.on_probe_success(),
            // From a request that began before it opened: old news.
            _ => {}
        }
    }

    /// The worker failed. `seed` spreads the next probes of several routers.
    pub fn on_failure(&self, kind: FailureKind, now_ms: u64, seed: u64) {
        let mut memory = self.memory();
        match self.state.load(Relaxed) {
            // The other requests that died with the worker: they must not make the pause longer.
            OPEN => {}
            HALF_OPEN => self.open(&mut memory, now_ms, seed),
            _ => {
                let refused = match kind {
                    FailureKind::Connect => self.refused.fetch_add(1, Relaxed).saturating_add(1),
                    FailureKind::Answer => 0,
                };
                self.remember(&mut memory, now_ms);
                if refused >= self.config.connect_failures_max.max(1) || self.is_failing(&memory) {
                    self.open(&mut memory, now_ms, seed);
                }
            }
        }
    }

    /// A probe ended without saying anything about the worker, as when its client hung up.
    pub fn on_unknown(&self) {
        if self.state.load(Relaxed) == HALF_OPEN {
            self.memory().probes.pop_front();
        }
    }

    /// Closes it at once: the engine was started anew, so what is remembered is of another process.
    pub fn reset(&self) {
        self.close(&mut self.memory());
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// When the next probe may go, if all places are taken; forgets probes nobody reported on.
    fn probe_place_at(&self, memory: &mut Memory, now_ms: u64) -> Option<u64> {
        let ends = |began: u64| began.saturating_add(self.config.probe_ms_max);
        while memory.probes.front().is_some_and(|began| now_ms >= ends(*began)) {
            memory.probes.pop_front();
        }
        let taken = memory.probes.len() >= self.config.half_open_probes.max(1) as usize;
        memory.probes.front().filter(|_| taken).map(|began| ends(*began))
    }

    fn on_probe_success(&self) {
        let mut memory = self.memory();
        if self.state.load(Relaxed) != HALF_OPEN {
            return;
        }
        memory.probes.pop_front();
        memory.successes += 1;
        if memory.successes >= self.config.successes_needed {
            self.close(&mut memory);
        }
    }

    fn remember(&self, memory: &mut Memory, now_ms: u64) {
        let limit = self.config.failures_max.clamp(1, FAILURES_LIMIT) as usize;
        let old = |at: u64| now_ms.saturating_sub(at) >= self.config.window_ms;
        while memory.failures.front().is_some_and(|(at, _)| old(*at)) {
            memory.failures.pop_front();
        }
        if memory.failures.len() == limit {
            memory.failures.pop_front();
        }
        memory.failures.push_back((now_ms, self.successes.load(Relaxed)));
        self.until_ms.store(now_ms.saturating_add(self.config.window_ms), Relaxed);
        self.state.store(CLOSED_MARKED, Relaxed);
    }

    /// Whether enough of the requests since the oldest remembered failure failed.
    fn is_failing(&self, memory: &Memory) -> bool {
        let failures = memory.failures.len();
        let Some((_, successes_before)) = memory.failures.front() else {
            return false;
        };
        let successes = self.successes.load(Relaxed).saturating_sub(*successes_before);
        let share = failures as f64 / (failures as f64 + successes as f64);
        failures >= self.config.failures_max.clamp(1, FAILURES_LIMIT) as usize
            && share >= self.config.failure_share_min
    }

    fn open(&self, memory: &mut Memory, now_ms: u64, seed: u64) {
        let longest = self.config.open_ms_max.max(1);
        memory.open_ms = match memory.open_ms {
            0 => self.config.open_ms.clamp(1, longest),
            last => last.saturating_mul(2).min(longest),
        };
        memory.failures.clear();
        memory.probes.clear();
        let jitter_ms = seed % (memory.open_ms / JITTER_PART + 1);
        let until_ms = now_ms.saturating_add(memory.open_ms).saturating_add(jitter_ms);
        self.until_ms.store(until_ms, Relaxed);
        self.refused.store(0, Relaxed);
        self.opened.fetch_add(1, Relaxed);
        self.state.store(OPEN, Relaxed);
    }

    fn close(&self, memory: &mut Memory) {
        *memory = Memory::default();
        self.refused.store(0, Relaxed);
        self.successes.store(0, Relaxed);
        self.state.store(CLOSED, Relaxed);
    }

    /// Back to the state in which a success costs one load.
    fn forget(&self, now_ms: u64) {
        let mut memory = self.memory();
        // Another core may have seen a failure meanwhile.
        if self.state.load(Relaxed) == CLOSED_MARKED && now_ms >= self.until_ms.load(Relaxed) {
            self.close(&mut memory);
        }
    }
}

#[cfg(test)]
mod tests;
