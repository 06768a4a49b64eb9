//! One client connection: from the handshake to its end, one request after another.
//!
//! Owned here: the buffers of the connection and who is at its other end. `reply.rs` writes answers in
//! the client's protocol, `http2.rs` takes connections over that speak HTTP/2.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use monoio::net::TcpStream;

use crate::http2;
use crate::http2::exchange::Reply;
use crate::relay::Relayed;
use crate::reply::Framed;
use crate::request;
use crate::shard::Shard;
use crate::stream::Stream;
use crate::tls::Session;
use crate::tls::stream::TlsStream;
use crate::watch::{ClientEnd, Phase, Registration};

/// Read buffers of an idle connection are cut down to this: what a 32 KB prompt needs, so that a
/// client that sends one after another has them read in one piece each. Pages that were never touched
/// cost nothing.
const IDLE_BUFFER_BYTES_MAX: usize = 40 << 10;
/// The same for what is written: a usual answer.
const IDLE_OUT_BYTES_MAX: usize = 8 << 10;
/// Room for the first bytes, which tell HTTP/2 from HTTP/1.1.
const FIRST_ROOM_BYTES: usize = 8 << 10;

/// Who is at the other end.
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Its certificate (DER), verified in the handshake.
    pub certificate: Option<Vec<u8>>,
    /// The connection is encrypted.
    pub is_tls: bool,
}

/// The way back to a client.
pub enum Outlet {
    /// HTTP/1.1: a connection of its own.
    Http1(Stream),
    /// HTTP/2: one stream of a connection.
    Http2(Reply),
}

/// A client and the buffers of its connection.
pub struct Client {
    /// Registered with the watchdog; declared first, so dropped before the socket is closed.
    pub watch: Registration,
    /// The way back.
    pub outlet: Outlet,
    /// Who it is.
    pub peer: Rc<Peer>,
    /// Bytes read and not yet used.
    pub inbuf: Vec<u8>,
    /// Bytes about to be written.
    pub out: Vec<u8>,
    /// How the body under way is delimited.
    pub framed: Framed,
    /// Bytes written so far.
    pub sent_bytes: u64,
    /// The request is a `HEAD`: no byte of a body may follow the answer's head.
    pub is_head: bool,
}

impl Client {
    /// A client with empty buffers.
    pub fn new(watch: Registration, outlet: Outlet, peer: Rc<Peer>) -> Self {
        Client {
            watch,
            outlet,
            peer,
            inbuf: Vec::new(),
            out: Vec::new(),
            framed: Framed::Nothing,
            sent_bytes: 0,
            is_head: false,
        }
    }

    /// Reads more into `inbuf`; 0 at the end. A request of HTTP/2 is whole already.
    ///
    /// # Errors
    /// The socket's.
    pub async fn read_more(&mut self, room_bytes: usize) -> io::Result<usize> {
        match &mut self.outlet {
            Outlet::Http1(stream) => stream.read_more(&mut self.inbuf, room_bytes).await,
            Outlet::Http2(_) => Ok(0),
        }
    }

    /// Writes `bytes` to a connection of HTTP/1.1 as they are.
    ///
    /// # Errors
    /// The socket's.
    pub async fn write(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        match &mut self.outlet {
            Outlet::Http1(stream) => {
                self.sent_bytes += bytes.len() as u64;
                stream.write_all(bytes).await
            }
            Outlet::Http2(_) => Ok(()),
        }
    }
}

/// Serves `tcp` to its end.
pub async fn serve(shard: Rc<Shard>, tcp: TcpStream, address: SocketAddr) {
    // Without it Nagle holds a token back until the last one is acknowledged: 40 ms.
    if tcp.set_nodelay(true).is_err() {
        return;
    }
    shard.stats.connections.inc();
    match shard.front.tls() {
        None => {
            let watch = shard.watchdog.register(ClientEnd::Plain(tcp.as_raw_fd()));
            let peer = Rc::new(Peer { address, certificate: None, is_tls: false });
            first_bytes(&shard, watch, tcp, peer).await;
        }
        // Boxed: plain connections must not carry the size of a handshake.
        Some(config) => Box::pin(handshake(&shard, tcp, address, config)).await,
    }
    shard.stats.connections.dec();
}

/// TLS first. The watchdog ends one that dawdles.
async fn handshake(
    shard: &Rc<Shard>,
    tcp: TcpStream,
    address: SocketAddr,
    config: std::sync::Arc<rustls::ServerConfig>,
) {
    let watch = shard.watchdog.register(ClientEnd::Tls(tcp.as_raw_fd()));
    watch.enter(Phase::Client);
    let Ok(session) = Session::server(config) else { return };
    let tls = match TlsStream::handshake(tcp, session).await {
        Ok(tls) => tls,
        Err(error) => {
            shard.stats.tls_handshake_failures.inc();
            tracing::debug!(%address, %error, "TLS handshake failed");
            return;
        }
    };
    let certificate = tls.session().peer_certificate().map(|certificate| certificate.to_vec());
    let peer = Rc::new(Peer { address, certificate, is_tls: true });
    if tls.session().is_h2() {
        let (tcp, session, early) = tls.into_parts();
        http2::serve(shard, tcp, Some(session), early, peer, watch).await;
    } else {
        let client = Client::new(watch, Outlet::Http1(Stream::Tls(Box::new(tls))), peer);
        http1(shard, client).await;
    }
}

/// Clear text: HTTP/2 with prior knowledge says so in its first bytes.
async fn first_bytes(shard: &Rc<Shard>, watch: Registration, tcp: TcpStream, peer: Rc<Peer>) {
    let mut client = Client::new(watch, Outlet::Http1(Stream::Tcp(tcp)), peer);
    client.watch.enter(Phase::ClientIdle);
    loop {
        match client.read_more(FIRST_ROOM_BYTES).await {
            Ok(read) if read > 0 => {}
            _ => return,
        }
        let known = client.inbuf.len().min(http2::PREFACE.len());
        if client.inbuf[..known] != http2::PREFACE[..known] {
            return http1(shard, client).await;
        }
        if known == http2::PREFACE.len() {
            break;
        }
        client.watch.enter(Phase::Client);
    }
    let Client { watch, outlet, peer, inbuf, .. } = client;
    if let Outlet::Http1(Stream::Tcp(tcp)) = outlet {
        Box::pin(http2::serve(shard, tcp, None, inbuf, peer, watch)).await;
    }
}

/// Requests one after another until either side has had enough.
async fn http1(shard: &Rc<Shard>, mut client: Client) {
    while request::serve(shard, &mut client).await == Relayed::KeepAlive {
        client.inbuf.shrink_to(IDLE_BUFFER_BYTES_MAX);
        client.out.shrink_to(IDLE_OUT_BYTES_MAX);
    }
}
