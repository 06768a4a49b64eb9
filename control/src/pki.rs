//! The cluster's own certificate authority: keys and certificates for nodes, routers and operators.
//!
//! Keys are ECDSA P-256. Who a certificate speaks for is one URI in it (`dataplane::identity`), where its holder
//! can be reached are its other names. It makes and reads; files are [`crate::cli`]'s.

use std::net::IpAddr;
use std::time::Duration;

use dataplane::identity::{Identity, IdentityError, Role, check_name};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How long an authority is good for: as long as a rack.
pub const CA_DAYS: u32 = 3_650;
/// Most days of a member's certificate: it is renewed by issuing again.
pub const DAYS_MAX: u32 = 825;
/// Clocks of two machines may differ by this; certificates begin so much before they are made.
const CLOCK_SKEW: Duration = Duration::from_secs(600);
/// After this, years have five digits, which X.509 does not have.
const LATEST_UNIX_S: u64 = 200_000_000_000;
/// Seconds of a day.
const DAY_S: u64 = 86_400;
/// Names in one certificate.
pub const NAMES_MAX: usize = 32;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A cluster's or node's name.
    #[error("`{name}` {reason}")]
    Name {
        /// As given.
        name: String,
        /// What is wrong.
        reason: IdentityError,
    },
    /// A name it is to be reached by.
    #[error("`{0}` is neither an IP address nor a DNS name")]
    San(String),
    /// Too many of those, or none for a node.
    #[error("{0}")]
    Sans(String),
    /// Beyond the limits.
    #[error("{0} days are not in 1..={DAYS_MAX}")]
    Days(u32),
    /// This machine's clock.
    #[error("the clock of this machine says {0} s after 1970; set it")]
    Clock(u64),
    /// The authority's files are of no use.
    #[error("{0} is no authority made by `cgnctl pki bootstrap`: {1}")]
    Authority(&'static str, String),
    /// Not a certificate.
    #[error("no certificate: {0}")]
    Malformed(String),
    /// The signer refused.
    #[error("cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
}

/// A certificate and its private key, PEM.
#[derive(Debug)]
pub struct Made {
    /// The certificate; it may be seen.
    pub certificate: String,
    /// The key; it may not.
    pub key: String,
}

/// What to write into a member's certificate.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its name in the cluster.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// DNS names and IP addresses it is dialled by.
    pub sans: Vec<String>,
    /// How long it is good for.
    pub days: u32,
}

/// Makes an authority for `cluster`, beginning now.
///
/// # Errors
/// [`PkiError`].
pub fn bootstrap(cluster: &str, now_unix_s: u64) -> Result<Made, PkiError> {
    check(cluster)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = params(authority_name(cluster), CA_DAYS, now_unix_s)?;
    // It signs members, not other authorities.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    Ok(Made { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// Makes a member's certificate, signed by the authority given in PEM, beginning now.
///
/// # Errors
/// [`PkiError`].
pub fn issue(
    authority: &Made,
    wanted: &Wanted,
    now_unix_s: u64,
) -> Result<(Identity, Made), PkiError> {
    if wanted.days == 0 || wanted.days > DAYS_MAX {
        return Err(PkiError::Days(wanted.days));
    }
    let cluster = cluster_of(&authority.certificate)?;
    let identity = Identity::new(&cluster, wanted.role, &wanted.name)
        .map_err(|reason| PkiError::Name { name: wanted.name.clone(), reason })?;
    let of_key = |error: rcgen::Error| PkiError::Authority("ca.key", error.to_string());
    let ca_key = KeyPair::from_pem(&authority.key).map_err(of_key)?;
    check_pair(&authority.certificate, &ca_key)?;
    let issuer = Issuer::new(params(authority_name(&cluster), CA_DAYS, now_unix_s)?, ca_key);

    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, wanted.name.as_str());
    let mut params = params(name, wanted.days, now_unix_s)?;
    params.subject_alt_names = sans(wanted)?;
    let uri = identity.to_string();
    let uri = uri.as_str().try_into().map_err(|_| PkiError::San(uri.clone()))?;
    params.subject_alt_names.push(SanType::URI(uri));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok((identity, Made { certificate: certificate.pem(), key: key.serialize_pem() }))
}

fn check(name: &str) -> Result<(), PkiError> {
    check_name(name).map_err(|reason| PkiError::Name { name: name.to_owned(), reason })
}

/// What all certificates have in common.
fn params(
    name: DistinguishedName,
    days: u32,
    now_unix_s: u64,
) -> Result<CertificateParams, PkiError> {
    if now_unix_s > LATEST_UNIX_S {
        return Err(PkiError::Clock(now_unix_s));
    }
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now_unix_s);
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name = name;
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + Duration::from_secs(u64::from(days) * DAY_S);
    Ok(params)
}

