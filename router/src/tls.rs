//! TLS 1.3 over completion I/O: rustls as a state machine that is handed ciphertext and plaintext.
//!
//! [`Session`] does no I/O; [`stream::TlsStream`] moves its bytes for HTTP/1.1, `http2::io` for HTTP/2.
//! [`files`] reads certificates and keys and notices when they change. The wrapper that monoio's
//! authors offer keeps the ciphertext it has read to itself, so a handshake could not be handed on to
//! HTTP/2 together with the first bytes behind it.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConnection, Connection, ServerConnection};

pub mod files;
pub mod stream;

/// The protocol a client asked for by ALPN, where it is HTTP/2.
pub const ALPN_H2: &[u8] = b"h2";
/// HTTP/1.1 in ALPN.
pub const ALPN_HTTP_11: &[u8] = b"http/1.1";

/// One side of one TLS connection, without its socket.
pub struct Session {
    inner: Connection,
    /// The other side said that nothing follows.
    peer_closed: bool,
}

impl Session {
    /// The server's side.
    ///
    /// # Errors
    /// What rustls says of the configuration.
    pub fn server(config: Arc<rustls::ServerConfig>) -> Result<Self, rustls::Error> {
        let mut connection = ServerConnection::new(config)?;
        // Each write is taken out at once, so rustls' own bound would only cut it into pieces.
        connection.set_buffer_limit(None);
        Ok(Session { inner: connection.into(), peer_closed: false })
    }

    /// The client's side, towards `name`.
    ///
    /// # Errors
    /// What rustls says of the configuration.
    pub fn client(
        config: Arc<rustls::ClientConfig>,
        name: rustls::pki_types::ServerName<'static>,
    ) -> Result<Self, rustls::Error> {
        let mut connection = ClientConnection::new(config, name)?;
        connection.set_buffer_limit(None);
        Ok(Session { inner: connection.into(), peer_closed: false })
    }

    /// Whether the handshake goes on.
    pub fn is_handshaking(&self) -> bool {
        self.inner.is_handshaking()
    }

    /// Whether the other side said that nothing follows.
    pub fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// Takes ciphertext; appends what it decrypts to. Afterwards [`Session::take_outgoing`] may
    /// have something to send, also after an error (the alert).
    ///
    /// # Errors
    /// What the other side did wrong. The connection cannot go on.
    pub fn decrypt(&mut self, mut ciphertext: &[u8], plaintext: &mut Vec<u8>) -> io::Result<()> {
        while !ciphertext.is_empty() {
            if self.inner.read_tls(&mut ciphertext)? == 0 {
                break;
            }
            let state = self
                .inner
                .process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            self.peer_closed |= state.peer_has_closed();
            let waiting = state.plaintext_bytes_to_read();
            if waiting > 0 {
                let begin = plaintext.len();
                plaintext.resize(begin + waiting, 0);
                self.inner.reader().read_exact(&mut plaintext[begin..])?;
            }
        }
        Ok(())
    }

    /// Encrypts `plaintext`; the records go to `outgoing`.
    ///
    /// # Errors
    /// When rustls refuses, as after a close.
    pub fn encrypt(&mut self, plaintext: &[u8], outgoing: &mut Vec<u8>) -> io::Result<()> {
        self.inner.writer().write_all(plaintext)?;
        self.take_outgoing(outgoing)
    }

    /// Appends what is waiting to be sent: handshake, alerts, key updates, records.
    ///
    /// # Errors
    /// None that a buffer in memory can give.
    pub fn take_outgoing(&mut self, outgoing: &mut Vec<u8>) -> io::Result<()> {
        while self.inner.wants_write() {
            self.inner.write_tls(outgoing)?;
        }
        Ok(())
    }

    /// Says that nothing follows.
    pub fn close(&mut self) {
        self.inner.send_close_notify();
    }

    /// Whether the client asked for HTTP/2.
    pub fn is_h2(&self) -> bool {
        self.inner.alpn_protocol() == Some(ALPN_H2)
    }

    /// The certificate of the other side, verified, where one was asked for and given.
    pub fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.inner.peer_certificates()?.first()
    }
}
