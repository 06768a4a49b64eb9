//! The UDP socket below QUIC, with what quinn's own leaves out.
//!
//! quinn hands ten datagrams to the kernel at a time. With frames of 1,500 bytes a send could carry four times
//! as many, and its price is the same; with 9,000 bytes they are 90 kB, which UDP refuses
//! (`EMSGSIZE`), and quinn takes that for a lost probe: each full burst is lost. Here they are gathered
//! ([`burst`](super::burst)) and sent when one send is full, or when the thread has nothing else to do.

use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use nix::sys::socket::sockopt;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, UdpPoller};
use tokio::sync::Notify;

use super::burst::Burst;

/// Buffers of the socket, each way. A burst of 2 MiB at 100 Gbit/s waits 160 µs: as long as the thread
/// may be away.
const BUFFER_BYTES: usize = 8 << 20;

/// A socket that gathers what is sent.
#[derive(Debug)]
pub struct Socket {
    outgoing: Arc<Outgoing>,
    receive_segments_max: usize,
}

/// What waits to be sent.
#[derive(Debug)]
struct Outgoing {
    inner: Arc<dyn AsyncUdpSocket>,
    /// Only one thread comes here; quinn asks for `Sync` all the same.
    burst: Mutex<Burst>,
    waits: Notify,
    is_over: AtomicBool,
}

impl Socket {
    /// Binds `listen` with large buffers.
    ///
    /// # Errors
    /// What the system says.
    pub fn bind(
        listen: SocketAddr,
        datagram_bytes_max: u16,
        runtime: &dyn Runtime,
    ) -> io::Result<Socket> {
        let kind = socket2::Type::DGRAM;
        let socket = socket2::Socket::new(socket2::Domain::for_address(listen), kind, None)?;
        grow_buffers(&socket);
        socket.bind(&listen.into())?;
        let inner = runtime.wrap_udp_socket(UdpSocket::from(socket))?;
        // The kernel joins at most 64 KiB of datagrams; quinn makes room for a number of them.
        let joined = (64 << 10) / usize::from(datagram_bytes_max).max(1) + 1;
        let receive_segments_max = inner.max_receive_segments().min(joined);
        let outgoing = Arc::new(Outgoing {
            inner,
            burst: Mutex::default(),
            waits: Notify::new(),
            is_over: AtomicBool::new(false),
        });
        runtime.spawn(Box::pin(send_what_waits(outgoing.clone())));
        Ok(Socket { outgoing, receive_segments_max })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.outgoing.is_over.store(true, Ordering::Release);
        self.outgoing.waits.notify_one();
    }
}

/// Beyond `net.core.*mem_max` where this process may, else up to it. Small buffers only cost speed.
fn grow_buffers(socket: &socket2::Socket) {
    if nix::sys::socket::setsockopt(socket, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
        let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    }
    if nix::sys::socket::setsockopt(socket, sockopt::SndBufForce, &BUFFER_BYTES).is_err() {
        let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    }
}

impl Outgoing {
    fn burst(&self) -> MutexGuard<'_, Burst> {
        self.burst.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends all that waits.
    fn send_now(&self) -> io::Result<()> {
        self.send(&mut self.burst())
    }

    /// Sends `burst`; it goes on waiting where the socket is full.
    fn send(&self, burst: &mut Burst) -> io::Result<()> {
        let Some(transmit) = burst.transmit() else { return Ok(()) };
        match self.inner.try_send(&transmit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            done => {
                burst.clear();
                done
            }
        }
    }
}

/// Sends what waits once all other tasks of the thread have had their turn, until the socket is gone.
async fn send_what_waits(outgoing: Arc<Outgoing>) {
    let mut poller = outgoing.inner.clone().create_io_poller();
    loop {
        outgoing.waits.notified().await;
        if outgoing.is_over.load(Ordering::Acquire) {
            return;
        }
        tokio::task::yield_now().await;
        while let Err(error) = outgoing.send_now() {
            let is_full = error.kind() == io::ErrorKind::WouldBlock;
            if !is_full || poll_fn(|context| poller.as_mut().poll_writable(context)).await.is_err()
            {
                // As good as lost on the way; quinn sends it again.
                tracing::debug!(%error, "datagrams were not sent");
                break;
            }
        }
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.outgoing.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let burst = &mut *self.outgoing.burst();
        if transmit.segment_size.is_none() && burst.is_empty() {
            return self.outgoing.inner.try_send(transmit);
        }
        let mut rest = transmit.contents;
        while !rest.is_empty() {
            let taken = burst.put(transmit, rest);
            rest = &rest[taken..];
            if !rest.is_empty() {
                // If the socket is full after a part, quinn gives all again: the other end drops what it has.
                self.outgoing.send(burst)?;
            }
        }
        if burst.is_full() {
            // Where the socket is full, it goes on waiting.
            let _ = self.outgoing.send(burst);
        }
        if !burst.is_empty() {
            self.outgoing.waits.notify_one();
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.outgoing.inner.poll_recv(context, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.outgoing.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.outgoing.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.receive_segments_max
    }

    fn may_fragment(&self) -> bool {
        self.outgoing.inner.may_fragment()
    }
}
