//! The socket of the native door: bound before the daemon says it runs, accepted on a thread of its own
//! that sleeps in `accept`, and handed to the shards in turn.
//!
//! One socket is accepted from for all shards, and a thread that sleeps in `accept` is the plainest way to
//! hand its connections out evenly.

use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use dataplane::kv::{self, Answer, Fault};
use socket2::{Domain, SockAddr, Socket, Type};

use super::connection;
use crate::admin::ACCEPT_PAUSE;
use crate::arena::Arena;
use crate::executor::spawn;
use crate::mesh::Inbox;
use crate::store::Store;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// Connections that may wait for one shard; more are closed.
const HANDED_MAX: usize = 128;

/// Why the door did not open.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// Another daemon is there.
    #[error("another process listens on {}; stop it, or set another kv.uds", .0.display())]
    InUse(PathBuf),
    /// There is something else.
    #[error("{} is there and is no socket; set another kv.uds", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot listen on {} (kv.uds): {source}", path.display())]
    System {
        /// Of the socket.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// What the door allows.
#[derive(Clone, Copy, Debug)]
pub struct DoorLimits {
    /// Connections at once.
    pub clients_max: usize,
    /// Leases of one connection at once.
    pub leases_per_client_max: usize,
    /// Largest block in bytes.
    pub block_bytes_max: u64,
}

/// What the accepting thread and all shards share.
#[derive(Debug)]
pub struct Hall {
    inboxes: Box<[Inbox<Guest>]>,
    open: AtomicUsize,
    is_closing: AtomicBool,
    /// What is allowed.
    pub limits: DoorLimits,
    /// What clients map.
    pub arena: Arc<Arena>,
}

/// A connection; it counts until it is dropped.
#[derive(Debug)]
pub struct Guest {
    /// The socket.
    pub socket: UnixStream,
    _count: Count,
}

impl Guest {
    /// Its socket, and what must live as long as the connection.
    pub fn into_parts(self) -> (UnixStream, Count) {
        (self.socket, self._count)
    }
}

/// One of `kv.limits.clients_max`.
#[derive(Debug)]
pub struct Count(Arc<Hall>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The open door.
#[derive(Debug)]
pub struct Door {
    path: PathBuf,
    listener: Arc<UnixListener>,
    hall: Arc<Hall>,
    thread: JoinHandle<()>,
}

impl Door {
    /// Listens on `path`, which gets the permissions `mode`, for `shards` shards.
    ///
    /// # Errors
    /// [`DoorError`].
    pub fn open(
        path: &Path,
        mode: u32,
        limits: DoorLimits,
        arena: Arc<Arena>,
        shards: usize,
    ) -> Result<Door, DoorError> {
        let failed = |source| DoorError::System { path: path.to_owned(), source };
        let listener = Arc::new(bind(path, mode)?);
        let inboxes = (0..shards.max(1)).map(|_| Inbox::new(HANDED_MAX)).collect();
        let (open, is_closing) = (AtomicUsize::new(0), AtomicBool::new(false));
        let hall = Arc::new(Hall { inboxes, open, is_closing, limits, arena });
        let (own, halls) = (listener.clone(), hall.clone());
        let thread = std::thread::Builder::new()
            .name("native-door".to_owned())
            .spawn(move || accept(&own, &halls))
            .map_err(failed)?;
        Ok(Door { path: path.to_owned(), listener, hall, thread })
    }

    /// For [`serve`].
    pub fn hall(&self) -> Arc<Hall> {
        self.hall.clone()
    }

    /// Accepts no more. Connections that are open stay so.
    pub fn close(self) {
        self.hall.is_closing.store(true, Ordering::Release);
        // Wakes `accept`.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        // Its panic would have ended the process.
        let _ = self.thread.join();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Serves the connections handed to shard `number` for ever. Runs on its executor.
pub async fn serve(hall: Arc<Hall>, number: usize, store: Store) {
    loop {
        let guest = hall.inboxes[number].receive().await;
        let (hall, store) = (hall.clone(), store.clone());
        spawn(async move { connection::serve(guest, &hall, store).await });
    }
}

/// Binds, and gives nobody a chance to connect before the permissions are right.
fn bind(path: &Path, mode: u32) -> Result<UnixListener, DoorError> {
    let failed = |source| DoorError::System { path: path.to_owned(), source };
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
    socket.bind(&SockAddr::unix(path).map_err(failed)?).map_err(failed)?;
    let mode = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(path, mode).map_err(failed)?;
    socket.listen(BACKLOG).map_err(failed)?;
    Ok(UnixListener::from(std::os::fd::OwnedFd::from(socket)))
}

/// Removes the socket of a daemon that is gone.
fn remove_stale(path: &Path) -> Result<(), DoorError> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(DoorError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
                .map_err(|source| DoorError::System { path: path.to_owned(), source })
        }
        _ => Err(DoorError::InUse(path.to_owned())),
    }
}

fn accept(listener: &UnixListener, hall: &Arc<Hall>) {
    let mut turn = 0;
    loop {
        let accepted = listener.accept();
        if hall.is_closing.load(Ordering::Acquire) {
            return;
        }
        match accepted {
            Ok((socket, _)) => {
                turn = (turn + 1) % hall.inboxes.len();
                hand_over(socket, hall, turn);
            }
            Err(error) => {
                tracing::warn!(%error, "the native door could not accept");
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

fn hand_over(socket: UnixStream, hall: &Arc<Hall>, shard: usize) {
    let open = hall.open.fetch_add(1, Ordering::Relaxed);
    let count = Count(hall.clone());
    if open >= hall.limits.clients_max {
        refuse(&socket, Fault::TooManyClients);
        return;
    }
    // One that finds no room is closed.
    if let Err(guest) = hall.inboxes[shard].send(Guest { socket, _count: count }) {
        refuse(&guest.socket, Fault::Busy);
    }
}

/// Says why, to a client whose Hello was not read, and without waiting for it.
fn refuse(mut socket: &UnixStream, fault: Fault) {
    let mut frame = Vec::new();
    kv::encode(0, &Answer::Refused { fault, text: fault.to_string() }, &mut frame);
    if socket.set_nonblocking(true).is_ok() {
        // Nothing was written before, so there is room; who hung up will not miss it.
        let _ = socket.write(&frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_without_a_daemon_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kv.sock");
        let first = bind(&path, 0o600).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(bind(&path, 0o600), Err(DoorError::InUse(_))));
        drop(first);
        drop(bind(&path, 0o600).unwrap());
        let file = folder.path().join("file");
        std::fs::write(&file, b"precious").unwrap();
        assert!(matches!(bind(&file, 0o600), Err(DoorError::NotASocket(_))));
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    }
}
