//! The arena: one sparse memfd, mapped once, that every block in RAM lies in.
//!
//! It owns the mapping and makes parts of it resident or not; where a block lies is decided by
//! [`space`]. Native clients map the same memfd read-only and read leased blocks in place: they get a
//! descriptor that is open for reading only. A seal against writing would be stronger, but the kernel then
//! refuses to punch holes too, and no memory could ever be given back.
//!
//! This is the one file of the RAM tier with `unsafe`: bytes of the mapping become slices here, and the
//! proof rests on regions that never overlap.
#![expect(unsafe_code, reason = "slices into a mapping that the kernel keeps for this process")]

pub mod space;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use atomic_waker::AtomicWaker;
use crossbeam::queue::SegQueue;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::namespace::Namespace;
use space::{Space, SpaceError};

/// Alignment of values, and what their memory is a multiple of: what `O_DIRECT` asks for.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of a huge page on x86-64 and, with 4 KiB pages, aarch64.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Memory that a block of `len` bytes takes and is charged for: whole pages, one at least.
pub fn padded_bytes(len: usize) -> usize {
    len.max(1).next_multiple_of(PAGE_BYTES)
}

/// Which pages the arena is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// 4 KiB.
    Plain,
    /// 2 MiB, from the kernel's pool.
    Huge,
}

impl Pages {
    /// The smallest part of the arena that is resident or not.
    pub fn granule_bytes(self) -> usize {
        match self {
            Pages::Plain => PAGE_BYTES,
            Pages::Huge => HUGE_PAGE_BYTES,
        }
    }
}

/// Why the arena could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// A system call refused.
    #[error("cannot {what}: {source}")]
    System {
        /// What was asked of the system.
        what: &'static str,
        /// What it said.
        source: Errno,
    },
    /// `ram_gib` over all shards does not fit the address space.
    #[error("an arena of {0} bytes does not fit the address space; lower kv.ram_gib")]
    TooLarge(u64),
}

/// The mapping. Dropped when the last region is.
#[derive(Debug)]
pub struct Arena {
    memfd: OwnedFd,
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; `Arena` itself only hands out
// addresses, and slices are made from regions, which never overlap.
unsafe impl Send for Arena {}
// SAFETY: as above; no method of `Arena` writes through `base` but for a region's owner.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps windows for `shards` shards of `budget_bytes` of resident memory each, for blocks of at most
    /// `block_bytes_max`. Nothing is resident yet.
    ///
    /// # Errors
    /// [`ArenaError`].
    pub fn map(
        shards: usize,
        budget_bytes: u64,
        block_bytes_max: u64,
        pages: Pages,
    ) -> Result<Vec<Memory>, ArenaError> {
        let granule = pages.granule_bytes() as u64;
        let space = || Space::new(budget_bytes, granule, block_bytes_max);
        let window = space().window_bytes();
        let total = window.checked_mul(shards as u64).ok_or(ArenaError::TooLarge(window))?;
        let bytes = usize::try_from(total)
            .ok()
            .filter(|&total| total <= isize::MAX as usize)
            .ok_or(ArenaError::TooLarge(total))?;
        let arena = Arc::new(Arena::map_memfd(bytes, pages)?);
        let memories = (0..shards).map(|shard| Memory {
            arena: arena.clone(),
            window_start: shard as u64 * window,
            budget_bytes,
            space: space(),
            freed: Arc::default(),
        });
        Ok(memories.collect())
    }

