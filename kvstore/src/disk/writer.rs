//! One shard's writing: records appended to a segment of its own, one after the other.
//!
//! It owns the open segment and finds the next: a free one, else the oldest, whose blocks are given up.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use futures_lite::future;

use super::bounce::{Bounce, Share};
use super::device::{Buffer, Device, Pages};
use super::envelope::Envelope;
use super::ledger::{Leaving, Live, Oldest};
use super::open_segment::OpenSegment;
use super::place::{Place, Segment};
use super::record::{About, Body, PAGE_BYTES, Record};
use super::segment::encode_head;
use super::tier::{Intent, Tier, count};
use super::turn::Turns;
use super::{DiskError, Event, envelope};
use crate::block::LABEL_BYTES_MAX;
use crate::key::Key;
use crate::namespace::NAME_BYTES_MAX;

/// Segments tried before a write fails: one that does not begin is the device's fault more often than
/// its own.
const SEGMENTS_TRIED_MAX: u32 = 4;
/// Times a record is written before its writing fails: the second goes to another segment.
const ATTEMPTS_MAX: u32 = 2;
/// Bytes hashed before other tasks of the core get their turn: about 50 µs.
pub const HASH_PART_BYTES: usize = 256 << 10;

/// The devices as one shard has them, and what it shares with the others.
pub struct Shelf<D> {
    /// The shared part.
    pub tier: Arc<Tier>,
    /// Devices as the configuration lists them.
    pub devices: Vec<D>,
    /// Who is told of what happens to blocks.
    pub events: Box<dyn Fn(Event)>,
}

impl<D> Shelf<D> {
    /// The device of a place, and where its record begins on it.
    pub fn locate(&self, place: &Place) -> Option<(&D, u64)> {
        let device = usize::from(place.segment.device);
        let start = self.tier.layouts.get(device)?.start(place.segment.number);
        let offset = start.checked_add(u64::from(place.page) * PAGE_BYTES as u64)?;
        Some((self.devices.get(device)?, offset))
    }
}

impl<D: Device> Shelf<D> {
    /// Gives up the blocks of a segment. The device loses it first, for good: whoever is told that a
    /// block is gone writes no tombstone for it any more. A device that fails at this fails at the next
    /// use of the segment, too, so the segment is given up all the same.
    pub async fn give_up(&self, leaving: Leaving<'_>) {
        let segment = leaving.segment;
        if let Err(error) = self.wipe(segment).await {
            self.tier.failed(segment.device);
            tracing::warn!(%error, ?segment, "a segment that is given up could not be wiped");
        }
        for Live { key, place, .. } in self.tier.ledger.live(segment) {
            (self.events)(Event::Dropped { key, place });
        }
        self.tier.empty(leaving);
    }

    /// Takes a segment's head away: a start finds nothing in it.
    async fn wipe(&self, segment: Segment) -> io::Result<()> {
        let device = usize::from(segment.device);
        let found = self.devices.get(device).zip(self.tier.layouts.get(device));
        let (device, layout) = found.ok_or(io::ErrorKind::NotFound)?;
        device.write_at(layout.start(segment.number), Buffer::Pages(Pages::new(1))).await?;
        count(&self.tier.counters.written_bytes, PAGE_BYTES as u64);
        device.sync().await
    }
}

/// What goes to the device for a value, and the memory it may take.
struct Closed<'a> {
    value: Option<Buffer>,
    envelope: Envelope,
    _share: Option<Share<'a>>,
}

/// See the head of the file.
pub struct Writer<D> {
    shelf: Rc<Shelf<D>>,
    open: RefCell<Option<Rc<OpenSegment>>>,
    opening: Turns,
    /// For all that passes over every byte of a value.
    hashing: Turns,
    bounce: Bounce,
}

impl<D: Device> Writer<D> {
    /// A writer without an open segment.
    pub fn new(shelf: Rc<Shelf<D>>) -> Writer<D> {
        let (opening, hashing) = (Turns::default(), Turns::default());
        Writer { shelf, open: RefCell::new(None), opening, hashing, bounce: Bounce::default() }
    }

    /// Completes the open segment, so that the next start need not look behind its last record.
    pub fn close(&self) {
        self.open.take();
    }

