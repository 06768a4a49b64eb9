//! Reads the key file, and tells whether it changed. Blocking; the file is local and small.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::identity::key::{KEY_FILE_BYTES_MAX, KeyFileError};

/// Why keys or tenants could not be taken. Those in force before stay.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file cannot be read.
    #[error("cannot read the key file {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// Over [`KEY_FILE_BYTES_MAX`].
    #[error("the key file {} is longer than {KEY_FILE_BYTES_MAX} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// A line is not understood, or names a tenant that does not exist.
    #[error(transparent)]
    Line(#[from] KeyFileError),
    /// The tenants are not consistent.
    #[error("[[tenants]]: {0}")]
    Tenants(String),
    /// The section is not consistent.
    #[error("[router.identity.jwt]: {0}")]
    Jwt(String),
}

/// What changes when a file does. The change time catches what a tool that keeps the modification
/// time wrote; the inode catches a file that was renamed into place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    bytes: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of a file.
    ///
    /// # Errors
    /// The system's.
    pub fn of(path: &Path) -> io::Result<Stamp> {
        Ok(Stamp::from(&std::fs::metadata(path)?))
    }

    /// Whether the file could not change any more without its stamp changing too. File systems count
    /// time in ticks of some milliseconds, so of two writes in one tick the second cannot be seen.
    pub fn is_settled(&self, now_unix_s: u64) -> bool {
        i64::try_from(now_unix_s).is_ok_and(|now_s| now_s > self.changed.0.saturating_add(1))
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Stamp {
        Stamp {
            bytes: metadata.len(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The text of a key file. Its stamp is from before, so a write while it is read is seen next time.
///
/// # Errors
/// [`ReloadError`].
pub fn text(path: &Path) -> Result<(Stamp, String), ReloadError> {
    let failed = |error| ReloadError::Read { path: path.to_owned(), error };
    let file = File::open(path).map_err(failed)?;
    let stamp = Stamp::from(&file.metadata().map_err(failed)?);
    let mut text = String::new();
    // What says it is empty may still be endless, as a device is.
    file.take(KEY_FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > KEY_FILE_BYTES_MAX {
        return Err(ReloadError::TooLong { path: path.to_owned() });
    }
    Ok((stamp, text))
}
