//! Connections to engines: where they go, which are kept, and one exchange over them.
//!
//! Each core keeps its own idle connections; none is shared. A kept connection may have been closed
//! by the engine meanwhile: that shows as an end before the first byte, and is the one failure that
//! is worth the same worker again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use monoio::net::{TcpStream, UnixStream};

use crate::config::Limits;
use crate::http::body::BodyScanner;
use crate::http::head::{ResponseHead, parse_response};
use crate::stream::Stream;

/// Room offered to each read of an answer.
pub const READ_ROOM_BYTES: usize = 16 << 10;
/// An answer to a probe or to a tokenize call may not be longer: 1 M token ids in JSON.
const EXCHANGE_BYTES_MAX: usize = 8 << 20;

/// What is dialled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// Where an engine listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Resolved once, when the worker becomes known.
    pub address: Address,
    /// For the `host` field.
    pub authority: String,
}

impl Target {
    /// Takes `http://host:port` or `unix:/path` apart and resolves it.
    ///
    /// # Errors
    /// One line that says what is wrong with the URL.
    pub fn resolve(url: &str) -> Result<Self, String> {
        if let Some(path) = url.strip_prefix("unix:") {
            if !path.starts_with('/') || path.starts_with("//") {
                return Err(format!(
                    "`{url}` must be unix: and an absolute path, as unix:/run/e.sock"
                ));
            }
            let address = Address::Unix(Path::new(path).to_owned());
            return Ok(Target { address, authority: "localhost".to_owned() });
        }
        let authority = url
            .strip_prefix("http://")
            .ok_or_else(|| {
                format!("`{url}` must begin with http:// or unix: (TLS to engines is pending)")
            })?
            .trim_end_matches('/');
        if authority.is_empty() || authority.contains(['/', '?', '#', '@', ' ']) {
            return Err(format!("`{url}` must be http://host:port without a path"));
        }
        let with_port = match authority.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok() => authority.to_owned(),
            _ => format!("{authority}:80"),
        };
        let address = with_port
            .to_socket_addrs()
            .map_err(|error| format!("`{url}` does not resolve: {error}"))?
            .next()
            .ok_or_else(|| format!("`{url}` resolves to no address"))?;
        Ok(Target { address: Address::Tcp(address), authority: authority.to_owned() })
    }
}

/// Why an exchange with an engine failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// No connection within the time, or refused.
    #[error("cannot connect")]
    Connect,
    /// A kept connection had been closed; a fresh one may do.
    #[error("the kept connection was closed")]
    Stale,
    /// The connection ended in the middle.
    #[error("the connection ended early")]
    Ended,
    /// The answer is not HTTP as we speak it, or over a limit.
    #[error("the answer is malformed or too long")]
    Malformed,
    /// No answer within the time.
    #[error("no answer in time")]
    TimedOut,
}

/// One connection to an engine with its read buffer.
pub struct Connection {
    stream: Stream,
    address: Address,
    /// Bytes read and not yet passed on.
    pub buffer: Vec<u8>,
    /// It was kept from an earlier request.
    pub reused: bool,
    idle_since: Instant,
}

impl Connection {
    /// Connects anew.
    ///
    /// # Errors
    /// [`UpstreamError::Connect`].
    pub async fn open(address: &Address, limits: &Limits) -> Result<Self, UpstreamError> {
        let limit = Duration::from_millis(limits.connect_timeout_ms);
        let stream = monoio::time::timeout(limit, dial(address))
            .await
            .map_err(|_| UpstreamError::Connect)?
            .map_err(|_| UpstreamError::Connect)?;
        Ok(Connection {
            stream,
            address: address.clone(),
            buffer: Vec::with_capacity(READ_ROOM_BYTES),
            reused: false,
            idle_since: Instant::now(),
        })
    }

    /// The socket, for the watchdog.
    pub fn socket(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Sends `bytes`.
    ///
    /// # Errors
    /// [`UpstreamError::Stale`] on a kept connection, else [`UpstreamError::Ended`].
    pub async fn send(&mut self, bytes: &mut Vec<u8>) -> Result<(), UpstreamError> {
        self.stream.write_all(bytes).await.map_err(|_| self.end())
    }

    /// Reads more into `buffer`; 0 is the end.
    pub async fn read(&mut self) -> std::io::Result<usize> {
        self.stream.read_more(&mut self.buffer, READ_ROOM_BYTES).await
    }

    /// Reads up to and including the head of the answer. Interim answers (1xx) are passed over.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn read_head(
        &mut self,
        head_bytes_max: usize,
    ) -> Result<ResponseHead, UpstreamError> {
        loop {
            match parse_response(&self.buffer).map_err(|_| UpstreamError::Malformed)? {
                Some(head) if head.status < 200 => drop(self.buffer.drain(..head.length)),
                Some(head) => return Ok(head),
                None if self.buffer.len() > head_bytes_max => return Err(UpstreamError::Malformed),
                None => match self.read().await {
                    Ok(read) if read > 0 => {}
                    _ => return Err(self.end()),
                },
            }
        }
    }

    /// What an end means here: a kept connection on which nothing came back was stale.
    fn end(&self) -> UpstreamError {
        if self.reused && self.buffer.is_empty() {
            UpstreamError::Stale
        } else {
            UpstreamError::Ended
        }
    }
}

