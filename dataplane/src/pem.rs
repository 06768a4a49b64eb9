//! Certificates and keys in PEM files, for every process that speaks TLS.
//!
//! It reads; what they are good for is each reader's own business.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_names_the_file_and_what_it_must_hold() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let one = "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n";
        let chain = file("chain.pem", &format!("{one}words between\n{one}"));
        let read = certificates(&chain, "the chain").unwrap();
        assert_eq!(read.iter().map(|der| der.as_ref()).collect::<Vec<_>>(), [[1, 2, 3]; 2]);
        let said = certificates(&file("none.pem", "nothing"), "the chain").unwrap_err().to_string();
        assert!(
            said.ends_with("none.pem: no certificate in it; it must hold the chain in PEM form"),
            "{said}"
        );
        assert!(certificates(&file("half.pem", &one[..40]), "the chain").is_err());
        let said = private_key(&chain).unwrap_err().to_string();
        assert!(said.contains("chain.pem") && said.contains("a private key in PEM form"), "{said}");
        assert!(private_key(&folder.path().join("absent")).is_err());
    }
}
