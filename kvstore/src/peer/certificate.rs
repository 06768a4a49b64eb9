//! Who a verified certificate speaks for. rustls has checked the signature; here names are read.

use dataplane::identity::{Identity, SCHEME};
use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// Names looked at in one certificate; `cgnctl pki issue` writes fewer.
const NAMES_MAX: usize = 64;

/// Why a certificate names no member of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not X.509 in DER.
    #[error("cannot be read")]
    Malformed,
    /// No URI of ours, or more than one: nobody may be two.
    #[error(
        "names no single member of a cluster by a URI cognitora://<cluster>/<role>/<name>; \
         `cgnctl pki issue` makes one that does"
    )]
    NoMember,
}

/// Reads who the holder of a certificate is.
///
/// # Errors
/// [`CertificateError`].
pub fn holder(der: &CertificateDer<'_>) -> Result<Identity, CertificateError> {
    let certificate = EndEntityCert::try_from(der).map_err(|_| CertificateError::Malformed)?;
    let names = certificate.valid_uri_names().take(NAMES_MAX);
    let mut ours = names.filter(|uri| uri.starts_with(SCHEME));
    let (Some(uri), None) = (ours.next(), ours.next()) else {
        return Err(CertificateError::NoMember);
    };
    uri.parse().map_err(|_| CertificateError::NoMember)
}

/// A DNS name the holder can be dialled by, if the certificate has one.
pub fn dns_name(der: &CertificateDer<'_>) -> Option<String> {
    let certificate = EndEntityCert::try_from(der).ok()?;
    certificate.valid_dns_names().find(|name| !name.contains('*')).map(str::to_owned)
}
