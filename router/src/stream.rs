//! A connection of a client or to an engine, whatever carries it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use monoio::io::AsyncWriteRent;
use monoio::net::{TcpStream, UnixStream};

use crate::socket;
use crate::tls::stream::TlsStream;

/// Bytes in order, both ways.
pub enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// A Unix socket, as llama-server and uvicorn can listen on.
    Unix(UnixStream),
    /// TLS 1.3.
    Tls(Box<TlsStream>),
}

impl Stream {
    /// Appends what has come to `buffer`, which is given room for `room_bytes` first; 0 at the end.
    ///
    /// # Errors
    /// The socket's, or a broken TLS record.
    pub async fn read_more(
        &mut self,
        buffer: &mut Vec<u8>,
        room_bytes: usize,
    ) -> io::Result<usize> {
        match self {
            Stream::Tcp(tcp) => socket::read_more(tcp, buffer, room_bytes).await,
            Stream::Unix(unix) => socket::read_more(unix, buffer, room_bytes).await,
            // Boxed: the rare case must not make every request's future larger.
            Stream::Tls(tls) => Box::pin(tls.read_more(buffer)).await,
        }
    }

    /// Writes all of `buffer`, which comes back unchanged.
    ///
    /// # Errors
    /// The socket's.
    pub async fn write_all(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Stream::Tcp(tcp) => socket::write_all(tcp, buffer).await,
            Stream::Unix(unix) => socket::write_all(unix, buffer).await,
            Stream::Tls(tls) => Box::pin(tls.write_all(buffer)).await,
        }
    }

    /// Ends the sending side.
    ///
    /// # Errors
    /// The socket's.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            Stream::Tcp(tcp) => tcp.shutdown().await,
            Stream::Unix(unix) => unix.shutdown().await,
            Stream::Tls(tls) => Box::pin(tls.shutdown()).await,
        }
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Stream::Tcp(tcp) => tcp.as_raw_fd(),
            Stream::Unix(unix) => unix.as_raw_fd(),
            Stream::Tls(tls) => tls.as_raw_fd(),
        }
    }
}
