//! Tells routers: one connection each, on loopback or a Unix socket.
//!
//! A router that says something else than a Hello of our version first, breaks the frame, or takes
//! nothing for a while is hung up on; it dials again when it can.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dataplane::feed::{Decoder, ToAgent, VERSION};
use dataplane::frame::FrameError;
use dataplane::route::share::LOAD_INTERVAL_MS;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::{sleep, timeout};

use super::board::{self, Board, Next, SeatHold, encoded};
use crate::engine::events::SOCKET_PATH_BYTES_MAX;

/// How long a router may take to say Hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a router may take nothing of what is written to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between a snapshot and the next to the same router, for each of its parts: whoever asks all the
/// time costs a share of the agent, not all of it.
const PAUSE_PER_PART: Duration = Duration::from_millis(5);
/// Between two words of what the other routers gave, to the same router.
const OTHERS_INTERVAL: Duration = Duration::from_millis(LOAD_INTERVAL_MS);
/// After a router said what it gave, before it is read again: one that babbles costs a share of the
/// agent. An honest one says more only after [`OTHERS_INTERVAL`].
const PAUSE_AFTER_LOADS: Duration = Duration::from_millis(5);
/// Read at once.
const READ_BYTES: usize = 4096;
/// After a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where routers are to come in: `[agent] events_listen`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `host:port`, loopback.
    Tcp(SocketAddr),
    /// `unix:/path`
    Unix(PathBuf),
}

impl Address {
    /// The address `text` says; none where it is empty: no feed.
    ///
    /// # Errors
    /// One line that says what to write instead.
    pub fn parse(text: &str) -> Result<Option<Address>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            let is_fine = Path::new(path).is_absolute() && path.len() <= SOCKET_PATH_BYTES_MAX;
            return if is_fine {
                Ok(Some(Address::Unix(path.into())))
            } else {
                Err(format!(
                    "`{path}` cannot be a Unix socket; write unix: and an absolute path of at most {SOCKET_PATH_BYTES_MAX} bytes"
                ))
            };
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Some(Address::Tcp(address))),
            Ok(address) => Err(format!(
                "{address} is not a loopback address; without TLS the feed stays on this host: write 127.0.0.1:PORT or unix:/PATH"
            )),
            Err(_) => Err(format!("`{text}` is no address; write 127.0.0.1:PORT or unix:/PATH")),
        }
    }

    /// Takes the address, so that nobody else can.
    ///
    /// # Errors
    /// What the system says.
    pub fn bind(&self) -> io::Result<Bound> {
        match self {
            Address::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(Bound::Tcp(listener))
            }
            Address::Unix(path) => {
                // An agent that was killed leaves its socket behind. Nobody listens there.
                let refused = std::os::unix::net::UnixStream::connect(path)
                    .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
                if refused {
                    std::fs::remove_file(path)?;
                }
                let listener = std::os::unix::net::UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                Ok(Bound::Unix(listener, path.clone()))
            }
        }
    }
}

/// An address that is taken; nobody is accepted yet.
#[derive(Debug)]
pub enum Bound {
    /// Loopback.
    Tcp(std::net::TcpListener),
    /// A socket of this machine.
    Unix(std::os::unix::net::UnixListener, PathBuf),
}

impl Bound {
    /// What routers dial: `host:port` or `unix:/path`.
    ///
    /// # Errors
    /// When the system does not say which port it gave.
    pub fn dialled(&self) -> io::Result<String> {
        Ok(match self {
            Bound::Tcp(listener) => listener.local_addr()?.to_string(),
            Bound::Unix(_, path) => format!("unix:{}", path.display()),
        })
    }
}

/// Where routers come in.
#[derive(Debug)]
pub enum Listener {
    /// Loopback.
    Tcp(TcpListener),
    /// A socket of this machine.
    Unix(UnixListener),
}

impl Listener {
    /// On the current runtime.
    ///
    /// # Errors
    /// What the system says.
    pub fn of(bound: Bound) -> io::Result<Self> {
        Ok(match bound {
            Bound::Tcp(listener) => Listener::Tcp(TcpListener::from_std(listener)?),
            Bound::Unix(listener, _) => Listener::Unix(UnixListener::from_std(listener)?),
        })
    }
}

#[derive(Debug, thiserror::Error)]
enum RouterError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Feed(#[from] FrameError),
    #[error("no Hello in time, or something else first")]
    Hello,
    #[error("speaks version {0} of the feed, this agent {VERSION}: run both of one release")]
    Version(u64),
    #[error("takes nothing")]
    Stuck,
    #[error("asks for more workers than a node has")]
    Greedy,
    #[error("hung up")]
    Gone,
}

/// Accepts routers until it is dropped.
pub async fn serve(listener: Listener, board: Board) {
    loop {
        let accepted = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                // Batches are small and wanted at once. Without it they are only later.
                let _ = stream.set_nodelay(true);
                let (read, write) = stream.into_split();
                tokio::spawn(attend(read, write, board.clone()));
            }),
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                let (read, write) = stream.into_split();
                tokio::spawn(attend(read, write, board.clone()));
            }),
        };
        if let Err(error) = accepted {
            tracing::warn!(%error, "a router could not be accepted");
            sleep(ACCEPT_PAUSE).await;
        }
    }
}

async fn attend(read: impl AsyncRead + Unpin, write: impl AsyncWrite + Unpin, board: Board) {
    match converse(read, write, board).await {
        Ok(never) => match never {},
        Err(RouterError::Gone) => tracing::info!("a router hung up its feed"),
        Err(error) => tracing::warn!(%error, "the feed to a router ended"),
    }
}

