//! The listener and its connections: HTTP/1.1 with the habits of the server mimicked.
//!
//! A connection that stays silent is closed after [`IDLE_TIMEOUT`]; in llama.cpp's dialect one that
//! has had [`LLAMA_CPP_REQUESTS_MAX`] requests is closed too, as cpp-httplib does, so that a
//! router's connection pool meets here what it meets in life. Every answer is sent without delay
//! (`TCP_NODELAY`), each token of a stream as its own event.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};

use super::engine;
use super::options::{Dialect, Settings};
use super::publisher::{self, PublisherError};
use super::routes::Server;
use super::scheduler::Scheduler;

/// Connections at once; further ones wait in the listener's backlog.
pub const CONNECTIONS_MAX: usize = 4096;
/// A connection with no request coming in is closed after this (both real servers: 5 s).
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests on one connection in llama.cpp's dialect.
pub const LLAMA_CPP_REQUESTS_MAX: u32 = 100;
/// Pause after a failed accept, which is nearly always a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The engine did not start. Displays as one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another --listen address or port")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// KV events cannot be published.
    #[error(transparent)]
    Publisher(#[from] PublisherError),
}

/// A listening engine that does not accept yet.
pub struct Listening {
    listener: TcpListener,
    server: Arc<Server>,
}

impl Listening {
    /// Binds everything and starts the engine's tasks on the current runtime.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let address = settings.listen;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| StartError::Listen { address, source })?;
        let publisher = match &settings.events {
            Some(events) => Some(publisher::start(events).await?),
            None => None,
        };
        let scheduler = Scheduler::new(settings.limits, &settings.model);
        let events: Option<mpsc::Sender<_>> =
            publisher.as_ref().map(|publisher| publisher.events.clone());
        let door = engine::start(scheduler, events);
        let server = Arc::new(Server::new(settings, door, publisher));
        Ok(Listening { listener, server })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts and serves until dropped.
    pub async fn serve(self) -> Infallible {
        let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            // The semaphore is never closed, so the permit is always there.
            let seat = Arc::clone(&seats).acquire_owned().await.ok();
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let server = Arc::clone(&self.server);
                    tokio::spawn(async move {
                        connection(stream, server).await;
                        drop(seat);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn connection(stream: TcpStream, server: Arc<Server>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let requests = AtomicU32::new(0);
    let service = service_fn(move |request| {
        let number = requests.fetch_add(1, Ordering::Relaxed) + 1;
        let server = Arc::clone(&server);
        async move {
            let mut response = Box::pin(server.respond(request)).await;
            if server.dialect() == Dialect::LlamaCpp {
                let headers = response.headers_mut();
                if number >= LLAMA_CPP_REQUESTS_MAX {
                    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
                } else if !headers.contains_key(header::CONNECTION) {
                    let habits = HeaderValue::from_static("timeout=5, max=100");
                    headers.insert("keep-alive", habits);
                }
            }
            Ok::<_, Infallible>(response)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended early");
    }
}
