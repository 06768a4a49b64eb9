//! A TCP connection under TLS, read and written one after the other.

use std::io;

use monoio::io::AsyncWriteRent;
use monoio::net::TcpStream;

use super::Session;
use crate::socket::{read_more, write_all};

/// Room offered to each read of ciphertext: one record of the largest size, with its frame.
const CIPHERTEXT_ROOM_BYTES: usize = (16 << 10) + 256;
/// A peer that needs more flights than this to shake hands is playing: TLS 1.3 needs two, or three
/// after a retry, and a slow one cuts each into a few packets.
const HANDSHAKE_READS_MAX: usize = 64;

/// A TLS stream.
pub struct TlsStream {
    tcp: TcpStream,
    session: Session,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// Decrypted during the handshake, not yet asked for.
    early: Vec<u8>,
}

impl TlsStream {
    /// Shakes hands over `tcp`. Limits of time are the caller's.
    ///
    /// # Errors
    /// The peer broke off, or does not speak TLS 1.3 as we accept it.
    pub async fn handshake(tcp: TcpStream, session: Session) -> io::Result<Self> {
        let mut stream = TlsStream {
            tcp,
            session,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            early: Vec::new(),
        };
        stream.flush().await?;
        for _ in 0..HANDSHAKE_READS_MAX {
            if !stream.session.is_handshaking() {
                return Ok(stream);
            }
            let mut early = std::mem::take(&mut stream.early);
            let read = stream.receive(&mut early).await;
            stream.early = early;
            if read? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the TLS handshake does not end"))
    }

    /// What the handshake agreed on.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Takes the stream apart: socket, session, and plaintext that was decrypted and not yet read.
    pub fn into_parts(self) -> (TcpStream, Session, Vec<u8>) {
        (self.tcp, self.session, self.early)
    }

    /// Appends plaintext to `buffer`; 0 at the end of the stream.
    ///
    /// # Errors
    /// The socket's, or a broken record.
    pub async fn read_more(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        if !self.early.is_empty() {
            buffer.append(&mut self.early);
            self.early = Vec::new();
            return Ok(buffer.len());
        }
        let before = buffer.len();
        loop {
            if self.session.peer_closed() || self.receive(buffer).await? == 0 {
                return Ok(0);
            }
            if buffer.len() > before {
                return Ok(buffer.len() - before);
            }
        }
    }

    /// Reads ciphertext once; bytes of it, 0 at the end.
    async fn receive(&mut self, plaintext: &mut Vec<u8>) -> io::Result<usize> {
        self.incoming.clear();
        let read = read_more(&mut self.tcp, &mut self.incoming, CIPHERTEXT_ROOM_BYTES).await?;
        let decrypted = self.session.decrypt(&self.incoming, plaintext);
        // An idle connection keeps no record's worth of memory.
        if self.incoming.capacity() > 2 * CIPHERTEXT_ROOM_BYTES {
            self.incoming = Vec::new();
        }
        // The alert, or the next flight.
        let flushed = self.flush().await;
        decrypted?;
        flushed?;
        Ok(read)
    }

    /// Encrypts and sends all of `plaintext`.
    ///
    /// # Errors
    /// The socket's.
    pub async fn write_all(&mut self, plaintext: &[u8]) -> io::Result<()> {
        self.session.encrypt(plaintext, &mut self.outgoing)?;
        self.send().await
    }

    /// Says that nothing follows, and ends the sending side.
    ///
    /// # Errors
    /// The socket's.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        self.session.close();
        self.flush().await?;
        self.tcp.shutdown().await
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.session.take_outgoing(&mut self.outgoing)?;
        self.send().await
    }

    async fn send(&mut self) -> io::Result<()> {
        if self.outgoing.is_empty() {
            return Ok(());
        }
        let written = write_all(&mut self.tcp, &mut self.outgoing).await;
        self.outgoing.clear();
        self.outgoing.shrink_to(CIPHERTEXT_ROOM_BYTES);
        written
    }
}

impl std::os::fd::AsRawFd for TlsStream {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.tcp.as_raw_fd()
    }
}
