//! Listens to one rank of one engine over ZMQ: live, and from the replay what live missed.
//!
//! Live messages are `[topic] [number: 8 bytes big-endian] [payload]`. A replay is asked for with
//! `[empty] [first number]` and comes as `[empty] [topic] [number] [payload]`, or without the topic from
//! vLLM up to 0.24; a number of all ones ends it. A subscription takes a moment to arrive, and what is
//! last may be lost without a next one to show it, so the replay is also asked when it is quiet.
//!
//! Endpoints are this machine's: the agent's own engines in their sockets. The ZMQ library believes the
//! length of a frame before it has come, so a foreign publisher could ask for any amount of memory.

use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use dataplane::feed::Known;
use tokio::time::{sleep, timeout};
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqError, ZmqMessage};

use super::board::Board;
use super::decode;
use super::event::Batch;
use super::sequence::{Sequence, Verdict};
use crate::engine::EventSource;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long each message of a replay may take: vLLM looks at its replay socket every 100 ms.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(5);
/// After so long without a live message the replay is asked whether there is one.
const QUIET_CHECK: Duration = Duration::from_secs(1);
/// Before an engine is dialled again: it binds its sockets when it has loaded, minutes after it began.
const DIAL_PAUSE_INITIAL: Duration = Duration::from_millis(50);
const DIAL_PAUSE_MAX: Duration = Duration::from_secs(1);
/// The number that ends a replay.
const END_OF_REPLAY: u64 = u64::MAX;
/// Most batches of one replay; vLLM keeps 10,000 by default.
const REPLAY_BATCHES_MAX: usize = 1 << 20;
/// Bytes at each end of a batch that tell it from another.
const MARK_BYTES: usize = 64;

#[derive(Debug, thiserror::Error)]
enum ListenError {
    #[error("no answer in time")]
    Late,
    #[error(transparent)]
    Zmq(#[from] ZmqError),
    #[error("a replay did not end")]
    Endless,
}

/// Where what is heard goes.
#[derive(Clone, Debug)]
pub struct Ear {
    /// All feeds.
    pub board: Board,
    /// Of this worker.
    pub worker: String,
    /// In this life.
    pub epoch: u64,
    /// This data-parallel rank.
    pub rank: u32,
    /// Is told the size of a block, in tokens.
    pub block_tokens: std::sync::Arc<std::sync::atomic::AtomicU32>,
}

impl Ear {
    /// A batch that could not be read at all counts as one event that could not.
    fn take(&self, payload: &[u8]) {
        let batch = decode::batch(payload).unwrap_or_else(|error| {
            tracing::warn!(worker = self.worker, %error, "a batch of KV events cannot be read");
            Batch { malformed: 1, ..Batch::default() }
        });
        self.take_batch(batch);
    }

