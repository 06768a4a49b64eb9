//! Devices over an io_uring of our own, inside the shard's glommio executor.
//!
//! glommio reads into buffers of its own and writes from such only, so each block would be copied once
//! more; this ring reads straight into the arena's memory and writes from it. An eventfd that glommio
//! waits for says that operations have ended; [`Ring::drive`] is the task that does the waiting.
//!
//! Large operations go in parts: the kernel starts a small one without a thread of its own, the parts
//! run side by side, and what has arrived is hashed while the rest is on its way. The arena's memory is
//! not registered: it becomes resident and goes block by block, and registered pages would stay those
//! that were there first.
//!
//! The file has `unsafe` because the kernel reads and writes memory by its address.
#![expect(unsafe_code, reason = "the kernel is given addresses, and file descriptors by number")]

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::rc::Rc;
use std::task::{Poll, Waker};

use glommio::io::BufferedFile;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use rustix::event::EventfdFlags;
use rustix::fs::FallocateFlags;

use super::device::{Buffer, Device, Pages};
use super::file::DiskFile;
use crate::signal::Signal;

/// Parts under way at once: the queue's size, and 128 MiB of parts.
const PARTS_MAX: usize = 256;
/// Bytes of a part. Small enough that a device's queue takes it whole, large enough that a part's cost
/// of a few µs is nothing.
const PART_BYTES: usize = 512 << 10;
/// Bytes of a part of a record that is written. Nobody looks at a part of it before the rest has ended,
/// and each costs a completion and a wake-up.
const RECORD_PART_BYTES: usize = 4 << 20;
/// Parts of one operation: above, parts are larger, so that one operation does not take the whole ring.
const PARTS_OF_ONE_MAX: usize = 64;

/// As the kernel's `iovec`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Vector {
    base: *mut u8,
    bytes: usize,
}

#[derive(Debug)]
struct Part {
    offset: usize,
    bytes: usize,
    /// What the kernel said; none while it has the part.
    result: Option<i32>,
}

/// What the kernel has. It owns the memory until the last part has ended, whether or not anybody waits.
#[derive(Debug)]
struct Operation {
    buffer: Option<Buffer>,
    /// The page before `buffer`, of a record. Only the kernel reads it.
    _page: Option<Pages>,
    /// Where the first part of a record lies: the page, and the first bytes of the value.
    vectors: Option<Box<[Vector; 2]>>,
    /// Where part 0 begins; of a record, where it would if the page lay before the value in memory, too.
    base: *mut u8,
    parts: Vec<Part>,
    left: usize,
    waker: Option<Waker>,
    is_abandoned: bool,
}

impl Operation {
    fn new(buffer: Option<Buffer>, base: *mut u8, parts: Vec<Part>) -> Operation {
        let left = parts.len();
        Operation {
            buffer,
            _page: None,
            vectors: None,
            base,
            parts,
            left,
            waker: None,
            is_abandoned: false,
        }
    }

    /// No memory is in it.
    fn bare() -> Operation {
        Operation::new(None, std::ptr::null_mut(), parts(0, PART_BYTES))
    }

    fn read(mut into: Buffer) -> io::Result<Operation> {
        let bytes = into.bytes_mut().ok_or(io::ErrorKind::InvalidInput)?;
        let (base, parts) = (bytes.as_mut_ptr(), parts(bytes.len(), PART_BYTES));
        Ok(Operation::new(Some(into), base, parts))
    }

    fn write(from: Buffer) -> Operation {
        let (base, bytes) = (from.bytes().as_ptr().cast_mut(), from.bytes().len());
        Operation::new(Some(from), base, parts(bytes, PART_BYTES))
    }

    /// A page and, right behind it on the device, a value.
    fn record(mut page: Pages, value: Buffer) -> Operation {
        let (start, bytes) = (value.bytes().as_ptr().cast_mut(), value.bytes().len());
        let page_bytes = page.bytes().len();
        let parts = parts(page_bytes + bytes, RECORD_PART_BYTES);
        let first = parts.first().map_or(0, |part| part.bytes);
        let vectors = [
            Vector { base: page.bytes_mut().as_mut_ptr(), bytes: page_bytes },
            Vector { base: start, bytes: first - page_bytes },
        ];
        let operation = Operation::new(Some(value), start.wrapping_sub(page_bytes), parts);
        Operation { _page: Some(page), vectors: Some(Box::new(vectors)), ..operation }
    }
}