/// An authority's name, by which its members' certificates name it.
fn authority_name(cluster: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, format!("{cluster} cluster authority"));
    name.push(DnType::OrganizationName, cluster);
    name
}

/// The names a member is dialled by. A node without one could not be dialled.
fn sans(wanted: &Wanted) -> Result<Vec<SanType>, PkiError> {
    if wanted.sans.len() > NAMES_MAX {
        return Err(PkiError::Sans(format!(
            "{} names; {NAMES_MAX} are the most",
            wanted.sans.len()
        )));
    }
    if wanted.sans.is_empty() && wanted.role == Role::Node {
        return Err(PkiError::Sans(
            "a node needs the names or addresses that others dial: give --san".to_owned(),
        ));
    }
    wanted.sans.iter().map(|name| san(name)).collect()
}

fn san(name: &str) -> Result<SanType, PkiError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let wrong = || PkiError::San(name.to_owned());
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(is_plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(is_label) {
        return Err(wrong());
    }
    Ok(SanType::DnsName(name.try_into().map_err(|_| wrong())?))
}

/// The cluster an authority is of: its organisation.
fn cluster_of(pem: &str) -> Result<String, PkiError> {
    let wrong = |reason: &str| PkiError::Authority("ca.pem", reason.to_owned());
    let der = der(pem)?;
    let certificate = parse(&der)?;
    if !certificate.is_ca() {
        return Err(wrong("it may not sign"));
    }
    let text = |name: Option<&str>| name.map(str::to_owned);
    let subject = certificate.subject();
    let cluster = text(subject.iter_organization().find_map(|name| name.as_str().ok()));
    let cluster = cluster.ok_or_else(|| wrong("it names no cluster"))?;
    check(&cluster)?;
    let common = text(subject.iter_common_name().find_map(|name| name.as_str().ok()));
    // The signer writes this name into what it signs, so it must be the one in the file.
    match common.as_deref() == Some(&format!("{cluster} cluster authority")) {
        true => Ok(cluster),
        false => Err(wrong("its name is another")),
    }
}

fn check_pair(pem: &str, key: &KeyPair) -> Result<(), PkiError> {
    let der = der(pem)?;
    match parse(&der)?.public_key().raw == key.subject_public_key_info() {
        true => Ok(()),
        false => Err(PkiError::Authority("ca.key", "it is another authority's key".to_owned())),
    }
}

fn der(pem: &str) -> Result<Vec<u8>, PkiError> {
    let malformed = |reason: String| PkiError::Malformed(reason);
    let (_, pem) = parse_x509_pem(pem.as_bytes()).map_err(|error| malformed(error.to_string()))?;
    match pem.label.as_str() {
        "CERTIFICATE" => Ok(pem.contents),
        other => Err(malformed(format!("the file holds a `{other}`"))),
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, PkiError> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|error| PkiError::Malformed(error.to_string()))?;
    Ok(certificate)
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Shown {
    /// Whose it is, in X.509's words.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// The cluster's URI, where it has one.
    pub identity: Option<String>,
    /// DNS names and addresses.
    pub sans: Vec<String>,
    /// Whether it signs others.
    pub is_authority: bool,
    /// From when, Unix seconds.
    pub not_before_unix_s: i64,
    /// Until when, Unix seconds.
    pub not_after_unix_s: i64,
}

/// Reads a certificate in PEM; the first, if there are more.
///
/// # Errors
/// [`PkiError::Malformed`].
pub fn show(pem: &str) -> Result<Shown, PkiError> {
    let der = der(pem)?;
    let certificate = parse(&der)?;
    let malformed = |error: x509_parser::error::X509Error| PkiError::Malformed(error.to_string());
    let names = certificate.subject_alternative_name().map_err(malformed)?;
    let names = names.iter().flat_map(|extension| &extension.value.general_names);
    let (mut identity, mut sans) = (None, Vec::new());
    for name in names.take(NAMES_MAX + 1) {
        match name {
            GeneralName::URI(uri) if uri.parse::<Identity>().is_ok() => {
                identity = Some((*uri).to_owned());
            }
            GeneralName::DNSName(name) => sans.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => sans.extend(address(bytes).map(|ip| ip.to_string())),
            _ => {}
        }
    }
    Ok(Shown {
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        identity,
        sans,
        is_authority: certificate.is_ca(),
        not_before_unix_s: certificate.validity().not_before.timestamp(),
        not_after_unix_s: certificate.validity().not_after.timestamp(),
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests;
