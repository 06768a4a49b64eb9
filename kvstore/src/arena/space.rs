//! Where blocks lie in a shard's window of the arena: offsets and what must be resident, nothing else.
//!
//! Address space is free, resident memory is not, so the MMU does the compaction. The window is sparse
//! and divided into *bands*, one for each power of two from 64 KiB up: a band holds the blocks of more
//! than half of its stride up to its stride (the lowest holds all smaller ones too), each in a slot of
//! its own. A block is resident in the first granules of its slot only. A freed slot stays resident
//! (*warm*) and serves the next block of its band as it is, grown or shrunk; when the budget is used up,
//! warm slots of all bands give their memory back, coldest first. A steady size of block never faults,
//! and no history of sizes leaves holes, because nothing ever needs to lie next to anything.
//!
//! With huge pages the slots of the low bands are smaller than a granule and share one (a *frame* of
//! many slots). Such a frame is resident as long as one of its slots is used.
//!
//! It makes no system call and touches no memory: a [`Grant`] says what the caller must punch and fill.
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use thiserror::Error;

/// Stride of the lowest band. Smaller blocks are rare here, and each costs address space only.
pub const STRIDE_MIN_BYTES: u64 = 64 << 10;
/// Longest block: what a client of the RESP door may send.
pub const LEN_MAX_BYTES: u64 = 512 << 20;
/// Largest granule: a huge page. With it a frame has 32 slots at most, one bit each.
pub const GRANULE_MAX_BYTES: u64 = 2 << 20;
/// Smallest granule: a page.
pub const GRANULE_MIN_BYTES: u64 = 4 << 10;
/// Largest budget. More than any machine has, and small enough that no offset overflows.
pub const BUDGET_MAX_BYTES: u64 = 1 << 52;

/// Why a block gets no place.
#[derive(Clone, Copy, Debug, Error, Eq, PartialEq)]
pub enum SpaceError {
    /// Longer than any block may be, or than the whole budget.
    #[error("a block of {len} bytes is too large, {max} are the most")]
    TooLarge {
        /// Length that was asked for, bytes.
        len: u64,
        /// Longest that can be had, bytes.
        max: u64,
    },
    /// Used blocks leave too little; free one and ask again.
    #[error("no memory is free; evict a block first")]
    Full,
}

/// A place for a block, and what the caller does before it uses it: punch first, then fill, both before
/// it asks for the next one. All ranges are offsets in the window and whole granules.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Grant {
    /// Where the block begins.
    pub offset: u64,
    /// Memory to give back to the kernel.
    pub punch: Vec<Range<u64>>,
    /// Memory to take from the kernel.
    pub fill: Option<Range<u64>>,
}

/// A part of the window that is resident or not on its own: one slot, or the slots of one granule.
#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    /// Resident granules, from its start.
    granules: u32,
    /// One bit for each slot that is used.
    used: u32,
    /// When it became warm; orders the warm frames of all bands.
    stamp: u64,
}

/// The slots of one stride.
#[derive(Debug)]
struct Band {
    /// Offset of the first frame in the window.
    start: u64,
    stride_bytes: u64,
    /// The stride, or a granule where that is more.
    frame_bytes: u64,
    /// All bits a frame of this band may have in `used`.
    all: u32,
    /// Most frames.
    frames_max: u32,
    /// Frames that were ever used; grows up to `frames_max`.
    frames: Vec<Frame>,
    /// Frames that are neither used nor resident.
    cold: Vec<u32>,
    /// Frames that are resident and not used: granules, stamp, frame.
    warm: BTreeSet<(u32, u64, u32)>,
    /// Frames with used slots and free ones: used slots, frame. The fullest is taken first, so that
    /// the others drain.
    partial: BTreeSet<(u32, u32)>,
}

