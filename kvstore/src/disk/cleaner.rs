//! Making room: the oldest segment's blocks are written again if they were read, else given up.
//!
//! [`plan`] decides and is pure; [`Cleaner`] does, one block a step, so that the caller can put its
//! steps between the reads and writes of clients. When to step is the caller's: [`Disk`](super::Disk).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use super::device::{Buffer, Device, Pages};
use super::ledger::{Live, Oldest};
use super::record::{PAGE_BYTES, span_bytes};
use super::tier::{Intent, count};
use super::turn::Turns;
use super::writer::{Shelf, Writer};
use super::{DiskError, Event, reader};
use crate::key::Key;
use crate::signal::Signal;

/// The share of a segment, in parts of eight, that is written again at most: at one half each byte of
/// room costs at most one byte of copying, so write amplification stays below 2.
const KEPT_EIGHTHS_MAX: u64 = 4;

/// What became of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is room enough: nothing was done.
    Idle,
    /// A block was moved, of so many bytes on the device; none if it was not wanted any more.
    Moved(u64),
    /// A segment was made free.
    Freed,
}

/// Which live records of a segment are worth writing again: those read most often since they were
/// written, as many as fit half a segment; in the order they lie.
pub fn plan(mut live: Vec<Live>, segment_bytes: u64) -> VecDeque<Live> {
    live.retain(|live| live.reads > 0);
    // A stable sort: of equals the older goes first, for its place costs as much.
    live.sort_by_key(|live| std::cmp::Reverse(live.reads));
    let mut room = segment_bytes / 8 * KEPT_EIGHTHS_MAX;
    live.retain(|live| {
        let span = span_bytes(live.place.len);
        let fits = span <= room;
        room -= if fits { span } else { 0 };
        fits
    });
    live.sort_by_key(|live| live.place.page);
    live.into()
}

struct Cleaning {
    sequence: u64,
    to_move: VecDeque<Live>,
}

/// One shard's cleaner.
pub struct Cleaner<D> {
    shelf: Rc<Shelf<D>>,
    /// One step at a time: the cleaner's own task and writers that help it take turns.
    steps: Turns,
    cleaning: RefCell<Option<Cleaning>>,
    moving: Cell<Option<Key>>,
    moved: Signal,
    free_min: usize,
}

impl<D: Device> Cleaner<D> {
    /// A cleaner that keeps `free_min` segments free.
    pub fn new(shelf: Rc<Shelf<D>>, free_min: usize) -> Cleaner<D> {
        let (cleaning, moving, moved) = (RefCell::new(None), Cell::new(None), Signal::default());
        Cleaner { shelf, steps: Turns::default(), cleaning, moving, moved, free_min }
    }

    /// Whether fewer segments are free than it keeps so.
    pub fn is_behind(&self) -> bool {
        let tier = &self.shelf.tier;
        tier.ledger.free_segments(|device| tier.is_usable(device)) < self.free_min
    }

    /// Moves one block or frees one segment. A block is given up, not moved, if the key is not
    /// `movable`: it belongs to another shard, or another value of it is being written. So a copy never
    /// comes to lie behind what takes its place, where a start would take it for the later one.
    ///
    /// # Errors
    /// [`DiskError`] of the copy: its block is given up with the segment.
    pub async fn step(
        &self,
        writer: &Writer<D>,
        movable: impl Fn(&Key) -> bool,
    ) -> Result<Step, DiskError> {
        let _turn = self.steps.take().await;
        if self.cleaning.borrow().is_none() && !self.begin(&movable) {
            return Ok(Step::Idle);
        }
        let next = self.cleaning.borrow_mut().as_mut().and_then(|it| it.to_move.pop_front());
        match next {
            Some(live) if movable(&live.key) => {
                let turn = Moving::begin(&self.moving, &self.moved, live.key);
                let result = self.move_one(writer, live).await;
                drop(turn);
                result.map(Step::Moved)
            }
            Some(_) => Ok(Step::Moved(0)),
            None => {
                let done = self.cleaning.borrow_mut().take();
                if let Some(done) = done {
                    self.give_up(done.sequence).await;
                }
                Ok(Step::Freed)
            }
        }
    }

    /// Waits until the block of `key` is not being moved.
    pub async fn settled(&self, key: &Key) {
        loop {
            let rings = self.moved.rings();
            if self.moving.get().as_ref() != Some(key) {
                return;
            }
            self.moved.rung_since(rings).await;
        }
    }

