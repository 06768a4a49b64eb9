//! The UDP socket below QUIC, with what quinn's own leaves out.
//!
//! quinn hands ten datagrams to the kernel at a time. With 9,000-byte frames that is 90 kB in one
//! send, which UDP refuses (`EMSGSIZE`), and quinn takes that for a lost probe: each full burst is lost,
//! and large frames are slower than small ones. Here such a burst goes out in two.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use nix::sys::socket::sockopt;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, UdpPoller};

/// Most bytes of one send: an IP packet's 65,535 without the headers of IPv6 and UDP.
const SEND_BYTES_MAX: usize = 65_535 - 40 - 8;
/// Buffers of the socket, each way. A burst of 2 MiB at 100 Gbit/s waits 160 µs: as long as the thread
/// may be away.
const BUFFER_BYTES: usize = 8 << 20;

/// A socket that splits what is too long for one send.
#[derive(Debug)]
pub struct Socket {
    inner: Arc<dyn AsyncUdpSocket>,
    receive_segments_max: usize,
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
        Ok(Socket { inner, receive_segments_max })
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

/// Bytes of a part of a burst, so that each part can be sent: as many whole datagrams as fit, spread
/// evenly.
fn part_bytes(len: usize, segment: usize) -> usize {
    let segments = len.div_ceil(segment.max(1));
    let fit = (SEND_BYTES_MAX / segment.max(1)).max(1);
    let parts = segments.div_ceil(fit).max(1);
    segments.div_ceil(parts) * segment
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let (Some(segment), true) =
            (transmit.segment_size, transmit.contents.len() > SEND_BYTES_MAX)
        else {
            return self.inner.try_send(transmit);
        };
        // If the socket is full after the first part, quinn sends all again: the other end drops what
        // it has.
        for part in transmit.contents.chunks(part_bytes(transmit.contents.len(), segment)) {
            self.inner.try_send(&Transmit {
                destination: transmit.destination,
                ecn: transmit.ecn,
                contents: part,
                segment_size: (part.len() > segment).then_some(segment),
                src_ip: transmit.src_ip,
            })?;
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(context, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.receive_segments_max
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_fit_one_send_and_hold_whole_datagrams(segment in 1_200usize..9_000, segments in 1usize..65, last in 1usize..1_200) {
            let len = segment * (segments - 1) + last;
            let part = part_bytes(len, segment);
            prop_assert!(part <= SEND_BYTES_MAX);
            prop_assert_eq!(part % segment, 0);
            prop_assert!(len.div_ceil(part) <= len.div_ceil(SEND_BYTES_MAX / segment * segment));
        }
    }
}
