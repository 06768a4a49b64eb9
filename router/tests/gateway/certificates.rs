//! Mutual TLS: the client's certificate says which tenant it is.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::client::{chat, post};
use super::engine::Engine;
use super::process::worker;
use super::tenants::{CHAT, KeyFile, bearer, line, tenant};

/// An authority that signs certificates.
struct Authority {
    params: CertificateParams,
    certificate: Certificate,
    key: KeyPair,
}

/// A certificate and its key.
struct Identity {
    certificate: Certificate,
    key: KeyPair,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Authority { params, certificate, key }
    }

    fn sign(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate =
            params.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap();
        Identity { certificate, key }
    }
}

/// A router that speaks TLS.
struct Router {
    child: Child,
    http: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Router {
    fn start(clients: &Authority, server: &Identity, more: &str) -> Router {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: String| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let config = file(
            "router.toml",
            format!(
                "[router]\nlisten_http = \"127.0.0.1:0\"\nlisten_admin = \"127.0.0.1:0\"\ncores = 1\n\
                 [router.tls]\ncert_file = \"{}\"\nkey_file = \"{}\"\nclient_ca_file = \"{}\"\n{more}",
                file("cert.pem", server.certificate.pem()),
                file("key.pem", server.key.serialize_pem()),
                file("ca.pem", clients.certificate.pem()),
            ),
        );
        let mut child = Command::new(env!("CARGO_BIN_EXE_cgn-router"))
            .args(["--config", &config])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let http = said.split("http://").nth(1).unwrap().split(' ').next().unwrap();
        Router { http: http.parse().unwrap(), child, _folder: folder }
    }

    /// The head and body of the answer to a chat, or why there is none.
    fn chat(
        &self,
        servers: &Authority,
        client: Option<&Identity>,
        fields: &str,
    ) -> std::io::Result<String> {
        let mut roots = RootCertStore::empty();
        roots.add(servers.certificate.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some(client) => {
                let key = PrivateKeyDer::try_from(client.key.serialize_der()).unwrap();
                builder.with_client_auth_cert(vec![client.certificate.der().clone()], key).unwrap()
            }
        };
        let name = ServerName::try_from("router.example").unwrap();
        let tcp = TcpStream::connect(self.http)?;
        tcp.set_read_timeout(Some(Duration::from_secs(20)))?;
        let session = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = StreamOwned::new(session, tcp);
        let fields = format!("Connection: close\r\n{fields}");
        stream.write_all(post(CHAT, &fields, &chat("x")).as_bytes())?;
        let mut said = Vec::new();
        match stream.read_to_end(&mut said) {
            Err(error) if said.is_empty() => Err(error),
            _ => Ok(String::from_utf8(said).unwrap()),
        }
    }
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap()
}

#[test]
fn a_client_certificate_names_its_tenant() {
    let (servers, clients) = (Authority::new(), Authority::new());
    let server = servers.sign("router.example");
    let engine = Engine::ok();
    let keys = KeyFile::with(&[line("key-b", "tenant=b")]);
    let tenants = tenant("a", "certificates = [\"app.a.example\"]\nrequests_per_minute = 2")
        + &tenant("b", "");
    // Workers are not ready before they were probed; the first request would meet that.
    let more = keys.section("required = true") + &worker(&engine, 4) + &tenants;
    let router = Router::start(&clients, &server, &more);
    let known = clients.sign("app.a.example");
    let mut answer = String::new();
    for _ in 0..100 {
        answer = router.chat(&servers, Some(&known), "").unwrap();
        if status(&answer) != "503" {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(status(&answer), "200", "{answer}");
    assert!(answer.contains("x-ratelimit-limit-requests: 2"), "{answer}");
    // Of the right authority, but nobody's.
    let unknown = clients.sign("app.other.example");
    let refused = router.chat(&servers, Some(&unknown), "").unwrap();
    assert_eq!(status(&refused), "403", "{refused}");
    assert!(refused.contains("insufficient_permissions"), "{refused}");
    // A key stands for one application among several behind a certificate, so it counts.
    let by_key = router.chat(&servers, Some(&unknown), &bearer("key-b")).unwrap();
    assert_eq!(status(&by_key), "200", "{by_key}");
    assert!(!by_key.contains("x-ratelimit-"), "{by_key}");
    let nobody = router.chat(&servers, None, "").unwrap();
    assert_eq!(status(&nobody), "401", "{nobody}");
    // A name claimed under an authority of the client's own never gets that far.
    let forged = Authority::new().sign("app.a.example");
    assert!(router.chat(&servers, Some(&forged), "").is_err());
    // And what is counted is counted against the certificate's tenant.
    assert_eq!(status(&router.chat(&servers, Some(&known), "").unwrap()), "200");
    assert_eq!(status(&router.chat(&servers, Some(&known), "").unwrap()), "429");
    assert_eq!(engine.asked().len(), 3);
}
