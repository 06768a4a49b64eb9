//! A client's socket: reads to where the bytes belong, writes from where they lie.
//!
//! Reading goes on writing: a client that sends a large value before it reads its replies must not wait
//! for a server that waits for it. It owns the socket and, with TLS, the session on it; what is read and
//! written it does not know. Whoever is slower than the pace allows is cut off.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, sendmsg};

use super::reply::{Output, PIECES_PER_WRITE_MAX};
use super::tls::Tls;

/// How slow a client may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// How long nothing at all may move.
    pub stall: Duration,
    /// What must move in the mean, beyond one stall.
    pub bytes_per_s: u64,
}

impl Pace {
    /// How long `bytes` may take.
    pub fn allows(&self, bytes: u64) -> Duration {
        let millis = bytes.saturating_mul(1000) / self.bytes_per_s.max(1);
        self.stall.saturating_add(Duration::from_millis(millis))
    }
}

/// The socket of one client.
pub struct Wire {
    socket: Socket,
    tls: Option<Box<Tls>>,
    pace: Pace,
    /// Since when, with how many bytes, the client has been reading what it has not read to the end.
    writing: Option<(Instant, u64)>,
}

impl Wire {
    /// A client's socket, just accepted; with `tls` its first bytes are a handshake.
    ///
    /// # Errors
    /// When the socket is of no use any more.
    pub(super) fn new(stream: TcpStream, tls: Option<Box<Tls>>, pace: Pace) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(pace.stall))?;
        let socket = Socket { stream, is_waiting: false };
        Ok(Self { socket, tls, pace, writing: None })
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// When it is there no more.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        Ok(self.socket.stream.peer_addr()?)
    }

    /// Reads at least a byte, but 0 at the end, into `buffer`; until then it writes `output`. A full
    /// output is written before anything is read.
    ///
    /// # Errors
    /// The socket's; [`io::ErrorKind::TimedOut`] when nothing came within `patience` or the client does not
    /// read what it asked for.
    pub async fn read(
        &mut self,
        buffer: &mut [u8],
        output: &mut Output,
        patience: Option<Duration>,
    ) -> io::Result<usize> {
        let patience = patience.map(|wait| wait.max(Duration::from_millis(1)));
        self.socket.stream.set_read_timeout(patience)?;
        poll_fn(|context| {
            match self.poll_write(context, output) {
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if output.is_full() => return Poll::Pending,
                _ => {}
            }
            match &mut self.tls {
                None => self.socket.poll_read(context, buffer),
                Some(tls) => tls.poll_read(&mut self.socket, context, buffer),
            }
        })
        .await
    }

    /// Writes all of `output`.
    ///
    /// # Errors
    /// As [`Wire::read`].
    pub async fn write(&mut self, output: &mut Output) -> io::Result<()> {
        poll_fn(|context| self.poll_write(context, output)).await
    }

    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        output: &mut Output,
    ) -> Poll<io::Result<()>> {
        if output.is_empty() && self.tls.is_none() {
            return Poll::Ready(Ok(()));
        }
        let written = match &mut self.tls {
            None => self.socket.poll_write(context, output),
            Some(tls) => tls.poll_write(&mut self.socket, context, output),
        };
        if written.is_ready() {
            self.writing = None;
            return written;
        }
        let (since, sent) = *self.writing.get_or_insert((Instant::now(), output.sent_bytes()));
        if since.elapsed() > self.pace.allows(output.sent_bytes() - sent) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

/// The socket below TLS, or without it.
pub(super) struct Socket {
    stream: TcpStream,
    /// The kernel had no room; glommio waits for some, and must be the next to write.
    is_waiting: bool,
}

impl Socket {
    /// Reads what is there.
    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }

    /// Writes all of `output`, many pieces by one system call.
    pub(super) fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        output: &mut Output,
    ) -> Poll<io::Result<()>> {
        while !output.is_empty() {
            let sent = if self.is_waiting { None } else { self.send(output)? };
            let sent = match sent {
                Some(sent) => sent,
                None => ready!(self.poll_write_bytes(context, output.first()))?,
            };
            output.advance(sent);
        }
        Poll::Ready(Ok(()))
    }

    /// Writes some of `bytes`, and waits for room if there is none.
    pub(super) fn poll_write_bytes(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.is_waiting = true;
        let sent = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.is_waiting = false;
        match sent {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            sent => Poll::Ready(Ok(sent)),
        }
    }

    /// One system call. `None` when the kernel has no room.
    fn send(&self, output: &Output) -> io::Result<Option<usize>> {
        let mut slices = [IoSlice::new(&[]); PIECES_PER_WRITE_MAX];
        let count = output.slices(&mut slices);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let fd = self.stream.as_raw_fd();
        match sendmsg::<()>(fd, &slices[..count], &[], flags, None) {
            Ok(sent) => Ok(Some(sent)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}
