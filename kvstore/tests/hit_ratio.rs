//! How many blocks of a real trace are found in a cache of a given size: our order of eviction beside ARC
//! and S3-FIFO as their papers have them, LRU, and the best that could be done by who knows the future.
//!
//! A request looks up its leading blocks, one after the other up to the first that is missing, and then
//! stores all that were missing. What was found is the hits. All blocks have the same size.
//!
//! Skipped where the trace is not there: `../shared/data/mooncake_conversation.jsonl`, or the file that
//! `CGN_MOONCAKE_TRACE` names.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "hit_ratio/arc.rs"]
mod arc;
#[path = "hit_ratio/belady.rs"]
mod belady;
#[path = "hit_ratio/lru.rs"]
mod lru;
#[path = "hit_ratio/ours.rs"]
mod ours;
#[path = "hit_ratio/s3_fifo.rs"]
mod s3_fifo;
#[path = "hit_ratio/trace.rs"]
mod trace;

use std::collections::HashSet;
use std::path::Path;

use trace::Request;

/// A cache of blocks of one size.
trait Cache {
    fn has(&self, block: u64) -> bool;
    /// Blocks `..found` of the request were found; the others are stored.
    fn serve(&mut self, request: &[u64], found: usize);
}

fn found(cache: &dyn Cache, request: &[u64]) -> usize {
    request.iter().take_while(|&&block| cache.has(block)).count()
}

/// Leading blocks that were there, over all requests.
fn hits(mut cache: impl Cache, requests: &[Request]) -> u64 {
    let serve = |request: &Request| {
        let found = found(&cache, request);
        cache.serve(request, found);
        found as u64
    };
    requests.iter().map(serve).sum()
}

/// Hits at one size of cache.
struct Row {
    percent: usize,
    ours: u64,
    /// With eight shards.
    ours_8: u64,
    arc: u64,
    /// Moved to the main queue after two uses, as in the paper, and after one, as many have it.
    s3_fifo: [u64; 2],
    lru: u64,
    belady: u64,
}

impl Row {
    fn of(requests: &[Request], unique: usize, percent: usize) -> Row {
        let capacity = unique * percent / 100;
        Row {
            percent,
            ours: hits(ours::Ours::new(capacity, 1), requests),
            ours_8: hits(ours::Ours::new(capacity, 8), requests),
            arc: hits(arc::Arc::new(capacity), requests),
            s3_fifo: [2, 1].map(|uses| hits(s3_fifo::S3Fifo::new(capacity, uses), requests)),
            lru: hits(lru::Lru::new(capacity), requests),
            belady: belady::hits(capacity, requests),
        }
    }

    fn better(&self) -> u64 {
        self.arc.max(self.s3_fifo[0]).max(self.s3_fifo[1])
    }

    /// A row of the page's table.
    fn print(&self, blocks: usize) {
        let share = |hits: u64| format!("{:.1} %", hits as f64 * 100.0 / blocks as f64);
        let cells = [
            self.ours,
            self.ours_8,
            self.arc,
            self.s3_fifo[0],
            self.s3_fifo[1],
            self.lru,
            self.belady,
        ];
        println!(
            "| {} % | {} | {:.3} | {:.3} |",
            self.percent,
            cells.map(share).join(" | "),
            self.ours as f64 / self.better() as f64,
            self.ours as f64 / self.belady as f64,
        );
    }
}

#[test]
fn as_many_hits_as_the_better_of_arc_and_s3_fifo() {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let beside = beside.join("mooncake_conversation.jsonl");
    let path = std::env::var_os("CGN_MOONCAKE_TRACE").map_or(beside, Into::into);
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("skipped: no trace at {} (or name it in CGN_MOONCAKE_TRACE)", path.display());
        return;
    };
    let requests = trace::read(&text);
    let blocks = requests.iter().map(Vec::len).sum();
    let unique = requests.iter().flatten().collect::<HashSet<_>>().len();
    println!("{} requests, {blocks} blocks, {unique} unique", requests.len());
    println!(
        "| cache | ours | ours, 8 shards | ARC | S3-FIFO | S3-FIFO (1) | LRU | Belady | of the better | of Belady |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for percent in [10, 25, 50] {
        let row = Row::of(&requests, unique, percent);
        row.print(blocks);
        assert!(row.ours as f64 >= 0.97 * row.better() as f64, "at {percent} %");
        assert!(row.ours <= row.belady, "no one beats who knows the future");
    }
}

/// Hot blocks between runs of blocks that come once.
#[test]
fn scans_push_out_what_was_scanned() {
    let scanned = trace::hot_and_scans(200_000);
    let [ours, arc, s3_fifo, lru] = [
        hits(ours::Ours::new(2_000, 1), &scanned),
        hits(arc::Arc::new(2_000), &scanned),
        hits(s3_fifo::S3Fifo::new(2_000, 2), &scanned),
        hits(lru::Lru::new(2_000), &scanned),
    ];
    println!("ours {ours}, ARC {arc}, S3-FIFO {s3_fifo}, LRU {lru} of {}", scanned.len());
    assert!(ours as f64 >= 0.95 * arc.max(s3_fifo) as f64);
    assert!(ours as f64 >= 1.15 * lru as f64);
}

#[test]
fn the_references_do_what_their_papers_say() {
    // Twice each of two blocks, then a scan: LRU loses both, the others keep them.
    let scan = [1, 1, 2, 2, 1, 2].into_iter().chain(10..30).chain([1, 2]);
    let requests: Vec<Request> = scan.map(|block| vec![block]).collect();
    assert_eq!(hits(lru::Lru::new(10), &requests), 4);
    assert_eq!(hits(arc::Arc::new(10), &requests), 6);
    assert_eq!(hits(s3_fifo::S3Fifo::new(10, 2), &requests), 6);
    assert_eq!(belady::hits(3, &requests), 6);
    // A loop one longer than the cache: LRU finds nothing, the best keeps all but one.
    let round = (0..100).map(|at| vec![at % 5]).collect::<Vec<Request>>();
    assert_eq!(hits(lru::Lru::new(4), &round), 0);
    let best = belady::hits(4, &round);
    assert!((70..80).contains(&best), "{best}");
}