#[derive(Debug, Default)]
struct Operations {
    slots: Vec<Option<Operation>>,
    free: Vec<u32>,
}

/// One shard's ring, for all its devices.
pub struct Ring {
    ring: RefCell<IoUring>,
    operations: RefCell<Operations>,
    parts_left: Cell<usize>,
    room: Signal,
    bell: OwnedFd,
}

impl Ring {
    /// A ring for this thread. Nothing ends until [`Ring::drive`] runs.
    ///
    /// # Errors
    /// The system's: io_uring may be forbidden.
    pub fn new() -> io::Result<Rc<Ring>> {
        let ring = IoUring::builder().setup_coop_taskrun().build(PARTS_MAX as u32);
        // Kernels before 5.19 do not know the flag, which only saves interrupts.
        let ring = ring.or_else(|_| IoUring::new(PARTS_MAX as u32))?;
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        ring.submitter().register_eventfd(bell.as_raw_fd())?;
        Ok(Rc::new(Ring {
            ring: RefCell::new(ring),
            operations: RefCell::default(),
            parts_left: Cell::new(PARTS_MAX),
            room: Signal::default(),
            bell,
        }))
    }

    /// Waits for operations to end, and wakes who waits for them. To be run for ever in a task of the
    /// glommio executor of the ring's thread.
    ///
    /// # Errors
    /// The system's, when the eventfd cannot be read.
    pub async fn drive(self: Rc<Ring>) -> io::Result<()> {
        let bell = self.bell.try_clone()?;
        // SAFETY: the descriptor is open and given away: glommio closes it, nobody else does.
        let bell = unsafe { BufferedFile::from_raw_fd(bell.into_raw_fd()) };
        loop {
            bell.read_at(0, size_of::<u64>()).await.map_err(io::Error::from)?;
            self.reap();
        }
    }

    fn reap(&self) {
        let mut ring = self.ring.borrow_mut();
        let mut operations = self.operations.borrow_mut();
        let mut wakers = Vec::new();
        for entry in ring.completion() {
            let (id, part) = ((entry.user_data() >> 32) as u32, entry.user_data() as u32);
            let slot = operations.slots.get_mut(id as usize);
            let Some(operation) = slot.and_then(Option::as_mut) else { continue };
            if let Some(part) = operation.parts.get_mut(part as usize) {
                part.result = Some(entry.result());
                operation.left -= 1;
                self.parts_left.set(self.parts_left.get() + 1);
            }
            wakers.extend(operation.waker.take());
            if operation.left == 0 && operation.is_abandoned {
                operations.slots[id as usize] = None;
                operations.free.push(id);
            }
        }
        drop((ring, operations));
        self.room.ring();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Hands an operation to the kernel in parts. `entry` makes a part's entry.
    async fn begin(
        self: &Rc<Ring>,
        operation: Operation,
        entry: impl Fn(&Operation, &Part) -> squeue::Entry,
    ) -> io::Result<Running> {
        let parts = operation.parts.len();
        loop {
            let rings = self.room.rings();
            if self.parts_left.get() >= parts {
                break;
            }
            self.room.rung_since(rings).await;
        }
        self.parts_left.set(self.parts_left.get() - parts);
        let entries = operation.parts.iter().map(|part| entry(&operation, part)).collect();
        let id = self.enter(operation);
        let running = Running { ring: self.clone(), id };
        self.submit(id, entries)?;
        Ok(running)
    }

    fn enter(&self, operation: Operation) -> u32 {
        let mut operations = self.operations.borrow_mut();
        match operations.free.pop() {
            Some(id) => {
                operations.slots[id as usize] = Some(operation);
                id
            }
            None => {
                operations.slots.push(Some(operation));
                (operations.slots.len() - 1) as u32
            }
        }
    }

    fn submit(&self, id: u32, entries: Vec<squeue::Entry>) -> io::Result<()> {
        let mut ring = self.ring.borrow_mut();
        for (part, entry) in entries.into_iter().enumerate() {
            let entry = entry.user_data(u64::from(id) << 32 | part as u64);
            // SAFETY: the entry's memory is a part of the operation's buffer, or its page, or the boxed
            // vectors that name both, which `operations` owns at addresses that do not change until
            // every part has ended (`reap` and `Running` drop it only then), and `Drop for Ring` waits
            // for that. It is borrowed by nobody meanwhile: a slot and pages are owned there alone; a
            // lease is only read from, as it is by all.
            let pushed = unsafe { ring.submission().push(&entry) };
            if pushed.is_err() {
                // As many entries as the queue takes are under way at most, and each was submitted.
                self.fail(id, part);
                return Err(io::Error::other("the ring is full"));
            }
        }
        loop {
            match ring.submit() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What was pushed stays in the queue and goes with the next submission.
                result => return result.map(|_| ()),
            }
        }
    }