impl Band {
    fn new(start: u64, stride_bytes: u64, granule_bytes: u64, budget_granules: u64) -> Band {
        let frame_bytes = stride_bytes.max(granule_bytes);
        let slots = frame_bytes / stride_bytes;
        // Of the smallest blocks of this band as many as fit the budget: more are never used at once.
        let len_min = if stride_bytes == STRIDE_MIN_BYTES { 1 } else { stride_bytes / 2 + 1 };
        let frames_max = budget_granules / len_min.div_ceil(granule_bytes);
        Band {
            start,
            stride_bytes,
            frame_bytes,
            all: if slots >= 32 { u32::MAX } else { (1 << slots) - 1 },
            frames_max: u32::try_from(frames_max).unwrap_or(u32::MAX),
            frames: Vec::new(),
            cold: Vec::new(),
            warm: BTreeSet::new(),
            partial: BTreeSet::new(),
        }
    }

    fn end(&self) -> u64 {
        self.start + self.frame_bytes * u64::from(self.frames_max)
    }

    /// Frame and slot that begin at `offset`, if it is one of this band that was ever used.
    fn slot_at(&self, offset: u64) -> Option<(u32, u32)> {
        let from = offset.checked_sub(self.start)?;
        let frame = u32::try_from(from / self.frame_bytes).ok()?;
        let slot = u32::try_from(from % self.frame_bytes / self.stride_bytes).ok()?;
        let known = (frame as usize) < self.frames.len() && from.is_multiple_of(self.stride_bytes);
        known.then_some((frame, slot))
    }

    fn used_slot_at(&self, offset: u64) -> Option<(u32, u32)> {
        let (frame, slot) = self.slot_at(offset)?;
        (self.frames[frame as usize].used >> slot & 1 == 1).then_some((frame, slot))
    }

    /// Granules `from..to` of a frame, as offsets in the window.
    fn granules(&self, frame: u32, from: u32, to: u32, granule_bytes: u64) -> Range<u64> {
        let start = self.start + u64::from(frame) * self.frame_bytes;
        start + u64::from(from) * granule_bytes..start + u64::from(to) * granule_bytes
    }

    /// The warm frame that needs least done to it: as large as `granules`, else the nearest larger one
    /// (its tail is punched), else the nearest smaller one (it is filled up).
    fn nearest_warm(&self, granules: u32) -> Option<u32> {
        let same = self.warm.range((granules, 0, 0)..(granules + 1, 0, 0)).next_back();
        let larger = || self.warm.range((granules + 1, 0, 0)..).next();
        let smaller = || self.warm.range(..(granules, 0, 0)).next_back();
        same.or_else(larger).or_else(smaller).map(|&(_, _, frame)| frame)
    }

    fn cold_frame(&mut self) -> Option<u32> {
        self.cold.pop().or_else(|| {
            let next = u32::try_from(self.frames.len()).ok().filter(|&n| n < self.frames_max)?;
            self.frames.push(Frame::default());
            Some(next)
        })
    }

    /// Takes the first free slot of a frame and returns its offset.
    fn take_slot(&mut self, index: u32) -> u64 {
        let frame = &mut self.frames[index as usize];
        self.partial.remove(&(frame.used.count_ones(), index));
        let slot = (!frame.used).trailing_zeros();
        frame.used |= 1 << slot;
        if frame.used != self.all {
            self.partial.insert((frame.used.count_ones(), index));
        }
        self.start + u64::from(index) * self.frame_bytes + u64::from(slot) * self.stride_bytes
    }

    /// Gives a slot back; true if its frame has no used slot left.
    fn give_slot(&mut self, index: u32, slot: u32) -> bool {
        let frame = &mut self.frames[index as usize];
        self.partial.remove(&(frame.used.count_ones(), index));
        frame.used &= !(1 << slot);
        if frame.used != 0 {
            self.partial.insert((frame.used.count_ones(), index));
        }
        frame.used == 0
    }
}

/// The blocks of one shard: which slots are used, and what of the window is resident.
#[derive(Debug)]
pub struct Space {
    granule_bytes: u64,
    budget_granules: u64,
    resident_granules: u64,
    /// Granules of frames with a used slot: what cannot be given to others.
    used_granules: u64,
    len_max_bytes: u64,
    bands: Vec<Band>,
    /// Warm frames of all bands, coldest first: stamp to band and frame.
    coldest: BTreeMap<u64, (u8, u32)>,
    stamp: u64,
}

