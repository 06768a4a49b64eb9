//! The QUIC endpoint: one UDP socket that dials and is dialled, tuned for blocks in a rack.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{AckFrequencyConfig, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::link::Link;
use super::socket::Socket;
use super::tls::Credentials;

/// Largest UDP payload that is tried: a 9,000-byte frame less the headers of IPv6 and UDP. Where the
/// network takes less, discovery ends at what it takes.
const DATAGRAM_BYTES_MAX: u16 = 9_000 - 40 - 8;
/// What is on the way to us unread, a connection: 1 ms of 64 Gbit/s.
const RECEIVE_WINDOW_BYTES: u32 = 8 << 20;
/// What is sent and not acknowledged, a connection; the leases on it are held as long.
const SEND_WINDOW_BYTES: u64 = 16 << 20;
/// Sent before the first acknowledgement. Racks are near and blocks are large: one block's worth costs
/// a switch less than the ten packets of the open internet cost a block.
const INITIAL_WINDOW_BYTES: u64 = 256 << 10;
/// Requests of one peer at a time; more wait at its end.
pub const REQUESTS_MAX: u32 = 64;
/// Nothing heard for so long: the peer is gone.
const IDLE: Duration = Duration::from_secs(5);
/// Something is said at least so often.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Before anything is measured.
const INITIAL_ROUND_TRIP: Duration = Duration::from_millis(30);
/// Packets for one acknowledgement: with two, a third of the receiver's time goes into them.
const ACK_PACKETS: u32 = 16;
/// How long an acknowledgement may wait for those.
const ACK_DELAY: Duration = Duration::from_millis(2);
/// Handshakes at a time; more are told to come back with a proof of address.
const HANDSHAKES_MAX: usize = 64;
/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The address cannot be listened on.
    #[error(
        "cannot listen for peers on udp {listen}: {source}; set kv.quic_listen to a free address"
    )]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// rustls' ring provider lacks QUIC's first cipher.
    #[error("TLS cannot be used for QUIC: {0}")]
    Tls(String),
}

/// Why a peer was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Not `host:port`.
    #[error("`{0}` is no address; write host:port")]
    Address(String),
    /// No such host.
    #[error("`{0}` cannot be resolved: {1}")]
    Resolve(String, std::io::Error),
    /// No connection, or the handshake failed.
    #[error("{0}: {1}")]
    Connect(String, String),
    /// The handshake took too long.
    #[error("{0} does not answer")]
    Silent(String),
}

/// The endpoint.
#[derive(Debug)]
pub struct Endpoint {
    inner: quinn::Endpoint,
    client: RefCell<quinn::ClientConfig>,
}

/// What both ends of a connection begin with.
fn ends(
    credentials: &Credentials,
) -> Result<(quinn::ServerConfig, quinn::ClientConfig), EndpointError> {
    let tls = |error: &dyn std::fmt::Display| EndpointError::Tls(error.to_string());
    let transport = Arc::new(transport());
    let server = QuicServerConfig::try_from(credentials.server.clone()).map_err(|e| tls(&e))?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(server));
    server.transport_config(transport.clone()).migration(false).max_incoming(HANDSHAKES_MAX);
    let client = QuicClientConfig::try_from(credentials.client.clone()).map_err(|e| tls(&e))?;
    let mut client = quinn::ClientConfig::new(Arc::new(client));
    client.transport_config(transport);
    Ok((server, client))
}

fn transport() -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(DATAGRAM_BYTES_MAX).interval(Duration::from_secs(60));
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_PACKETS)).max_ack_delay(Some(ACK_DELAY));
    let mut cubic = CubicConfig::default();
    cubic.initial_window(INITIAL_WINDOW_BYTES);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(REQUESTS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        // One block after the other: all of them at once would all be late.
        .send_fairness(false)
        .datagram_receive_buffer_size(None)
        .initial_rtt(INITIAL_ROUND_TRIP)
        .mtu_discovery_config(Some(discovery))
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(Arc::new(cubic))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(IDLE.try_into().ok());
    transport
}