async fn dial(address: &Address) -> std::io::Result<Stream> {
    match address {
        Address::Tcp(address) => {
            let tcp = TcpStream::connect_addr(*address).await?;
            tcp.set_nodelay(true)?;
            Ok(Stream::Tcp(tcp))
        }
        Address::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path).await?)),
    }
}

/// The idle connections of one core.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<HashMap<Address, Vec<Connection>>>,
}

impl Pool {
    /// The youngest kept connection that is not too old, or a fresh one.
    ///
    /// # Errors
    /// [`UpstreamError::Connect`].
    pub async fn connect(
        &self,
        address: &Address,
        limits: &Limits,
    ) -> Result<Connection, UpstreamError> {
        match self.take(address, limits) {
            Some(connection) => Ok(connection),
            None => Connection::open(address, limits).await,
        }
    }

    fn take(&self, address: &Address, limits: &Limits) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        let kept = idle.get_mut(address)?;
        let mut connection = kept.pop()?;
        if connection.idle_since.elapsed() > Duration::from_millis(limits.engine_idle_ms_max) {
            // The youngest is too old, so all are.
            kept.clear();
            return None;
        }
        connection.reused = true;
        Some(connection)
    }

    /// Keeps a connection whose last answer was read to its end.
    pub fn keep(&self, mut connection: Connection, now: Instant, limits: &Limits) {
        let mut idle = self.idle.borrow_mut();
        if !idle.contains_key(&connection.address) {
            idle.insert(connection.address.clone(), Vec::new());
        }
        let Some(kept) = idle.get_mut(&connection.address) else { return };
        if kept.len() < limits.engine_idle_connections_max {
            connection.buffer.clear();
            connection.buffer.shrink_to(4 * READ_ROOM_BYTES);
            connection.idle_since = now;
            kept.push(connection);
        }
    }

    /// Closes what has been idle for too long.
    pub fn prune(&self, limits: &Limits) {
        let limit = Duration::from_millis(limits.engine_idle_ms_max);
        self.idle.borrow_mut().retain(|_, kept| {
            kept.retain(|connection| connection.idle_since.elapsed() <= limit);
            !kept.is_empty()
        });
    }

    /// One small exchange: for probes and tokenize calls, not for clients' requests.
    ///
    /// # Errors
    /// [`UpstreamError`]; a stale connection is tried again once on a fresh one.
    pub async fn exchange(
        &self,
        target: &Target,
        method: &str,
        path: &str,
        body: &[u8],
        limit: Duration,
        limits: &Limits,
    ) -> Result<(u16, Vec<u8>), UpstreamError> {
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            target.authority,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        let attempts = async {
            let kept = self.connect(&target.address, limits).await?;
            match self.exchange_on(kept, &mut request, limits).await {
                Err(UpstreamError::Stale) => {
                    let fresh = Connection::open(&target.address, limits).await?;
                    self.exchange_on(fresh, &mut request, limits).await
                }
                other => other,
            }
        };
        monoio::time::timeout(limit, attempts).await.unwrap_or(Err(UpstreamError::TimedOut))
    }

    async fn exchange_on(
        &self,
        mut connection: Connection,
        request: &mut Vec<u8>,
        limits: &Limits,
    ) -> Result<(u16, Vec<u8>), UpstreamError> {
        connection.send(request).await?;
        let head = connection.read_head(limits.head_bytes_max).await?;
        connection.buffer.drain(..head.length);
        let mut scanner = BodyScanner::new(head.framing);
        let mut body = Vec::new();
        loop {
            scanner
                .feed(&connection.buffer, |run| body.extend_from_slice(run))
                .map_err(|_| UpstreamError::Malformed)?;
            connection.buffer.clear();
            if scanner.is_done() {
                break;
            }
            if body.len() > EXCHANGE_BYTES_MAX {
                return Err(UpstreamError::Malformed);
            }
            match connection.read().await {
                Ok(read) if read > 0 => {}
                _ if scanner.may_close() => break,
                _ => return Err(UpstreamError::Ended),
            }
        }
        if head.keep_alive {
            self.keep(connection, Instant::now(), limits);
        }
        Ok((head.status, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_or_refused_with_a_reason() {
        let target = Target::resolve("http://127.0.0.1:8001/").unwrap();
        let tcp = |text: &str| Address::Tcp(text.parse().unwrap());
        assert_eq!(target.address, tcp("127.0.0.1:8001"));
        assert_eq!(Target::resolve("http://127.0.0.1").unwrap().address, tcp("127.0.0.1:80"));
        assert_eq!(Target::resolve("http://[::1]:7").unwrap().address, tcp("[::1]:7"));
        let unix = Target::resolve("unix:/run/e.sock").unwrap();
        assert_eq!(unix.address, Address::Unix("/run/e.sock".into()));
        for bad in [
            "https://a:1",
            "127.0.0.1:1",
            "http://",
            "http://a/b",
            "http://u@h:1",
            "unix:e.sock",
            "unix://h/p",
        ] {
            assert!(Target::resolve(bad).is_err(), "{bad}");
        }
    }
}