impl Space {
    /// A space that keeps at most `budget_bytes` resident, in granules of `granule_bytes` (a power of
    /// two, 4 KiB to 2 MiB), for blocks of up to `len_max_bytes` (512 MiB at most).
    #[must_use]
    pub fn new(budget_bytes: u64, granule_bytes: u64, len_max_bytes: u64) -> Space {
        let pages = GRANULE_MIN_BYTES..=GRANULE_MAX_BYTES;
        assert!(granule_bytes.is_power_of_two() && pages.contains(&granule_bytes), "no page size");
        let len_max_bytes = len_max_bytes.clamp(1, LEN_MAX_BYTES);
        let budget_granules = budget_bytes.min(BUDGET_MAX_BYTES) / granule_bytes;
        let (mut bands, mut start, mut stride) = (Vec::new(), 0, STRIDE_MIN_BYTES);
        loop {
            let band = Band::new(start, stride, granule_bytes, budget_granules);
            // A frame never crosses a huge page that it could have whole.
            start = band.end().next_multiple_of(GRANULE_MAX_BYTES);
            bands.push(band);
            if stride >= len_max_bytes {
                break;
            }
            stride *= 2;
        }
        Space {
            granule_bytes,
            budget_granules,
            resident_granules: 0,
            used_granules: 0,
            len_max_bytes,
            bands,
            coldest: BTreeMap::new(),
            stamp: 0,
        }
    }

    /// A place for a block of `len` bytes. It is [`SpaceError::Full`] only if `used_bytes` and the
    /// granules of the block together are more than the budget.
    ///
    /// # Errors
    /// [`SpaceError`]; nothing has changed then.
    pub fn alloc(&mut self, len: u64) -> Result<Grant, SpaceError> {
        let max = self.len_max_bytes.min(self.budget_granules * self.granule_bytes);
        if len > max {
            return Err(SpaceError::TooLarge { len, max });
        }
        let at = self.band_of(len);
        if let Some(&(_, frame)) = self.bands[at].partial.last() {
            let offset = self.bands[at].take_slot(frame);
            return Ok(Grant { offset, punch: Vec::new(), fill: None });
        }
        let want = len.max(1).div_ceil(self.granule_bytes);
        if want > self.budget_granules - self.used_granules {
            return Err(SpaceError::Full);
        }
        // At most the granules of the longest block.
        let granules = u32::try_from(want).map_err(|_| SpaceError::TooLarge { len, max })?;
        self.alloc_frame(at, granules)
    }

    /// Makes an unused frame of a band resident in its first `granules` and takes its first slot.
    fn alloc_frame(&mut self, at: usize, granules: u32) -> Result<Grant, SpaceError> {
        let frame = match self.bands[at].nearest_warm(granules) {
            Some(frame) => {
                self.cool(at, frame);
                frame
            }
            None => self.bands[at].cold_frame().ok_or(SpaceError::Full)?,
        };
        let band = &mut self.bands[at];
        let had = std::mem::replace(&mut band.frames[frame as usize].granules, granules);
        let mut punch = Vec::new();
        if had > granules {
            punch.push(band.granules(frame, granules, had, self.granule_bytes));
        }
        let fill =
            (had < granules).then(|| band.granules(frame, had, granules, self.granule_bytes));
        let offset = band.take_slot(frame);
        self.used_granules += u64::from(granules);
        self.resident_granules = self.resident_granules + u64::from(granules) - u64::from(had);
        self.shed(&mut punch);
        Ok(Grant { offset, punch, fill })
    }

