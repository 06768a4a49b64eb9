//! Finished spans that wait for the collector, shared by all cores.
//!
//! It owns the queue and its bound. A request goes in whole or not at all; when the queue is full the
//! newest request is dropped and counted, so what is sent stays a piece of time without holes.
//! Only sampled requests touch the lock. It does not send.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::span::Span;

/// The queue.
#[derive(Debug)]
pub struct Outbox {
    spans: Mutex<Vec<Span>>,
    spans_max: usize,
    dropped: AtomicU64,
}

impl Outbox {
    /// A queue of at most `spans_max`.
    pub fn new(spans_max: usize) -> Self {
        Outbox { spans: Mutex::default(), spans_max, dropped: AtomicU64::new(0) }
    }

    /// Takes the spans of one request, if all of them find room.
    pub fn put(&self, request: Vec<Span>) {
        let mut spans = self.lock();
        if request.len() <= self.spans_max - spans.len() {
            spans.extend(request);
        } else {
            self.dropped.fetch_add(request.len() as u64, Relaxed);
        }
    }

    /// The oldest spans, at most `spans_max` of them.
    pub fn take(&self, spans_max: usize) -> Vec<Span> {
        let mut spans = self.lock();
        let count = spans.len().min(spans_max);
        spans.drain(..count).collect()
    }

    /// Spans that wait.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Spans dropped for want of room since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// A thread that died with the lock left a whole queue: nothing above can stop half-way.
    fn lock(&self) -> MutexGuard<'_, Vec<Span>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::context::{SpanId, TraceId};
    use super::super::span::Kind;
    use super::*;

    /// Spans whose names are their numbers.
    pub(in super::super) fn spans(numbers: std::ops::Range<usize>) -> Vec<Span> {
        let span = |number: usize| Span {
            trace_id: TraceId::new(1),
            span_id: SpanId::new(number as u64),
            parent: None,
            parent_is_remote: false,
            tracestate: None,
            name: number.to_string(),
            kind: Kind::Internal,
            start_unix_ns: 0,
            end_unix_ns: 0,
            attributes: Vec::new(),
            events: Vec::new(),
            failure: None,
        };
        numbers.map(span).collect()
    }

    #[test]
    fn a_request_goes_in_whole_or_not_at_all() {
        let outbox = Outbox::new(5);
        outbox.put(spans(0..3));
        outbox.put(spans(3..6));
        assert_eq!((outbox.len(), outbox.dropped()), (3, 3));
        outbox.put(spans(6..8));
        outbox.put(spans(8..9));
        assert_eq!((outbox.len(), outbox.dropped()), (5, 4));
    }

    #[test]
    fn the_oldest_leave_first() {
        let outbox = Outbox::new(5);
        outbox.put(spans(0..5));
        let names = |spans: Vec<Span>| spans.into_iter().map(|s| s.name).collect::<Vec<_>>();
        assert_eq!(names(outbox.take(2)), ["0", "1"]);
        assert_eq!(names(outbox.take(9)), ["2", "3", "4"]);
        assert!(outbox.is_empty());
        assert!(outbox.take(9).is_empty());
    }
}
