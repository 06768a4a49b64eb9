//! A file of lines that is renamed at its size limit, over the one before: at most twice the limit lies on
//! the disk. It blocks, so it belongs to a thread of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Lines name tenants and requests: they are for the owner and its group.
const FILE_MODE: u32 = 0o640;

/// A file with a size limit and one predecessor.
#[derive(Debug)]
pub struct Rotating {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
    /// A pipe, a terminal or a device is written to for ever.
    may_rotate: bool,
}

impl Rotating {
    /// Opens or makes the file at `path`.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(FILE_MODE).open(path)?;
        // What an earlier process left counts.
        let metadata = file.metadata()?;
        // The file is renamed, not a link to it.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let (bytes, may_rotate) = (metadata.len(), metadata.is_file());
        Ok(Rotating { path, file, bytes, bytes_max, may_rotate })
    }

    /// Whole lines; the file holds more than its limit only if they alone do.
    ///
    /// # Errors
    /// The system's; a part may be written.
    pub fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let length = lines.len() as u64;
        if self.may_rotate && self.bytes > 0 && self.bytes + length > self.bytes_max {
            self.rotate()?;
        }
        let written = self.file.write_all(lines);
        // A part may have been written: the size is asked for again.
        self.bytes = match written {
            Ok(()) => self.bytes + length,
            Err(_) => self.file.metadata()?.len(),
        };
        written
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut older = self.path.clone().into_os_string();
        older.push(".1");
        match std::fs::rename(&self.path, older) {
            // Somebody else took it away: a fresh one is all that is missing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        *self = Rotating::open(&self.path, self.bytes_max)?;
        Ok(())
    }
}
