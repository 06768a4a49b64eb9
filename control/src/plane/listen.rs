//! The Unix socket of the data planes: its file, and who comes in.
//!
//! A file that a crashed process left is replaced; one that somebody listens behind is not touched,
//! and neither is anything that is not a socket.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dataplane::wire::Snapshot;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};
use tracing::{debug, warn};

use super::{Planes, connection};

/// Owner and group: whoever may connect can read the cluster's state.
const SOCKET_MODE: u32 = 0o660;
/// Pause after the system refused to accept, so that being out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error(
        "another cgn-control is running behind {}; stop it or set another [control] socket",
        .0.display()
    )]
    Live(PathBuf),
    /// The path is taken by something else.
    #[error("{} exists and is not a socket; remove it or set another [control] socket", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("{} cannot be listened on: {source}; set another [control] socket", path.display())]
    Refused {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The listening socket; its file goes with it.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Listens on `path`, making its folder if need be.
    ///
    /// # Errors
    /// Any [`SocketError`].
    pub fn bind(path: &Path) -> Result<Socket, SocketError> {
        let refused = |source| SocketError::Refused { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(refused)?;
        }
        match std::fs::symlink_metadata(path) {
            Ok(file) if !file.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
                return Err(SocketError::Live(path.to_owned()));
            }
            Ok(_) => {
                warn!(path = %path.display(), "replacing the socket of a process that is gone");
                std::fs::remove_file(path).map_err(refused)?;
            }
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(refused)?;
        let socket = Socket { listener, path: path.to_owned() };
        let mode = std::fs::Permissions::from_mode(SOCKET_MODE);
        std::fs::set_permissions(path, mode).map_err(refused)?;
        Ok(socket)
    }

    /// Serves data planes, `planes_max` at once, until it is dropped.
    pub async fn serve(
        self,
        planes: Arc<Planes>,
        snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
        planes_max: usize,
    ) {
        let room = Arc::new(Semaphore::new(planes_max));
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "a data plane could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(seat) = Arc::clone(&room).try_acquire_owned() else {
                warn!(planes_max, "one data plane too many; raise [control] planes_max");
                continue;
            };
            let (planes, snapshots) = (Arc::clone(&planes), snapshots.clone());
            tokio::spawn(async move {
                match connection::serve(stream, &planes, snapshots).await {
                    Ok(()) => {}
                    Err(error) => debug!(%error, "a data plane's connection ended"),
                }
                drop(seat);
            });
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Nothing to do about it: the next start replaces a file that nobody listens behind.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_runtime<T>(body: impl FnOnce() -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        body()
    }

    #[test]
    fn a_live_socket_is_left_alone_and_a_dead_one_is_replaced() {
        in_runtime(|| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("run/control.sock");
            let live = Socket::bind(&path).unwrap();
            assert!(matches!(Socket::bind(&path), Err(SocketError::Live(_))));
            drop(live);
            assert!(!path.exists());
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            assert!(path.exists(), "as a crash leaves it");
            Socket::bind(&path).unwrap();
        });
    }

    #[test]
    fn a_file_that_is_not_a_socket_is_never_removed() {
        in_runtime(|| {
            let file = tempfile::NamedTempFile::new().unwrap();
            assert!(matches!(Socket::bind(file.path()), Err(SocketError::NotASocket(_))));
            assert!(file.path().exists());
        });
    }
}