impl Endpoint {
    /// Listens on `listen`. To be called on the thread's tokio runtime.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn bind(listen: SocketAddr, credentials: &Credentials) -> Result<Endpoint, EndpointError> {
        let tls = |error: &dyn std::fmt::Display| EndpointError::Tls(error.to_string());
        let busy = |source| EndpointError::Listen { listen, source };
        let (server, client) = ends(credentials)?;
        let mut endpoint = quinn::EndpointConfig::default();
        endpoint.max_udp_payload_size(DATAGRAM_BYTES_MAX).map_err(|e| tls(&e))?;

        let runtime = Arc::new(quinn::TokioRuntime);
        let socket = Socket::bind(listen, DATAGRAM_BYTES_MAX, &*runtime).map_err(busy)?;
        let inner = quinn::Endpoint::new_with_abstract_socket(
            endpoint,
            Some(server),
            Arc::new(socket),
            runtime,
        )
        .map_err(busy)?;
        Ok(Endpoint { inner, client: RefCell::new(client) })
    }

    /// Shows and believes other certificates from here on; connections that there are stay.
    ///
    /// # Errors
    /// [`EndpointError::Tls`]; nothing has changed.
    pub fn set_credentials(&self, credentials: &Credentials) -> Result<(), EndpointError> {
        let (server, client) = ends(credentials)?;
        self.inner.set_server_config(Some(server));
        self.client.replace(client);
        Ok(())
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    /// Dials `host:port`. The peer's certificate must be for `host`.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial(&self, address: &str) -> Result<Link, DialError> {
        let no_address = || DialError::Address(address.to_owned());
        let (host, port) = address.rsplit_once(':').ok_or_else(no_address)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port: u16 = port.parse().map_err(|_| no_address())?;
        if host.is_empty() {
            return Err(no_address());
        }
        let unresolved = |error| DialError::Resolve(address.to_owned(), error);
        let found = tokio::net::lookup_host((host, port)).await.map_err(unresolved)?;
        let is_v4 = self.inner.local_addr().is_ok_and(|local| local.is_ipv4());
        let target = found.into_iter().find(|found| found.is_ipv4() || !is_v4);
        let target = target.ok_or_else(|| unresolved(std::io::ErrorKind::NotFound.into()))?;
        let failed = |error: &dyn std::fmt::Display| {
            DialError::Connect(address.to_owned(), error.to_string())
        };
        let connecting = self
            .inner
            .connect_with(self.client.borrow().clone(), target, host)
            .map_err(|error| failed(&error))?;
        match tokio::time::timeout(HANDSHAKE, connecting).await {
            Ok(Ok(connection)) => Ok(Link::Quic(connection)),
            Ok(Err(error)) => Err(failed(&error)),
            Err(_) => Err(DialError::Silent(address.to_owned())),
        }
    }

    /// Who dials us next; none when the endpoint is closed.
    pub async fn dialled(&self) -> Option<Dialled> {
        self.inner.accept().await.map(Dialled)
    }

    /// Closes all connections and waits, shortly, until the other ends were told.
    pub async fn close(&self) {
        self.inner.close(VarInt::from_u32(super::link::Close::Stopping as u32), b"stopping");
        let _ = tokio::time::timeout(KEEP_ALIVE, self.inner.wait_idle()).await;
    }
}

/// One that dials us and has not shown a certificate yet.
#[derive(Debug)]
pub struct Dialled(quinn::Incoming);

impl Dialled {
    /// Where it comes from; anybody can write any address there.
    pub fn from(&self) -> SocketAddr {
        self.0.remote_address()
    }

    /// Sends it away without an answer it could not have had from a closed port.
    pub fn refuse(self) {
        self.0.refuse();
    }

    /// Goes through the handshake, to its end: until the peer's certificate is verified there is no
    /// connection and no stream.
    ///
    /// # Errors
    /// What failed, in words.
    pub async fn accept(self) -> Result<Link, String> {
        if !self.0.remote_address_validated() && self.0.may_retry() {
            // An address that is not proven costs us one packet and no memory.
            return match self.0.retry() {
                Ok(()) => Err("asked to prove its address".to_owned()),
                Err(_) => Err("could not be asked to prove its address".to_owned()),
            };
        }
        let connecting = self.0.accept().map_err(|error| error.to_string())?;
        match tokio::time::timeout(HANDSHAKE, connecting).await {
            Ok(Ok(connection)) => Ok(Link::Quic(connection)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the handshake took too long".to_owned()),
        }
    }
}
