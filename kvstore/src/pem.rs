//! Certificates and keys in PEM files, for every door that speaks TLS.
//!
//! It reads; what they are good for is each door's own business.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A file cannot be read or holds nothing of use.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}; it must hold {wanted} in PEM form", path.display())]
pub struct PemError {
    path: PathBuf,
    wanted: &'static str,
    reason: String,
}

impl PemError {
    /// What is in the file is not `wanted`, for this reason.
    pub fn new(path: &Path, wanted: &'static str, reason: &dyn Display) -> PemError {
        PemError { path: path.to_owned(), wanted, reason: reason.to_string() }
    }
}

/// All certificates of a file, at least one.
///
/// # Errors
/// [`PemError`].
pub fn certificates(
    path: &Path,
    wanted: &'static str,
) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let read = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| PemError::new(path, wanted, &error))?;
    if read.is_empty() {
        return Err(PemError::new(path, wanted, &"no certificate in it"));
    }
    Ok(read)
}

/// The private key of a file.
///
/// # Errors
/// [`PemError`].
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, PemError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| PemError::new(path, "a private key", &error))
}
