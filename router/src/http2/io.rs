//! The I/O traits `h2` asks for, over completion I/O.
//!
//! `h2` polls with borrowed buffers; the ring wants to own a buffer until the kernel is done with it. So
//! each direction has one operation at a time that owns its half of the socket and its buffer, and
//! bytes are copied once between that buffer and `h2`. HTTP/2 is not the hot path; HTTP/1.1 does without.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use monoio::io::{AsyncWriteRent, OwnedReadHalf, OwnedWriteHalf, Splitable};
use monoio::net::TcpStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::socket::{read_more, write_all};
use crate::tls::Session;

/// Room offered to each read.
const READ_ROOM_BYTES: usize = 16 << 10;
/// Bytes taken from `h2` before the write under way must be done: two of its largest default frames.
const WRITE_BYTES_MAX: usize = 32 << 10;

type Reading =
    Pin<Box<dyn Future<Output = (OwnedReadHalf<TcpStream>, Vec<u8>, io::Result<usize>)>>>;
type Writing = Pin<Box<dyn Future<Output = (OwnedWriteHalf<TcpStream>, Vec<u8>, io::Result<()>)>>>;

enum ReadSide {
    Idle(OwnedReadHalf<TcpStream>, Vec<u8>),
    Busy(Reading),
    Ended,
}

enum WriteSide {
    Idle(OwnedWriteHalf<TcpStream>, Vec<u8>),
    Busy(Writing),
    Ended,
}

/// A TCP connection, with or without TLS, as `h2` wants it.
pub struct PolledIo {
    read: ReadSide,
    write: WriteSide,
    session: Option<Session>,
    /// Decrypted or read ahead, from `taken` on not yet given to `h2`.
    incoming: Vec<u8>,
    taken: usize,
    /// Accepted from `h2`, not yet given to the kernel.
    outgoing: Vec<u8>,
}

impl PolledIo {
    /// `read_ahead` was read from the connection already.
    pub fn new(tcp: TcpStream, session: Option<Session>, read_ahead: Vec<u8>) -> Self {
        let (read, write) = tcp.into_split();
        PolledIo {
            read: ReadSide::Idle(read, Vec::new()),
            write: WriteSide::Idle(write, Vec::new()),
            session,
            incoming: read_ahead,
            taken: 0,
            outgoing: Vec::new(),
        }
    }

    fn give(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let waiting = &self.incoming[self.taken..];
        if waiting.is_empty() {
            return false;
        }
        let count = waiting.len().min(buffer.remaining());
        buffer.put_slice(&waiting[..count]);
        self.taken += count;
        if self.taken == self.incoming.len() {
            self.incoming.clear();
            self.taken = 0;
        }
        true
    }

    /// One read of the socket into `incoming`; false at the end of the stream.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            match std::mem::replace(&mut self.read, ReadSide::Ended) {
                ReadSide::Ended => return Poll::Ready(Ok(false)),
                ReadSide::Idle(mut half, mut buffer) => {
                    buffer.clear();
                    self.read = ReadSide::Busy(Box::pin(async move {
                        let result = read_more(&mut half, &mut buffer, READ_ROOM_BYTES).await;
                        (half, buffer, result)
                    }));
                }
                ReadSide::Busy(mut reading) => {
                    let Poll::Ready((half, buffer, result)) = reading.as_mut().poll(cx) else {
                        self.read = ReadSide::Busy(reading);
                        return Poll::Pending;
                    };
                    if result? == 0 {
                        return Poll::Ready(Ok(false));
                    }
                    match &mut self.session {
                        Some(session) => session.decrypt(&buffer, &mut self.incoming)?,
                        None => self.incoming.extend_from_slice(&buffer),
                    }
                    self.read = ReadSide::Idle(half, buffer);
                    return Poll::Ready(Ok(true));
                }
            }
        }
    }

    /// Gives the kernel what is waiting; ready when all of it was taken.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match std::mem::replace(&mut self.write, WriteSide::Ended) {
                WriteSide::Ended => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                WriteSide::Idle(half, spare) if self.outgoing.is_empty() => {
                    self.write = WriteSide::Idle(half, spare);
                    return Poll::Ready(Ok(()));
                }
                WriteSide::Idle(mut half, mut spare) => {
                    spare.clear();
                    let mut bytes = std::mem::replace(&mut self.outgoing, spare);
                    self.write = WriteSide::Busy(Box::pin(async move {
                        let result = write_all(&mut half, &mut bytes).await;
                        (half, bytes, result)
                    }));
                }
                WriteSide::Busy(mut writing) => {
                    let Poll::Ready((half, bytes, result)) = writing.as_mut().poll(cx) else {
                        self.write = WriteSide::Busy(writing);
                        return Poll::Pending;
                    };
                    result?;
                    self.write = WriteSide::Idle(half, bytes);
                }
            }
        }
    }
}

impl AsyncRead for PolledIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while !this.give(buffer) {
            let is_over = this.session.as_ref().is_some_and(Session::peer_closed);
            if is_over || !ready!(this.poll_receive(cx))? {
                return Poll::Ready(Ok(()));
            }
            // Answers of TLS itself (key updates) leave with the next write at the latest.
            if let Some(session) = &mut this.session {
                session.take_outgoing(&mut this.outgoing)?;
                if let Poll::Ready(sent) = this.poll_send(cx) {
                    sent?;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PolledIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.outgoing.len() >= WRITE_BYTES_MAX {
            ready!(this.poll_send(cx))?;
        }
        let taken = bytes.len().min(WRITE_BYTES_MAX);
        match &mut this.session {
            Some(session) => session.encrypt(&bytes[..taken], &mut this.outgoing)?,
            None => this.outgoing.extend_from_slice(&bytes[..taken]),
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(session) = &mut this.session {
            session.close();
            session.take_outgoing(&mut this.outgoing)?;
        }
        ready!(this.poll_send(cx))?;
        if let WriteSide::Idle(mut half, _) = std::mem::replace(&mut this.write, WriteSide::Ended) {
            // The kernel takes a shutdown at once; nothing is left to wait for.
            monoio::spawn(async move {
                let _ = half.shutdown().await;
            });
        }
        Poll::Ready(Ok(()))
    }
}
