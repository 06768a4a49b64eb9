//! Opening what `kv.ssd_dir` names: a directory, where one file holds the segments, or a block device.
//!
//! The file is opened past the page cache and locked: two daemons on one file would overwrite each
//! other's blocks.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::OFlags;

/// Name of the file in a directory of `kv.ssd_dir`.
pub const FILE_NAME: &str = "cognitora.kv";

/// How often an opening or a lock is tried: 2 s, in which any operation ends that the device ends at all.
const LOCK_TRIES_MAX: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// Room that segments leave on a file system: the index lies there, too, unless `kv.index_dir` says
/// otherwise, and RocksDB opens no database that it cannot write to. Twice its write buffers, for their
/// log and their tables.
const INDEX_ROOM_BYTES: u64 = 64 << 20;

/// An open file or block device, to be shared by all shards.
#[derive(Clone, Debug)]
pub struct DiskFile {
    file: Arc<File>,
    path: PathBuf,
    bytes: u64,
    /// Offsets of segments whose room was taken since the file was opened.
    taken: Arc<Mutex<HashSet<u64>>>,
}

/// Why it cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The system refuses.
    #[error("cannot open {path} of kv.ssd_dir: {source}")]
    Refused {
        /// The file or block device.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file system does not know `O_DIRECT`.
    #[error("{0} of kv.ssd_dir lies on a file system without O_DIRECT; use another, not tmpfs")]
    NoDirect(PathBuf),
    /// Another process has it, or it is mounted.
    #[error(
        "{0} of kv.ssd_dir is in use: by another process, or it is mounted or part of a volume"
    )]
    InUse(PathBuf),
}

impl DiskFile {
    /// Opens `path`, to use at most `bytes_max` bytes of it. In a directory a sparse file of that size is
    /// made, or an old one set to it; its room is taken as segments are written.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path, bytes_max: u64) -> Result<DiskFile, OpenError> {
        let is_directory = path.is_dir();
        let path = if is_directory { path.join(FILE_NAME) } else { path.to_owned() };
        let refused = |source| OpenError::Refused { path: path.clone(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(is_directory).truncate(false).mode(0o600);
        let mut flags = OFlags::DIRECT | OFlags::CLOEXEC;
        if !is_directory {
            // Of a block device: nobody else may have it, not the kernel's file systems either.
            flags |= OFlags::EXCL;
        }
        options.custom_flags(flags.bits() as i32);
        let mut file = open(&options, &path).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidInput => OpenError::NoDirect(path.clone()),
            io::ErrorKind::ResourceBusy => OpenError::InUse(path.clone()),
            _ => refused(source),
        })?;
        match lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(path)),
            Err(TryLockError::Error(source)) => return Err(refused(source)),
        }
        let is_block = file.metadata().map_err(refused)?.file_type().is_block_device();
        let bytes = if is_block {
            file.seek(SeekFrom::End(0)).map_err(refused)?.min(bytes_max)
        } else {
            file.set_len(bytes_max).map_err(refused)?;
            bytes_max
        };
        Ok(DiskFile { file: Arc::new(file), path, bytes, taken: Arc::default() })
    }

    /// The file.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes the tier may use of it.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether room for segments is to be taken before they are written.
    pub fn is_sparse(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.is_file())
    }

    /// Bytes that the file takes of its file system.
    pub fn taken_bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.blocks().saturating_mul(512))
    }

    /// Whether the file system has room left for the index.
    pub fn has_index_room(&self) -> bool {
        // One that cannot say how much it has says no when it is asked to give it.
        rustix::fs::fstatvfs(&self.file)
            .map_or(true, |found| found.f_bavail.saturating_mul(found.f_frsize) >= INDEX_ROOM_BYTES)
    }

    /// Whether the room at `offset` is taken: asking the file system again would change nothing, and
    /// make it wait until no write is under way.
    pub fn is_taken(&self, offset: u64) -> bool {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).contains(&offset)
    }

    /// The room at `offset` is taken, and stays so.
    pub fn note_taken(&self, offset: u64) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(offset);
    }
}

/// Opens the file. A daemon that was killed keeps a block device until the kernel has ended its last
/// operation.
fn open(options: &OpenOptions, path: &Path) -> io::Result<File> {
    for _ in 1..LOCK_TRIES_MAX {
        match options.open(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(LOCK_PAUSE);
            }
            result => return result,
        }
    }
    options.open(path)
}

/// Locks the file. A daemon that was killed keeps its lock as long, too.
fn lock(file: &File) -> Result<(), TryLockError> {
    for _ in 1..LOCK_TRIES_MAX {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            result => return result,
        }
    }
    file.try_lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_opened_once_and_set_to_its_size() {
        let folder = tempfile::tempdir().unwrap();
        let first = DiskFile::open(folder.path(), 3 << 20).unwrap();
        assert!(first.is_sparse());
        assert_eq!((first.bytes(), first.file().metadata().unwrap().len()), (3 << 20, 3 << 20));
        assert!(matches!(DiskFile::open(folder.path(), 3 << 20), Err(OpenError::InUse(_))));
        drop(first);
        let smaller = DiskFile::open(folder.path(), 2 << 20).unwrap();
        assert_eq!(smaller.file().metadata().unwrap().len(), 2 << 20);
    }

    #[test]
    fn what_is_not_there_is_said() {
        let error = DiskFile::open(Path::new("/nowhere/at/all"), 1 << 20).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all of kv.ssd_dir"), "{error}");
    }
}