    /// Writes a block and waits until it is durable. Its hash is computed here, unless it is `known`.
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn write(
        &self,
        key: Key,
        mut about: About,
        known: &OnceLock<[u8; 32]>,
        source: &dyn Fn() -> Buffer,
    ) -> Result<Place, DiskError> {
        if about.label.len() > LABEL_BYTES_MAX || about.namespace.len() > NAME_BYTES_MAX {
            return Err(DiskError::LabelTooLong);
        }
        let len = about.len;
        for attempt in 1.. {
            let version = self.shelf.tier.ledger.next_version();
            let value = source();
            if known.get().is_none() {
                // Outside the segment's order: a slow hash would keep those behind it waiting. One block
                // after the other: if all went forward by turns, all would end at the same time, and
                // the device would wait for the last and then be given everything at once.
                let _turn = self.hashing.take().await;
                let hash = hash(value.bytes().get(..len as usize).unwrap_or_default()).await;
                let _ = known.set(hash);
            }
            if let Some(hash) = known.get() {
                about.hash = *hash;
            }
            let intent = Intent::Value(about.clone());
            match self.append(key, version, intent, Some(value)).await {
                Err(DiskError::Io(error)) if attempt < ATTEMPTS_MAX => {
                    tracing::warn!(%error, "a block is written again, to another segment");
                }
                Err(error) => return Err(error),
                Ok(place) => {
                    count(&self.shelf.tier.counters.writes, 1);
                    count(&self.shelf.tier.counters.value_bytes, len);
                    return Ok(place);
                }
            }
        }
        Err(DiskError::Full)
    }

    /// Writes a record whose value is known to be right, and waits until it is durable.
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn append(
        &self,
        key: Key,
        version: u64,
        intent: Intent,
        value: Option<Buffer>,
    ) -> Result<Place, DiskError> {
        let body = match &intent {
            Intent::Value(about) | Intent::Copy { about, .. } => Body::Value(about.clone()),
            Intent::Tombstone { .. } => Body::Tombstone,
        };
        let len = if let Body::Value(about) = &body { about.len } else { 0 };
        let mut record = Record { sequence: 0, version, key, body };
        let span = record.span_bytes();
        let mut pending = Some(intent);
        let Closed { value, envelope, _share } = self.closed(value.filter(|_| len > 0)).await?;
        for _ in 0..SEGMENTS_TRIED_MAX {
            let open = self.segment_for(span).await?;
            let pages = (span / PAGE_BYTES as u64) as u32;
            let Some(held) = open.take(pages, key, version, len, &mut pending) else {
                self.leave(&open);
                continue;
            };
            record.sequence = held.place.sequence;
            let result = self.put(&held.place, &record, &envelope, value).await?;
            let tier = &self.shelf.tier;
            if result.is_err() {
                tier.failed(open.segment().device);
            }
            let (device, _) = self.shelf.locate(&held.place).ok_or(DiskError::Gone)?;
            let done = held.written(device, result).await;
            match &done {
                Ok(_) => tier.worked(open.segment().device),
                Err(_) => self.leave(&open),
            }
            count(&tier.counters.written_bytes, span);
            return Ok(done?);
        }
        Err(DiskError::Full)
    }

