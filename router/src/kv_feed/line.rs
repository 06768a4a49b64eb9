//! One connection to one agent: frames in, changes of the index out; and what is told it, written.

use std::cell::Cell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use dataplane::feed::{Decoder, Follower, Op, Step, ToAgent, ToRouter, VERSION, encode};
use dataplane::frame::FrameError;
use dataplane::route::index::{Index, WorkerNumber};
use monoio::io::{AsyncReadRent, AsyncWriteRent, Splitable};
use monoio::net::{TcpStream, UnixStream};

use crate::cluster::WorkerLife;
use crate::kv_feed::tell::Teller;
use crate::shard::Shard;
use crate::socket::{read_more, write_all};

/// An agent answers a dial within this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// It says something each second; silent for longer than this, it is dialled anew.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Room offered to each read.
const READ_ROOM_BYTES: usize = 64 << 10;

/// A prediction outlives the engine's word by so much at least; a decision takes microseconds.
const CONFIRMED_MS_MIN: u64 = 100;
/// And for at most so many blocks of a worker.
const CONFIRMED_BLOCKS_MAX: usize = 65_536;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The socket's.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What it says is no feed.
    #[error("{0}")]
    Feed(#[from] FrameError),
    /// It does not say hello, or in another version.
    #[error("the agent speaks another version of the feed ({0}); this router speaks {VERSION}")]
    Version(u64),
    /// It hung up.
    #[error("the agent closed the connection")]
    Closed,
    /// Nothing came for [`SILENCE_MAX`].
    #[error("nothing came for {} s", SILENCE_MAX.as_secs())]
    Silent,
    /// It makes this router ask and ask, and takes no answer for [`SILENCE_MAX`].
    #[error("it reads nothing")]
    Deaf,
    /// No worker names it any more.
    #[error("no longer wanted")]
    Unwanted,
    /// The index cannot be made.
    #[error("{0}")]
    Index(String),
}

/// A worker of this agent as this router has followed it.
struct Followed {
    life: Arc<WorkerLife>,
    follower: Follower,
    confirmed: Confirmed,
}

/// Blocks that were told to be there. What was predicted of them ends only a moment later: a request that
/// asked the index before they came must still find them predicted.
#[derive(Default)]
struct Confirmed {
    last: Vec<u128>,
    before: Vec<u128>,
    turned_ms: u64,
}

impl Confirmed {
    fn add(&mut self, digests: &[u128]) {
        self.last.extend_from_slice(digests);
    }

    /// Those whose moment is over by now.
    fn due(&mut self, now_ms: u64) -> Vec<u128> {
        let is_due = now_ms.saturating_sub(self.turned_ms) >= CONFIRMED_MS_MIN
            || self.last.len() > CONFIRMED_BLOCKS_MAX;
        if !is_due {
            return Vec::new();
        }
        self.turned_ms = now_ms;
        std::mem::replace(&mut self.before, std::mem::take(&mut self.last))
    }
}

/// What outlives a connection.
pub struct Line {
    shard: Rc<Shard>,
    address: String,
    teller: Rc<Teller>,
    followed: HashMap<String, Followed>,
    was_heard: bool,
}

impl Line {
    /// The agent at `address`, not dialled yet; it is told what `teller` has for it.
    pub fn new(shard: &Rc<Shard>, address: &str, teller: Rc<Teller>) -> Self {
        let (shard, address) = (Rc::clone(shard), address.to_owned());
        Line { shard, address, teller, followed: HashMap::new(), was_heard: false }
    }

    /// Whether it said hello since this was asked last.
    pub fn was_heard(&mut self) -> bool {
        std::mem::take(&mut self.was_heard)
    }

