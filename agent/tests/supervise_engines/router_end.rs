//! A router's end of the feed, with nothing behind it.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use dataplane::feed::{Decoder, Follower, Known, Op, Step, ToAgent, ToRouter, VERSION, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
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
