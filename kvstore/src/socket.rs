//! Sockets: those that listen, bound before the daemon says it runs, and the connections of both doors.
//!
//! A [`Stream`] reads and writes by direct calls and has the ring wait until that is possible. So the
//! kernel never holds memory of ours between two calls: a value is read straight into the arena and sent
//! straight from it, and a client that goes away takes nothing with it. It knows no protocol.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use monoio::net::{TcpListener, TcpStream, UnixStream};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, sendmsg};
use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// What may wait in the socket of a client on this machine, before the kernel doubles it for its own needs.
/// There is no wire to keep busy. What waits there lies in the core's cache of 1 or 2 MiB until the client
/// copies it out; the kernel's own limit of 4 MiB for each of a few clients pushes it out to memory first:
/// GET of 2 MiB by four clients was 0.78 of redis's throughput, and is 1.25 with this. With less, a value
/// of 256 KiB takes one more wait.
const LOCAL_SEND_BYTES: usize = 128 << 10;
/// A write of so many bytes is brought into the core's cache before it: a part of what one has. The kernel
/// sends 64 KiB at a time. Where it waits for memory in between, a reader on the same machine has read the
/// last ones and sleeps again, and is woken four times for a value of 256 KiB: where the memory lay badly,
/// a GET of that size cost 1.45 times what redis's does, and costs 0.8 times with this. Of a larger write,
/// the socket's buffer makes the reader wait in any case.
const TOUCH_BYTES_MAX: usize = 512 << 10;
/// What a load brings.
const CACHE_LINE_BYTES: usize = 64;

/// Binds one socket for each of `shards` to `address`; the kernel spreads connections over them. With
/// port 0, all get the port of the first.
///
/// # Errors
/// What the system said.
pub fn bind_tcp(address: SocketAddr, shards: usize) -> io::Result<Vec<Socket>> {
    let first = bind_one(address)?;
    let bound = first.local_addr()?.as_socket().unwrap_or(address);
    let mut sockets = vec![first];
    for _ in 1..shards {
        sockets.push(bind_one(bound)?);
    }
    Ok(sockets)
}

fn bind_one(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.ip().is_loopback() {
        // Connections have it from the socket that they come by.
        socket.set_send_buffer_size(LOCAL_SEND_BYTES)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Gives a listening socket to the executor of this thread.
///
/// # Errors
/// What the system said.
pub fn adopt_tcp(socket: Socket) -> io::Result<TcpListener> {
    TcpListener::from_std(socket.into())
}

/// A connected socket, as the ring waits for it.
#[derive(Debug)]
enum End {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl End {
    async fn can(&self, way: Way) -> io::Result<()> {
        match (self, way) {
            (End::Tcp(stream), Way::In) => stream.readable(false).await,
            (End::Tcp(stream), Way::Out) => stream.writable(false).await,
            (End::Unix(stream), Way::In) => stream.readable(false).await,
            (End::Unix(stream), Way::Out) => stream.writable(false).await,
        }
    }
}

/// Brings what is to be sent into the core's cache, where it is small enough to stay there.
fn touch(pieces: &[IoSlice<'_>]) {
    if bytes_of(pieces) <= TOUCH_BYTES_MAX {
        let lines = pieces.iter().flat_map(|piece| piece.iter().step_by(CACHE_LINE_BYTES));
        std::hint::black_box(lines.fold(0, |all, byte| all ^ byte));
    }
}

fn bytes_of(pieces: &[IoSlice<'_>]) -> usize {
    pieces.iter().map(|piece| piece.len()).sum()
}

#[derive(Clone, Copy)]
enum Way {
    In,
    Out,
}

/// One direction of a connection.
#[derive(Default)]
struct Lane {
    /// The last call took or gave all there was: the next one waits first.
    is_spent: bool,
    wait: Option<Pin<Box<dyn Future<Output = io::Result<()>>>>>,
}

impl Lane {
    /// Ready when a call is worth it. A wait stays with the ring until it ends, whoever looks at it.
    fn poll(&mut self, context: &mut Context<'_>, end: &Rc<End>, way: Way) -> Poll<io::Result<()>> {
        if !self.is_spent {
            return Poll::Ready(Ok(()));
        }
        let wait = self.wait.get_or_insert_with(|| {
            let end = end.clone();
            Box::pin(async move { end.can(way).await })
        });
        let can = ready!(wait.as_mut().poll(context));
        self.wait = None;
        self.is_spent = false;
        Poll::Ready(can)
    }
}

/// See the head of the file.
pub struct Stream {
    end: Rc<End>,
    fd: RawFd,
    inbound: Lane,
    outbound: Lane,
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Stream {
        let fd = stream.as_raw_fd();
        Stream::new(End::Tcp(stream), fd)
    }
}

impl Stream {
    /// Gives a connected Unix socket to the executor of this thread.
    ///
    /// # Errors
    /// What the system said.
    pub fn of_unix(socket: std::os::unix::net::UnixStream) -> io::Result<Stream> {
        let fd = socket.as_raw_fd();
        Ok(Stream::new(End::Unix(UnixStream::from_std(socket)?), fd))
    }

    fn new(end: End, fd: RawFd) -> Stream {
        // A client that has just come has not said anything as a rule.
        let inbound = Lane { is_spent: true, wait: None };
        Stream { end: Rc::new(end), fd, inbound, outbound: Lane::default() }
    }

    /// Waits until there is something to read, or the end.
    ///
    /// # Errors
    /// What the system said.
    pub async fn readable(&self) -> io::Result<()> {
        self.end.can(Way::In).await
    }

    /// Reads what is there, at most what `buffer` holds; 0 is the end.
    pub fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.inbound.poll(context, &self.end, Way::In))?;
            match recv(self.fd, buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(read) => {
                    self.inbound.is_spent = read < buffer.len();
                    return Poll::Ready(Ok(read));
                }
                Err(Errno::EAGAIN) => self.inbound.is_spent = true,
                Err(Errno::EINTR) => {}
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }

    /// Writes some of `pieces` by one call, as much as the kernel has room for.
    pub fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.outbound.poll(context, &self.end, Way::Out))?;
            touch(pieces);
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(self.fd, pieces, &[], flags, None) {
                Ok(sent) => {
                    self.outbound.is_spent = sent < bytes_of(pieces);
                    return Poll::Ready(Ok(sent));
                }
                Err(Errno::EAGAIN) => self.outbound.is_spent = true,
                Err(Errno::EINTR) => {}
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }

    /// Reads what there is once there is something; 0 is the end.
    ///
    /// # Errors
    /// What the system said.
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        std::future::poll_fn(|context| self.poll_read(context, buffer)).await
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// What the system said.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let pieces = [IoSlice::new(bytes)];
            let sent = std::future::poll_fn(|context| self.poll_write(context, &pieces)).await?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }
}
