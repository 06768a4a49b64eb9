//! TLS from outside: what is spoken, who is let in, and certificates that change while streams run.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::client::{Client, chat, post};
use super::engine::{Engine, STREAM_HEAD, chunk};
use super::frames::{DATA, Http2};
use super::process::worker;

const PATH: &str = "/v1/chat/completions";

type Authority = CertifiedIssuer<'static, KeyPair>;
type Tls = StreamOwned<ClientConnection, TcpStream>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn signed(authority: &Authority, name: &str) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    (params.signed_by(&key, authority).unwrap(), key)
}

/// Writes a certificate for `localhost` and its key; the key first, as an operator's tool might.
fn install(folder: &Path, authority: &Authority) -> CertificateDer<'static> {
    let (certificate, key) = signed(authority, "localhost");
    std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
    std::fs::write(folder.join("cert.pem"), certificate.pem()).unwrap();
    certificate.der().clone()
}

/// `[router.tls]` over the files in `folder`, and what else is given.
fn keys(folder: &Path, more: &str) -> String {
    let path = folder.display();
    format!(
        "[router.tls]\ncert_file = \"{path}/cert.pem\"\nkey_file = \"{path}/key.pem\"\nreload_s = 1\n{more}\n"
    )
}

/// A router whose clients' listener speaks TLS, so that it is asked over the admin's how it is.
struct Router {
    child: Child,
    http: SocketAddr,
    admin: SocketAddr,
    _config: tempfile::TempDir,
}

impl Router {
    fn metric(&self, name: &str) -> f64 {
        let text = Client::connect(self.admin).get("/metrics");
        let line = text.text().lines().find(|line| line.starts_with(name)).map(str::to_owned);
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(keys: &str, engine: &Engine) -> Router {
    let config = tempfile::tempdir().unwrap();
    let path = config.path().join("router.toml");
    let text = format!(
        "[router]\nlisten_http = \"127.0.0.1:0\"\nlisten_admin = \"127.0.0.1:0\"\ncores = 2\n{keys}\n{}",
        worker(engine, 4)
    );
    std::fs::write(&path, text).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_cgn-router"))
        .arg("--config")
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut addresses = line.split("http://").skip(1).map(|part| {
        let end = part.find([' ', ')', '\n']).unwrap_or(part.len());
        part[..end].parse().unwrap()
    });
    let (http, admin) = (addresses.next().unwrap(), addresses.next().unwrap());
    let is_ready = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        Client::connect(admin).get("/readyz").status == 200
    });
    assert!(is_ready);
    Router { child, http, admin, _config: config }
}

fn config(
    authority: &Authority,
    identity: Option<(rcgen::Certificate, KeyPair)>,
    alpn: &[&[u8]],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
            builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

fn dial(address: SocketAddr, config: Arc<ClientConfig>) -> Tls {
    let tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(config, name).unwrap(), tcp)
}

/// Asks and reads to the end; an error where the handshake or the connection fails.
fn ask(stream: &mut Tls, request: &str) -> std::io::Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut text = Vec::new();
    match stream.read_to_end(&mut text) {
        Err(error) if text.is_empty() => Err(error),
        _ => Ok(String::from_utf8(text).unwrap()),
    }
}

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";

#[test]
fn both_protocols_are_served_as_the_client_asks() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), authority());
    install(folder.path(), &authority);
    let engine = Engine::ok();
    let router = start(&keys(folder.path(), ""), &engine);
    for alpn in [&[][..], &[&b"http/1.1"[..]]] {
        let mut stream = dial(router.http, config(&authority, None, alpn));
        let text = ask(&mut stream, &post(PATH, "Connection: close\r\n", &chat("x"))).unwrap();
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("{\"ok\":true}"), "{text}");
    }
    let stream = dial(router.http, config(&authority, None, &[b"h2", b"http/1.1"]));
    let mut client = Http2::begin(stream, &[]);
    assert_eq!(client.io.conn.alpn_protocol(), Some(&b"h2"[..]));
    // More than a record and more than a window.
    let body = chat(&"long ".repeat(200_000));
    client.post_within_windows(1, PATH, body.as_bytes());
    assert_eq!(client.answer(1), (200, b"{\"ok\":true}".to_vec()));
    assert_eq!(engine.asked()[2].body, body.as_bytes());
    // A protocol that we do not speak is refused in the handshake.
    assert!(ask(&mut dial(router.http, config(&authority, None, &[b"smtp"])), HEALTH).is_err());
}

/// The end of a connection that opened with these bytes; what came back.
fn end_of(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut back = Vec::new();
    match stream.read_to_end(&mut back) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => panic!("{error}"),
        _ => back,
    }
}

