//! The limits of one tenant: requests and tokens a minute, requests at once, tokens a day.
//!
//! A [`Meter`] is shared by all cores; every change is a few atomic operations and nobody waits.
//! Time comes in as Unix milliseconds. Two fixed windows of a minute stand for a sliding one
//! (`window`): the current count plus the share of the previous one that is still inside. Within a
//! clock minute no more than the limit is admitted. Within any other 60 s it may be more by at most
//! `previous × elapsed share of the minute`, so less than twice the limit, when the previous minute's
//! traffic came all at its end.
//!
//! Tokens are known when an answer ends. A request begins while one more token fits; requests that
//! run then may take more than was left, unless an estimate was charged before.
//!
//! # Several routers
//! Windows are numbered by Unix time, so counts of several routers can be added. Each router
//! reports its own usage ([`Meter::report`]) and takes in the sum of the others' ([`Meter::absorb`]);
//! limits hold for both together. Between two exchanges a router does not see what the others admit:
//! the overshoot is at most (routers − 1) × what one of them admits in about a second (see
//! [`follow`](crate::follow)), and never more than (routers − 1) × the limit. Usage of others that was
//! not refreshed for [`OTHERS_FRESH_MS`] is forgotten: then each router applies the limits alone.

mod window;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use dataplane::wire::TenantUsage;

pub use window::COUNT_MAX;
use window::{Counter, Sliding};

/// Length of a window of requests and tokens: a minute, in ms.
pub const WINDOW_MS: u64 = 60_000;
/// Length of a window of the budget: a UTC day, in ms.
pub const DAY_MS: u64 = 86_400_000;
/// Usage of the other routers counts for so long after it came: twenty exchanges.
pub const OTHERS_FRESH_MS: u64 = 10_000;
/// Nobody can know when one of the running requests ends; a second is a polite guess.
const CONCURRENCY_RETRY_S: u64 = 1;

/// What a tenant may use. 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests in a minute.
    pub requests_per_minute: u64,
    /// Prompt and completion tokens in a minute.
    pub tokens_per_minute: u64,
    /// Requests at once.
    pub concurrent_requests_max: u32,
    /// Prompt and completion tokens in a UTC day.
    pub tokens_per_day: u64,
}

/// Which limit a request met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitKind {
    /// Requests in a minute.
    Requests,
    /// Tokens in a minute.
    Tokens,
    /// Requests at once.
    Concurrency,
    /// Tokens in a day.
    Budget,
}

impl LimitKind {
    /// The configuration key, which is also the label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            LimitKind::Requests => "requests_per_minute",
            LimitKind::Tokens => "tokens_per_minute",
            LimitKind::Concurrency => "concurrent_requests_max",
            LimitKind::Budget => "tokens_per_day",
        }
    }
}

/// A request that is over a limit. Nothing was counted for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the limit {} = {limit} is reached; try again in {retry_after_s} s", kind.as_str())]
pub struct LimitError {
    /// Which.
    pub kind: LimitKind,
    /// Its value.
    pub limit: u64,
    /// After so many seconds without further traffic of the tenant there is room again. For
    /// [`LimitKind::Concurrency`] it is a guess.
    pub retry_after_s: u64,
}

/// One limit as `x-ratelimit-*` headers show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// The limit.
    pub limit: u64,
    /// What is left of it now.
    pub remaining: u64,
    /// In how many ms all of it is there again, without further traffic.
    pub reset_ms: u64,
}

/// What a client is told of its limits; `None` where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimitView {
    /// `x-ratelimit-{limit,remaining,reset}-requests`
    pub requests: Option<Allowance>,
    /// `x-ratelimit-{limit,remaining,reset}-tokens`
    pub tokens: Option<Allowance>,
}

/// Counts of one router, or of the others together.
#[derive(Debug, Default)]
struct Usage {
    requests: Counter,
    tokens: Counter,
    day_tokens: Counter,
    running: AtomicU32,
}

#[derive(Debug, Default)]
struct Counts {
    own: Usage,
    others: Usage,
    /// When `others` came last, in Unix ms; 0 is never.
    absorbed_ms: AtomicU64,
}