    /// Gives up this use of a segment. A writer that found no room may have done so by now.
    async fn give_up(&self, sequence: u64) {
        let ledger = &self.shelf.tier.ledger;
        while ledger.oldest().is_some_and(|(_, oldest)| oldest <= sequence) {
            match ledger.take_oldest(Some(sequence)) {
                Oldest::Taken(leaving) => self.shelf.give_up(leaving).await,
                Oldest::Busy => ledger.settled().await,
                Oldest::None => return,
            }
        }
    }

    /// Begins with the oldest segment, which stays in the order: none is used again before it. It is
    /// cleaned by the shard that its first block belongs to, which as a rule wrote it.
    fn begin(&self, movable: impl Fn(&Key) -> bool) -> bool {
        let ledger = &self.shelf.tier.ledger;
        if !self.is_behind() {
            return false;
        }
        let Some((segment, sequence)) = ledger.oldest() else { return false };
        let live = ledger.live(segment);
        if live.first().is_some_and(|first| !movable(&first.key)) {
            return false;
        }
        let layout = self.shelf.tier.layouts.get(usize::from(segment.device));
        let segment_bytes = layout.map_or(0, |layout| layout.segment_bytes);
        let to_move = plan(live, segment_bytes);
        *self.cleaning.borrow_mut() = Some(Cleaning { sequence, to_move });
        true
    }

    /// Says how many bytes of the device were written for it.
    async fn move_one(&self, writer: &Writer<D>, live: Live) -> Result<u64, DiskError> {
        let Live { key, place, .. } = live;
        let tier = &self.shelf.tier;
        if !tier.ledger.is_live(&place) {
            return Ok(0);
        }
        let pages = place.len.div_ceil(PAGE_BYTES as u64) as usize;
        let into = Buffer::Pages(Pages::new(pages));
        let (about, value) = reader::read(&self.shelf, key, &place, into).await?;
        let intent = Intent::Copy { about, from: place };
        let to = writer.append(key, place.version, intent, Some(value)).await?;
        count(&tier.counters.moved, 1);
        if tier.ledger.is_live(&to) {
            (self.shelf.events)(Event::Moved { key, from: place, to });
            return Ok(span_bytes(place.len));
        }
        // It was forgotten on the way, or its segment given up: the copy is not to be found again.
        let intent = Intent::Tombstone { of: to };
        writer.append(key, to.version, intent, None).await.map(|_| span_bytes(place.len))
    }
}

struct Moving<'a> {
    moving: &'a Cell<Option<Key>>,
    moved: &'a Signal,
}

impl<'a> Moving<'a> {
    fn begin(moving: &'a Cell<Option<Key>>, moved: &'a Signal, key: Key) -> Moving<'a> {
        moving.set(Some(key));
        Moving { moving, moved }
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.moving.set(None);
        self.moved.ring();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::place::{Place, Segment};
    use crate::key::{Name, NamespaceId};

    proptest! {
        #[test]
        fn what_is_kept_was_read_fits_half_a_segment_and_leaves_out_nothing_better(
            blocks in proptest::collection::vec((0u8..4, 0u64..100_000), 0..60),
        ) {
            let segment = Segment { device: 0, number: 0 };
            let live: Vec<Live> = blocks.iter().enumerate().map(|(page, &(reads, len))| Live {
                key: Key::new(NamespaceId([0; 16]), Name([page as u8; 32])),
                place: Place { segment, sequence: 1, page: page as u32, version: 1, len },
                reads,
            }).collect();
            let kept = plan(live.clone(), 1 << 20);
            let bytes: u64 = kept.iter().map(|live| span_bytes(live.place.len)).sum();
            prop_assert!(bytes <= 1 << 19);
            prop_assert!(kept.iter().all(|live| live.reads > 0));
            prop_assert!(kept.iter().map(|live| live.place.page).is_sorted());
            for left in live.iter().filter(|live| live.reads > 0 && !kept.contains(live)) {
                let better = kept.iter().filter(|kept| kept.reads >= left.reads);
                let taken: u64 = better.map(|live| span_bytes(live.place.len)).sum();
                prop_assert!(taken + span_bytes(left.place.len) > 1 << 19);
            }
        }
    }
}