    /// Parts from `first` on were never pushed.
    fn fail(&self, id: u32, first: usize) {
        let mut operations = self.operations.borrow_mut();
        if let Some(Some(operation)) = operations.slots.get_mut(id as usize) {
            for part in &mut operation.parts[first..] {
                part.result = Some(-rustix::io::Errno::BUSY.raw_os_error());
                operation.left -= 1;
                self.parts_left.set(self.parts_left.get() + 1);
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel has memory of ours until all has ended.
        while self.parts_left.get() < PARTS_MAX {
            if let Err(error) = self.ring.borrow().submit_and_wait(1)
                && error.kind() != io::ErrorKind::Interrupted
            {
                // Memory that the kernel may still write must not be used again: it is given up.
                tracing::error!(%error, "the disk's ring does not end");
                std::mem::forget(self.operations.take());
                return;
            }
            self.reap();
        }
    }
}

/// An operation that somebody waits for.
struct Running {
    ring: Rc<Ring>,
    id: u32,
}

impl Running {
    /// Waits for the end. `seen` gets what has arrived, in order.
    async fn end(self, mut seen: impl FnMut(&[u8])) -> (io::Result<()>, Option<Buffer>) {
        let mut shown = 0;
        let (result, buffer) = poll_fn(|context| {
            let mut operations = self.ring.operations.borrow_mut();
            let slot = operations.slots.get_mut(self.id as usize);
            let Some(operation) = slot.and_then(Option::as_mut) else {
                return Poll::Ready((Err(io::Error::other("the operation is gone")), None));
            };
            while let Some(part) = operation.parts.get(shown).filter(|part| part.is_whole()) {
                // SAFETY: the part lies in the buffer that the operation owns, and has ended: the kernel
                // does not touch it any more, and others write to other parts.
                seen(unsafe {
                    std::slice::from_raw_parts(operation.base.add(part.offset), part.bytes)
                });
                shown += 1;
            }
            if operation.left > 0 {
                operation.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            let result = operation.parts.iter().try_for_each(Part::check);
            Poll::Ready((result, operation.buffer.take()))
        })
        .await;
        (result, buffer)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut operations = self.ring.operations.borrow_mut();
        let slot = operations.slots.get_mut(self.id as usize);
        let Some(operation) = slot.and_then(Option::as_mut) else { return };
        if operation.left > 0 {
            operation.is_abandoned = true;
            return;
        }
        operations.slots[self.id as usize] = None;
        operations.free.push(self.id);
    }
}

impl Part {
    fn is_whole(&self) -> bool {
        self.bytes > 0 && self.result == i32::try_from(self.bytes).ok()
    }

    fn check(&self) -> io::Result<()> {
        match self.result {
            Some(code) if code < 0 => Err(io::Error::from_raw_os_error(-code)),
            Some(code) if code as usize == self.bytes => Ok(()),
            // A short read is the end of the file, a short write a full one.
            _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        }
    }
}

/// The parts of so many bytes, of `size` or more; one where there is no byte to move.
fn parts(bytes: usize, size: usize) -> Vec<Part> {
    let size = size.max(bytes.div_ceil(PARTS_OF_ONE_MAX).next_multiple_of(size));
    let starts = (0..bytes.max(1)).step_by(size);
    starts.map(|offset| Part { offset, bytes: size.min(bytes - offset), result: None }).collect()
}

/// A file or block device on a shard's ring.
pub struct RingDevice {
    ring: Rc<Ring>,
    file: DiskFile,
    is_sparse: bool,
}

impl RingDevice {
    /// The file on this ring.
    pub fn new(ring: Rc<Ring>, file: &DiskFile) -> RingDevice {
        RingDevice { ring, file: file.clone(), is_sparse: file.is_sparse() }
    }

    fn fd(&self) -> Fd {
        Fd(self.file.file().as_fd().as_raw_fd())
    }

    async fn fallocate(&self, offset: u64, bytes: u64, how: FallocateFlags) -> io::Result<()> {
        let mode = how.bits() as i32;
        let entry = |_: &_, _: &_| {
            opcode::Fallocate::new(self.fd(), bytes).offset(offset).mode(mode).build()
        };
        self.ring.begin(Operation::bare(), entry).await?.end(|_| {}).await.0
    }

    async fn write(&self, offset: u64, operation: Operation) -> io::Result<()> {
        let write = |operation: &Operation, part: &Part| {
            let at = offset + part.offset as u64;
            match operation.vectors.as_deref().filter(|_| part.offset == 0) {
                Some(vectors) => {
                    let count = vectors.len() as u32;
                    opcode::Writev::new(self.fd(), vectors.as_ptr().cast(), count)
                        .offset(at)
                        .build()
                }
                None => {
                    let from = operation.base.wrapping_add(part.offset);
                    opcode::Write::new(self.fd(), from, part.bytes as u32).offset(at).build()
                }
            }
        };
        self.ring.begin(operation, write).await?.end(|_| {}).await.0
    }
}

impl Device for RingDevice {
    async fn read_at(
        &self,
        offset: u64,
        into: Buffer,
        seen: impl FnMut(&[u8]),
    ) -> (io::Result<()>, Buffer) {
        let lost = || Buffer::Pages(Pages::new(0));
        let operation = match Operation::read(into) {
            Ok(operation) => operation,
            Err(error) => return (Err(error), lost()),
        };
        let read = |operation: &Operation, part: &Part| {
            opcode::Read::new(
                self.fd(),
                operation.base.wrapping_add(part.offset),
                part.bytes as u32,
            )
            .offset(offset + part.offset as u64)
            .build()
        };
        match self.ring.begin(operation, read).await {
            Ok(running) => {
                let (result, buffer) = running.end(seen).await;
                (result, buffer.unwrap_or_else(lost))
            }
            Err(error) => (Err(error), lost()),
        }
    }

    async fn write_at(&self, offset: u64, from: Buffer) -> io::Result<()> {
        self.write(offset, Operation::write(from)).await
    }

    async fn write_record(
        &self,
        offset: u64,
        page: Pages,
        value: Option<Buffer>,
    ) -> io::Result<()> {
        let operation = match value {
            Some(value) => Operation::record(page, value),
            None => Operation::write(Buffer::Pages(page)),
        };
        self.write(offset, operation).await
    }

    async fn sync(&self) -> io::Result<()> {
        let fsync =
            |_: &_, _: &_| opcode::Fsync::new(self.fd()).flags(FsyncFlags::DATASYNC).build();
        self.ring.begin(Operation::bare(), fsync).await?.end(|_| {}).await.0
    }

    async fn allocate(&self, offset: u64, bytes: u64) -> io::Result<()> {
        if !self.is_sparse || self.file.is_taken(offset) {
            return Ok(());
        }
        let before = self.file.taken_bytes();
        let taken = self.fallocate(offset, bytes, FallocateFlags::empty()).await;
        // What was there already costs the index nothing.
        let has_grown = self.file.taken_bytes() > before;
        let is_full = match &taken {
            Ok(()) => has_grown && !self.file.has_index_room(),
            Err(error) => error.kind() == io::ErrorKind::StorageFull,
        };
        if is_full {
            // Some of it was given, and would be missed elsewhere.
            let back = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            self.fallocate(offset, bytes, back).await?;
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        taken?;
        self.file.note_taken(offset);
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.file.bytes()
    }
}

#[cfg(test)]
mod tests;
