//! What deciding costs a request whose prompt was seen before: its digests put together from what the
//! cache of tokens keeps, the match at every worker, the candidates, the pick, and the prediction noted.
//!
//! `cargo bench --workspace --bench decision` prints one row per case, on one core. The functions are
//! those that a request calls; only the worker's in-flight counts are not moved. Beside each stands what the
//! machine itself adds: the 99th percentile of a loop that does nothing for as long as the median.

use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use dataplane::digest::Digest;
use dataplane::feed::Known;
use dataplane::route::index::{Level, WorkerNumber};
use dataplane::route::pick::{self, shuffle};
use dataplane::wire::{Capability, EngineKind, Snapshot, Worker, WorkerState};
use router::candidates::{self, Tried, gather};
use router::cluster::{Cluster, ModelView};
use router::config::Router;
use router::front::Front;
use router::hall::Bells;
use router::identity::Identity;
use router::openai::Endpoint;
use router::overlap;
use router::record::Recorder;
use router::shard::{Shard, Shared};
use router::stats::Stats;
use router::steering::{self, Steering};
use router::tokenize::Prefix;
use router::tokenizer::joined;
use router::tokenizer::shelf::Shelf;
use router::trace::context::{Ids, Sampler};
use router::trace::outbox::Outbox;

/// As the router's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BLOCK_TOKENS: usize = 16;
/// System prompts, that begin all conversations, and their length.
const SYSTEMS: u64 = 64;
const SYSTEM_BLOCKS: u32 = 128;
/// Decisions timed in each case; the first [`WARM_UP`] are not.
const DECISIONS: usize = 20_000;
const WARM_UP: usize = 1_000;
/// Digests of one piece between two cuts of a text, as its cache keeps them.
const PIECE_BLOCKS: usize = 64;

fn main() {
    println!(
        "| workers | tokens | blocks held | who holds it | p50 µs | p99 µs | p99 of a bare loop | digests | match | pick | note |"
    );
    println!("|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|");
    for workers in [64, 1_024] {
        for tokens in [4_096, 65_536] {
            Case::new(workers, tokens, 1_000_000).run();
        }
    }
}

struct Case {
    shard: Rc<Shard>,
    workers: u32,
    tokens: u32,
    /// The worker of each conversation.
    places: Vec<u32>,
    held: usize,
}

impl Case {
    fn new(workers: u32, tokens: u32, held_min: usize) -> Self {
        let shard = shard(workers);
        let mut case = Case { shard, workers, tokens, places: Vec::new(), held: 0 };
        case.fill(held_min);
        case
    }

    /// Conversations, each at one worker, until so many blocks are held.
    fn fill(&mut self, held_min: usize) {
        let cluster = Arc::clone(&self.shard.cluster);
        let index = cluster.held_or_new().expect("limits");
        let mut numbers = vec![WorkerNumber(0); self.workers as usize];
        for (number, view) in numbers.iter_mut().zip(&cluster.view().models["m"].workers) {
            *number = WorkerNumber(view.life.cache.number());
            view.life.feed.hear(Known::Whole, BLOCK_TOKENS as u32, (1, 1), self.shard.now_ms());
        }
        let blocks = self.tokens / BLOCK_TOKENS as u32;
        // Engines hold the system prompts they ever saw.
        for (number, system) in numbers.iter().flat_map(|n| (0..SYSTEMS).map(move |s| (*n, s))) {
            let digests: Vec<u128> =
                (0..SYSTEM_BLOCKS).map(|at| name(system, at).short()).collect();
            index.set(number, Level::Gpu, &digests);
            self.held += digests.len();
        }
        let held_min = held_min.max(self.held + held_min / 2);
        while self.held < held_min {
            let conversation = self.places.len() as u64;
            let place = (shuffle(conversation) % u64::from(self.workers)) as u32;
            let digests: Vec<u128> = (SYSTEM_BLOCKS..blocks)
                .map(|at| name(SYSTEMS + conversation, at).short())
                .collect();
            index.set(numbers[place as usize], Level::Gpu, &digests);
            self.held += digests.len();
            self.places.push(place);
        }
        assert_eq!(index.refused(), 0);
    }

    /// The digests of a prompt that goes on in a conversation, as its cached pieces have them.
    fn pieces(&self, request: u64) -> Vec<Arc<[Digest]>> {
        let conversation = shuffle(request) % self.places.len() as u64;
        let blocks = self.tokens / BLOCK_TOKENS as u32;
        let new = 1 + (shuffle(!request) % 8) as u32;
        let of = |at: u32| match at {
            at if at < SYSTEM_BLOCKS => conversation % SYSTEMS,
            at if at < blocks - new => SYSTEMS + conversation,
            _ => u64::MAX - request,
        };
        let digests: Vec<Digest> = (0..blocks).map(|at| name(of(at), at)).collect();
        digests.chunks(PIECE_BLOCKS).map(Arc::from).collect()
    }

