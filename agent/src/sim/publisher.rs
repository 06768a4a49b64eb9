//! KV events over ZMQ, exactly as vLLM sends them.
//!
//! Live: a PUB socket, three frames, `[topic] [sequence number: 8 bytes big-endian] [payload]`, the
//! number rising by one from 0. Replay: a ROUTER socket; a client sends `[empty] [first number]`
//! and gets `[empty] [topic] [number] [payload]` for each batch still kept, then
//! `[empty] [empty] [ff…ff] [empty]`. Only the last batches are kept.
//!
//! Unlike vLLM's, both sockets always bind (vLLM connects where the endpoint has no `*`), and the
//! replay has a task of its own: a replay client that does not read is let go after
//! [`REPLAY_SEND_TIMEOUT`].

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::body::Bytes;
use tokio::sync::mpsc;
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqError, ZmqMessage};

use super::kv_events::{self, KvEvent};
use super::options::EventSettings;

/// Steps' events that wait for the publisher (vLLM's `max_queue_size` is larger; the engine waits).
pub const QUEUE_MAX: usize = 4096;
/// How long one replayed message may wait for its reader.
pub const REPLAY_SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// The number that ends a replay: -1.
const END_OF_REPLAY: [u8; 8] = [0xff; 8];

/// The publisher did not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot publish KV events on {endpoint}: {source}; choose another endpoint")]
pub struct PublisherError {
    endpoint: String,
    source: ZmqError,
}

/// A running publisher.
#[derive(Clone, Debug)]
pub struct Publisher {
    /// Takes each step's events.
    pub events: mpsc::Sender<Vec<KvEvent>>,
    /// The PUB endpoint, with the port the system chose.
    pub endpoint: String,
    /// The ROUTER endpoint, likewise.
    pub replay_endpoint: Option<String>,
}

/// The batches kept for replay: (number, payload).
type Kept = Arc<Mutex<VecDeque<(u64, Bytes)>>>;

/// Binds the sockets and starts publishing on the current runtime.
///
/// # Errors
/// [`PublisherError`]
pub async fn start(settings: &EventSettings) -> Result<Publisher, PublisherError> {
    let kept = Kept::default();
    let mut live = PubSocket::new();
    let endpoint = bind(&mut live, &settings.endpoint).await?;
    let replay_endpoint = match &settings.replay_endpoint {
        None => None,
        Some(wanted) => {
            let mut replay = RouterSocket::new();
            let bound = bind(&mut replay, wanted).await?;
            let topic = Bytes::from(settings.topic.clone());
            tokio::spawn(replay_batches(replay, topic, Arc::clone(&kept)));
            Some(bound)
        }
    };
    let (events, receiver) = mpsc::channel(QUEUE_MAX);
    tokio::spawn(publish(live, receiver, settings.clone(), kept));
    Ok(Publisher { events, endpoint, replay_endpoint })
}

async fn bind(socket: &mut impl Socket, endpoint: &str) -> Result<String, PublisherError> {
    if let Some(path) = endpoint.strip_prefix("ipc://") {
        remove_stale_socket(Path::new(path));
    }
    let bound = socket
        .bind(endpoint)
        .await
        .map_err(|source| PublisherError { endpoint: endpoint.to_owned(), source })?;
    Ok(bound.to_string())
}

/// A killed engine leaves its socket file behind; nobody listens there, so it may go. Anything else
/// in the way stays, and binding says so.
fn remove_stale_socket(path: &Path) {
    let refused = UnixStream::connect(path)
        .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
    if refused && let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "a stale socket could not be removed");
    }
}

async fn publish(
    mut live: PubSocket,
    mut steps: mpsc::Receiver<Vec<KvEvent>>,
    settings: EventSettings,
    kept: Kept,
) {
    let topic = Bytes::from(settings.topic);
    let mut number = 0u64;
    while let Some(events) = steps.recv().await {
        let payload = match kv_events::encode_batch(now_s(), &events, settings.form) {
            Ok(payload) => Bytes::from(payload),
            Err(error) => {
                tracing::error!(%error, "a batch of KV events could not be encoded");
                continue;
            }
        };
        {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == settings.buffer_steps {
                kept.pop_front();
            }
            kept.push_back((number, payload.clone()));
        }
        let message = frames([topic.clone(), number_frame(number), payload]);
        if let Err(error) = live.send(message).await {
            tracing::warn!(%error, "KV events were not sent; subscribers will see a gap");
        }
        number += 1;
    }
}

async fn replay_batches(mut socket: RouterSocket, topic: Bytes, kept: Kept) {
    while let Ok(question) = socket.recv().await {
        let question = question.into_vec();
        let [client, empty, first] = question.as_slice() else {
            tracing::warn!(frames = question.len(), "a replay request has three frames; ignored");
            continue;
        };
        let (true, Ok(first)) = (empty.is_empty(), <[u8; 8]>::try_from(first.as_ref())) else {
            tracing::warn!("a replay request is an empty frame and eight bytes; ignored");
            continue;
        };
        let first = u64::from_be_bytes(first);
        let batches: Vec<_> = {
            let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.iter().filter(|(number, _)| *number >= first).cloned().collect()
        };
        let empty = Bytes::new();
        let end = [empty.clone(), Bytes::from_static(&END_OF_REPLAY), empty.clone()];
        let answers = batches
            .into_iter()
            .map(|(number, payload)| [topic.clone(), number_frame(number), payload])
            .chain(std::iter::once(end));
        for [topic, number, payload] in answers {
            let message = frames([client.clone(), empty.clone(), topic, number, payload]);
            let sent = tokio::time::timeout(REPLAY_SEND_TIMEOUT, socket.send(message)).await;
            if !matches!(sent, Ok(Ok(()))) {
                tracing::warn!("a replay client went away or does not read; its replay ends");
                break;
            }
        }
    }
}

fn number_frame(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

fn frames<const COUNT: usize>(frames: [Bytes; COUNT]) -> ZmqMessage {
    let mut frames = frames.into_iter();
    // Every message here has at least three frames, so the default is never taken.
    let mut message = ZmqMessage::from(frames.next().unwrap_or_default());
    frames.for_each(|frame| message.push_back(frame));
    message
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
