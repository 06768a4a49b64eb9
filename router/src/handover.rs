//! Handing the listening sockets to the next process, so that an upgrade refuses no connection.
//!
//! Closing a listening socket resets the connections in its accept queue, and with `SO_REUSEPORT` each
//! socket has a queue of its own. So the sockets themselves are passed on (`SCM_RIGHTS`, unix(7)): the
//! new process dials `handover_socket`, gets them, serves, and says so; then the old one drains.
//!
//! ```text
//!  new → old   connects
//!  old → new   one message: "CGH1", number of clients' listeners, number of admin listeners (u8 each),
//!              with as many descriptors
//!  new → old   one byte, once it serves
//! ```

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// First bytes of the message.
const MAGIC: [u8; 4] = *b"CGH1";
/// Linux passes at most 253 descriptors in one message (SCM_MAX_FD).
pub const LISTENERS_MAX: usize = 250;
/// The other side answers within this time, or there is no handover. The new process has to bring up
/// its threads before its byte.
const PATIENCE: Duration = Duration::from_secs(30);

/// The listening sockets of a router.
pub struct Listeners {
    /// Of clients.
    pub http: Vec<TcpListener>,
    /// Of the admin pages.
    pub admin: Vec<TcpListener>,
}

impl Listeners {
    /// The same sockets once more.
    ///
    /// # Errors
    /// The system's.
    pub fn try_clone(&self) -> io::Result<Self> {
        let again = |all: &[TcpListener]| {
            all.iter().map(TcpListener::try_clone).collect::<io::Result<Vec<_>>>()
        };
        Ok(Listeners { http: again(&self.http)?, admin: again(&self.admin)? })
    }
}

/// The old process, while the new one gets ready.
pub struct Predecessor(UnixStream);

impl Predecessor {
    /// Tells it that we serve. Whether it heard is its business.
    pub fn release(mut self) {
        if let Err(error) = self.0.write_all(&[1]) {
            tracing::warn!(%error, "the old process did not hear that this one serves");
        }
    }
}

/// Asks the process at `path` for its listeners. `None` when nobody is there.
///
/// # Errors
/// Somebody is there and does not answer as a router.
pub fn ask(path: &Path) -> io::Result<Option<(Listeners, Predecessor)>> {
    let Ok(stream) = UnixStream::connect(path) else { return Ok(None) };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut head = [0; 6];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LISTENERS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut head)];
    let got = recvmsg(&stream, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            sockets.extend(descriptors.map(TcpListener::from));
        }
    }
    let (http, admin) = (usize::from(head[4]), usize::from(head[5]));
    let is_whole = got.bytes == head.len() && head[..4] == MAGIC && http + admin == sockets.len();
    if !is_whole || http == 0 || admin == 0 {
        let text = format!("{} does not answer as a router of this kind", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let admin = sockets.split_off(http);
    Ok(Some((Listeners { http: sockets, admin }, Predecessor(stream))))
}

/// Waits at `path` for a successor, on a thread of its own; `leave` is called once one serves.
///
/// # Errors
/// The socket cannot be made.
pub fn offer(
    path: &Path,
    listeners: Listeners,
    leave: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    // Left by a process that is gone, or by the predecessor that has just let go.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    std::thread::Builder::new().name("handover".to_owned()).spawn(move || {
        for stream in socket.incoming() {
            let handed = stream.and_then(|stream| hand_over(stream, &listeners));
            match handed {
                Ok(()) => {
                    tracing::info!("another process serves now");
                    return leave();
                }
                Err(error) => tracing::warn!(%error, "no handover; this process goes on"),
            }
        }
    })?;
    Ok(())
}

fn hand_over(mut stream: UnixStream, listeners: &Listeners) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let all: Vec<BorrowedFd<'_>> =
        listeners.http.iter().chain(&listeners.admin).map(AsFd::as_fd).collect();
    let count = |listeners: &[TcpListener]| u8::try_from(listeners.len()).unwrap_or(0);
    let mut head = MAGIC.to_vec();
    head.extend([count(&listeners.http), count(&listeners.admin)]);
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LISTENERS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&all)) {
        return Err(io::Error::other("too many listeners for one message"));
    }
    sendmsg(&stream, &[IoSlice::new(&head)], &mut control, SendFlags::NOSIGNAL)?;
    stream.read_exact(&mut [0])
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn listeners(count: usize) -> Listeners {
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        Listeners { http: (0..count).map(|_| listen()).collect(), admin: vec![listen()] }
    }

    #[test]
    fn sockets_change_hands_and_then_the_old_one_leaves() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover.sock");
        assert!(ask(&path).unwrap().is_none(), "nobody is there");
        let old = listeners(3);
        let address = old.http[1].local_addr().unwrap();
        let (left, has_left) = mpsc::channel();
        offer(&path, old, move || left.send(()).unwrap()).unwrap();
        // One that comes, looks and goes away changes nothing.
        drop(ask(&path).unwrap());
        let (new, predecessor) = ask(&path).unwrap().unwrap();
        assert_eq!((new.http.len(), new.admin.len()), (3, 1));
        assert_eq!(new.http[1].local_addr().unwrap(), address);
        assert!(has_left.try_recv().is_err());
        predecessor.release();
        has_left.recv_timeout(PATIENCE).unwrap();
    }

    #[test]
    fn a_stranger_at_the_socket_is_no_router() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stranger.sock");
        let socket = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = socket.accept().unwrap();
            stream.write_all(b"SSH-2.0\r\n").unwrap();
        });
        assert!(ask(&path).err().unwrap().to_string().contains("does not answer as a router"));
    }
}
