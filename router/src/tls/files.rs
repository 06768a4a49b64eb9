//! Certificates and keys on disk → what rustls serves with; read again when a file changes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use dataplane::pem::{PemError, certificates, private_key};
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};

use super::{ALPN_H2, ALPN_HTTP_11};

/// `[router.tls]`: with both files set, `listen_http` speaks TLS 1.3.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// The server's certificate and its chain, PEM.
    pub cert_file: Option<PathBuf>,
    /// Its private key, PEM (PKCS#8, PKCS#1 or SEC1).
    pub key_file: Option<PathBuf>,
    /// Certificates of the authorities that sign clients' certificates, PEM. Mutual TLS: clients
    /// without one are still let in where they bring a key or a token.
    pub client_ca_file: Option<PathBuf>,
    /// Every client must bring a certificate.
    pub client_cert_required: bool,
    /// Between two looks at the files.
    pub reload_s: u64,
}

impl Default for Tls {
    fn default() -> Self {
        Tls {
            cert_file: None,
            key_file: None,
            client_ca_file: None,
            client_cert_required: false,
            reload_s: 5,
        }
    }
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// One of the two is missing in the configuration.
    #[error("[router.tls] needs both cert_file and key_file")]
    Half,
    /// A file cannot be read or holds nothing of use.
    #[error(transparent)]
    File(#[from] PemError),
    /// Certificate and key do not belong together, or are of no use to TLS 1.3.
    #[error("[router.tls] cert_file and key_file cannot be served: {0}")]
    Unfit(String),
}

/// What the files looked like when they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp(Vec<(PathBuf, Option<(SystemTime, u64)>)>);

impl Tls {
    /// Whether TLS is asked for.
    pub fn is_on(&self) -> bool {
        self.cert_file.is_some() || self.key_file.is_some()
    }

    /// What the files look like now; compare to know whether to [`Tls::load`] again.
    pub fn stamp(&self) -> Stamp {
        let files = [&self.cert_file, &self.key_file, &self.client_ca_file];
        let of = |path: &PathBuf| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        Stamp(files.into_iter().flatten().map(|path| (path.clone(), of(path))).collect())
    }

    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsFileError`].
    pub fn load(&self) -> Result<Loaded, TlsFileError> {
        let (Some(cert_file), Some(key_file)) = (&self.cert_file, &self.key_file) else {
            return Err(TlsFileError::Half);
        };
        let chain = certificates(cert_file, "the certificate chain")?;
        let expires_unix_s = expiry(&chain[0]);
        let key = private_key(key_file)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let unfit = |error: &dyn std::fmt::Display| TlsFileError::Unfit(error.to_string());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unfit(&error))?;
        let builder = match &self.client_ca_file {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path, "authorities' certificates")? {
                    roots.add(certificate).map_err(|error| unfit(&error))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = match self.client_cert_required {
                    true => verifier,
                    false => verifier.allow_unauthenticated(),
                };
                builder.with_client_cert_verifier(verifier.build().map_err(|error| unfit(&error))?)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| unfit(&error))?;
        config.alpn_protocols = vec![ALPN_H2.to_vec(), ALPN_HTTP_11.to_vec()];
        Ok(Loaded { config: Arc::new(config), expires_unix_s })
    }
}

/// What was read.
pub struct Loaded {
    /// For new connections.
    pub config: Arc<ServerConfig>,
    /// When the certificate ends, Unix time; 0 where it does not say.
    pub expires_unix_s: u64,
}

fn expiry(certificate: &CertificateDer<'_>) -> u64 {
    x509_parser::parse_x509_certificate(certificate)
        .ok()
        .and_then(|(_, parsed)| parsed.validity().not_after.timestamp().try_into().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn write(folder: &Path, name: &str, text: &str) -> Option<PathBuf> {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        Some(path)
    }

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_certificate_and_its_key_are_served_until_they_change() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = pair();
        let tls = Tls {
            cert_file: write(folder.path(), "cert.pem", &cert),
            key_file: write(folder.path(), "key.pem", &key),
            ..Tls::default()
        };
        let loaded = tls.load().unwrap();
        assert!(loaded.expires_unix_s > 0);
        let stamp = tls.stamp();
        assert_eq!(stamp, tls.stamp());
        write(folder.path(), "cert.pem", &format!("{cert}\n"));
        assert_ne!(stamp, tls.stamp());
    }

    #[test]
    fn unusable_files_say_what_they_must_hold() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = pair();
        let (_, other_key) = pair();
        let good_cert = write(folder.path(), "cert.pem", &cert);
        let said = |tls: Tls| tls.load().err().unwrap().to_string();
        let half = Tls { cert_file: good_cert.clone(), ..Tls::default() };
        assert!(said(half.clone()).contains("needs both"));
        let empty = Tls { key_file: write(folder.path(), "empty.pem", ""), ..half.clone() };
        assert!(said(empty).contains("a private key in PEM form"));
        let swapped = Tls {
            cert_file: write(folder.path(), "k.pem", &key),
            key_file: write(folder.path(), "k2.pem", &key),
            ..Tls::default()
        };
        assert!(said(swapped).contains("no certificate in it"));
        let stranger = Tls { key_file: write(folder.path(), "o.pem", &other_key), ..half };
        assert!(said(stranger).contains("cannot be served"));
    }
}
