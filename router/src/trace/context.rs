//! W3C Trace Context, level 1 (<https://www.w3.org/TR/trace-context-1/>): which trace a request belongs
//! to, and whether it is recorded.
//!
//! What a client sends is taken strictly: anything that is not a `traceparent` counts as absent.
//! It owns the generator of ids; the seed comes from outside. It records nothing.

use std::cell::Cell;
use std::fmt;

/// Length of a version 00 `traceparent`: `00-<32 hex>-<16 hex>-<2 hex>`.
pub const TRACEPARENT_BYTES: usize = 55;

/// A longer `tracestate` is dropped; the specification asks for at least this much to pass.
pub const TRACESTATE_BYTES_MAX: usize = 512;

/// The flag that says "the caller may have recorded this".
const FLAG_SAMPLED: u8 = 1;

/// Names a trace. Never zero. Prints as 32 lower-case hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

/// Names a span within its trace. Never zero. Prints as 16 lower-case hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId(u64);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl TraceId {
    /// The id of this number; zero, which is no id, becomes one.
    pub fn new(number: u128) -> Self {
        TraceId(number.max(1))
    }
}

impl SpanId {
    /// The id of this number; zero, which is no id, becomes one.
    pub fn new(number: u64) -> Self {
        SpanId(number.max(1))
    }

    /// The id of this span's `n`th child. Distinct for each `n`, so a request needs no generator.
    pub fn child(self, n: u64) -> Self {
        SpanId::new(mix(self.0.wrapping_add(n.wrapping_add(1).wrapping_mul(GAMMA))))
    }
}

/// What passes between two processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The span of the one who sends it: the receiver's parent.
    pub span_id: SpanId,
    /// Whether the sender records its spans.
    pub sampled: bool,
}

impl TraceContext {
    /// Reads a `traceparent`. A higher version is read as far as version 00 goes.
    pub fn parse(field: &[u8]) -> Option<Self> {
        let (known, rest) = field.split_at_checked(TRACEPARENT_BYTES)?;
        let version = hex(&known[..2])?;
        let may_go_on = version > 0 && rest.first() == Some(&b'-');
        if version == 0xff || !(rest.is_empty() || may_go_on) {
            return None;
        }
        if [2, 35, 52].iter().any(|&at| known[at] != b'-') {
            return None;
        }
        let (trace_id, span_id) = (hex(&known[3..35])?, hex(&known[36..52])?);
        let flags = hex(&known[53..])?;
        (trace_id != 0 && span_id != 0).then_some(TraceContext {
            trace_id: TraceId(trace_id),
            span_id: SpanId(span_id.try_into().ok()?),
            sampled: flags as u8 & FLAG_SAMPLED != 0,
        })
    }

    /// The `traceparent` to send. Flags beside *sampled* are zero, as level 1 asks.
    pub fn traceparent(&self) -> [u8; TRACEPARENT_BYTES] {
        let mut field = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&mut field[3..35], self.trace_id.0);
        write_hex(&mut field[36..52], self.span_id.0.into());
        field[54] += u8::from(self.sampled);
        field
    }
}

/// The number that lower-case hex digits spell; at most 32 of them.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

fn write_hex(out: &mut [u8], mut number: u128) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

/// A `tracestate` that may be passed on unchanged: printable, not empty, not over the limit. Only to
/// be asked for where the `traceparent` was good.
pub fn tracestate(field: &[u8]) -> Option<&str> {
    let fits = (1..=TRACESTATE_BYTES_MAX).contains(&field.len());
    let printable = field.iter().all(|b| matches!(b, b'\t' | 0x20..=0x7e));
    if fits && printable { std::str::from_utf8(field).ok() } else { None }
}

/// Where a request stands when it comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// The context of our own span.
    pub context: TraceContext,
    /// The caller's span, if there is one.
    pub parent: Option<SpanId>,
}

impl Begun {
    /// Goes on with the caller's trace, or begins one. A caller's flag decides about sampling;
    /// without a caller the ratio does.
    pub fn of(traceparent: Option<&[u8]>, sampler: Sampler, ids: &Ids) -> Self {
        let parent = traceparent.and_then(TraceContext::parse);
        let (fresh_trace, span_id) = ids.next();
        let trace_id = parent.map_or(fresh_trace, |parent| parent.trace_id);
        let sampled = parent.map_or_else(|| sampler.takes(trace_id), |parent| parent.sampled);
        Begun {
            context: TraceContext { trace_id, span_id, sampled },
            parent: parent.map(|parent| parent.span_id),
        }
    }
}

/// Takes a share of the traces, by their id alone: the same ones in every process (the SDKs'
/// `TraceIdRatioBased`).
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    bound: u64,
}

impl Sampler {
    /// Takes `ratio` of the traces: 0.0 none, 1.0 all.
    pub fn new(ratio: f64) -> Self {
        // A cast of a float saturates, and NaN is 0.
        Sampler { bound: (ratio * (1_u64 << 63) as f64) as u64 }
    }

    /// Whether it takes this one.
    pub fn takes(self, trace_id: TraceId) -> bool {
        (trace_id.0 as u64) >> 1 < self.bound
    }
}

/// Gives ids to one core. Two generators meet only where both halves of their seeds do.
#[derive(Debug)]
pub struct Ids {
    state: [Cell<u64>; 3],
}

impl Ids {
    /// `seed` must be random and different for each core and process.
    pub fn new(seed: [u64; 2]) -> Self {
        let [high, low] = seed;
        Ids { state: [high, low, mix(high ^ low.rotate_left(32))].map(Cell::new) }
    }

    /// Ids for a fresh trace and for a span of it.
    pub fn next(&self) -> (TraceId, SpanId) {
        let [high, low, span] = self.state.each_ref().map(|state| {
            state.set(state.get().wrapping_add(GAMMA));
            mix(state.get())
        });
        (TraceId::new(u128::from(high) << 64 | u128::from(low)), SpanId::new(span))
    }
}

/// The step of SplitMix64: 2^64 divided by the golden ratio.
pub(super) const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finalizer: a bijection, so distinct states give distinct numbers.
pub(super) fn mix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
