//! What routing by text costs a request: naming the prompt's prefix and asking the index about it.
//!
//! `cargo bench --workspace --bench prefix` prints one row per case: the least and the median time of
//! many requests, by themselves, on one core. The proxy benchmark shows the same within the router.

use std::hint::black_box;
use std::time::Instant;

use dataplane::digest::{Unit, of_text, seed};
use dataplane::route::worker_cache::WorkerCache;
use router::index::PrefixIndex;

/// As the router's defaults.
const BLOCK_BYTES: usize = 512;
const INDEX_BLOCKS_MAX: usize = 1 << 20;
const WORKER_BLOCKS: u64 = 16_384;
const REQUESTS: usize = 4_000;

fn main() {
    println!("| case | name, min µs | index, min µs | name, median µs | index, median µs |");
    println!("|---|--:|--:|--:|--:|");
    for (kb, new_kb) in [(1, 0), (32, 0), (32, 1), (32, 32), (240, 0), (240, 4), (240, 240)] {
        for workers in [2, 16] {
            case(kb << 10, new_kb << 10, workers);
        }
    }
}

/// Prompts of `bytes`; the last `new_bytes` of each are unlike those of any before. Conversations
/// are 64, in turn, and each goes to the worker of its number.
fn case(bytes: usize, new_bytes: usize, workers: u32) {
    let index = PrefixIndex::new(INDEX_BLOCKS_MAX);
    let caches: Vec<WorkerCache> =
        (0..workers).map(|n| WorkerCache::new(n, WORKER_BLOCKS)).collect();
    let asked: Vec<Option<&WorkerCache>> = caches.iter().map(Some).collect();
    let mut texts: Vec<Vec<u8>> = (0..64).map(|seed| words(seed, bytes)).collect();
    let (mut naming, mut asking) = (Vec::new(), Vec::new());
    for request in 0..REQUESTS {
        let conversation = request % texts.len();
        let text = &mut texts[conversation];
        let fresh = words(1_000 + request as u64, new_bytes);
        text[bytes - new_bytes..].copy_from_slice(&fresh);
        let started = Instant::now();
        let digests = of_text(&seed(Unit::Text, "m", "", ""), black_box(text), BLOCK_BYTES);
        let named = Instant::now();
        let to = conversation % caches.len();
        let matched = index.depths(&digests, &asked)[to];
        index.insert(&digests, matched, &caches[to]);
        let ended = Instant::now();
        // The first round fills the index.
        if request >= texts.len() {
            naming.push((named - started).as_secs_f64() * 1e6);
            asking.push((ended - named).as_secs_f64() * 1e6);
        }
    }
    let (name, index) = (Spread::of(naming), Spread::of(asking));
    println!(
        "| {} KB, {} KB new, {workers} workers | {:.1} | {:.1} | {:.1} | {:.1} |",
        bytes >> 10,
        new_bytes >> 10,
        name.min,
        index.min,
        name.median,
        index.median
    );
}

struct Spread {
    min: f64,
    median: f64,
}

impl Spread {
    fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        Spread { min: times[0], median: times[times.len() / 2] }
    }
}

/// Bytes that no other seed gives.
fn words(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[7]
    };
    std::iter::repeat_with(next).take(bytes).collect()
}
