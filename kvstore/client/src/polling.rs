//! Asking by shared memory: for a client that spins on its own core rather than sleep.
//!
//! Owns the client's end of the ring (`dataplane::kv::ring`): it writes submissions and reads completions.
//! One handle has one thread at a time; leases it hands out are like all others.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dataplane::kv::ring::{self, Completion, Submission};
use dataplane::kv::{Got, Name, Request, Tier};

use crate::client::Shared;
use crate::error::Error;
use crate::lease::{Found, Lease};
use crate::mapping::RingMemory;

/// Turns of spinning between two looks at the clock: about a microsecond.
const TURNS: u32 = 64;
/// How long an answer is spun for before the core is offered to others between looks: many times what a
/// block in memory takes.
const SPIN_MAX: Duration = Duration::from_micros(200);

/// How long an answer is waited for between two looks whether the daemon still lives.
const NUDGE_TIME: Duration = Duration::from_millis(100);

/// A connection's ring, client's end.
pub struct Polling {
    shared: Arc<Shared>,
    ring: RingMemory,
    /// Submissions written.
    written: u32,
    /// Completions read.
    read: u32,
    /// Id of the last question.
    last_id: u32,
    is_lost: bool,
    /// Since the last question: how often the socket was tried.
    nudges: u32,
    timeout: Duration,
}

impl Polling {
    pub(crate) fn new(
        shared: Arc<Shared>,
        fd: BorrowedFd<'_>,
        bytes: u64,
    ) -> Result<Polling, Error> {
        if bytes != ring::RING_BYTES as u64 {
            return Err(Error::Lost(
                "the daemon's ring is not as long as this client's".to_owned(),
            ));
        }
        let ring = RingMemory::new(fd, bytes)?;
        let timeout = shared.timeout;
        Ok(Polling {
            shared,
            ring,
            written: 0,
            read: 0,
            last_id: 0,
            is_lost: false,
            nudges: 0,
            timeout,
        })
    }

    /// A lease on one block. Spins until the answer is there.
    ///
    /// # Errors
    /// Any [`Error`]
    pub fn get(&mut self, name: &Name) -> Result<Found, Error> {
        Ok(match self.grant(name)? {
            Got::Leased { lease, offset, len } => {
                Found::Lease(Lease::new(&self.shared, lease, offset, len))
            }
            Got::Missing => Found::Missing,
            Got::Failed(fault) => Found::Failed(fault),
        })
    }

    /// GET of one block; what is leased lies in the arena.
    pub(crate) fn grant(&mut self, name: &Name) -> Result<Got, Error> {
        let id = self.next_id();
        let got = self.ask(id, Submission::Get { id, name: *name })?;
        match got {
            Got::Leased { offset, len, .. } if self.shared.arena.leased(offset, len).is_none() => {
                Err(self.lose("the daemon leased bytes outside of its arena"))
            }
            got => Ok(got),
        }
    }

    /// Gives a lease back by its number.
    pub(crate) fn release_id(&mut self, lease: u64) -> Result<(), Error> {
        if self.is_lost {
            return Err(self.lost());
        }
        self.submit(Submission::Release { lease })
    }

    /// Where a block is on the node.
    ///
    /// # Errors
    /// Any [`Error`]
    pub fn lookup(&mut self, name: &Name) -> Result<Option<Tier>, Error> {
        let id = self.next_id();
        match self.ask(id, Submission::Lookup { id, name: *name })? {
            Got::Leased { lease, .. } => Ok(u8::try_from(lease).ok().and_then(Tier::from_number)),
            Got::Missing => Ok(None),
            Got::Failed(fault) => Err(Error::Refused { fault, text: "in the ring".to_owned() }),
        }
    }

    /// Gives a lease back by the ring, without a system call. A lease that is merely dropped goes back
    /// by the socket.
    ///
    /// # Errors
    /// Any [`Error`]
    pub fn release(&mut self, lease: Lease) -> Result<(), Error> {
        if !lease.is_of(&self.shared) {
            return Err(Error::Invalid("a lease goes back to the client that got it"));
        }
        if self.is_lost {
            // Dropped, it goes by the socket, or with it.
            return Err(self.lost());
        }
        let id = lease.into_id();
        self.release_id(id)
    }

