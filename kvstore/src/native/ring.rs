//! The daemon's end of a polling client's ring: `dataplane::kv::ring` says what lies where.
//!
//! Owns the memory, which the daemon makes and seals, so that nobody can take it away from under it. What
//! the client writes there is copied out whole and parsed, and its counters are believed only as far as they
//! can be true.
// Memory shared with another process has no other door than a raw pointer.
#![expect(unsafe_code, reason = "maps memory that a client writes too")]

use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use dataplane::kv::ring::{self, Completion, ENTRIES, RING_BYTES, Submission, SubmissionWords};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

/// What the client did can no longer be followed; its connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ring of a polling client is out of step")]
pub struct OutOfStep;

/// One client's ring.
#[derive(Debug)]
pub struct Ring {
    at: NonNull<u8>,
    /// Submissions taken.
    taken: u32,
    /// Completions written.
    answered: u32,
}

impl Ring {
    /// Makes one, and its descriptor for the client, which may map it but neither shrink nor grow it.
    ///
    /// # Errors
    /// What the system said.
    pub fn new() -> Result<(Ring, OwnedFd), Errno> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memfd = rustix::fs::memfd_create("cognitora-kv-ring", flags)?;
        rustix::fs::ftruncate(&memfd, RING_BYTES as u64)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&memfd, seals)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let at = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), RING_BYTES, access, MapFlags::SHARED, &memfd, 0)
        }?;
        let at = NonNull::new(at.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let ring = Ring { at, taken: 0, answered: 0 };
        ring.counter(ring::SLEEPS_AT).store(1, Ordering::SeqCst);
        Ok((ring, memfd))
    }

    /// The next submission, if there is one and `waiting` others that are not answered yet leave its answer
    /// a place.
    ///
    /// # Errors
    /// [`OutOfStep`].
    pub fn take(&mut self, waiting: usize) -> Result<Option<Submission>, OutOfStep> {
        // SeqCst: see `sleep`.
        let written = self.counter(ring::SUBMISSIONS_WRITTEN_AT).load(Ordering::SeqCst);
        let behind = written.wrapping_sub(self.taken);
        let read = self.counter(ring::COMPLETIONS_READ_AT).load(Ordering::Acquire);
        let unread = self.answered.wrapping_sub(read);
        if behind > ENTRIES || unread > ENTRIES {
            return Err(OutOfStep);
        }
        if behind == 0 || unread as usize + waiting >= ENTRIES as usize {
            return Ok(None);
        }
        let at = ring::submission_at(self.taken);
        let words: SubmissionWords =
            std::array::from_fn(|index| self.word(at + index * 8).load(Ordering::Relaxed));
        self.taken = self.taken.wrapping_add(1);
        self.counter(ring::SUBMISSIONS_READ_AT).store(self.taken, Ordering::Release);
        Submission::from_words(words).map(Some).ok_or(OutOfStep)
    }

    /// Answers. [`Ring::take`] saw to it that there is a place.
    pub fn complete(&mut self, completion: Completion) {
        let at = ring::completion_at(self.answered);
        for (index, word) in completion.to_words().into_iter().enumerate() {
            self.word(at + index * 8).store(word, Ordering::Relaxed);
        }
        self.answered = self.answered.wrapping_add(1);
        self.counter(ring::COMPLETIONS_WRITTEN_AT).store(self.answered, Ordering::Release);
    }

    /// Tells the client that it must wake the daemon. False when there is something already: then the daemon
    /// does not sleep.
    ///
    /// This store and load, and the client's store of its counter and load of this flag, are all SeqCst:
    /// one of the two loads comes last and sees the other's store.
    pub fn sleep(&self) -> bool {
        self.counter(ring::SLEEPS_AT).store(1, Ordering::SeqCst);
        let written = self.counter(ring::SUBMISSIONS_WRITTEN_AT).load(Ordering::SeqCst);
        if written == self.taken {
            return true;
        }
        self.wake();
        false
    }

    /// Tells the client that the daemon looks by itself.
    pub fn wake(&self) {
        self.counter(ring::SLEEPS_AT).store(0, Ordering::SeqCst);
    }

    /// A counter; `at` is one of the constants of `dataplane::kv::ring`.
    fn counter(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at + 4 <= RING_BYTES, "no counter of the ring at {at}");
        // SAFETY: in range and aligned by the assertion (the mapping begins at a page and is RING_BYTES
        // long), valid for any bits, mapped as long as self; the client's stores are atomic or it harms
        // only what it reads itself: any value is allowed for.
        unsafe { &*self.at.add(at).as_ptr().cast::<AtomicU32>() }
    }

    /// A word of an entry.
    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= RING_BYTES, "no word of the ring at {at}");
        // SAFETY: as in `counter`.
        unsafe { &*self.at.add(at).as_ptr().cast::<AtomicU64>() }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this length, and references into it borrow from self.
        let _ = unsafe { rustix::mm::munmap(self.at.as_ptr().cast(), RING_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use dataplane::kv::Got;
    use proptest::prelude::*;

    use super::*;

    /// Writes what a client would.
    fn submit(ring: &Ring, number: u32, words: SubmissionWords) {
        for (index, word) in words.into_iter().enumerate() {
            ring.word(ring::submission_at(number) + index * 8).store(word, Ordering::Relaxed);
        }
        let counter = ring.counter(ring::SUBMISSIONS_WRITTEN_AT);
        counter.store(number.wrapping_add(1), Ordering::SeqCst);
    }

    #[test]
    fn submissions_are_taken_once_in_order_and_answers_have_a_place() {
        let (mut ring, _memfd) = Ring::new().unwrap();
        assert!(ring.sleep());
        for number in 0..1000u32 {
            submit(&ring, number, Submission::Get { id: number, name: [1; 32] }.to_words());
            assert!(!ring.sleep());
            let taken = ring.take(0).unwrap();
            assert_eq!(taken, Some(Submission::Get { id: number, name: [1; 32] }));
            assert_eq!(ring.take(0), Ok(None));
            ring.complete(Completion { id: number, got: Got::Missing });
            if number == 200 {
                // The client has read nothing so far.
                submit(&ring, 201, Submission::Release { lease: 1 }.to_words());
                assert_eq!(ring.take(55), Ok(None));
                assert!(ring.take(54).unwrap().is_some());
                ring.taken -= 1;
            }
            if number >= 200 {
                ring.counter(ring::COMPLETIONS_READ_AT).store(number + 1, Ordering::Release);
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_a_client_writes_is_taken_or_out_of_step(
            written: u32, read: u32, words: [u64; 8], waiting in 0usize..300,
        ) {
            let (mut ring, _memfd) = Ring::new().unwrap();
            submit(&ring, 0, words);
            ring.counter(ring::SUBMISSIONS_WRITTEN_AT).store(written, Ordering::SeqCst);
            ring.counter(ring::COMPLETIONS_READ_AT).store(read, Ordering::SeqCst);
            let mut turns = 0;
            while let Ok(Some(_)) = ring.take(waiting) {
                turns += 1;
                prop_assert!(turns <= ENTRIES);
            }
        }
    }
}
