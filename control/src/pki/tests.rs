//! Certificates are believed where they should be and nowhere else: by rustls, and by openssl where it is.

use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use super::*;

const NOW: u64 = 1_800_000_000;

fn wanted(name: &str) -> Wanted {
    let sans = vec!["gpu-01.rack".to_owned(), "10.0.0.7".to_owned(), "fd00::7".to_owned()];
    Wanted { name: name.to_owned(), role: Role::Node, sans, days: 30 }
}

fn verifier(authority: &Made) -> Arc<dyn ClientCertVerifier> {
    let mut roots = rustls::RootCertStore::empty();
    let der = CertificateDer::from_pem_slice(authority.certificate.as_bytes()).unwrap();
    roots.add(der).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap()
}

fn believes(authority: &Made, member: &Made, unix_s: u64) -> bool {
    let der = CertificateDer::from_pem_slice(member.certificate.as_bytes()).unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(unix_s));
    verifier(authority).verify_client_cert(&der, &[], now).is_ok()
}

#[test]
fn a_member_is_believed_by_its_cluster_while_its_certificate_lasts() {
    let authority = bootstrap("rack-7", NOW).unwrap();
    let (identity, member) = issue(&authority, &wanted("gpu-01"), NOW).unwrap();
    assert_eq!(identity.to_string(), "cognitora://rack-7/node/gpu-01");
    assert!(believes(&authority, &member, NOW));
    assert!(believes(&authority, &member, NOW + 30 * 86_400 - 1));
    assert!(!believes(&authority, &member, NOW + 30 * 86_400 + 1));
    assert!(!believes(&authority, &member, NOW - 601));
}

#[test]
fn a_foreign_authority_of_the_same_name_is_not_believed() {
    let (authority, foreign) = (bootstrap("rack", NOW).unwrap(), bootstrap("rack", NOW).unwrap());
    let (_, member) = issue(&foreign, &wanted("gpu-01"), NOW).unwrap();
    assert!(!believes(&authority, &member, NOW));
    let mixed = Made { certificate: authority.certificate, key: foreign.key };
    let refused = issue(&mixed, &wanted("gpu-01"), NOW).unwrap_err();
    assert!(matches!(refused, PkiError::Authority("ca.key", _)), "{refused}");
    let (_, between) = issue(&foreign_again(), &wanted("gpu-01"), NOW).unwrap();
    let refused = issue(&between, &wanted("gpu-02"), NOW).unwrap_err();
    assert!(
        matches!(refused, PkiError::Authority("ca.pem", _)),
        "a member signs nobody: {refused}"
    );
}

fn foreign_again() -> Made {
    bootstrap("rack", NOW).unwrap()
}

#[test]
fn a_certificate_shows_what_was_asked_for() {
    let authority = bootstrap("rack", NOW).unwrap();
    let (_, member) = issue(&authority, &wanted("gpu-01"), NOW).unwrap();
    let shown = show(&member.certificate).unwrap();
    assert_eq!(shown.identity.as_deref(), Some("cognitora://rack/node/gpu-01"));
    assert_eq!(shown.sans, ["gpu-01.rack", "10.0.0.7", "fd00::7"]);
    assert!(!shown.is_authority);
    assert_eq!(shown.issuer, show(&authority.certificate).unwrap().subject);
    assert_eq!(shown.not_after_unix_s as u64, NOW + 30 * 86_400);
    assert!(show(&authority.certificate).unwrap().is_authority);
    assert!(matches!(show(&member.key), Err(PkiError::Malformed(_))));
    assert!(matches!(show("hello"), Err(PkiError::Malformed(_))));
}

#[test]
fn what_makes_no_sense_is_refused_with_words() {
    let authority = bootstrap("rack", NOW).unwrap();
    let refused = |change: &dyn Fn(&mut Wanted)| {
        let mut wanted = wanted("gpu-01");
        change(&mut wanted);
        issue(&authority, &wanted, NOW).unwrap_err().to_string()
    };
    assert!(refused(&|wanted| wanted.days = 0).contains("1..=825"));
    assert!(refused(&|wanted| wanted.days = 826).contains("1..=825"));
    assert!(refused(&|wanted| wanted.name = "../x".to_owned()).contains("bad name"));
    assert!(refused(&|wanted| wanted.sans.clear()).contains("--san"));
    assert!(refused(&|wanted| wanted.sans = vec!["a b".to_owned()]).contains("`a b`"));
    assert!(refused(&|wanted| wanted.sans = vec!["a..b".to_owned()]).contains("DNS"));
    assert!(refused(&|wanted| wanted.sans = vec!["a".to_owned(); 33]).contains("32"));
    assert!(matches!(bootstrap("Rack!", NOW), Err(PkiError::Name { .. })));
    assert!(matches!(bootstrap("rack", u64::MAX), Err(PkiError::Clock(_))));
}

#[test]
fn openssl_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let authority = bootstrap("rack", now.as_secs()).unwrap();
    let foreign = bootstrap("rack", now.as_secs()).unwrap();
    let (_, member) = issue(&authority, &wanted("gpu-01"), now.as_secs()).unwrap();
    std::fs::write(path("ca.pem"), &authority.certificate).unwrap();
    std::fs::write(path("foreign.pem"), &foreign.certificate).unwrap();
    std::fs::write(path("node.pem"), &member.certificate).unwrap();
    let verify = |ca: &str| {
        let mut openssl = Command::new("openssl");
        openssl.args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", &path(ca)]);
        openssl.arg(path("node.pem")).output()
    };
    let Ok(good) = verify("ca.pem") else {
        eprintln!("openssl is not here: left out");
        return;
    };
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    assert!(!verify("foreign.pem").unwrap().status.success());
}
