//! The memory a client stages blocks in: a memfd of the client's, read with `pread`.
//!
//! It is never mapped here: a client that shrinks or changes it gets an error or its own bytes
//! wrong, and no signal reaches the daemon.

use std::os::fd::OwnedFd;

use dataplane::kv::Fault;
use rustix::fs::SealFlags;

use crate::arena::Slot;
use crate::executor::breath;

/// Copied before others on the shard have their turn: about 0.2 ms of memory bandwidth.
const COPY_BYTES: usize = 1 << 20;

/// One client's staging memory.
#[derive(Debug)]
pub struct Staging {
    memfd: OwnedFd,
    bytes: u64,
}

impl Staging {
    /// Takes what a client passed. Only memory may be read here: a file of a slow file system, or a
    /// pipe, would stop the shard.
    ///
    /// # Errors
    /// [`Fault::BadStaging`] unless it is a memfd of at least `bytes` that cannot shrink.
    pub fn new(memfd: OwnedFd, bytes: u64) -> Result<Staging, Fault> {
        // No file but a memfd can have this seal.
        let seals = rustix::fs::fcntl_get_seals(&memfd).map_err(|_| Fault::BadStaging)?;
        let stat = rustix::fs::fstat(&memfd).map_err(|_| Fault::BadStaging)?;
        let is_long = u64::try_from(stat.st_size).is_ok_and(|size| size >= bytes);
        if seals.contains(SealFlags::SHRINK) && is_long && bytes > 0 {
            Ok(Staging { memfd, bytes })
        } else {
            Err(Fault::BadStaging)
        }
    }

    /// Whether `len` bytes from `offset` lie within.
    pub fn contains(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.bytes)
    }

    /// Fills `slot` with what stands from `offset` on.
    ///
    /// # Errors
    /// [`Fault::OutsideStaging`] when there is less than that.
    pub async fn copy(&self, offset: u64, slot: &mut Slot) -> Result<(), Fault> {
        let bytes = slot.bytes_mut();
        let mut done = 0;
        while done < bytes.len() {
            let end = bytes.len().min(done + COPY_BYTES);
            let at = offset.checked_add(done as u64).ok_or(Fault::OutsideStaging)?;
            match rustix::io::pread(&self.memfd, &mut bytes[done..end], at) {
                Ok(0) => return Err(Fault::OutsideStaging),
                Ok(read) => done += read,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return Err(Fault::OutsideStaging),
            }
            if done < bytes.len() {
                breath().await;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    fn memfd(bytes: u64) -> OwnedFd {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memfd = memfd_create("test", flags).unwrap();
        ftruncate(&memfd, bytes).unwrap();
        memfd
    }

    #[test]
    fn only_a_memfd_that_cannot_shrink_is_taken() {
        assert_eq!(Staging::new(memfd(4096), 4096).unwrap_err(), Fault::BadStaging);
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        assert_eq!(Staging::new(file.into(), 4096).unwrap_err(), Fault::BadStaging);
        let (pipe, _other) = std::io::pipe().unwrap();
        assert_eq!(Staging::new(pipe.into(), 1).unwrap_err(), Fault::BadStaging);
        let sealed = |bytes| {
            let memfd = memfd(bytes);
            rustix::fs::fcntl_add_seals(&memfd, SealFlags::SHRINK).unwrap();
            memfd
        };
        assert_eq!(Staging::new(sealed(4096), 4097).unwrap_err(), Fault::BadStaging);
        assert_eq!(Staging::new(sealed(4096), 0).unwrap_err(), Fault::BadStaging);
        let staging = Staging::new(sealed(4096), 4096).unwrap();
        assert!(staging.contains(0, 4096) && staging.contains(4096, 0));
        assert!(!staging.contains(1, 4096) && !staging.contains(u64::MAX, 2));
    }
}