async fn converse(
    mut read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
    board: Board,
) -> Result<std::convert::Infallible, RouterError> {
    let mut decoder = Decoder::default();
    let process = timeout(HELLO_TIMEOUT, hello(&mut read, &mut decoder))
        .await
        .unwrap_or(Err(RouterError::Hello))?;
    let Some(seat) = board.sit() else {
        tracing::warn!(process, "too many routers listen to KV events already");
        return Err(RouterError::Gone);
    };
    tracing::info!(process, "a router listens to KV events");
    put(&mut write, &encoded(&board::hello())).await?;
    tokio::select! {
        ended = listen(&mut read, &mut decoder, &seat) => ended,
        ended = tell(&mut write, &seat) => ended,
    }
}

async fn hello(
    read: &mut (impl AsyncRead + Unpin),
    decoder: &mut Decoder,
) -> Result<String, RouterError> {
    loop {
        match decoder.poll_message::<ToAgent>()? {
            Some(ToAgent::Hello { version: VERSION, process }) => return Ok(process),
            Some(ToAgent::Hello { version, .. }) => return Err(RouterError::Version(version)),
            Some(_) => return Err(RouterError::Hello),
            None => fill(read, decoder).await?,
        }
    }
}

async fn listen(
    read: &mut (impl AsyncRead + Unpin),
    decoder: &mut Decoder,
    seat: &SeatHold,
) -> Result<std::convert::Infallible, RouterError> {
    let mut has_told = false;
    loop {
        match decoder.poll_message::<ToAgent>()? {
            Some(ToAgent::Load { worker, load }) => {
                seat.tell(&worker, load, Instant::now());
                has_told = true;
            }
            Some(ToAgent::Want { worker }) => {
                if !seat.want(&worker) {
                    return Err(RouterError::Greedy);
                }
            }
            Some(ToAgent::Warm(wish)) => seat.warm(wish, Instant::now()),
            Some(ToAgent::Hello { .. }) => return Err(RouterError::Hello),
            None => {
                if std::mem::take(&mut has_told) {
                    sleep(PAUSE_AFTER_LOADS).await;
                }
                fill(read, decoder).await?;
            }
        }
    }
}

async fn fill(
    read: &mut (impl AsyncRead + Unpin),
    decoder: &mut Decoder,
) -> Result<(), RouterError> {
    let mut bytes = [0; READ_BYTES];
    match read.read(&mut bytes).await? {
        0 => Err(RouterError::Gone),
        count => {
            decoder.push(&bytes[..count]);
            Ok(())
        }
    }
}

async fn tell(
    write: &mut (impl AsyncWrite + Unpin),
    seat: &SeatHold,
) -> Result<std::convert::Infallible, RouterError> {
    let mut snapshot_from = tokio::time::Instant::now();
    let mut others_from = snapshot_from;
    loop {
        let now = tokio::time::Instant::now();
        if now >= others_from {
            let others = seat.others();
            if !others.is_empty() {
                put(write, &others).await?;
                others_from = now + OTHERS_INTERVAL;
            }
        }
        let may_snapshot = now >= snapshot_from;
        match seat.next(may_snapshot) {
            Some(Next::Frame(frame)) => put(write, &frame).await?,
            Some(Next::Snapshot(snapshot)) => {
                for part in 0..snapshot.parts() {
                    put(write, &encoded(&snapshot.part(part))).await?;
                }
                snapshot_from = tokio::time::Instant::now() + PAUSE_PER_PART * snapshot.parts();
            }
            None => {
                let later = [snapshot_from, others_from].into_iter().filter(|from| *from > now);
                match later.min() {
                    None => seat.woken().await,
                    Some(from) => tokio::select! {
                        () = seat.woken() => {}
                        () = tokio::time::sleep_until(from) => {}
                    },
                }
            }
        }
    }
}

async fn put(write: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> Result<(), RouterError> {
    let mut rest = frame;
    while !rest.is_empty() {
        let written = timeout(WRITE_TIMEOUT, write.write(rest)).await;
        match written.map_err(|_| RouterError::Stuck)?? {
            0 => return Err(RouterError::Gone),
            count => rest = &rest[count..],
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_is_served() {
        assert_eq!(Address::parse(""), Ok(None));
        let tcp = Address::Tcp("127.0.0.1:9094".parse().unwrap());
        assert_eq!(Address::parse("127.0.0.1:9094"), Ok(Some(tcp)));
        assert_eq!(Address::parse("unix:/run/x"), Ok(Some(Address::Unix("/run/x".into()))));
        for (text, cure) in [
            ("0.0.0.0:9094", "loopback"),
            ("10.0.0.1:9094", "loopback"),
            ("localhost:9094", "127.0.0.1:PORT"),
            ("unix:run/x", "absolute"),
        ] {
            assert!(Address::parse(text).unwrap_err().contains(cure), "{text}");
        }
        assert!(Address::parse(&format!("unix:/{}", "x".repeat(107))).is_err());
    }

    #[test]
    fn a_socket_left_behind_is_taken_over_and_a_used_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let address = Address::Unix(folder.path().join("feed"));
        drop(address.bind().unwrap());
        let bound = address.bind().unwrap();
        assert!(bound.dialled().unwrap().starts_with("unix:/"));
        assert!(address.bind().is_err());
    }
}
