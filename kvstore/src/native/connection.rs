//! One client's life: greeted, then asked for as much as it likes, as fast as it is done.
//!
//! A connection is one task. It reads, starts what was asked, and writes answers as they are ready; what
//! waits for a slower tier does not hold up what came behind it. All it may hold is bounded: requests at
//! work, answers not read yet, leases.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use dataplane::frame::FrameError;
use dataplane::kv::ring::RING_BYTES;
use dataplane::kv::{self, Answer, BATCH_MAX, Decoder, Fault, Request, VERSION};

use super::answer::{Client, answer};
use super::door::{Guest, Hall};
use super::greeting::{self, GreetingError, Hello};
use super::leases::Leases;
use super::poller::Poller;
use super::ring::{OutOfStep, Ring};
use super::staging::Staging;
use crate::executor::{breath, sleep};
use crate::namespace::Namespaces;
use crate::socket::Stream;
use crate::store::{Store, StoreError};

/// A client that says nothing for so long after it connected is let go.
const GREETING_TIME_MAX: Duration = Duration::from_secs(5);
/// Requests of one connection at work at once; more wait in its socket.
const REQUESTS_MAX: usize = 64;
/// Answers not read yet, in bytes; while there are more, nothing new is begun.
const OUT_BYTES_MAX: usize = 1 << 20;
/// Read at once: two lookups of a thousand names.
const READ_BYTES: usize = 64 << 10;
/// Reads before other connections have their turn.
const READS_PER_TURN_MAX: usize = 16;

type Work = Pin<Box<dyn Future<Output = (u64, Answer)>>>;

