//! A client's socket: reads to where the bytes belong, writes from where they lie.
//!
//! Reading goes on writing: a client that sends a large value before it reads its replies must not wait
//! for a server that waits for it. It owns the socket and, with TLS, the session on it; what is read and
//! written it does not know. Whoever is slower than the pace allows is cut off.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use super::reply::{Output, PIECES_PER_WRITE_MAX};
use super::tls::Tls;
use super::watch::Watched;
use crate::socket::Stream;

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
    stream: Stream,
    tls: Option<Box<Tls>>,
    pace: Pace,
    watch: Watched,
    writing: Option<Writing>,
}

/// A reply that the client has not read to the end.
#[derive(Clone, Copy)]
struct Writing {
    since: Instant,
    /// Bytes that were sent before.
    from: u64,
    /// Bytes that were sent when some last were.
    sent: u64,
}

impl Wire {
    /// A client's socket; with `tls` its first bytes are a handshake.
    pub(super) fn new(stream: Stream, tls: Option<Box<Tls>>, pace: Pace, watch: Watched) -> Self {
        Self { stream, tls, pace, watch, writing: None }
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
        self.watch.read_by(patience.map(|wait| Instant::now() + wait));
        let read = poll_fn(|context| {
            match self.poll_write(context, output) {
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if output.is_full() => return Poll::Pending,
                _ => {}
            }
            let read = match &mut self.tls {
                None => self.stream.poll_read(context, buffer),
                Some(tls) => tls.poll_read(&mut self.stream, context, buffer),
            };
            self.in_time(context, read)
        })
        .await;
        self.watch.read_by(None);
        read
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
            None => poll_write_all(&mut self.stream, context, output),
            Some(tls) => tls.poll_write(&mut self.stream, context, output),
        };
        if written.is_ready() {
            if self.writing.take().is_some() {
                self.watch.write_by(None);
            }
            return written;
        }
        self.note_writing(output.sent_bytes());
        self.in_time(context, written)
    }

    /// Sets the time by which more must have gone: a stall after the last, and what the pace allows.
    fn note_writing(&mut self, sent: u64) {
        if self.writing.is_some_and(|writing| writing.sent == sent) {
            return;
        }
        let now = Instant::now();
        let writing = self.writing.get_or_insert(Writing { since: now, from: sent, sent });
        writing.sent = sent;
        let in_all = writing.since + self.pace.allows(sent - writing.from);
        self.watch.write_by(Some(in_all.min(now + self.pace.stall)));
    }

    /// What waits is over when the watchdog says so.
    fn in_time<T>(
        &self,
        context: &mut Context<'_>,
        waits: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if waits.is_pending() && self.watch.is_late(context.waker()) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        waits
    }
}

/// Writes all of `output`, many pieces by one system call.
fn poll_write_all(
    stream: &mut Stream,
    context: &mut Context<'_>,
    output: &mut Output,
) -> Poll<io::Result<()>> {
    while !output.is_empty() {
        let mut slices = [IoSlice::new(&[]); PIECES_PER_WRITE_MAX];
        let count = output.slices(&mut slices);
        let sent = ready!(stream.poll_write(context, &slices[..count]))?;
        output.advance(sent);
    }
    Poll::Ready(Ok(()))
}
