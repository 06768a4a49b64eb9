//! A device as the tier needs it: the seam where a test's device stands in for the machine's.
//!
//! All of it is for one thread. Memory is handed over with each operation and comes back with its end:
//! a caller that stops waiting cannot take memory away from under the kernel.

use std::io;

use super::record::PAGE_BYTES;
use crate::arena::Slot;
use crate::block::Lease;

/// Whole pages of this process's own, at a page boundary.
#[derive(Debug)]
pub struct Pages {
    /// Never longer than it was made for: so it stays where it is, whoever owns it.
    memory: Vec<u8>,
    start: usize,
}

impl Pages {
    /// `count` pages of zeros.
    pub fn new(count: usize) -> Pages {
        let bytes = count * PAGE_BYTES;
        let mut memory = vec![0; bytes + PAGE_BYTES];
        let start = memory.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        memory.truncate(start + bytes);
        Pages { memory, start }
    }

    /// No pages yet, and room for `bytes`.
    pub fn with_room(bytes: usize) -> Pages {
        let mut memory: Vec<u8> = Vec::with_capacity(bytes + PAGE_BYTES);
        let start = memory.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        memory.resize(start, 0);
        Pages { memory, start }
    }

    /// Adds a copy of `bytes`, as far as there is room: the copy.
    pub fn append(&mut self, bytes: &[u8]) -> &mut [u8] {
        let at = self.memory.len();
        let bytes = &bytes[..bytes.len().min(self.memory.capacity() - at)];
        self.memory.extend_from_slice(bytes);
        &mut self.memory[at..]
    }

    /// One page with these bytes.
    pub fn of(page: &[u8; PAGE_BYTES]) -> Pages {
        let mut pages = Pages::new(1);
        pages.bytes_mut().copy_from_slice(page);
        pages
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..]
    }

    /// The bytes, to change.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..]
    }

    /// The first page.
    pub fn first(&self) -> &[u8; PAGE_BYTES] {
        const BLANK: &[u8; PAGE_BYTES] = &[0; PAGE_BYTES];
        self.bytes().first_chunk().unwrap_or(BLANK)
    }
}

/// Memory of an operation: always whole pages at a page boundary.
#[derive(Debug)]
pub enum Buffer {
    /// A complete block: written from, never read into.
    Lease(Lease),
    /// Our own pages.
    Pages(Pages),
    /// A block that is being read.
    Slot(Slot),
}

impl Buffer {
    /// Its bytes; of a slot, those of the block without the rest of its last page.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Buffer::Lease(block) => block.padded(),
            Buffer::Pages(pages) => pages.bytes(),
            Buffer::Slot(slot) => slot.bytes(),
        }
    }

    /// Its bytes, to read into; none of a complete block.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        match self {
            Buffer::Lease(_) => None,
            Buffer::Pages(pages) => Some(pages.bytes_mut()),
            Buffer::Slot(slot) => Some(slot.padded_mut()),
        }
    }
}

/// What the tier asks of a device. Offsets and lengths are whole pages.
pub trait Device: 'static {
    /// Fills `into` from `offset`. `seen` gets all the bytes in order, in parts, as they arrive.
    fn read_at(
        &self,
        offset: u64,
        into: Buffer,
        seen: impl FnMut(&[u8]),
    ) -> impl Future<Output = (io::Result<()>, Buffer)>;

    /// Writes `from` at `offset`. The bytes are safe after a later [`Device::sync`] only.
    fn write_at(&self, offset: u64, from: Buffer) -> impl Future<Output = io::Result<()>>;

    /// As [`Device::write_at`], of a page and a value right behind it: one operation where the device can.
    fn write_record(
        &self,
        offset: u64,
        page: Pages,
        value: Option<Buffer>,
    ) -> impl Future<Output = io::Result<()>>;

    /// Makes durable what was written before the call.
    fn sync(&self) -> impl Future<Output = io::Result<()>>;

    /// Takes room for `bytes` at `offset`, so that writing there does not fail for want of it.
    fn allocate(&self, offset: u64, bytes: u64) -> impl Future<Output = io::Result<()>>;

    /// Bytes the tier may use of it.
    fn bytes(&self) -> u64;
}