    fn next_id(&mut self) -> u32 {
        self.last_id = self.last_id.wrapping_add(1);
        self.last_id
    }

    fn ask(&mut self, id: u32, submission: Submission) -> Result<Got, Error> {
        if self.is_lost {
            return Err(self.lost());
        }
        self.nudges = 0;
        self.submit(submission)?;
        let begun = Instant::now();
        loop {
            for _ in 0..TURNS {
                if let Some(completion) = self.poll_completion()? {
                    if completion.id == id {
                        return Ok(completion.got);
                    }
                    return Err(self.lose("an answer in the ring is to another question"));
                }
                std::hint::spin_loop();
            }
            self.wait(begun)?;
        }
    }

    /// Puts a submission where the daemon finds it, and wakes it if it sleeps.
    fn submit(&mut self, submission: Submission) -> Result<(), Error> {
        let begun = Instant::now();
        let read = ring::SUBMISSIONS_READ_AT;
        while self.written.wrapping_sub(self.ring.counter(read).load(Ordering::Acquire))
            >= ring::ENTRIES
        {
            self.wait(begun)?;
        }
        let at = ring::submission_at(self.written);
        for (index, word) in submission.to_words().into_iter().enumerate() {
            self.ring.word(at + index * size_of::<u64>()).store(word, Ordering::Relaxed);
        }
        self.written = self.written.wrapping_add(1);
        // SeqCst here and at the look below, as the daemon's two: either the daemon sees the
        // submission before it sleeps, or this thread sees that it sleeps.
        let counter = self.ring.counter(ring::SUBMISSIONS_WRITTEN_AT);
        counter.store(self.written, Ordering::SeqCst);
        self.wake()
    }

    fn wake(&self) -> Result<(), Error> {
        if self.ring.counter(ring::SLEEPS_AT).load(Ordering::SeqCst) != 0 {
            self.shared.tell(Some(&Request::Wake))?;
        }
        Ok(())
    }

    /// Waits a little: the daemon may have no core, or be on its way to a slower tier.
    fn wait(&mut self, begun: Instant) -> Result<(), Error> {
        let waited = begun.elapsed();
        if waited > self.timeout {
            self.is_lost = true;
            return Err(Error::TimedOut(self.timeout.as_millis()));
        }
        if waited > SPIN_MAX {
            self.wake()?;
            std::thread::yield_now();
        }
        if waited > NUDGE_TIME * (self.nudges + 1) {
            // Shared memory does not tell that the other side has died; the socket does.
            self.nudges += 1;
            self.shared.tell(Some(&Request::Wake))?;
        }
        Ok(())
    }

    fn poll_completion(&mut self) -> Result<Option<Completion>, Error> {
        let written = ring::COMPLETIONS_WRITTEN_AT;
        if self.ring.counter(written).load(Ordering::Acquire) == self.read {
            return Ok(None);
        }
        let at = ring::completion_at(self.read);
        let word = |index: usize| self.ring.word(at + index * 8).load(Ordering::Relaxed);
        let words: ring::CompletionWords = std::array::from_fn(word);
        self.read = self.read.wrapping_add(1);
        self.ring.counter(ring::COMPLETIONS_READ_AT).store(self.read, Ordering::Release);
        match Completion::from_words(words) {
            Some(completion) => Ok(Some(completion)),
            None => Err(self.lose("an answer in the ring that is none")),
        }
    }

    fn lose(&mut self, why: &str) -> Error {
        self.is_lost = true;
        Error::Lost(why.to_owned())
    }

    fn lost(&self) -> Error {
        Error::Lost("the ring is out of step; connect again".to_owned())
    }
}

impl std::fmt::Debug for Polling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Polling").field("written", &self.written).finish_non_exhaustive()
    }
}
