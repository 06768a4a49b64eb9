//! The file of `kv.disk_key_file`: read once at the start, and only if nobody else may read it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::cipher::DiskKey;

/// Longest file: the key is 64 digits.
const FILE_BYTES_MAX: u64 = 256;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The system refuses.
    #[error("cannot read kv.disk_key_file {path}: {source}")]
    Refused {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Others than its owner may read or write it.
    #[error("kv.disk_key_file {0} is open to others than its owner; `chmod 600` it")]
    Open(PathBuf),
    /// It holds something else.
    #[error(
        "kv.disk_key_file {0} holds no key of 64 hexadecimal digits; `openssl rand -hex 32` makes one"
    )]
    NoKey(PathBuf),
}

/// Reads the key.
///
/// # Errors
/// [`KeyFileError`].
pub fn read(path: &Path) -> Result<DiskKey, KeyFileError> {
    let refused = |source| KeyFileError::Refused { path: path.to_owned(), source };
    let file = File::open(path).map_err(refused)?;
    if file.metadata().map_err(refused)?.permissions().mode() & 0o077 != 0 {
        return Err(KeyFileError::Open(path.to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(refused)?;
    let key = std::str::from_utf8(&bytes).ok().and_then(DiskKey::parse);
    key.ok_or_else(|| KeyFileError::NoKey(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_from_a_file_of_ones_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        assert!(matches!(read(&path), Err(KeyFileError::Refused { .. })));
        std::fs::write(&path, "5c".repeat(32)).unwrap();
        for (mode, is_read) in [(0o644, false), (0o640, false), (0o600, true), (0o400, true)] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(read(&path).is_ok(), is_read, "{mode:o}");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "5c".repeat(200)).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("openssl rand -hex 32"));
    }
}