    /// Dials and follows until something ends it.
    pub async fn follow(&mut self, is_wanted: &Cell<bool>) -> LineError {
        let ended = self.connect(is_wanted).await;
        self.teller.close();
        self.shard.cluster.warming.close(&self.address);
        self.shard.stats.kv_feed_disconnects.inc();
        for followed in self.followed.values_mut() {
            followed.follower.disconnected();
        }
        match ended {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn connect(&mut self, is_wanted: &Cell<bool>) -> Result<Infallible, LineError> {
        match self.address.strip_prefix("unix:").map(str::to_owned) {
            Some(path) => {
                let dialled = UnixStream::connect(Path::new(&path));
                let dialled = monoio::time::timeout(CONNECT_TIMEOUT, dialled).await;
                self.converse(dialled.map_err(|_| LineError::Silent)??, is_wanted).await
            }
            None => {
                let dialled = TcpStream::connect(&self.address);
                let dialled = monoio::time::timeout(CONNECT_TIMEOUT, dialled).await;
                let stream = dialled.map_err(|_| LineError::Silent)??;
                stream.set_nodelay(true)?;
                self.converse(stream, is_wanted).await
            }
        }
    }

    /// Hears and tells at the same time, until one of the two fails.
    async fn converse<S: Splitable>(
        &mut self,
        stream: S,
        is_wanted: &Cell<bool>,
    ) -> Result<Infallible, LineError>
    where
        S::OwnedRead: AsyncReadRent,
        S::OwnedWrite: AsyncWriteRent,
    {
        let (read, write) = stream.into_split();
        let teller = Rc::clone(&self.teller);
        monoio::select! {
            ended = tell(write, &teller) => ended,
            ended = self.listen(read, is_wanted) => ended,
        }
    }

    async fn listen(
        &mut self,
        mut stream: impl AsyncReadRent,
        is_wanted: &Cell<bool>,
    ) -> Result<Infallible, LineError> {
        let mut decoder = Decoder::default();
        let mut buffer = Vec::new();
        loop {
            while let Some(frame) = decoder.poll_message::<ToRouter>()? {
                if !is_wanted.get() {
                    return Err(LineError::Unwanted);
                }
                if let Some(worker) = self.take(frame)?
                    && !self.teller.want(worker)
                {
                    return Err(LineError::Deaf);
                }
            }
            let read = read_more(&mut stream, &mut buffer, READ_ROOM_BYTES);
            match monoio::time::timeout(SILENCE_MAX, read)
                .await
                .map_err(|_| LineError::Silent)??
            {
                0 => return Err(LineError::Closed),
                _ => decoder.push(&buffer),
            }
            buffer.clear();
        }
    }

    /// Takes one frame; gives the worker to ask a snapshot of, if one is needed.
    fn take(&mut self, frame: ToRouter) -> Result<Option<String>, LineError> {
        let worker = match &frame {
            ToRouter::Hello { version, .. } if *version == VERSION => {
                self.was_heard = true;
                self.teller.open();
                return Ok(None);
            }
            ToRouter::Hello { version, .. } => return Err(LineError::Version(*version)),
            // Hello comes first; without it this is something else.
            _ if !self.was_heard && self.followed.is_empty() => return Err(LineError::Version(0)),
            ToRouter::Warmed { ticket, tokens, .. } => {
                self.shard.cluster.warming.answer(&self.address, *ticket, *tokens);
                return Ok(None);
            }
            other => other.worker().unwrap_or_default().to_owned(),
        };
        let shard = Rc::clone(&self.shard);
        let stats = &shard.stats;
        let Some(followed) = self.followed(&worker) else {
            return Ok(None);
        };
        if let ToRouter::Others { load, routers, .. } = frame {
            followed.life.others.hear(load, routers, shard.cluster.now_ms());
            return Ok(None);
        }
        if let ToRouter::Warmable { block_tokens, .. } = frame {
            followed.life.warmable.hear(block_tokens, shard.cluster.now_ms());
            return Ok(None);
        }
        let index =
            shard.cluster.held_or_new().map_err(|error| LineError::Index(error.to_string()))?;
        stats.kv_feed_frames.inc();
        let number = WorkerNumber(followed.life.cache.number());
        let has_ended = matches!(frame, ToRouter::Gone { .. });
        let (epoch, _) = followed.follower.position();
        let now_ms = shard.cluster.now_ms();
        shard.cluster.predictions.settle(&followed.confirmed.due(now_ms), number.0);
        let needs = match followed.follower.take(frame) {
            Step::Nothing => None,
            Step::Apply(ops) => {
                apply(&shard, index, followed, number, ops);
                None
            }
            Step::Reset(ops) => {
                index.clear(number);
                apply(&shard, index, followed, number, ops);
                None
            }
            Step::Resync { forget } => {
                if forget {
                    index.clear(number);
                }
                stats.kv_feed_resyncs.inc();
                Some(worker)
            }
        };
        let follower = &followed.follower;
        if has_ended || follower.position().0 != epoch {
            followed.life.predicted_since_ms.store(now_ms, Relaxed);
        }
        let (known, position) = (follower.known(), follower.position());
        followed.life.feed.hear(known, follower.block_tokens(), position, now_ms);
        Ok(needs)
    }

    /// The worker of that id, if the picture in force has it behind this agent. One that left and came
    /// back is another one: nothing of it is in the index.
    fn followed(&mut self, worker: &str) -> Option<&mut Followed> {
        let view = self.shard.cluster.view();
        let mut workers = view.workers();
        let found = workers.find(|view| {
            view.worker.id == worker && view.worker.kv_feed.as_deref() == Some(&*self.address)
        });
        let Some(found) = found else {
            self.followed.remove(worker);
            return None;
        };
        let is_new = self
            .followed
            .get(worker)
            .is_none_or(|followed| !Arc::ptr_eq(&followed.life, &found.life));
        if is_new {
            let life = Arc::clone(&found.life);
            let fresh =
                Followed { life, follower: Follower::default(), confirmed: Confirmed::default() };
            self.followed.insert(worker.to_owned(), fresh);
        }
        self.followed.get_mut(worker)
    }
}

/// Makes the changes, each in the index and against what was predicted.
fn apply(
    shard: &Shard,
    index: &Index,
    followed: &mut Followed,
    worker: WorkerNumber,
    ops: Vec<Op>,
) {
    for op in ops {
        match op {
            Op::Set { level, digests } => {
                shard.stats.kv_blocks_set.inc_by(digests.len() as u64);
                index.set(worker, level, &digests);
                followed.confirmed.add(&digests);
            }
            Op::Remove { digests } => {
                shard.stats.kv_blocks_removed.inc_by(digests.len() as u64);
                index.remove(worker, &digests);
                shard.cluster.predictions.settle(&digests, worker.0);
            }
            Op::Clear => {
                index.clear(worker);
                followed.life.predicted_since_ms.store(shard.cluster.now_ms(), Relaxed);
            }
        }
    }
}

/// Says hello, then whatever there is to say.
async fn tell(mut stream: impl AsyncWriteRent, teller: &Teller) -> Result<Infallible, LineError> {
    let hello = ToAgent::Hello { version: VERSION, process: "cgn-router".to_owned() };
    let mut bytes = encode(&hello);
    loop {
        let written = write_all(&mut stream, &mut bytes);
        monoio::time::timeout(SILENCE_MAX, written).await.map_err(|_| LineError::Deaf)??;
        bytes = teller.taken().await;
    }
}
