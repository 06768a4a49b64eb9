//! Memory shared with the daemon: its arena, read-only; the client's own staging memory; the ring.
//!
//! Owns the mappings. Bounds are checked here; who may look at which bytes when is what leases and
//! [`crate::staging`] keep.
// Mapped memory has no other door than a raw pointer.
#![expect(unsafe_code, reason = "maps memory that is shared with the daemon")]

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::error::Error;

/// One mapping of a descriptor from its beginning.
struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: the pointer is to a mapping that is this value's alone and lives as long as it does; nothing in
// it is bound to a thread.
unsafe impl Send for Mapping {}
// SAFETY: shared access gives out bytes only through the types below, which say who may write them.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes, which the file must have: a shorter one would fault when read.
    fn new(fd: BorrowedFd<'_>, len: u64, protection: ProtFlags) -> Result<Mapping, Error> {
        let what = "cannot map memory shared with the daemon";
        let stat = rustix::fs::fstat(fd).map_err(Error::system(what))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let bytes = usize::try_from(len).ok().filter(|bytes| *bytes > 0 && len <= size);
        let Some(len) = bytes else {
            return Err(Error::System {
                what,
                source: io::Error::from(io::ErrorKind::InvalidData),
            });
        };
        // SAFETY: the kernel chooses the place, so no memory in use is replaced.
        let at = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED | MapFlags::NORESERVE,
                fd,
                0,
            )
        };
        let at = NonNull::new(at.map_err(Error::system(what))?.cast::<u8>());
        let at = at.ok_or(Error::System { what, source: io::ErrorKind::OutOfMemory.into() })?;
        Ok(Mapping { at, len })
    }

    /// Where `len` bytes from `offset` begin, if they lie within.
    fn begin(&self, offset: u64, len: usize) -> Option<NonNull<u8>> {
        let offset = usize::try_from(offset).ok()?;
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: `offset` is at most `self.len`, so the place is in the mapping or just behind it.
        Some(unsafe { self.at.add(offset) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this length, and every reference into it borrows from
        // this value. Nothing can be done about a failure; the mapping then stays until the process ends.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
    }
}

/// The daemon's arena.
pub(crate) struct Arena(Mapping);

impl Arena {
    pub(crate) fn new(fd: BorrowedFd<'_>, len: u64) -> Result<Arena, Error> {
        Mapping::new(fd, len, ProtFlags::READ).map(Arena)
    }

    /// The bytes of a block under lease; nothing when they do not lie in the arena. Only
    /// [`crate::Lease`] and the C ABI ask, between the grant of a lease and its release.
    pub(crate) fn leased(&self, offset: u64, len: u64) -> Option<&[u8]> {
        let len = usize::try_from(len).ok()?;
        let begin = self.0.begin(offset, len)?;
        // SAFETY: the bytes lie in the mapping (`begin`), which outlives the borrow of self; the daemon
        // writes them before it grants the lease and not again before it is released, which is its word
        // on the wire (docs/wire.md), and this process cannot write: the mapping is read-only.
        Some(unsafe { std::slice::from_raw_parts(begin.as_ptr(), len) })
    }
}

/// The staging memory: written here, read by the daemon with `pread`.
pub(crate) struct StagingMemory(Mapping);

impl StagingMemory {
    pub(crate) fn new(fd: BorrowedFd<'_>, len: u64) -> Result<StagingMemory, Error> {
        Mapping::new(fd, len, ProtFlags::READ | ProtFlags::WRITE).map(StagingMemory)
    }

    /// A part of it for one owner. `crate::staging::Draft` asks, once for each part that
    /// `crate::staging::Space` gave it.
    pub(crate) fn part(&self, offset: u64, len: usize) -> Option<Part> {
        self.0.begin(offset, len).map(|at| Part { at, len })
    }
}

/// A part of the staging memory that has one owner, who keeps the memory mapped.
pub(crate) struct Part {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: a part is exclusive memory, like a Vec's, and not bound to a thread.
unsafe impl Send for Part {}
// SAFETY: shared access only reads.
unsafe impl Sync for Part {}

impl Part {
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the part lies in the mapping, which its owner keeps (`Draft` holds the `Shared` that owns
        // it); Space gives no byte to two owners, and the daemon only reads.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and this borrow of the only owner is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

/// The ring: words that both sides read and write, hence atomics.
pub(crate) struct RingMemory(Mapping);

impl RingMemory {
    pub(crate) fn new(fd: BorrowedFd<'_>, len: u64) -> Result<RingMemory, Error> {
        Mapping::new(fd, len, ProtFlags::READ | ProtFlags::WRITE).map(RingMemory)
    }

    /// The counter at `at`; offsets come from `dataplane::kv::ring` alone, in range and aligned.
    pub(crate) fn counter(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at + 4 <= self.0.len, "no counter of the ring at {at}");
        // SAFETY: in range and aligned by the assertion (the mapping begins at a page), valid for any bits,
        // alive as long as self; the daemon touches it by atomics only.
        unsafe { &*self.0.at.add(at).as_ptr().cast::<AtomicU32>() }
    }

    /// The word at `at`; as for [`RingMemory::counter`].
    pub(crate) fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.0.len, "no word of the ring at {at}");
        // SAFETY: as in `counter`.
        unsafe { &*self.0.at.add(at).as_ptr().cast::<AtomicU64>() }
    }
}
