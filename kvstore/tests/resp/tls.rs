//! The same door over TLS: with a certificate that the client trusts, and with one of the client's own.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::daemon::{Connection, Daemon, value};

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn issue(folder: &Path, name: &str, authority: &CertifiedIssuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    std::fs::write(folder.join(format!("{name}.crt")), certificate.pem()).unwrap();
    std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

fn start(more: &str) -> Daemon {
    let tls = "[kv.resp.tls]\ncert = \"FOLDER/server.crt\"\nkey = \"FOLDER/server.key\"\n";
    Daemon::on(1, &format!("stall_s = 2\n{tls}{more}"), |folder| {
        let (authority, foreign) = (authority(), authority());
        std::fs::write(folder.join("ca.crt"), authority.pem()).unwrap();
        issue(folder, "server", &authority);
        issue(folder, "client", &authority);
        issue(folder, "foreign", &foreign);
    })
}

type TlsStream = StreamOwned<ClientConnection, std::net::TcpStream>;

fn connect(daemon: &Daemon, certificate: Option<&str>) -> Connection<TlsStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(daemon.file("ca.crt")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let config = match certificate {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let chain = CertificateDer::from_pem_file(daemon.file(&format!("{name}.crt"))).unwrap();
            let key = PrivateKeyDer::from_pem_file(daemon.file(&format!("{name}.key"))).unwrap();
            builder.with_client_auth_cert(vec![chain], key).unwrap()
        }
    };
    let name = ServerName::try_from("localhost").unwrap();
    let session = ClientConnection::new(Arc::new(config), name).unwrap();
    Connection { stream: StreamOwned::new(session, daemon.connect().stream) }
}

#[test]
fn values_come_back_over_tls() {
    let daemon = start("");
    let mut client = connect(&daemon, None);
    client.ask("PING", "+PONG\r\n");
    for (number, len) in [0, 1, 16_383, 16_384, 16_385, 1 << 20, 20 << 20].into_iter().enumerate() {
        let value = value(number, len);
        client.set("a", &value);
        client.ask("GET a", "");
        client.expect_bulk(&value);
    }
    client.send("PING\r\n".repeat(100));
    client.expect("+PONG\r\n".repeat(100));
}

#[test]
fn certificates_are_read_again_and_bad_ones_change_nothing() {
    let daemon = start("");
    let mut early = connect(&daemon, None);
    early.ask("PING", "+PONG\r\n");
    let next = authority();
    std::fs::write(daemon.file("ca.crt"), next.pem()).unwrap();
    issue(daemon.folder.path(), "server", &next);
    daemon.reload("the configuration is read again");
    connect(&daemon, None).ask("PING", "+PONG\r\n");
    early.ask("PING", "+PONG\r\n");
    std::fs::write(daemon.file("server.key"), "nothing").unwrap();
    daemon.reload("the configuration stays as it is");
    connect(&daemon, None).ask("PING", "+PONG\r\n");
}

#[test]
fn clear_text_gets_no_answer() {
    let daemon = start("");
    let mut client = daemon.connect();
    client.send("PING\r\nPING\r\nPING\r\n");
    let said = client.rest();
    assert!(!said.windows(4).any(|window| window == b"PONG"), "{}", said.escape_ascii());
}

#[test]
fn with_an_authority_each_client_needs_its_certificate() {
    let daemon = start("client_ca = \"FOLDER/ca.crt\"\n");
    connect(&daemon, Some("client")).ask("PING", "+PONG\r\n");
    for certificate in [None, Some("foreign")] {
        let mut client = connect(&daemon, certificate);
        // The handshake may fail while we send or while we read; no answer comes either way.
        let _ = std::io::Write::write_all(&mut client.stream, b"PING\r\n");
        let mut answer = Vec::new();
        assert!(client.stream.read_to_end(&mut answer).is_err(), "{certificate:?}");
        assert_eq!(answer, b"");
    }
}