    /// Gives warm memory back, coldest first, until the budget holds again.
    fn shed(&mut self, punch: &mut Vec<Range<u64>>) {
        while let Some(over) = self.resident_granules.checked_sub(self.budget_granules)
            && over > 0
            && let Some((_, &(band, frame))) = self.coldest.first_key_value()
        {
            let at = usize::from(band);
            let Frame { granules, stamp, .. } = self.bands[at].frames[frame as usize];
            self.cool(at, frame);
            let left = granules - u32::try_from(over).unwrap_or(granules).min(granules);
            let band = &mut self.bands[at];
            punch.push(band.granules(frame, left, granules, self.granule_bytes));
            self.resident_granules -= u64::from(granules - left);
            band.frames[frame as usize].granules = left;
            if left == 0 {
                band.cold.push(frame);
            } else {
                self.warm(at, frame, stamp);
            }
        }
        join(punch);
    }

    /// Gives the block at `offset` back; its memory stays resident for the next one. False if no used
    /// block begins there.
    pub fn free(&mut self, offset: u64) -> bool {
        let at = self.band_at(offset);
        let Some((frame, slot)) = self.bands[at].used_slot_at(offset) else { return false };
        if self.bands[at].give_slot(frame, slot) {
            self.used_granules -= u64::from(self.bands[at].frames[frame as usize].granules);
            self.stamp += 1;
            self.warm(at, frame, self.stamp);
        }
        true
    }

    /// Undoes the grant at `offset`, because the kernel had no memory to fill it. The slot counts as not
    /// resident from here on: the caller punches the range it gets, which may be resident in part.
    /// `None` if no used block begins there, or others share its memory.
    pub fn fill_failed(&mut self, offset: u64) -> Option<Range<u64>> {
        let at = self.band_at(offset);
        let (frame, slot) = self.bands[at].used_slot_at(offset)?;
        let band = &mut self.bands[at];
        if !band.give_slot(frame, slot) {
            return None;
        }
        let granules = std::mem::take(&mut band.frames[frame as usize].granules);
        band.cold.push(frame);
        self.used_granules -= u64::from(granules);
        self.resident_granules -= u64::from(granules);
        Some(band.granules(frame, 0, granules, self.granule_bytes))
    }

    /// Length of the window: how much address space all bands need. It may be many times the budget.
    #[must_use]
    pub fn window_bytes(&self) -> u64 {
        self.bands.last().map_or(0, |band| band.end().next_multiple_of(GRANULE_MAX_BYTES))
    }

    /// Memory that is resident, used or warm. Never more than the budget.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.resident_granules * self.granule_bytes
    }

    /// Memory that used blocks hold, in whole granules. Where several slots share a granule it counts
    /// whole as long as one of them is used: that is at most one granule for each block used.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used_granules * self.granule_bytes
    }

    /// Memory the block at `offset` may use, bytes; 0 if no used block begins there.
    #[must_use]
    pub fn capacity(&self, offset: u64) -> u64 {
        let band = &self.bands[self.band_at(offset)];
        band.used_slot_at(offset).map_or(0, |(frame, _)| {
            let resident = u64::from(band.frames[frame as usize].granules) * self.granule_bytes;
            resident.min(band.stride_bytes)
        })
    }

    fn band_of(&self, len: u64) -> usize {
        self.bands.partition_point(|band| band.stride_bytes < len)
    }

    fn band_at(&self, offset: u64) -> usize {
        self.bands.partition_point(|band| band.start <= offset).saturating_sub(1)
    }

    fn warm(&mut self, at: usize, frame: u32, stamp: u64) {
        let band = &mut self.bands[at];
        let entry = &mut band.frames[frame as usize];
        entry.stamp = stamp;
        band.warm.insert((entry.granules, stamp, frame));
        self.coldest.insert(stamp, (u8::try_from(at).unwrap_or(u8::MAX), frame));
    }

    fn cool(&mut self, at: usize, frame: u32) {
        let band = &mut self.bands[at];
        let Frame { granules, stamp, .. } = band.frames[frame as usize];
        band.warm.remove(&(granules, stamp, frame));
        self.coldest.remove(&stamp);
    }
}

/// Joins ranges that touch: each is a system call.
fn join(ranges: &mut Vec<Range<u64>>) {
    if ranges.len() < 2 {
        return;
    }
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, last| {
        let touches = next.start == last.end;
        if touches {
            last.end = next.end;
        }
        touches
    });
}

#[cfg(test)]
mod tests;