    /// A value as the device gets it: encrypted if there is a key, outside the segment's order as its hash.
    /// Memory of no bytes is a page all the same: there is no room for that one, so it is left out before.
    async fn closed(&self, value: Option<Buffer>) -> io::Result<Closed<'_>> {
        let tier = &self.shelf.tier;
        let Some(cipher) = tier.cipher() else {
            return Ok(Closed { value, envelope: Envelope::default(), _share: None });
        };
        let salt = tier.salt()?;
        let Some(value) = value else {
            let envelope = Envelope { salt, ..Envelope::default() };
            return Ok(Closed { value: None, envelope, _share: None });
        };
        let share = self.bounce.take(value.bytes().len()).await;
        let _turn = self.hashing.take().await;
        let closed = envelope::close(cipher, salt, value.bytes()).await;
        let (pages, envelope) =
            closed.ok_or_else(|| io::Error::other("the value is too long for the cipher"))?;
        Ok(Closed { value: Some(Buffer::Pages(pages)), envelope, _share: Some(share) })
    }

    /// Writes a record's page and its value. What the device says is the inner result.
    async fn put(
        &self,
        place: &Place,
        record: &Record,
        envelope: &Envelope,
        value: Option<Buffer>,
    ) -> Result<io::Result<()>, DiskError> {
        let (device, offset) = self.shelf.locate(place).ok_or(DiskError::Gone)?;
        let layout = self.shelf.tier.layouts.get(usize::from(place.segment.device));
        let seals = layout.ok_or(DiskError::Gone)?.seals;
        let mut page = Pages::new(1);
        if let Some(page) = page.bytes_mut().first_chunk_mut() {
            seals.close(record, envelope, page).map_err(|_| DiskError::LabelTooLong)?;
        }
        Ok(device.write_record(offset, page, value).await)
    }

    /// The next record goes to another segment.
    fn leave(&self, left: &Rc<OpenSegment>) {
        let mut open = self.open.borrow_mut();
        if open.as_ref().is_some_and(|open| Rc::ptr_eq(open, left)) {
            *open = None;
        }
    }

    async fn segment_for(&self, span: u64) -> Result<Rc<OpenSegment>, DiskError> {
        let max = self.shelf.tier.layouts.iter().map(|layout| layout.segment_bytes).min();
        let max = max.unwrap_or_default().saturating_sub(PAGE_BYTES as u64);
        if span > max {
            return Err(DiskError::TooLarge { span, max });
        }
        loop {
            if let Some(open) = self.open.borrow().as_ref() {
                return Ok(open.clone());
            }
            let turn = self.opening.take().await;
            // Another may have opened one while this waited.
            if self.open.borrow().is_none() {
                let open = Rc::new(self.begin_segment().await?);
                *self.open.borrow_mut() = Some(open);
            }
            drop(turn);
        }
    }

    async fn begin_segment(&self) -> Result<OpenSegment, DiskError> {
        let tier = &self.shelf.tier;
        let (mut last_error, mut is_full) = (None, false);
        for _ in 0..SEGMENTS_TRIED_MAX {
            let free = self.free_or_oldest(usize::from(is_full)).await;
            let (segment, sequence) = free.ok_or(DiskError::Full)?;
            let mut back = PutBack { tier, segment, is_free: true };
            let error = match self.begin(segment, sequence).await {
                Ok(open) => {
                    back.is_free = false;
                    return Ok(open);
                }
                Err(error) => error,
            };
            is_full = error.kind() == io::ErrorKind::StorageFull;
            if is_full {
                // The file cannot grow: from here on the oldest segment makes room.
                back.is_free = false;
                tier.ledger.set_aside(segment);
            } else {
                tier.failed(segment.device);
            }
            last_error = Some(error);
        }
        Err(last_error.map_or(DiskError::Full, DiskError::Io))
    }

    /// A free segment of a usable device. Segments are given up for it, the oldest first, if there is
    /// none, and `given_up_min` of them in any case.
    async fn free_or_oldest(&self, given_up_min: usize) -> Option<(Segment, u64)> {
        let tier = &self.shelf.tier;
        let mut given_up = 0;
        while given_up <= tier.ledger.segments() {
            if given_up >= given_up_min
                && let Some(free) = tier.ledger.take_free(|device| tier.is_usable(device))
            {
                return Some(free);
            }
            match tier.ledger.take_oldest(None) {
                Oldest::Taken(leaving) => self.shelf.give_up(leaving).await,
                // What another gives up may be what is looked for.
                Oldest::Busy => tier.ledger.settled().await,
                Oldest::None => return None,
            }
            given_up += 1;
        }
        None
    }

    async fn begin(&self, segment: Segment, sequence: u64) -> io::Result<OpenSegment> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let device = self.shelf.devices.get(usize::from(segment.device)).ok_or_else(gone)?;
        let layout = self.shelf.tier.layouts.get(usize::from(segment.device)).ok_or_else(gone)?;
        let start = layout.start(segment.number);
        device.allocate(start, layout.segment_bytes).await?;
        let page = encode_head(&layout.seals.secret, segment.number, sequence);
        device.write_at(start, Buffer::Pages(Pages::of(&page))).await?;
        count(&self.shelf.tier.counters.written_bytes, PAGE_BYTES as u64);
        // Before any record, so that a start that finds one of this sequence gives it to no other use.
        device.sync().await?;
        let pages = (layout.segment_bytes / PAGE_BYTES as u64) as u32;
        Ok(OpenSegment::new(self.shelf.tier.clone(), segment, sequence, pages))
    }
}

/// BLAKE3 of a value, with pauses for the other tasks of the core.
pub async fn hash(bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in bytes.chunks(HASH_PART_BYTES) {
        hasher.update(part);
        future::yield_now().await;
    }
    *hasher.finalize().as_bytes()
}

/// A segment that is not begun after all is free again.
struct PutBack<'a> {
    tier: &'a Tier,
    segment: Segment,
    is_free: bool,
}

impl Drop for PutBack<'_> {
    fn drop(&mut self) {
        if self.is_free {
            self.tier.ledger.put_back(self.segment);
        }
    }
}