/// A ClientHello of TLS 1.2: no `supported_versions`.
fn hello_of_tls_12() -> Vec<u8> {
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.push(0);
    // ECDHE-ECDSA and ECDHE-RSA with AES-128-GCM; no compression.
    hello.extend([0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0]);
    let extensions = [
        [0, 10, 0, 4, 0, 2, 0, 23].as_slice(),
        &[0, 11, 0, 2, 1, 0],
        &[0, 13, 0, 6, 0, 4, 4, 3, 8, 4],
    ]
    .concat();
    hello.extend((extensions.len() as u16).to_be_bytes());
    hello.extend(extensions);
    let mut message = vec![1, 0];
    message.extend((hello.len() as u16).to_be_bytes());
    message.extend(hello);
    let mut record = vec![22, 3, 1];
    record.extend((message.len() as u16).to_be_bytes());
    record.extend(message);
    record
}

#[test]
fn what_is_no_tls_13_is_refused_and_what_dawdles_is_given_up() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), authority());
    install(folder.path(), &authority);
    let more = "[router.limits]\nclient_stall_s_max = 1\nclient_idle_s_max = 1";
    let router = start(&keys(folder.path(), more), &Engine::ok());
    let mut hello = Vec::new();
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = ClientConnection::new(config(&authority, None, &[]), name).unwrap();
    connection.write_tls(&mut hello).unwrap();
    // Alert (21), fatal (2), protocol_version (70).
    let refused = end_of(router.http, &hello_of_tls_12());
    assert_eq!((refused[0], &refused[5..7]), (21, &[2, 70][..]), "{refused:?}");
    for garbage in
        [&b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"[..], &[0; 600], &[22, 3, 1, 0xff, 0xff, 0, 0]]
    {
        let back = end_of(router.http, garbage);
        assert!(back.is_empty() || back[0] == 21, "{back:?}");
    }
    let failures = "cgn_router_tls_handshake_failures_total";
    assert!(router.metric(failures) >= 3.0);
    // A handshake that stops, and one that drips.
    end_of(router.http, &hello[..hello.len() / 2]);
    end_of(router.http, &hello);
    let mut drip = TcpStream::connect(router.http).unwrap();
    let ended = hello.iter().cycle().take(100).any(|byte| {
        std::thread::sleep(Duration::from_millis(50));
        drip.write_all(&[*byte]).is_err()
    });
    assert!(ended, "a byte at a time holds a connection for ever");
    assert!(ask(&mut dial(router.http, config(&authority, None, &[])), HEALTH).is_ok());
}

#[test]
fn with_certificates_required_only_those_of_the_authority_get_in() {
    let (folder, ours, theirs) = (tempfile::tempdir().unwrap(), authority(), authority());
    install(folder.path(), &ours);
    std::fs::write(folder.path().join("ca.pem"), ours.pem()).unwrap();
    let more = format!(
        "client_ca_file = \"{}/ca.pem\"\nclient_cert_required = true",
        folder.path().display()
    );
    let router = start(&keys(folder.path(), &more), &Engine::ok());
    let knock = |identity| {
        ask(&mut dial(router.http, config(&ours, identity, &[])), HEALTH)
            .is_ok_and(|text| text.ends_with("ok\n"))
    };
    assert!(!knock(None), "without a certificate");
    assert!(!knock(Some(signed(&theirs, "client"))), "with one of another authority");
    assert!(knock(Some(signed(&ours, "client"))));
    assert!(router.metric("cgn_router_tls_handshake_failures_total") >= 2.0);
}

#[test]
fn a_new_certificate_is_served_and_streams_under_the_old_one_go_on() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), authority());
    let first = install(folder.path(), &authority);
    let (tell, told) = std::sync::mpsc::channel::<()>();
    let told = std::sync::Mutex::new(told);
    let engine = Engine::start(move |_, stream| {
        stream.write_all(format!("{STREAM_HEAD}{}", chunk("data: 1\n\n")).as_bytes()).unwrap();
        told.lock().unwrap().recv().unwrap();
        stream.write_all(format!("{}0\r\n\r\n", chunk("data: [DONE]\n\n")).as_bytes()).is_ok()
    });
    let router = start(&keys(folder.path(), ""), &engine);
    let served = || {
        let mut stream = dial(router.http, config(&authority, None, &[]));
        ask(&mut stream, HEALTH).unwrap();
        stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
    };
    let mut client = Http2::begin(dial(router.http, config(&authority, None, &[b"h2"])), &[]);
    client.post(1, PATH, chat("x").as_bytes());
    assert_eq!(client.next_of(DATA).payload, b"data: 1\n\n");
    assert_eq!(served(), first);
    // Half written: the old one stays.
    std::fs::write(folder.path().join("cert.pem"), "-----BEGIN CERT").unwrap();
    std::thread::sleep(Duration::from_millis(1_300));
    assert_eq!(served(), first);
    let second = install(folder.path(), &authority);
    for _ in 0..100 {
        if served() == second {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(served(), second);
    tell.send(()).unwrap();
    assert_eq!(client.next_of(DATA).payload, b"data: [DONE]\n\n");
}