    fn run(&self) {
        let shard = &self.shard;
        let view = shard.cluster.view().clone();
        let model = &view.models["m"];
        let rules = steering::rules(&shard.cluster, &view, &Steering::default()).0;
        let mut times: [Vec<f64>; 5] = Default::default();
        for request in 0..DECISIONS as u64 {
            if request % 256 == 0 {
                shard.strike(Instant::now());
                let now_ms = shard.now_ms();
                for view in &model.workers {
                    view.life.feed.hear(Known::Whole, BLOCK_TOKENS as u32, (1, 1), now_ms);
                }
            }
            let pieces = self.pieces(request);
            let stamps = decide(shard, model, &rules, &pieces, u64::from(self.tokens));
            if request >= WARM_UP as u64 {
                for (times, pair) in times.iter_mut().zip(stamps.windows(2)) {
                    times.push((pair[1] - pair[0]).as_secs_f64() * 1e6);
                }
                times[4].push((stamps[4] - stamps[0]).as_secs_f64() * 1e6);
            }
        }
        let mut at = |part: usize, share: f64| {
            times[part].sort_by(f64::total_cmp);
            times[part][((times[part].len() - 1) as f64 * share) as usize]
        };
        println!(
            "| {} | {} | {} | system prompt all, rest one | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |",
            self.workers,
            self.tokens,
            self.held,
            at(4, 0.5),
            at(4, 0.99),
            bare_p99_us(at(4, 0.5)),
            at(0, 0.5),
            at(1, 0.5),
            at(2, 0.5),
            at(3, 0.5),
        );
    }
}

/// The 99th percentile of as many rounds of a loop that does nothing for `us`.
fn bare_p99_us(us: f64) -> f64 {
    let turns = |count: u32| {
        let started = Instant::now();
        for turn in 0..count {
            black_box(turn);
        }
        started.elapsed().as_secs_f64() * 1e6
    };
    // The least time is that without anything in between.
    let least = (0..200).map(|_| turns(100_000)).fold(f64::INFINITY, f64::min);
    let count = (us / least * 100_000.0) as u32;
    let mut times: Vec<f64> = (0..DECISIONS).map(|_| turns(count)).collect();
    times.sort_by(f64::total_cmp);
    times[(times.len() - 1) * 99 / 100]
}

/// As `candidates::seat` does it.
fn decide(
    shard: &Shard,
    model: &ModelView,
    rules: &pick::Rules,
    pieces: &[Arc<[Digest]>],
    tokens: u64,
) -> [Instant; 5] {
    let started = Instant::now();
    let digests = joined(pieces.iter().map(|piece| &**piece));
    let prefix = Prefix::of_tokens(digests, tokens, 0, BLOCK_TOKENS);
    let named = Instant::now();
    let request = candidates::request(shard, model, &prefix, &Steering::default());
    let (candidates, overlaps) = gather(shard, model, Endpoint::Chat, &prefix, &Tried::default());
    let matched = Instant::now();
    let picked = pick::worker(&candidates, &request, rules, shard.next_id()).expect("a worker");
    let picked_at = Instant::now();
    overlap::note(shard, &model.workers[picked.at], &prefix, &overlaps[picked.at]);
    black_box(picked);
    [started, named, matched, picked_at, Instant::now()]
}

/// The digest of a prefix, as far from all others as a hash would be.
fn name(of: u64, at: u32) -> Digest {
    let mut bytes = [0; 32];
    for (word, chunk) in bytes.chunks_exact_mut(8).enumerate() {
        let number = shuffle(of) ^ u64::from(at) << 8 ^ word as u64;
        chunk.copy_from_slice(&shuffle(number).to_le_bytes());
    }
    Digest(bytes)
}

fn shard(workers: u32) -> Rc<Shard> {
    let config = Arc::new(Router::default());
    let (bells, _) = Bells::new(1).expect("a bell");
    let cluster = Arc::new(Cluster::new(&config, Arc::new(bells)));
    let workers = (0..workers).map(worker).collect();
    cluster.apply(Snapshot { version: 1, workers, weights: None }, true);
    let shared = Shared {
        cluster,
        stats: Arc::new(Stats::new().expect("metrics")),
        identity: Arc::new(Identity::open(&config.identity, &[]).expect("no files")),
        shelf: Arc::new(Shelf::open(&[], 0).expect("no files")),
        config,
    };
    let recorder = Recorder {
        ids: Ids::new([1, 2]),
        sampler: Sampler::new(0.0),
        exports: false,
        outbox: Arc::new(Outbox::new(1)),
        access: None,
        decisions: None,
        lines: None,
        address: String::new(),
        port: 0,
    };
    Shard::new(shared, Arc::new(Front::clients()), recorder, 0, 7)
}

fn worker(number: u32) -> Worker {
    Worker {
        id: format!("node-{number}/deployment/0"),
        node: format!("node-{number}"),
        url: format!("http://127.0.0.1:{}", 10_000 + number),
        model: "m".to_owned(),
        kind: EngineKind::Vllm,
        slots: 256,
        context_length_tokens: 131_072,
        kv_cache_tokens: 1 << 20,
        capabilities: vec![Capability::Chat, Capability::Completions],
        state: WorkerState::Ready,
        epoch: 1,
        power_watts: Some(300.0 + number as f32 % 97.0),
        running_requests: None,
        kv_events: true,
        kv_feed: Some("127.0.0.1:1".to_owned()),
        kv_block_tokens: BLOCK_TOKENS as u32,
        model_files: None,
    }
}
