//! The rivals behind one face: prepare outside the clock, apply and look up inside.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::digest::Digest;
use dataplane::route::index::{Depths, Index, Level, Limits, WorkerNumber};
use dynamo_kv_router::concurrent_radix_tree_compressed::ConcurrentRadixTreeCompressed;
use dynamo_kv_router::protocols::{
    ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData, KvCacheStoreData,
    KvCacheStoredBlockData, LocalBlockHash, OverlapScores, RouterEvent, compute_seq_hash_for_block,
};
use dynamo_kv_router::{PositionalIndexer, RadixTree, SyncIndexer, ThreadPoolIndexer};

use crate::workload::{Change, Workload, mix};

/// Who waits for a batch to be applied.
type Done = std::sync::mpsc::Sender<()>;
/// Changes handed over together to the thread that applies ours.
type Batch = Vec<(WorkerNumber, bool, Vec<u128>)>;

pub trait Rival {
    /// Applies changes and waits until they are in; the time is that of this alone.
    fn apply(&mut self, workload: &Workload, changes: &[Change]) -> Duration;
    /// Hands changes over to be applied beside lookups, as far as the rival can.
    fn feed(&mut self, workload: &Workload, changes: &[Change]);
    /// Waits until what was handed over is in.
    fn settle(&mut self);
    /// One lookup: its time and the greatest depth.
    fn lookup(&mut self, prefixes: &[u64]) -> (Duration, u32);
}

pub fn rival(name: &str, workload: &Workload, threads: usize) -> Box<dyn Rival> {
    let runtime = || tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    match name {
        "ours" => Box::new(Ours::new(workload)),
        "radix" => Box::new(Radix(RadixTree::new(), Vec::new(), Chains::default())),
        "crtc" => Box::new(Pool {
            pool: ThreadPoolIndexer::new(ConcurrentRadixTreeCompressed::new(), threads, 16),
            runtime: runtime(),
            query: Vec::new(),
            chains: Chains::default(),
        }),
        "positional" => Box::new(Pool {
            pool: ThreadPoolIndexer::new(PositionalIndexer::new(64), threads, 16),
            runtime: runtime(),
            query: Vec::new(),
            chains: Chains::default(),
        }),
        _ => panic!("no rival is named {name}"),
    }
}

/// A digest of a prefix that has a name already.
fn digest(prefix: u64) -> Digest {
    let mut bytes = [0; 32];
    for (at, chunk) in bytes.chunks_exact_mut(8).enumerate() {
        chunk.copy_from_slice(&mix(prefix ^ (at as u64) << 60).to_le_bytes());
    }
    Digest(bytes)
}

struct Ours {
    index: Arc<Index>,
    depths: Depths,
    query: Vec<Digest>,
    feed: std::sync::mpsc::Sender<(Batch, Option<Done>)>,
}

impl Ours {
    fn new(workload: &Workload) -> Self {
        let blocks_max = workload.held as usize;
        let limits = Limits { blocks_max, workers_max: workload.workers as usize };
        let index = Arc::new(Index::new(limits, 0x5eed).expect("limits"));
        let (feed, changes) = std::sync::mpsc::channel::<(Batch, Option<Done>)>();
        let applied = index.clone();
        std::thread::spawn(move || {
            for (batch, done) in changes {
                apply(&applied, &batch);
                done.map(|done| done.send(()));
            }
        });
        Ours { index, depths: Depths::new(), query: Vec::new(), feed }
    }

    fn batch(workload: &Workload, changes: &[Change]) -> Batch {
        let digests = |change: &Change| {
            let run = change.from..change.to;
            run.map(|at| digest(workload.prefix(change.conversation, at)).short()).collect()
        };
        let all = changes.iter();
        all.map(|change| (WorkerNumber(change.worker), change.is_store, digests(change))).collect()
    }
}

fn apply(index: &Index, batch: &Batch) {
    for (worker, is_store, digests) in batch {
        if *is_store {
            index.set(*worker, Level::Gpu, digests);
        } else {
            index.remove(*worker, digests);
        }
    }
}

impl Rival for Ours {
    fn apply(&mut self, workload: &Workload, changes: &[Change]) -> Duration {
        let batch = Self::batch(workload, changes);
        let start = Instant::now();
        apply(&self.index, &batch);
        let time = start.elapsed();
        assert_eq!(self.index.refused(), 0);
        time
    }

    fn feed(&mut self, workload: &Workload, changes: &[Change]) {
        self.feed.send((Self::batch(workload, changes), None)).expect("the applier lives");
    }

    fn settle(&mut self) {
        let (done, is_done) = std::sync::mpsc::channel();
        self.feed.send((Batch::new(), Some(done))).expect("the applier lives");
        is_done.recv().expect("the applier lives");
        assert_eq!(self.index.gave_up(), 0);
    }