/// A tenant's limits and what it used of them.
#[derive(Debug)]
pub struct Meter {
    limits: Limits,
    counts: Arc<Counts>,
}

impl Meter {
    /// A meter at zero.
    pub fn new(limits: Limits) -> Self {
        Meter { limits, counts: Arc::default() }
    }

    /// The same counts under other limits: for a tenant whose configuration changed. Requests that
    /// began with the old meter end in the new one's counts.
    #[must_use]
    pub fn with_limits(&self, limits: Limits) -> Self {
        Meter { limits, counts: Arc::clone(&self.counts) }
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Takes one request and one place, or nothing. [`release`](Self::release) or
    /// [`finish`](Self::finish) must follow.
    ///
    /// # Errors
    /// The first limit that has no room.
    pub fn begin(&self, now_ms: u64) -> Result<(), LimitError> {
        self.check_tokens(now_ms)?;
        self.take_place(now_ms)?;
        let limit = self.limits.requests_per_minute;
        let minute = now_ms / WINDOW_MS;
        let taken = self.counts.own.requests.add_one_if(minute, |own| {
            let mut sliding = self.sliding(now_ms, |usage| &usage.requests);
            // What was read of the current window may be older than what is compared against.
            sliding.current = own + self.others(now_ms).map_or(0, |o| o.requests.at(minute));
            limit == 0 || sliding.has_room(limit, 1)
        });
        if taken {
            return Ok(());
        }
        self.release();
        let wait_ms = self.sliding(now_ms, |usage| &usage.requests).room_in_ms(limit);
        Err(over(LimitKind::Requests, limit, wait_ms))
    }

    /// Counts tokens, or takes back what was counted too many by an estimate (negative). What the
    /// current minute cannot give back is taken from the one before.
    pub fn charge(&self, now_ms: u64, tokens: i64) {
        let (minute, day) = (now_ms / WINDOW_MS, now_ms / DAY_MS);
        let own = &self.counts.own;
        let count = tokens.unsigned_abs();
        if tokens >= 0 {
            own.tokens.add(minute, count);
            own.day_tokens.add(day, count);
            return;
        }
        let rest = own.tokens.take(minute, count);
        if rest > 0 && own.tokens.at(minute.wrapping_sub(1)) > 0 {
            own.tokens.take(minute.wrapping_sub(1), rest);
        }
        own.day_tokens.take(day, count);
    }

    /// Gives the place back, for a request whose tokens were charged already or that had none.
    pub fn release(&self) {
        // An extra release must not open the gate for four billion requests.
        let _ = self
            .counts
            .own
            .running
            .fetch_update(Relaxed, Relaxed, |running| running.checked_sub(1));
    }

    /// Counts the tokens of a request that ended, and gives its place back.
    pub fn finish(&self, now_ms: u64, tokens: u64) {
        self.charge(now_ms, i64::try_from(tokens).unwrap_or(i64::MAX));
        self.release();
    }

    /// What to tell the client.
    pub fn headers(&self, now_ms: u64) -> RateLimitView {
        let view = |limit: u64, of: fn(&Usage) -> &Counter| {
            let sliding = self.sliding(now_ms, of);
            (limit > 0).then(|| Allowance {
                limit,
                remaining: sliding.remaining(limit),
                reset_ms: sliding.empty_in_ms(),
            })
        };
        RateLimitView {
            requests: view(self.limits.requests_per_minute, |usage| &usage.requests),
            tokens: view(self.limits.tokens_per_minute, |usage| &usage.tokens),
        }
    }

    /// This router's own usage, for the others.
    pub fn report(&self, tenant: &str, now_ms: u64) -> TenantUsage {
        let (minute, day) = (now_ms / WINDOW_MS, now_ms / DAY_MS);
        let own = &self.counts.own;
        TenantUsage {
            tenant: tenant.to_owned(),
            minute,
            requests: own.requests.at(minute),
            requests_before: own.requests.at(minute.wrapping_sub(1)),
            tokens: own.tokens.at(minute),
            tokens_before: own.tokens.at(minute.wrapping_sub(1)),
            day,
            day_tokens: own.day_tokens.at(day),
            running: own.running.load(Relaxed),
        }
    }

    /// Takes the sum of the other routers' usage. A window that is further from ours than one is
    /// left out: a router with a wrong clock must not count here.
    pub fn absorb(&self, now_ms: u64, others: &TenantUsage) {
        let counts = &self.counts.others;
        if others.minute.abs_diff(now_ms / WINDOW_MS) <= 1 {
            let before = others.minute.wrapping_sub(1);
            counts.requests.set(before, others.requests_before);
            counts.tokens.set(before, others.tokens_before);
            counts.requests.set(others.minute, others.requests);
            counts.tokens.set(others.minute, others.tokens);
        }
        if others.day.abs_diff(now_ms / DAY_MS) <= 1 {
            counts.day_tokens.set(others.day, others.day_tokens);
        }
        counts.running.store(others.running, Relaxed);
        self.counts.absorbed_ms.store(now_ms.max(1), Relaxed);
    }

    /// Whether there were other routers and nothing was heard of them for [`OTHERS_FRESH_MS`]:
    /// limits then hold for this router alone.
    pub fn is_alone(&self, now_ms: u64) -> bool {
        self.counts.absorbed_ms.load(Relaxed) != 0 && self.others(now_ms).is_none()
    }

    /// Requests running here now.
    pub fn running(&self) -> u32 {
        self.counts.own.running.load(Relaxed)
    }

    fn others(&self, now_ms: u64) -> Option<&Usage> {
        let absorbed_ms = self.counts.absorbed_ms.load(Relaxed);
        (absorbed_ms != 0 && now_ms.saturating_sub(absorbed_ms) <= OTHERS_FRESH_MS)
            .then_some(&self.counts.others)
    }

    fn at(&self, now_ms: u64, number: u64, of: impl Fn(&Usage) -> &Counter) -> u64 {
        of(&self.counts.own).at(number) + self.others(now_ms).map_or(0, |o| of(o).at(number))
    }

    fn sliding(&self, now_ms: u64, of: impl Fn(&Usage) -> &Counter) -> Sliding {
        let minute = now_ms / WINDOW_MS;
        Sliding {
            current: self.at(now_ms, minute, &of),
            previous: self.at(now_ms, minute.wrapping_sub(1), &of),
            elapsed_ms: now_ms % WINDOW_MS,
            window_ms: WINDOW_MS,
        }
    }

    fn check_tokens(&self, now_ms: u64) -> Result<(), LimitError> {
        let limit = self.limits.tokens_per_day;
        if limit > 0 && self.at(now_ms, now_ms / DAY_MS, |usage| &usage.day_tokens) >= limit {
            return Err(over(LimitKind::Budget, limit, DAY_MS - now_ms % DAY_MS));
        }
        let limit = self.limits.tokens_per_minute;
        if limit > 0 {
            let sliding = self.sliding(now_ms, |usage| &usage.tokens);
            if !sliding.has_room(limit, 1) {
                return Err(over(LimitKind::Tokens, limit, sliding.room_in_ms(limit)));
            }
        }
        Ok(())
    }

    fn take_place(&self, now_ms: u64) -> Result<(), LimitError> {
        let limit = self.limits.concurrent_requests_max;
        let others = self.others(now_ms).map_or(0, |usage| usage.running.load(Relaxed));
        self.counts
            .own
            .running
            .fetch_update(Relaxed, Relaxed, |running| {
                (limit == 0 || running.saturating_add(others) < limit)
                    .then(|| running.saturating_add(1))
            })
            .map(|_| ())
            .map_err(|_| LimitError {
                kind: LimitKind::Concurrency,
                limit: u64::from(limit),
                retry_after_s: CONCURRENCY_RETRY_S,
            })
    }
}

fn over(kind: LimitKind, limit: u64, wait_ms: u64) -> LimitError {
    LimitError { kind, limit, retry_after_s: wait_ms.div_ceil(1_000).max(1) }
}

#[cfg(test)]
mod tests;
