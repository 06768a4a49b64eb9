//! Listening sockets: bound before the daemon says it runs, then given to a shard's executor.
//!
//! glommio binds by itself too, but without `SO_REUSEADDR`, so a daemon could not be restarted while old
//! connections linger; and its errors would come when the start is over.
#![expect(unsafe_code, reason = "glommio takes a ready socket only by its number")]

use std::net::SocketAddr;
use std::os::fd::{FromRawFd, IntoRawFd};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Binds one socket for each of `shards` to `address`; the kernel spreads connections over them. With
/// port 0, all get the port of the first.
///
/// # Errors
/// What the system said.
pub fn bind_tcp(address: SocketAddr, shards: usize) -> std::io::Result<Vec<Socket>> {
    let first = bind_one(address)?;
    let bound = first.local_addr()?.as_socket().unwrap_or(address);
    let mut sockets = vec![first];
    for _ in 1..shards {
        sockets.push(bind_one(bound)?);
    }
    Ok(sockets)
}

fn bind_one(address: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Gives a connected Unix socket to the executor of this thread.
pub fn adopt_unix(socket: std::os::unix::net::UnixStream) -> glommio::net::UnixStream {
    // SAFETY: as in `adopt_tcp`, and the socket is connected.
    unsafe { glommio::net::UnixStream::from_raw_fd(socket.into_raw_fd()) }
}

/// Gives a listening TCP socket to the executor of this thread.
pub fn adopt_tcp(socket: Socket) -> glommio::net::TcpListener {
    // SAFETY: `into_raw_fd` gives up ownership of a socket that is open and listens; glommio's listener
    // becomes its one owner and closes it.
    unsafe { glommio::net::TcpListener::from_raw_fd(socket.into_raw_fd()) }
}
