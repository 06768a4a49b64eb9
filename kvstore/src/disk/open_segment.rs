//! A segment that is being written: who wrote what, what is durable, what failed.
//!
//! Writes to it overlap, but they become durable in the order of their places: a reader of the segment
//! after a crash stops nowhere before an acknowledged record. One waiter makes the device durable for
//! all whose writes have ended.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::device::Device;
use super::place::{Place, Segment};
use super::tier::{Intent, Tier, count};
use crate::key::Key;
use crate::signal::Signal;

/// Bytes of the segment's own first page, in pages.
const FIRST_RECORD_PAGE: u32 = 1;
/// The mark of a segment that is complete: nothing is to be looked for behind its last record.
pub const MARK_COMPLETE: u32 = u32::MAX;

#[derive(Debug)]
struct Ticket {
    end: u32,
    is_written: bool,
    key: Key,
    place: Place,
    intent: Intent,
}

#[derive(Debug)]
struct State {
    next_page: u32,
    /// Writes that are not durable, by place.
    tickets: VecDeque<Ticket>,
    durable_to: u32,
    /// From this page on all is lost: the first write that failed.
    failed_from: Option<u32>,
    errno: Option<i32>,
    is_syncing: bool,
    /// The index missed a change, so it must not be told that it has everything.
    has_gap: bool,
}

/// See the head of the file. The segment is complete when the last share of this is dropped.
#[derive(Debug)]
pub struct OpenSegment {
    tier: Arc<Tier>,
    segment: Segment,
    sequence: u64,
    pages: u32,
    state: RefCell<State>,
    changed: Signal,
}

/// What a waiter finds.
enum Look {
    Durable,
    Failed,
    /// It makes durable all up to this page.
    Lead(u32),
    Wait,
}

impl OpenSegment {
    /// A segment of `pages` pages whose first page is written.
    pub fn new(tier: Arc<Tier>, segment: Segment, sequence: u64, pages: u32) -> OpenSegment {
        let state = State {
            next_page: FIRST_RECORD_PAGE,
            tickets: VecDeque::new(),
            durable_to: FIRST_RECORD_PAGE,
            failed_from: None,
            errno: None,
            is_syncing: false,
            has_gap: false,
        };
        let (state, changed) = (RefCell::new(state), Signal::default());
        OpenSegment { tier, segment, sequence, pages, state, changed }
    }

    /// The segment.
    pub fn segment(&self) -> Segment {
        self.segment
    }

    /// Room for a record of `span` pages, which takes `intent`; none when it does not fit or a write has
    /// failed.
    pub fn take(
        &self,
        span: u32,
        key: Key,
        version: u64,
        len: u64,
        intent: &mut Option<Intent>,
    ) -> Option<Held<'_>> {
        let mut state = self.state.borrow_mut();
        let page = state.next_page;
        let end = page.checked_add(span).filter(|&end| end <= self.pages);
        let end = end.filter(|_| state.failed_from.is_none())?;
        let intent = intent.take()?;
        let (segment, sequence) = (self.segment, self.sequence);
        let place = Place { segment, sequence, page, version, len };
        state.tickets.push_back(Ticket { end, is_written: false, key, place, intent });
        state.next_page = end;
        Some(Held { open: self, place, end, is_written: false })
    }

    fn fail(&self, from: u32, error: Option<&io::Error>) {
        let mut state = self.state.borrow_mut();
        if from >= state.durable_to && state.failed_from.is_none_or(|first| from < first) {
            state.failed_from = Some(from);
            state.errno = error.and_then(io::Error::raw_os_error);
        }
        drop(state);
        self.changed.ring();
    }

    fn note_written(&self, place: &Place) {
        let mut state = self.state.borrow_mut();
        if let Some(ticket) = state.tickets.iter_mut().find(|ticket| ticket.place == *place) {
            ticket.is_written = true;
        }
        drop(state);
        self.changed.ring();
    }

    fn look(&self, page: u32, end: u32) -> Look {
        let mut state = self.state.borrow_mut();
        if state.durable_to >= end {
            return Look::Durable;
        }
        if state.failed_from.is_some_and(|from| from <= page) {
            return Look::Failed;
        }
        if state.is_syncing {
            return Look::Wait;
        }
        let written = state.tickets.iter().take_while(|ticket| ticket.is_written).last();
        match written.map(|ticket| ticket.end) {
            Some(to) if to >= end => {
                state.is_syncing = true;
                Look::Lead(to)
            }
            _ => Look::Wait,
        }
    }

    fn synced(&self, to: u32) {
        let mut state = self.state.borrow_mut();
        while let Some(ticket) = state.tickets.pop_front_if(|ticket| ticket.end <= to) {
            let is_told = self.tier.enter(ticket.key, ticket.place, ticket.intent);
            state.has_gap |= !is_told;
        }
        state.durable_to = to;
        if !state.has_gap {
            state.has_gap = !self.tier.mark(self.segment, self.sequence, to);
        }
    }

    async fn lead<D: Device>(&self, device: &D, to: u32) {
        // Whoever stops waiting in the middle leaves the turn to another.
        let turn = Turn { open: self };
        let result = device.sync().await;
        count(&self.tier.counters.syncs, 1);
        match result {
            Ok(()) => self.synced(to),
            Err(error) => {
                // What a device does with writes after it failed to keep them is anybody's guess.
                self.tier.failed(self.segment.device);
                let durable_to = self.state.borrow().durable_to;
                self.fail(durable_to, Some(&error));
            }
        }
        drop(turn);
    }
}

impl Drop for OpenSegment {
    fn drop(&mut self) {
        self.tier.ledger.seal(self.segment, self.sequence);
        let state = self.state.get_mut();
        // A write that was given up while it was waited for may be kept or not: the next start looks.
        if state.failed_from.is_none() && !state.has_gap && state.tickets.is_empty() {
            self.tier.mark(self.segment, self.sequence, MARK_COMPLETE);
        }
    }
}

struct Turn<'a> {
    open: &'a OpenSegment,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.open.state.borrow_mut().is_syncing = false;
        self.open.changed.ring();
    }
}

/// Room that a write has. Dropped before the write has ended it is a hole, and the segment takes no more.
#[derive(Debug)]
pub struct Held<'a> {
    open: &'a OpenSegment,
    /// Where the record goes.
    pub place: Place,
    end: u32,
    is_written: bool,
}

impl Held<'_> {
    /// The write has ended; waits until it is durable.
    ///
    /// # Errors
    /// The device's, or that of a write before this one in the segment.
    pub async fn written<D: Device>(
        mut self,
        device: &D,
        result: io::Result<()>,
    ) -> io::Result<Place> {
        self.is_written = true;
        if let Err(error) = result {
            self.open.fail(self.place.page, Some(&error));
            return Err(error);
        }
        self.open.note_written(&self.place);
        loop {
            let rings = self.open.changed.rings();
            match self.open.look(self.place.page, self.end) {
                Look::Durable => return Ok(self.place),
                Look::Failed => {
                    let errno = self.open.state.borrow().errno;
                    return Err(errno.map_or_else(
                        || io::Error::other("a write before this one was given up"),
                        io::Error::from_raw_os_error,
                    ));
                }
                Look::Lead(to) => self.open.lead(device, to).await,
                Look::Wait => self.open.changed.rung_since(rings).await,
            }
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.is_written {
            self.open.fail(self.place.page, None);
        }
    }
}
