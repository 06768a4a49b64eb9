//! When a batch of spans is sent, sent again or given up. A state machine: events and times in, bodies
//! out; whoever calls it does the POST.
//!
//! It owns the one batch under way. A batch is tried [`TRIES_MAX`] times, with a delay that doubles
//! and a bit of chance in it; the collector's `Retry-After` is kept to within [`RETRY_AFTER_MAX`].
//! The rules are those of OTLP/HTTP: 429, 502, 503 and 504 are tried again, any other refusal is not,
//! and a partial success is never sent twice.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::TraceConfig;
use super::context::{GAMMA, mix};
use super::otlp::{Resource, encode, rejected};
use super::outbox::Outbox;

/// Tries of one batch: about half a minute, then newer spans are worth more.
pub const TRIES_MAX: u32 = 5;
/// The delay after the first failure.
pub const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// Where the delay stops doubling.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A collector that asks for more is asked again after this time.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// What became of spans, for the counters. Both zero while a batch will be tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Accepted by the collector.
    pub sent: u64,
    /// Refused by it, or given up.
    pub lost: u64,
}

/// The state machine.
#[derive(Debug)]
pub struct Delivery {
    resource: Resource,
    batch_spans_max: usize,
    interval: Duration,
    batch: Option<Batch>,
    is_under_way: bool,
    is_closing: bool,
    /// Since when a batch that is not full waits.
    waiting_since: Option<Instant>,
    not_before: Option<Instant>,
    /// Failures since the last success, over all batches.
    failures: u32,
    chance: u64,
}

#[derive(Debug)]
struct Batch {
    body: Bytes,
    spans: u64,
    tries: u32,
}

impl Delivery {
    /// `seed` spreads the retries of several routers.
    pub fn new(config: &TraceConfig, resource: Resource, seed: u64) -> Self {
        Delivery {
            resource,
            batch_spans_max: config.batch_spans_max,
            interval: Duration::from_millis(config.interval_ms),
            batch: None,
            is_under_way: false,
            is_closing: false,
            waiting_since: None,
            not_before: None,
            failures: 0,
            chance: seed,
        }
    }

    /// Whether a POST is due while `queued` spans wait.
    pub fn wants_send(&mut self, now: Instant, queued: usize) -> bool {
        if self.is_under_way || self.not_before.is_some_and(|time| now < time) {
            return false;
        }
        if self.batch.is_some() {
            return true;
        }
        if queued == 0 {
            self.waiting_since = None;
            return false;
        }
        let since = *self.waiting_since.get_or_insert(now);
        self.is_closing
            || queued >= self.batch_spans_max
            || now.saturating_duration_since(since) >= self.interval
    }

    /// The body to POST now, if one is due. Afterwards exactly one of [`Delivery::sent`] and
    /// [`Delivery::failed`] is to be called.
    pub fn next_body(&mut self, now: Instant, outbox: &Outbox) -> Option<Bytes> {
        if !self.wants_send(now, outbox.len()) {
            return None;
        }
        if self.batch.is_none() {
            let spans = outbox.take(self.batch_spans_max);
            let body = encode(&self.resource, &spans).into();
            self.batch = Some(Batch { body, spans: spans.len() as u64, tries: 0 });
            self.waiting_since = None;
        }
        let batch = self.batch.as_mut()?;
        batch.tries += 1;
        self.is_under_way = true;
        Some(batch.body.clone())
    }

    /// The collector answered. `body` is its answer's, as much of it as was read.
    pub fn sent(
        &mut self,
        now: Instant,
        status: u16,
        retry_after_s: Option<u64>,
        body: &[u8],
    ) -> Settled {
        match status {
            200..=299 => {
                self.failures = 0;
                self.not_before = None;
                let spans = self.settle();
                let lost = rejected(body).min(spans);
                Settled { sent: spans - lost, lost }
            }
            429 | 502..=504 => self.again(now, retry_after_s.map(Duration::from_secs)),
            _ => {
                // It would refuse the same bytes again; the next batch is no reason to hurry.
                self.back_off(now, None);
                Settled { sent: 0, lost: self.settle() }
            }
        }
    }

    /// There was no answer: refused, broken or too late.
    pub fn failed(&mut self, now: Instant) -> Settled {
        self.again(now, None)
    }

    /// The process is about to end: what waits is due at once, and no delay is kept.
    pub fn close(&mut self) {
        self.is_closing = true;
        self.not_before = None;
    }

    fn again(&mut self, now: Instant, retry_after: Option<Duration>) -> Settled {
        self.back_off(now, retry_after);
        let is_last = self.batch.as_ref().is_none_or(|batch| batch.tries >= TRIES_MAX);
        if is_last || self.is_closing {
            return Settled { sent: 0, lost: self.settle() };
        }
        self.is_under_way = false;
        Settled::default()
    }

    fn back_off(&mut self, now: Instant, retry_after: Option<Duration>) {
        let doubled = BACKOFF_MIN * (1 << self.failures.min(5));
        self.failures = self.failures.saturating_add(1);
        self.chance = self.chance.wrapping_add(GAMMA);
        // Between three and five quarters of it.
        let share = 0.75 + (mix(self.chance) % 1_024) as f64 / 2_048.0;
        let own = doubled.min(BACKOFF_MAX).mul_f64(share);
        let asked = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        self.not_before = Some(now + own.max(asked));
    }

    /// Lets go of the batch.
    fn settle(&mut self) -> u64 {
        self.is_under_way = false;
        self.batch.take().map_or(0, |batch| batch.spans)
    }
}

#[cfg(test)]
mod tests;