    fn lookup(&mut self, prefixes: &[u64]) -> (Duration, u32) {
        self.query.clear();
        self.query.extend(prefixes.iter().map(|&prefix| digest(prefix)));
        let start = Instant::now();
        self.index.lookup(&self.query, &mut self.depths);
        let time = start.elapsed();
        let best = self.depths.workers().iter().map(|depth| depth.blocks[0]).max();
        (time, best.unwrap_or(0))
    }
}

fn local(prefix: u64) -> LocalBlockHash {
    LocalBlockHash(mix(prefix ^ 1 << 60))
}

/// The engines' hashes, as its positional index expects them: chained by its own rule.
#[derive(Default)]
struct Chains {
    /// The last block's of a conversation and the one's behind it, for changes of that one.
    ends: HashMap<u32, [u64; 2]>,
}

impl Chains {
    /// Those of a run, and that of its parent if it has one.
    fn run(&mut self, workload: &Workload, change: &Change) -> (Option<u64>, Vec<u64>) {
        let whole = |to: u32| {
            let locals: Vec<LocalBlockHash> =
                (0..to).map(|at| local(workload.prefix(change.conversation, at))).collect();
            compute_seq_hash_for_block(&locals)
        };
        if change.from == workload.conversation_blocks {
            let ends = self.ends.entry(change.conversation).or_insert_with(|| {
                let all = whole(change.to);
                [all[all.len() - 2], all[all.len() - 1]]
            });
            return (Some(ends[0]), vec![ends[1]]);
        }
        let mut all = whole(change.to);
        let run = all.split_off(change.from as usize);
        (all.last().copied(), run)
    }

    fn event(&mut self, workload: &Workload, change: &Change) -> RouterEvent {
        let (parent, run) = self.run(workload, change);
        let data = if change.is_store {
            KvCacheEventData::Stored(KvCacheStoreData {
                parent_hash: parent.map(ExternalSequenceBlockHash),
                start_position: Some(change.from),
                blocks: (change.from..change.to)
                    .zip(run)
                    .map(|(at, hash)| KvCacheStoredBlockData {
                        block_hash: ExternalSequenceBlockHash(hash),
                        tokens_hash: local(workload.prefix(change.conversation, at)),
                        mm_extra_info: None,
                    })
                    .collect(),
            })
        } else {
            let block_hashes = run.into_iter().map(ExternalSequenceBlockHash).collect();
            KvCacheEventData::Removed(KvCacheRemoveData { block_hashes })
        };
        RouterEvent::new(u64::from(change.worker), KvCacheEvent { event_id: 0, data, dp_rank: 0 })
    }

    fn events(&mut self, workload: &Workload, changes: &[Change]) -> Vec<RouterEvent> {
        changes.iter().map(|change| self.event(workload, change)).collect()
    }
}

fn best(scores: &OverlapScores) -> u32 {
    scores.scores.values().copied().max().unwrap_or(0)
}

struct Radix(RadixTree, Vec<LocalBlockHash>, Chains);

impl Rival for Radix {
    fn apply(&mut self, workload: &Workload, changes: &[Change]) -> Duration {
        let events = self.2.events(workload, changes);
        let start = Instant::now();
        for event in events {
            self.0.apply_event(event).expect("a sound event");
        }
        start.elapsed()
    }

    /// It has no other thread: events are applied between lookups, and the clock stands.
    fn feed(&mut self, workload: &Workload, changes: &[Change]) {
        self.apply(workload, changes);
    }

    fn settle(&mut self) {}

    fn lookup(&mut self, prefixes: &[u64]) -> (Duration, u32) {
        self.1.clear();
        self.1.extend(prefixes.iter().map(|&prefix| local(prefix)));
        let query = self.1.clone();
        let start = Instant::now();
        let found = self.0.find_matches(query, false);
        (start.elapsed(), best(&found))
    }
}

struct Pool<T: SyncIndexer> {
    pool: ThreadPoolIndexer<T>,
    runtime: tokio::runtime::Runtime,
    query: Vec<LocalBlockHash>,
    chains: Chains,
}

impl<T: SyncIndexer> Rival for Pool<T> {
    fn apply(&mut self, workload: &Workload, changes: &[Change]) -> Duration {
        let events = self.chains.events(workload, changes);
        let start = Instant::now();
        for event in events {
            self.pool.enqueue_event(event).expect("the pool lives");
        }
        self.settle();
        start.elapsed()
    }

    fn feed(&mut self, workload: &Workload, changes: &[Change]) {
        for event in self.chains.events(workload, changes) {
            self.pool.enqueue_event(event).expect("the pool lives");
        }
    }

    fn settle(&mut self) {
        self.runtime.block_on(self.pool.flush_and_wait()).expect("the pool lives");
    }

    fn lookup(&mut self, prefixes: &[u64]) -> (Duration, u32) {
        self.query.clear();
        self.query.extend(prefixes.iter().map(|&prefix| local(prefix)));
        let start = Instant::now();
        let found = self.pool.backend().find_matches(&self.query, false);
        (start.elapsed(), best(&found))
    }
}