    /// Takes what was read.
    pub fn take_batch(&self, batch: Batch) {
        let size = self.board.take(&self.worker, self.epoch, self.rank, batch);
        if let Some(size) = size {
            self.block_tokens.store(size, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Everything is forgotten.
    pub fn clear(&self, known: Known) {
        self.board.clear(&self.worker, self.epoch, self.rank, known);
    }

    /// So much is known now.
    pub fn set_known(&self, known: Known) {
        self.board.set_known(&self.worker, self.epoch, self.rank, known);
    }
}

/// Listens until it is dropped.
pub async fn subscribe(source: EventSource, ear: Ear) {
    let mut listener = Listener { source, ear, sequence: Sequence::default(), replay_works: false };
    let mut pause = DIAL_PAUSE_INITIAL;
    loop {
        let Err(error) = listener.listen(&mut pause).await;
        tracing::debug!(worker = listener.ear.worker, %error, "no KV events");
        sleep(pause).await;
        pause = (pause * 2).min(DIAL_PAUSE_MAX);
    }
}

struct Listener {
    source: EventSource,
    ear: Ear,
    sequence: Sequence,
    /// It has given a batch before, so that one which gives none has been emptied.
    replay_works: bool,
}

impl Listener {
    async fn listen(
        &mut self,
        pause: &mut Duration,
    ) -> Result<std::convert::Infallible, ListenError> {
        let mut socket = SubSocket::new();
        within(CONNECT_TIMEOUT, socket.connect(&self.source.live)).await?;
        socket.subscribe(&self.source.topic).await?;
        *pause = DIAL_PAUSE_INITIAL;
        tracing::info!(worker = self.ear.worker, live = self.source.live, "listening to KV events");
        self.look().await;
        loop {
            match timeout(QUIET_CHECK, socket.recv()).await {
                Ok(message) => self.live(message?).await,
                Err(_) => self.look().await,
            }
        }
    }

    /// A replay that fails is asked again at the next quiet moment; the live line stays.
    async fn look(&mut self) {
        if let Err(error) = self.try_to_look().await {
            tracing::debug!(worker = self.ear.worker, %error, "no replay of KV events");
        }
    }

    /// Takes what the replay has and live did not bring.
    async fn try_to_look(&mut self) -> Result<(), ListenError> {
        if self.source.replay.is_none() {
            return Ok(());
        }
        // The last batch taken is asked for too: a publisher that has it not has begun anew.
        let first = self.sequence.next().saturating_sub(1);
        let heard = self.replay(first).await?;
        if !heard && self.replay_works && self.sequence.next() > 0 {
            tracing::warn!(worker = self.ear.worker, "the engine's KV events began anew");
            self.sequence.restart();
            self.ear.clear(Known::Whole);
            self.replay(0).await?;
        } else if self.sequence.next() == 0 {
            self.ear.set_known(Known::Whole);
        }
        Ok(())
    }

    async fn live(&mut self, message: ZmqMessage) {
        let Some((number, payload)) = live_batch(&message) else {
            return self.lost_count("a live message has another shape than expected");
        };
        let mark = mark(payload);
        let mut verdict = self.sequence.live(number, mark);
        if verdict == Verdict::Restart {
            tracing::warn!(worker = self.ear.worker, number, "the engine's KV events began anew");
            self.ear.clear(Known::Whole);
            verdict = self.sequence.live(number, mark);
        }
        if verdict == Verdict::Gap {
            self.ear.board.metrics().gaps(&self.ear.worker);
            if self.source.replay.is_some()
                && let Err(error) = self.replay(self.sequence.next()).await
            {
                tracing::warn!(worker = self.ear.worker, %error, "no replay of missing KV events");
            }
            verdict = self.sequence.settle(number, mark);
        }
        if number == 0 {
            self.ear.set_known(Known::Whole);
        }
        self.obey(verdict, number, payload);
    }

    fn obey(&self, verdict: Verdict, number: u64, payload: &[u8]) {
        match verdict {
            Verdict::Take => self.ear.take(payload),
            Verdict::Lost => {
                tracing::warn!(
                    worker = self.ear.worker,
                    number,
                    "KV events before this batch are lost; what the engine holds is known in part"
                );
                self.ear.clear(Known::Partial);
                self.ear.take(payload);
            }
            Verdict::Known | Verdict::Gap | Verdict::Restart => {}
        }
    }

    /// Has everything from `first` on replayed. Says whether anything of this publisher came.
    async fn replay(&mut self, first: u64) -> Result<bool, ListenError> {
        let Some(endpoint) = self.source.replay.clone() else { return Ok(false) };
        self.ear.board.metrics().replays(&self.ear.worker);
        let mut socket = DealerSocket::new();
        within(CONNECT_TIMEOUT, socket.connect(&endpoint)).await?;
        let mut question = ZmqMessage::from(Vec::new());
        question.push_back(first.to_be_bytes().to_vec().into());
        within(REPLAY_TIMEOUT, socket.send(question)).await?;
        for count in 0..REPLAY_BATCHES_MAX {
            let message = within(REPLAY_TIMEOUT, socket.recv()).await?;
            let Some((number, payload)) = replayed_batch(&message) else {
                self.lost_count("a replayed message has another shape than expected");
                continue;
            };
            if number == END_OF_REPLAY {
                return Ok(count > 0);
            }
            self.replay_works = true;
            let verdict = self.sequence.replayed(number, mark(payload));
            if verdict == Verdict::Restart {
                // Another publisher's batch of that number: what was asked for is not there.
                return Ok(false);
            }
            if verdict == Verdict::Take && number == 0 {
                self.ear.set_known(Known::Whole);
            }
            self.obey(verdict, number, payload);
        }
        Err(ListenError::Endless)
    }

    fn lost_count(&self, what: &str) {
        tracing::warn!(worker = self.ear.worker, what);
        let reason = super::translate::Reason::Malformed;
        self.ear.board.metrics().dropped(&self.ear.worker, reason, 1);
    }
}

async fn within<T>(
    limit: Duration,
    doing: impl Future<Output = Result<T, ZmqError>>,
) -> Result<T, ListenError> {
    match timeout(limit, doing).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(ListenError::Late),
    }
}

/// Number and payload of `[topic] [number] [payload]`.
fn live_batch(message: &ZmqMessage) -> Option<(u64, &[u8])> {
    match (message.len(), message.get(1), message.get(2)) {
        (3, Some(number), Some(payload)) => Some((be_number(number)?, payload)),
        _ => None,
    }
}

/// Number and payload of a replayed message, with or without the topic.
fn replayed_batch(message: &ZmqMessage) -> Option<(u64, &[u8])> {
    let number_at = match message.len() {
        3 => 1,
        4 => 2,
        _ => return None,
    };
    Some((be_number(message.get(number_at)?)?, message.get(number_at + 1)?))
}

/// Tells batches of one number apart. A batch begins with its time, so its ends are enough, and reading
/// no more costs nothing beside reading events.
fn mark(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_usize(payload.len());
    hasher.write(&payload[..payload.len().min(MARK_BYTES)]);
    hasher.write(&payload[payload.len().saturating_sub(MARK_BYTES)..]);
    hasher.finish()
}

fn be_number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// The source of one data-parallel rank: over TCP each has its own ports, counted up from the first.
pub fn of_rank(source: &EventSource, rank: u32) -> Option<EventSource> {
    if rank == 0 {
        return Some(source.clone());
    }
    let moved = |endpoint: &str| {
        let (host, port) = endpoint.strip_prefix("tcp://")?.rsplit_once(':')?;
        let port = port.parse::<u16>().ok()?.checked_add(u16::try_from(rank).ok()?)?;
        Some(format!("tcp://{host}:{port}"))
    };
    let replay = match &source.replay {
        Some(replay) => Some(moved(replay)?),
        None => None,
    };
    Some(EventSource { live: moved(&source.live)?, replay, ..source.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::events::Dialect;

    fn message(frames: &[&[u8]]) -> ZmqMessage {
        let mut message = ZmqMessage::from(frames[0].to_vec());
        frames[1..].iter().for_each(|frame| message.push_back(frame.to_vec().into()));
        message
    }

    #[test]
    fn both_shapes_of_a_replay_are_read() {
        let number = 7u64.to_be_bytes();
        let end = [0xff; 8];
        for (frames, read) in [
            (&[&b""[..], b"topic", &number, b"payload"][..], Some((7, &b"payload"[..]))),
            (&[b"", &number, b"payload"], Some((7, b"payload"))),
            (&[b"", b"", &end, b""], Some((END_OF_REPLAY, b""))),
            (&[b"", &end, b""], Some((END_OF_REPLAY, b""))),
            (&[b"", b"short", b""], None),
            (&[b"", b""], None),
            (&[b"", b"", b"", b"", b""], None),
        ] {
            assert_eq!(replayed_batch(&message(frames)), read);
        }
        assert_eq!(live_batch(&message(&[b"t", &number, b"p"])), Some((7, &b"p"[..])));
        assert_eq!(live_batch(&message(&[b"t", b"7", b"p"])), None);
        assert_eq!(live_batch(&message(&[b"t", &number])), None);
    }

    #[test]
    fn ranks_count_ports_up() {
        let source = EventSource {
            live: "tcp://127.0.0.1:5557".into(),
            replay: Some("tcp://127.0.0.1:6557".into()),
            topic: String::new(),
            dialect: Dialect::Vllm,
        };
        let third = of_rank(&source, 2).unwrap();
        assert_eq!(third.live, "tcp://127.0.0.1:5559");
        assert_eq!(third.replay.as_deref(), Some("tcp://127.0.0.1:6559"));
        assert_eq!(of_rank(&source, 65_535), None);
        let ipc = EventSource { live: "ipc:///x".into(), ..source };
        assert_eq!(of_rank(&ipc, 0), Some(ipc.clone()));
        assert_eq!(of_rank(&ipc, 1), None);
    }
}
