//! The client's own staging memory: where blocks lie that the daemon is asked to take.
//!
//! Owns which parts are in use. The daemon copies before it answers, so a part is free when its
//! [`Draft`] is dropped.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use dataplane::kv::Name;
use rustix::fs::{MemfdFlags, SealFlags};

use crate::client::Shared;
use crate::error::Error;
use crate::mapping::{Part, StagingMemory};

/// Parts begin at multiples of this: the daemon copies from whole pages.
const ALIGN_BYTES: u64 = 4096;

/// A part of the staging memory to make a block in. What is in it at first is arbitrary.
pub struct Draft {
    shared: Arc<Shared>,
    part: Part,
    offset: u64,
}

/// A block that was made in place, ready to be put.
pub struct Written {
    /// Its name.
    pub name: Name,
    /// The block before it, which must be there or come earlier in the same put.
    pub parent: Option<Name>,
    /// The client's own words for it.
    pub label: Vec<u8>,
    /// Its bytes.
    pub draft: Draft,
}

impl Draft {
    pub(crate) fn new(shared: &Arc<Shared>, len: usize) -> Result<Draft, Error> {
        if len == 0 {
            return Err(Error::Invalid("a block has at least one byte"));
        }
        let staging = shared.staging.as_ref();
        let staging = staging.ok_or(Error::Invalid("this client asked for no staging memory"))?;
        let mut space = staging.space.lock().unwrap_or_else(PoisonError::into_inner);
        let full = Error::StagingFull { needed: len as u64, room: space.free_bytes() };
        let offset = space.take(len as u64).ok_or(full)?;
        drop(space);
        let part = staging.memory.part(offset, len);
        let part = part.ok_or(Error::Invalid("the staging memory is not as long as it was"))?;
        Ok(Draft { shared: Arc::clone(shared), part, offset })
    }

    /// Where it begins in the staging memory, in bytes.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether it is a part of this client's memory.
    pub(crate) fn is_of(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }
}

impl Deref for Draft {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.part.bytes()
    }
}

impl DerefMut for Draft {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.part.bytes_mut()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(staging) = &self.shared.staging {
            let mut space = staging.space.lock().unwrap_or_else(PoisonError::into_inner);
            space.give_back(self.offset, self.len() as u64);
        }
    }
}

/// The memory and who has what of it.
pub(crate) struct Staging {
    memory: StagingMemory,
    space: Mutex<Space>,
}

impl Staging {
    /// Makes a memfd of `bytes`, rounded up to pages, that can neither shrink nor grow.
    pub(crate) fn new(bytes: u64) -> Result<(Staging, OwnedFd, u64), Error> {
        let what = "cannot make the staging memory";
        let bytes = bytes.max(1).checked_next_multiple_of(ALIGN_BYTES);
        let bytes = bytes.ok_or(Error::Invalid("the staging memory is longer than can be"))?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("cgn-kv-staging", flags).map_err(Error::system(what))?;
        rustix::fs::ftruncate(&fd, bytes).map_err(Error::system(what))?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals).map_err(Error::system(what))?;
        let memory = StagingMemory::new(std::os::fd::AsFd::as_fd(&fd), bytes)?;
        Ok((Staging { memory, space: Mutex::new(Space::new(bytes)) }, fd, bytes))
    }
}

/// Which parts are free: the lowest place that fits is taken, so that a client that puts little touches
/// little memory. Free parts that touch are one.
#[derive(Debug)]
struct Space {
    /// Length of each free part by where it begins; both are whole pages.
    free: BTreeMap<u64, u64>,
}

impl Space {
    fn new(bytes: u64) -> Space {
        Space { free: BTreeMap::from([(0, bytes)]) }
    }

    fn free_bytes(&self) -> u64 {
        self.free.values().sum()
    }

    fn take(&mut self, len: u64) -> Option<u64> {
        let len = len.checked_next_multiple_of(ALIGN_BYTES)?;
        let (&begin, &length) = self.free.iter().find(|(_, length)| **length >= len)?;
        self.free.remove(&begin);
        if length > len {
            self.free.insert(begin + len, length - len);
        }
        Some(begin)
    }

    fn give_back(&mut self, mut begin: u64, len: u64) {
        // It was rounded up in `take` without overflow.
        let mut len = len.next_multiple_of(ALIGN_BYTES);
        if let Some(behind) = self.free.remove(&(begin + len)) {
            len += behind;
        }
        if let Some((&before, &length)) = self.free.range(..begin).next_back()
            && before + length == begin
        {
            (begin, len) = (before, length + len);
        }
        self.free.insert(begin, len);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_never_overlap_and_all_comes_back(steps in prop::collection::vec((0u64..40_000, any::<prop::sample::Index>(), any::<bool>()), 1..200)) {
            let total = 64 * ALIGN_BYTES;
            let mut space = Space::new(total);
            // The naive model: a flag for each page.
            let mut used = [false; 64];
            let mut parts: Vec<(u64, u64)> = Vec::new();
            for (len, which, takes) in steps {
                if takes {
                    let pages = len.max(1).div_ceil(ALIGN_BYTES) as usize;
                    let naive = (0..=64 - pages).find(|at| !used[*at..at + pages].contains(&true));
                    let taken = space.take(len.max(1));
                    prop_assert_eq!(taken, naive.map(|at| at as u64 * ALIGN_BYTES));
                    if let Some(at) = naive {
                        used[at..at + pages].fill(true);
                        parts.push((at as u64 * ALIGN_BYTES, len.max(1)));
                    }
                } else if !parts.is_empty() {
                    let (begin, len) = parts.swap_remove(which.index(parts.len()));
                    let at = (begin / ALIGN_BYTES) as usize;
                    used[at..at + len.div_ceil(ALIGN_BYTES) as usize].fill(false);
                    space.give_back(begin, len);
                }
                let free = used.iter().filter(|used| !**used).count() as u64 * ALIGN_BYTES;
                prop_assert_eq!(space.free_bytes(), free);
            }
            for (begin, len) in parts {
                space.give_back(begin, len);
            }
            prop_assert_eq!(space.free, BTreeMap::from([(0, total)]));
        }
    }
}
