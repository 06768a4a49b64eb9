//! The names in a client certificate. rustls has verified it; here it is only read.

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Names looked at in one certificate; service meshes put one or two into it.
pub const NAMES_MAX: usize = 64;

/// What a certificate says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// DNS names, URIs and mail addresses of the subject's alternative names, as they come, then the
    /// common name. At most [`NAMES_MAX`], never none.
    pub names: Vec<String>,
    /// From this time on it is refused, in Unix seconds. A connection may outlive its certificate.
    pub refused_from_s: u64,
}

/// Why a certificate names nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not X.509 in DER.
    #[error("cannot be read")]
    Malformed,
    /// Neither an alternative name of a kind known here nor a common name.
    #[error("names nobody: it has no DNS name, URI, mail address or common name")]
    NoName,
}

/// Reads a certificate in DER.
///
/// # Errors
/// [`CertificateError`].
pub fn holder(der: &[u8]) -> Result<Holder, CertificateError> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
    if !rest.is_empty() {
        return Err(CertificateError::Malformed);
    }
    let alternative =
        certificate.subject_alternative_name().map_err(|_| CertificateError::Malformed)?;
    let alternative = alternative.iter().flat_map(|extension| &extension.value.general_names);
    let names = alternative.filter_map(|name| match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) | GeneralName::RFC822Name(name) => {
            Some(*name)
        }
        _ => None,
    });
    let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    // A name with a NUL or a line break in it is made to be mistaken for another.
    let is_plain = |name: &&str| !name.is_empty() && !name.chars().any(char::is_control);
    let names: Vec<String> =
        names.chain(common).filter(is_plain).take(NAMES_MAX).map(str::to_owned).collect();
    if names.is_empty() {
        return Err(CertificateError::NoName);
    }
    let last_s = certificate.validity().not_after.timestamp();
    Ok(Holder { names, refused_from_s: u64::try_from(last_s).unwrap_or(0).saturating_add(1) })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(common_name: &str, names: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if !common_name.is_empty() {
            params.distinguished_name.push(DnType::CommonName, common_name);
        }
        params.subject_alt_names = names;
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn alternative_names_come_before_the_common_name() {
        let names = vec![
            SanType::IpAddress("10.0.0.1".parse().unwrap()),
            SanType::DnsName("app.example".try_into().unwrap()),
            SanType::URI("spiffe://x/app".try_into().unwrap()),
            SanType::Rfc822Name("app@example".try_into().unwrap()),
        ];
        let holder = holder(&certificate("App", names)).unwrap();
        assert_eq!(holder.names, ["app.example", "spiffe://x/app", "app@example", "App"]);
        assert_eq!(holder.refused_from_s, 1_893_456_001);
    }

    #[test]
    fn a_certificate_without_a_name_is_refused() {
        assert_eq!(holder(&certificate("", vec![])), Err(CertificateError::NoName));
        assert_eq!(holder(&certificate("a\0b", vec![])), Err(CertificateError::NoName));
    }

    #[test]
    fn names_are_bounded() {
        let many =
            (0..200).map(|i| SanType::DnsName(format!("n{i}").try_into().unwrap())).collect();
        assert_eq!(holder(&certificate("", many)).unwrap().names.len(), NAMES_MAX);
    }

    #[test]
    fn damaged_certificates_are_refused_without_panic() {
        let der = certificate("App", vec![]);
        for cut in 0..der.len() {
            assert_eq!(holder(&der[..cut]), Err(CertificateError::Malformed), "{cut}");
        }
        let longer: Vec<u8> = der.iter().copied().chain([0]).collect();
        assert_eq!(holder(&longer), Err(CertificateError::Malformed));
        for at in 0..der.len() {
            let mut damaged = der.clone();
            damaged[at] ^= 0xff;
            let _ = holder(&damaged);
        }
    }
}
