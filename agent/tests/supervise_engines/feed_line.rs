//! A router's end of the feed, and a line that does not do it justice.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dataplane::feed::{Decoder, FRAME_HEAD_BYTES, Follower, Known, Op, Step, ToAgent, ToRouter};
use dataplane::feed::{VERSION, decode, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// What a router knows of one worker.
#[derive(Clone, Debug)]
pub struct Followed {
    pub held: BTreeSet<u128>,
    pub epoch: u64,
    pub known: Known,
    pub block_tokens: u32,
}

type Workers = Arc<Mutex<HashMap<String, (Follower, BTreeSet<u128>)>>>;

/// Follows every worker it hears of. It hangs up when it is dropped.
pub struct Router {
    workers: Workers,
    task: JoinHandle<()>,
}

impl Router {
    pub fn dial(feed: PathBuf) -> Router {
        let workers = Workers::default();
        let task = tokio::spawn(follow(feed, Arc::clone(&workers)));
        Router { workers, task }
    }

    pub fn followed(&self, worker: &str) -> Followed {
        let workers = self.workers.lock().unwrap();
        let (follower, held) = workers.get(worker).cloned().unwrap_or_default();
        // Behind the last batch it holds what it held then.
        Followed {
            held,
            epoch: follower.position().0,
            known: follower.known(),
            block_tokens: follower.block_tokens(),
        }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(feed: PathBuf, workers: Workers) {
    let (mut read, mut write) = UnixStream::connect(feed).await.unwrap().into_split();
    let hello = ToAgent::Hello { version: VERSION, process: "test".into() };
    write.write_all(&encode(&hello)).await.unwrap();
    let mut decoder = Decoder::default();
    let mut bytes = vec![0; 65_536];
    let mut wanted = BTreeSet::new();
    loop {
        let count = read.read(&mut bytes).await.unwrap();
        assert!(count > 0, "the agent hung up");
        decoder.push(&bytes[..count]);
        while let Some(frame) = decoder.poll_message::<ToRouter>().unwrap() {
            let Some(worker) = frame.worker().map(str::to_owned) else { continue };
            let is_missing = take(frame, &worker, &workers);
            if wanted.insert(worker.clone()) || is_missing {
                write.write_all(&encode(&ToAgent::Want { worker })).await.unwrap();
            }
        }
    }
}

/// Says whether something is missing.
fn take(frame: ToRouter, worker: &str, workers: &Workers) -> bool {
    let mut workers = workers.lock().unwrap();
    let (follower, held) = workers.entry(worker.to_owned()).or_default();
    let ops = match follower.take(frame) {
        Step::Nothing => vec![],
        Step::Apply(ops) => ops,
        Step::Reset(ops) => {
            held.clear();
            ops
        }
        Step::Resync { forget } => {
            if forget {
                held.clear();
            }
            return true;
        }
    };
    for op in ops {
        match op {
            Op::Set { digests, .. } => held.extend(digests),
            Op::Remove { digests } => held.retain(|digest| !digests.contains(digest)),
            Op::Clear => held.clear(),
        }
    }
    false
}

/// A line to the feed; it stands while this is held.
pub struct Line {
    pub path: PathBuf,
    harmed: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Line {
    /// Frames that did not pass as they should.
    pub fn harmed(&self) -> u32 {
        self.harmed.load(Relaxed)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens at `path` and passes on to `feed`; of a hundred frames to the router, `percent` are dropped,
/// doubled or late.
pub fn troubled(feed: PathBuf, path: PathBuf, seed: u64, percent: u64) -> Line {
    let listener = UnixListener::bind(&path).unwrap();
    let harmed = Arc::<AtomicU32>::default();
    let counted = Arc::clone(&harmed);
    let task = tokio::spawn(async move {
        let mut seed = seed;
        loop {
            let (router, _) = listener.accept().await.unwrap();
            let (from_router, to_router) = router.into_split();
            let (from_agent, to_agent) = UnixStream::connect(&feed).await.unwrap().into_split();
            tokio::spawn(pass(from_router, to_agent));
            seed += 100;
            let chance = Chance { state: seed, percent };
            tokio::spawn(harm(from_agent, to_router, chance, Arc::clone(&counted)));
        }
    });
    Line { path, harmed, task }
}

async fn pass(mut read: OwnedReadHalf, mut write: OwnedWriteHalf) {
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

/// A generator of small numbers (SplitMix64).
struct Chance {
    state: u64,
    percent: u64,
}

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn is_unlucky(&mut self) -> bool {
        self.below(100) < self.percent
    }
}

async fn harm(
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
    mut chance: Chance,
    harmed: Arc<AtomicU32>,
) {
    let mut decoder = Decoder::default();
    let mut bytes = vec![0; 65_536];
    // Frames that are late, with how many pass before them.
    let mut late: Vec<(u64, Vec<u8>)> = Vec::new();
    loop {
        let heard = tokio::time::timeout(Duration::from_millis(300), read.read(&mut bytes)).await;
        let mut out = Vec::new();
        match heard {
            Ok(Ok(count)) if count > 0 => decoder.push(&bytes[..count]),
            Ok(_) => return,
            // It is quiet: what is late has come.
            Err(_) => late.drain(..).for_each(|(_, frame)| out.extend(frame)),
        }
        while let Some(payload) = decoder.poll_payload().unwrap() {
            let message = decode::<ToRouter>(payload).unwrap();
            let frame = encode(&message);
            assert_eq!(&frame[FRAME_HEAD_BYTES..], payload);
            let is_passed = matches!(message, ToRouter::Hello { .. }) || !chance.is_unlucky();
            if is_passed {
                out.extend_from_slice(&frame);
            } else {
                harmed.fetch_add(1, Relaxed);
                match chance.below(3) {
                    0 => {}
                    1 => out.extend([frame.clone(), frame].concat()),
                    _ => late.push((1 + chance.below(8), frame)),
                }
            }
            late.iter_mut().for_each(|(left, _)| *left -= 1);
            late.retain(|(left, frame)| {
                if *left == 0 {
                    out.extend_from_slice(frame);
                }
                *left > 0
            });
        }
        if write.write_all(&out).await.is_err() {
            return;
        }
    }
}