    fn map_memfd(bytes: usize, pages: Pages) -> Result<Arena, ArenaError> {
        let refused = |what| move |source| ArenaError::System { what, source };
        let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        if pages == Pages::Huge {
            flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        }
        let memfd = rustix::fs::memfd_create("cognitora-kv", flags)
            .map_err(refused("make the arena's memfd"))?;
        rustix::fs::ftruncate(&memfd, bytes as u64).map_err(refused("size the arena"))?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // NORESERVE: the file is sparse by many times; what becomes resident is counted by `Space`.
        let share = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, access, share, &memfd, 0) }
                .map_err(refused("map the arena"))?;
        let base = NonNull::new(base.cast::<u8>())
            .ok_or(ArenaError::System { what: "map the arena", source: Errno::NOMEM })?;
        let arena = Arena { memfd, base, bytes };
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&arena.memfd, seals).map_err(refused("seal the arena"))?;
        // Nobody but this user, who could as well debug this process, opens it again to write.
        rustix::fs::fchmod(&arena.memfd, rustix::fs::Mode::RUSR)
            .map_err(refused("close the arena to others"))?;
        Ok(arena)
    }

    /// The memfd. It is open for writing: clients get [`Arena::for_clients`].
    pub fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }

    /// The memfd, opened for reading only: the kernel allows no writable mapping of it.
    ///
    /// # Errors
    /// What the system said: too many descriptors are open, for example.
    pub fn for_clients(&self) -> Result<OwnedFd, Errno> {
        let path = format!("/proc/self/fd/{}", self.memfd.as_raw_fd());
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        rustix::fs::open(path, flags, rustix::fs::Mode::empty())
    }

    /// Bytes of the mapping, most of which are never resident.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of the mapping, for registering it with a device.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn make_resident(&self, start: u64, bytes: u64) -> Result<(), Errno> {
        // This reports a lack of memory, where a first touch would end the process.
        rustix::fs::fallocate(&self.memfd, FallocateFlags::empty(), start, bytes)?;
        let at = self.base.as_ptr().wrapping_add(start as usize).cast();
        // SAFETY: the range lies in the mapping, which lives as long as `self`; populating changes no
        // byte. Kernels before 5.14 refuse, and the pages are mapped when they are touched.
        let _ = unsafe { rustix::mm::madvise(at, bytes as usize, Advice::LinuxPopulateWrite) };
        Ok(())
    }

    fn give_back(&self, start: u64, bytes: u64) {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if let Err(error) = rustix::fs::fallocate(&self.memfd, hole, start, bytes) {
            tracing::warn!(%error, start, bytes, "memory could not be given back");
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `map_memfd`; every region holds the `Arc` of this arena, so
        // none is left that points into it.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Where regions go when their last owner lets go, on whatever thread that is. It holds at most what
/// the shard granted, so it needs no bound of its own.
#[derive(Debug, Default)]
pub struct Freed {
    offsets: SegQueue<u64>,
    /// Leases and regions let go so far; it may wrap.
    releases: AtomicU64,
    waker: AtomicWaker,
}

impl Freed {
    /// What [`Freed::released_since`] wants: take it before looking whether there is room.
    pub fn releases(&self) -> u64 {
        self.releases.load(Ordering::Acquire)
    }

    /// Waits until something was let go after `releases` was taken. For one task at a time.
    pub async fn released_since(&self, releases: u64) {
        std::future::poll_fn(|context| {
            self.waker.register(context.waker());
            if self.releases() == releases { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    /// Something was let go, so that a block can be evicted or memory taken back.
    pub fn note(&self) {
        self.releases.fetch_add(1, Ordering::Release);
        self.waker.wake();
    }
}

/// Why no memory was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// All of it is in use: something must be evicted first.
    #[error("the shard's memory is in use")]
    Full,
    /// No block of this size fits.
    #[error("a block of {len} bytes is larger than the {max} that kv.limits.block_mib_max allows")]
    TooLarge {
        /// Bytes asked for.
        len: u64,
        /// Bytes allowed.
        max: u64,
    },
    /// The machine has less memory than the configuration promised.
    #[error("the system has no memory left for the arena; lower kv.ram_gib: {0}")]
    System(Errno),
}

/// One shard's share of the arena.
#[derive(Debug)]
pub struct Memory {
    arena: Arc<Arena>,
    window_start: u64,
    budget_bytes: u64,
    space: Space,
    freed: Arc<Freed>,
}

impl Memory {
    /// Memory for a block of `len` bytes, charged to `namespace`, which has been asked already.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn alloc(&mut self, len: usize, namespace: Arc<Namespace>) -> Result<Slot, MemoryError> {
        self.take_back();
        let padded = padded_bytes(len);
        let grant = self.space.alloc(padded as u64).map_err(|error| match error {
            SpaceError::Full => MemoryError::Full,
            SpaceError::TooLarge { len, max } => MemoryError::TooLarge { len, max },
        })?;
        for hole in grant.punch {
            self.arena.give_back(self.window_start + hole.start, hole.end - hole.start);
        }
        if let Some(fill) = grant.fill {
            let start = self.window_start + fill.start;
            if let Err(errno) = self.arena.make_resident(start, fill.end - fill.start) {
                if let Some(hole) = self.space.fill_failed(grant.offset) {
                    self.arena.give_back(self.window_start + hole.start, hole.end - hole.start);
                }
                return Err(MemoryError::System(errno));
            }
        }
        let region = Region {
            arena: self.arena.clone(),
            offset: self.window_start + grant.offset,
            window_start: self.window_start,
            padded,
            freed: self.freed.clone(),
            namespace,
        };
        let mut slot = Slot { region, len };
        slot.padded_mut()[len..].fill(0);
        Ok(slot)
    }

    fn take_back(&mut self) {
        while let Some(offset) = self.freed.offsets.pop() {
            if !self.space.free(offset) {
                // A region that was never granted cannot exist; were it so, its memory is lost, not shared.
                tracing::error!(offset, "memory that was not granted came back");
            }
        }
    }

    /// Bytes in use by blocks, their pages rounded up.
    pub fn used_bytes(&mut self) -> u64 {
        self.take_back();
        self.space.used_bytes()
    }

    /// Bytes resident: in use, or kept warm for the next block.
    pub fn resident_bytes(&self) -> u64 {
        self.space.resident_bytes()
    }

    /// Bytes that may be resident.
    pub fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// The arena this is a share of.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Where regions come back to.
    pub fn freed(&self) -> &Arc<Freed> {
        &self.freed
    }
}

/// A range of the arena that one owner has. Its charge and its memory go back when it is dropped.
#[derive(Debug)]
pub struct Region {
    arena: Arc<Arena>,
    offset: u64,
    window_start: u64,
    padded: usize,
    freed: Arc<Freed>,
    namespace: Arc<Namespace>,
}

impl Region {
    /// Its first byte in the arena's memfd.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Its bytes, whole pages.
    pub fn padded(&self) -> &[u8] {
        // SAFETY: `Space` grants no byte twice and `Region` is not `Clone`, so only this region's owner
        // reaches the range; it was made resident and stays so until `Drop`; a shared borrow of the
        // region keeps `padded_mut` away. Other processes have it for reading only.
        unsafe {
            let at = self.arena.base.as_ptr().add(self.offset as usize);
            std::slice::from_raw_parts(at, self.padded)
        }
    }

    fn padded_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `padded`; the exclusive borrow makes this the only slice of the range.
        unsafe {
            let at = self.arena.base.as_ptr().add(self.offset as usize);
            std::slice::from_raw_parts_mut(at, self.padded)
        }
    }

    /// The arena it lies in.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Where it goes when it is dropped.
    pub fn freed(&self) -> &Arc<Freed> {
        &self.freed
    }

    /// Whose block it holds.
    pub fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.namespace.discharge(self.padded as u64);
        self.freed.offsets.push(self.offset - self.window_start);
        self.freed.note();
    }
}

/// Memory of a block that is being written: nobody else sees it until it is committed.
#[derive(Debug)]
pub struct Slot {
    region: Region,
    len: usize,
}

impl Slot {
    /// The block's bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut self.region.padded_mut()[..len]
    }

    /// The block's bytes and zeros up to the next page.
    pub fn padded_mut(&mut self) -> &mut [u8] {
        self.region.padded_mut()
    }

    /// The block's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.region.padded()[..self.len]
    }

    /// Bytes of the block.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the block has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its first byte in the arena's memfd.
    pub fn offset(&self) -> u64 {
        self.region.offset()
    }

    /// Ends writing.
    pub fn into_parts(self) -> (Region, usize) {
        (self.region, self.len)
    }
}

#[cfg(test)]
mod tests;
