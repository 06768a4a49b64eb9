//! One connection to one peer: the seam where another transport takes QUIC's place.
//!
//! QUIC is the one there is. RDMA will be a second variant where both ends have it: the request goes
//! the same way, and the bytes are read from the leased block.

use std::net::SocketAddr;
use std::time::Duration;

use rustls::pki_types::CertificateDer;

/// What goes out on one stream.
pub type Sending = quinn::SendStream;
/// What comes in on one.
pub type Receiving = quinn::RecvStream;

/// Why a connection is closed; the other end reads the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Close {
    /// The daemon stops.
    Stopping = 1,
    /// The certificate is good, but its holder may not be a peer.
    Refused = 2,
    /// There is another connection between the two.
    Duplicate = 3,
    /// What came in cannot be read.
    Malformed = 4,
    /// There are as many peers as may be.
    Full = 5,
}

impl Close {
    fn reason(self) -> &'static str {
        match self {
            Close::Stopping => "stopping",
            Close::Refused => "refused",
            Close::Duplicate => "duplicate",
            Close::Malformed => "malformed",
            Close::Full => "full",
        }
    }
}

/// A connection that is open or was.
#[derive(Clone, Debug)]
pub enum Link {
    /// QUIC with mutual TLS.
    Quic(quinn::Connection),
}

/// Why a stream cannot be had: the connection is gone.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the connection is gone: {0}")]
pub struct Gone(String);

impl From<quinn::ConnectionError> for Gone {
    fn from(error: quinn::ConnectionError) -> Gone {
        Gone(error.to_string())
    }
}

impl Link {
    /// The certificates the peer showed, its own first; verified by the handshake.
    pub fn certificates(&self) -> Vec<CertificateDer<'static>> {
        let Link::Quic(connection) = self;
        let shown = connection.peer_identity().map(|any| any.downcast::<Vec<_>>());
        match shown {
            Some(Ok(chain)) => *chain,
            _ => Vec::new(),
        }
    }

    /// Opens a stream for one request.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn request(&self) -> Result<(Sending, Receiving), Gone> {
        let Link::Quic(connection) = self;
        Ok(connection.open_bi().await?)
    }

    /// The next request of the peer.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn requested(&self) -> Result<(Sending, Receiving), Gone> {
        let Link::Quic(connection) = self;
        Ok(connection.accept_bi().await?)
    }

    /// Opens the stream for gossip.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn tell(&self) -> Result<Sending, Gone> {
        let Link::Quic(connection) = self;
        Ok(connection.open_uni().await?)
    }

    /// The peer's stream of gossip.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn told(&self) -> Result<Receiving, Gone> {
        let Link::Quic(connection) = self;
        Ok(connection.accept_uni().await?)
    }

    /// Ends it and says why.
    pub fn close(&self, why: Close) {
        let Link::Quic(connection) = self;
        connection.close(quinn::VarInt::from_u32(why as u32), why.reason().as_bytes());
    }

    /// Waits for its end; why, in words.
    pub async fn closed(&self) -> String {
        let Link::Quic(connection) = self;
        connection.closed().await.to_string()
    }

    /// Where the peer is.
    pub fn address(&self) -> SocketAddr {
        let Link::Quic(connection) = self;
        connection.remote_address()
    }

    /// There and back.
    pub fn round_trip(&self) -> Duration {
        let Link::Quic(connection) = self;
        connection.rtt()
    }
}