/// Why a connection ended other than by the client's hanging up.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("{0}")]
    Wire(#[from] FrameError),
    #[error("{0}")]
    Ring(#[from] OutOfStep),
    #[error("{0}")]
    Socket(#[from] io::Error),
}

/// Serves one connection to its end.
pub async fn serve(guest: Guest, hall: &Hall, store: Store) {
    let (socket, _count) = guest.into_parts();
    let _open = Open::new(&store);
    let late = async {
        sleep(GREETING_TIME_MAX).await;
        Err(GreetingError::Gone(io::ErrorKind::TimedOut.into()))
    };
    let (client, line) = match futures_lite::future::or(greet(socket, hall, store), late).await {
        Ok(greeted) => greeted,
        Err(error) => {
            tracing::debug!(%error, "a native client was not let in");
            return;
        }
    };
    let line = line.live(&client).await;
    client.leave();
    // What it stores is stored, though nobody hears of it; it cannot be stopped half way.
    for work in line.working {
        work.await;
    }
    if let Some(poller) = line.poller {
        poller.end().await;
    }
}

/// Counts in the gauge of open connections.
struct Open(Store);

impl Open {
    fn new(store: &Store) -> Open {
        store.house().stats.connections.with_label_values(&["native"]).inc();
        Open(store.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.house().stats.connections.with_label_values(&["native"]).dec();
    }
}

async fn greet(
    socket: std::os::unix::net::UnixStream,
    hall: &Hall,
    store: Store,
) -> Result<(Rc<Client>, Line), GreetingError> {
    let words = socket.try_clone()?;
    let peer = rustix::net::sockopt::socket_peercred(&words)?;
    let stream = Stream::of_unix(socket)?;
    let hello = greeting::hear(&stream, words.as_fd()).await;
    let id = hello.as_ref().map_or(0, |hello| hello.id);
    let is_admin = peer.uid == rustix::process::geteuid() || peer.uid.is_root();
    match hello.and_then(|hello| admit(hello, hall, store, is_admin)) {
        Ok((client, rest, wants_ring)) => {
            let arena = hall.arena.for_clients()?;
            // A client can do without: one that cannot have a ring is told so by its length.
            let made = if wants_ring { Ring::new().ok() } else { None };
            let (ring, ring_fd) = made.unzip();
            let welcome = Answer::Hello {
                version: VERSION,
                arena_bytes: hall.arena.bytes() as u64,
                block_bytes_max: hall.limits.block_bytes_max,
                leases_max: u32::try_from(hall.limits.leases_per_client_max).unwrap_or(u32::MAX),
                requests_max: REQUESTS_MAX as u32,
                ring_bytes: if ring.is_some() { RING_BYTES as u64 } else { 0 },
            };
            let mut fds = vec![arena.as_fd()];
            fds.extend(ring_fd.as_ref().map(AsFd::as_fd));
            greeting::answer(words.as_fd(), id, &welcome, &fds)?;
            Ok((Rc::new(client), Line::new(stream, rest, ring.map(Poller::new))))
        }
        Err(GreetingError::Refused(fault, text)) => {
            let refusal = Answer::Refused { fault, text: text.clone() };
            greeting::answer(words.as_fd(), id, &refusal, &[])?;
            Err(GreetingError::Refused(fault, text))
        }
        Err(error) => Err(error),
    }
}

fn admit(
    hello: Hello,
    hall: &Hall,
    store: Store,
    is_admin: bool,
) -> Result<(Client, Decoder, bool), GreetingError> {
    let staging = match (hello.staging_bytes, hello.staging) {
        (0, _) => None,
        (bytes, Some(memfd)) => {
            let refused = |fault: Fault| GreetingError::Refused(fault, fault.to_string());
            Some(Staging::new(memfd, bytes).map_err(refused)?)
        }
        (_, None) => {
            let fault = Fault::BadStaging;
            return Err(GreetingError::Refused(fault, fault.to_string()));
        }
    };
    let namespace = match hello.namespace.as_str() {
        "" => Ok(Namespaces::nameless()),
        name => store.namespace(name),
    };
    let namespace = namespace.map_err(|error| {
        let fault = match error {
            StoreError::Namespace(crate::namespace::NamespaceError::TooMany(_)) => {
                Fault::TooManyNamespaces
            }
            _ => Fault::BadRequest,
        };
        GreetingError::Refused(fault, error.to_string())
    })?;
    tracing::debug!(client = hello.client, namespace = namespace.name, "a native client came");
    let leases = RefCell::new(Leases::new(hall.limits.leases_per_client_max));
    let client = Client { store, namespace, leases, staging, is_admin };
    Ok((client, hello.rest, hello.wants_ring))
}

/// The bytes of a connection and what is at work for it.
struct Line {
    stream: Stream,
    decoder: Decoder,
    buffer: Box<[u8]>,
    out: Vec<u8>,
    /// How much of `out` is written.
    written: usize,
    working: Vec<Work>,
    /// Where the client polls.
    poller: Option<Poller>,
}

/// How a turn ended.
enum Turn {
    /// The client hung up.
    Over,
    /// There is more to read, but others wait.
    Breath,
}

impl Line {
    fn new(stream: Stream, decoder: Decoder, poller: Option<Poller>) -> Line {
        let buffer = vec![0; READ_BYTES].into_boxed_slice();
        Line { stream, decoder, buffer, out: Vec::new(), written: 0, working: Vec::new(), poller }
    }

    /// Until the client hangs up or says what cannot be understood.
    async fn live(mut self, client: &Rc<Client>) -> Line {
        loop {
            match poll_fn(|context| self.poll_turn(context, client)).await {
                Ok(Turn::Breath) => breath().await,
                Ok(Turn::Over) => return self,
                Err(error @ (End::Wire(_) | End::Ring(_))) => {
                    tracing::debug!(%error, "a native client spoke nonsense");
                    let text = error.to_string();
                    let refusal = Answer::Refused { fault: Fault::BadRequest, text };
                    // As much as fits: the client may not be reading.
                    self.put(0, &refusal);
                    let _ = poll_fn(|context| Poll::Ready(self.poll_write(context))).await;
                    return self;
                }
                Err(End::Socket(error)) => {
                    tracing::debug!(%error, "a native client broke off");
                    return self;
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        self.working.len() < REQUESTS_MAX && self.out.len() - self.written < OUT_BYTES_MAX
    }

    fn poll_turn(
        &mut self,
        context: &mut Context<'_>,
        client: &Rc<Client>,
    ) -> Poll<Result<Turn, End>> {
        for _ in 0..READS_PER_TURN_MAX {
            self.poll_work(context);
            let is_begun = self.begin(context, client)?;
            self.poll_write(context)?;
            if !self.has_room() {
                // Work that ends and a client that reads both wake this task.
                return self.poll_ring(context, client);
            }
            if !is_begun {
                continue;
            }
            match self.stream.poll_read(context, &mut self.buffer) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(Turn::Over)),
                Poll::Ready(Ok(read)) => self.decoder.push(&self.buffer[..read]),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => return self.poll_ring(context, client),
            }
        }
        Poll::Ready(Ok(Turn::Breath))
    }

    /// When the socket has nothing: the ring, for as long as it is worth it.
    fn poll_ring(
        &mut self,
        context: &mut Context<'_>,
        client: &Rc<Client>,
    ) -> Poll<Result<Turn, End>> {
        let Some(poller) = &mut self.poller else { return Poll::Pending };
        if poller.poll(context, client)? { Poll::Ready(Ok(Turn::Breath)) } else { Poll::Pending }
    }

    /// Takes the answers that are ready.
    fn poll_work(&mut self, context: &mut Context<'_>) {
        let mut working = std::mem::take(&mut self.working);
        working.retain_mut(|work| match work.as_mut().poll(context) {
            Poll::Ready((id, answer)) => {
                self.put(id, &answer);
                false
            }
            Poll::Pending => true,
        });
        self.working = working;
    }

    /// Begins what has come whole, as far as there is room. Whether that was all of it.
    fn begin(&mut self, context: &mut Context<'_>, client: &Rc<Client>) -> Result<bool, End> {
        while self.has_room() {
            let Some((id, payload)) = self.decoder.poll_frame()? else { return Ok(true) };
            match kv::decode(payload)? {
                Request::Release { leases } => {
                    leases.into_iter().for_each(|lease| client.release(lease));
                }
                Request::Wake => {
                    if let Some(poller) = &mut self.poller {
                        poller.wake();
                    }
                }
                request => {
                    let client = client.clone();
                    let mut work: Work =
                        Box::pin(async move { (id, answer(client, request).await) });
                    match work.as_mut().poll(context) {
                        Poll::Ready((id, answer)) => self.put(id, &answer),
                        Poll::Pending => self.working.push(work),
                    }
                }
            }
        }
        Ok(false)
    }

    fn put(&mut self, id: u64, answer: &Answer) {
        kv::encode(id, answer, &mut self.out);
    }

    /// Writes until the socket is full or nothing is left.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Result<(), End> {
        while self.written < self.out.len() {
            let left = [IoSlice::new(&self.out[self.written..])];
            match self.stream.poll_write(context, &left) {
                Poll::Ready(Ok(0)) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Poll::Ready(Ok(written)) => self.written += written,
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Pending => return Ok(()),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }
}

/// The largest answer beside lists, to all of a frame's blocks, fits many times into what may wait.
const _: () = assert!(BATCH_MAX * 25 < OUT_BYTES_MAX);
