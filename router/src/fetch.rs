//! A GET of something small over the network that no request waits for: the keys of a token issuer; and
//! the POST of traces. One connection each time, bounded in bytes and time.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{TryRecvError, sync_channel};
use std::time::Duration;

use monoio::net::TcpStream;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use crate::http::body::BodyScanner;
use crate::http::head::{ResponseHead, parse_response};
use crate::stream::Stream;
use crate::tls::stream::TlsStream;
use crate::tls::{ALPN_HTTP_11, Session};

/// An answer may not be longer: a large issuer's key set is 20 KB.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Its head neither.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;
/// Between two looks whether a name was resolved.
const RESOLVE_LOOK: Duration = Duration::from_millis(10);
/// Where distributions keep the authorities they trust: Debian and Ubuntu, Fedora, Alpine.
const TRUST_FILES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// What came back.
pub struct Fetched {
    /// HTTP status.
    pub status: u16,
    /// `retry-after`, where it is a number of seconds.
    pub retry_after_s: Option<u64>,
    /// The body.
    pub body: Vec<u8>,
}

/// Asks for `url` (`http://` or `https://`); `post` is the content type and the body to send.
///
/// # Errors
/// The network's, or what is wrong with the URL or the answer.
pub async fn fetch(url: &str, post: Option<(&str, &[u8])>, limit: Duration) -> io::Result<Fetched> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
    monoio::time::timeout(limit, exchange(url, post)).await.map_err(|_| late())?
}

async fn exchange(url: &str, post: Option<(&str, &[u8])>) -> io::Result<Fetched> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("the URL has no scheme"))?;
    let is_tls = match scheme {
        "https" => true,
        "http" => false,
        _ => return Err(wrong("the URL must begin with http:// or https://")),
    };
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            (host, port.parse().map_err(|_| wrong("the URL's port is no number"))?)
        }
        _ => (authority, if is_tls { 443 } else { 80 }),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let tcp = connect(&resolve(host, port).await?).await?;
    tcp.set_nodelay(true)?;
    let mut stream = match is_tls {
        false => Stream::Tcp(tcp),
        true => {
            let name = ServerName::try_from(host.to_owned())
                .map_err(|_| wrong("the URL's host is no name"))?;
            let session = Session::client(client_config()?, name).map_err(io::Error::other)?;
            Stream::Tls(Box::new(TlsStream::handshake(tcp, session).await?))
        }
    };
    let (method, body) = post.map_or(("GET", b"".as_slice()), |(_, body)| ("POST", body));
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\naccept: */*\r\n"
    );
    if let Some((content_type, body)) = post {
        request += &format!("content-type: {content_type}\r\ncontent-length: {}\r\n", body.len());
    }
    request += "\r\n";
    let mut bytes = request.into_bytes();
    bytes.extend_from_slice(body);
    stream.write_all(&mut bytes).await?;
    read_answer(&mut stream).await
}

/// The first of `addresses` that takes a connection: a name often stands for one of each family, and only
/// one of them is served.
async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "unknown host");
    for address in addresses {
        match TcpStream::connect_addr(*address).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Asks the system for a name, on a thread of its own: it may take seconds, and this one also ends the
/// waits of requests whose deadline has passed.
async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let (told, answer) = sync_channel(1);
    let host = host.to_owned();
    std::thread::Builder::new().name("resolve".to_owned()).spawn(move || {
        let found = (host.as_str(), port).to_socket_addrs();
        // Nobody listens any more where it took too long.
        let _ = told.send(found.map(|all| all.take(ADDRESSES_MAX).collect()));
    })?;
    loop {
        match answer.try_recv() {
            Ok(found) => return found,
            Err(TryRecvError::Empty) => monoio::time::sleep(RESOLVE_LOOK).await,
            Err(TryRecvError::Disconnected) => {
                return Err(io::Error::other("the name was not resolved"));
            }
        }
    }
}

async fn read_answer(stream: &mut Stream) -> io::Result<Fetched> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut buffer = Vec::new();
    let head = loop {
        if let Some(head) = parse_response(&buffer).map_err(|error| wrong(&error.to_string()))? {
            break head;
        }
        if buffer.len() > HEAD_BYTES_MAX || stream.read_more(&mut buffer, 16 << 10).await? == 0 {
            return Err(wrong("the answer has no head"));
        }
    };
    let retry_after_s = retry_after(&head, &buffer);
    buffer.drain(..head.length);
    let (mut scanner, mut body) = (BodyScanner::new(head.framing), Vec::new());
    loop {
        scanner
            .feed(&buffer, |run| body.extend_from_slice(run))
            .map_err(|error| wrong(&error.to_string()))?;
        if scanner.is_done() {
            break;
        }
        if body.len() > ANSWER_BYTES_MAX {
            return Err(wrong("the answer is too long"));
        }
        buffer.clear();
        if stream.read_more(&mut buffer, 16 << 10).await? == 0 {
            if scanner.may_close() {
                break;
            }
            return Err(wrong("the answer was cut off"));
        }
    }
    Ok(Fetched { status: head.status, retry_after_s, body })
}

fn retry_after(head: &ResponseHead, bytes: &[u8]) -> Option<u64> {
    let is_it = |field: &&crate::http::head::Field| {
        bytes[field.name.clone()].eq_ignore_ascii_case(b"retry-after")
    };
    let field = head.fields.iter().find(is_it)?;
    std::str::from_utf8(&bytes[field.value.clone()]).ok()?.trim().parse().ok()
}

/// Trusts what the system trusts. Read each time: once in ten minutes.
fn client_config() -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let bundle = TRUST_FILES.iter().find(|path| std::path::Path::new(path).exists());
    let Some(bundle) = bundle else {
        let text = "no bundle of trusted authorities; install ca-certificates";
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    };
    let certificates = CertificateDer::pem_file_iter(bundle).map_err(io::Error::other)?;
    // A bundle may hold one that rustls does not take; the others serve.
    roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_HTTP_11.to_vec()];
    Ok(Arc::new(config))
}
