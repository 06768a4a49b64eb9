//! TLS on a client's socket: rustls as a state machine between the socket and the connection.
//!
//! It reads certificates and keys at start and keeps what is encrypted and not yet sent. TLS costs a
//! copy each way; who needs none listens on loopback. There is no switch that verifies less.

use std::io::{self, IoSlice, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use dataplane::pem::{PemError, certificates, private_key};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use serde::Deserialize;

use super::reply::Output;
use crate::socket::Stream;

/// Ciphertext read at a time: one record.
const INBOUND_BYTES: usize = 17 << 10;
/// Plaintext encrypted at a time.
const OUTBOUND_BYTES: usize = 256 << 10;

/// `[kv.resp.tls]`: with it the RESP door speaks TLS 1.3 and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The daemon's certificate and its chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Authorities of clients' certificates, PEM. With it each client must bring one.
    pub client_ca: Option<PathBuf>,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// A file cannot be read or holds nothing of use.
    #[error(transparent)]
    File(#[from] PemError),
    /// Certificate and key do not belong together, or are of no use to TLS 1.3.
    #[error("[kv.resp.tls] cert and key cannot be served: {0}")]
    Unfit(String),
}

impl TlsFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsFileError`].
    pub fn load(&self) -> Result<Arc<ServerConfig>, TlsFileError> {
        let chain = certificates(&self.cert, "the certificate chain")?;
        let key = private_key(&self.key)?;
        let unfit = |error: &dyn std::fmt::Display| TlsFileError::Unfit(error.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unfit(&error))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path, "authorities' certificates")? {
                    roots.add(certificate).map_err(|error| unfit(&error))?;
                }
                let roots = Arc::new(roots);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                builder.with_client_cert_verifier(verifier.build().map_err(|error| unfit(&error))?)
            }
        };
        let config = builder.with_single_cert(chain, key).map_err(|error| unfit(&error))?;
        Ok(Arc::new(config))
    }
}

/// One client's session.
pub(super) struct Tls {
    session: ServerConnection,
    inbound: Box<[u8]>,
    /// What of `inbound` rustls has not taken yet.
    waiting: std::ops::Range<usize>,
    outbound: Vec<u8>,
    /// Bytes of `outbound` that are sent.
    sent: usize,
}

impl Tls {
    /// Before the handshake.
    pub(super) fn new(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let mut session = ServerConnection::new(config)?;
        session.set_buffer_limit(Some(OUTBOUND_BYTES * 2));
        let inbound = vec![0; INBOUND_BYTES].into_boxed_slice();
        Ok(Self { session, inbound, waiting: 0..0, outbound: Vec::new(), sent: 0 })
    }

    /// Reads plaintext into `buffer`; sends what the handshake needs.
    pub(super) fn poll_read(
        &mut self,
        socket: &mut Stream,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.session.reader().read(buffer) {
                Ok(read) => return Poll::Ready(Ok(read)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The other end went without saying so: as good as the end.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Poll::Ready(Ok(0));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
            if self.waiting.is_empty() {
                // What is not sent now is when the next bytes come: a handshake has no more to say.
                if let Poll::Ready(Err(error)) = self.poll_flush(socket, context) {
                    return Poll::Ready(Err(error));
                }
                let read = ready!(socket.poll_read(context, &mut self.inbound))?;
                if read == 0 {
                    return Poll::Ready(Ok(0));
                }
                self.waiting = 0..read;
            }
            self.decrypt().inspect_err(|_| {
                // The alert that says why, if there is room for it.
                let _ = self.poll_flush(socket, context);
            })?;
        }
    }

    /// Encrypts and writes all of `output`, and what the session itself has to say.
    pub(super) fn poll_write(
        &mut self,
        socket: &mut Stream,
        context: &mut Context<'_>,
        output: &mut Output,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_flush(socket, context))?;
            // Before the handshake is over nothing that was asked can wait here.
            if output.is_empty() || self.session.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            let first = output.first();
            let taken = self.session.writer().write(&first[..first.len().min(OUTBOUND_BYTES)])?;
            output.advance(taken);
        }
    }

    fn poll_flush(
        &mut self,
        socket: &mut Stream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            while self.sent < self.outbound.len() {
                let left = [IoSlice::new(&self.outbound[self.sent..])];
                self.sent += ready!(socket.poll_write(context, &left))?;
            }
            self.outbound.clear();
            self.sent = 0;
            if !self.session.wants_write() {
                return Poll::Ready(Ok(()));
            }
            while self.session.wants_write() {
                self.session.write_tls(&mut self.outbound)?;
            }
        }
    }

    /// Gives rustls what was read, as much as it takes.
    fn decrypt(&mut self) -> io::Result<()> {
        let mut unread = &self.inbound[self.waiting.clone()];
        let taken = self.session.read_tls(&mut unread)?;
        self.waiting.start += taken;
        let state = self.session.process_new_packets();
        state.map(drop).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}
