//! The race of the prefix index against those of `dynamo-kv-router`.
//!
//! `cargo run --release` runs all columns; `-- --held 1000000 --workers 64 --tokens 4096` picks some. Each
//! rival runs each column in a process of its own, so memory is that process's growth. It prints
//! a Markdown table; times are of the lookup alone, with the query's hashes at hand.

use std::process::Command;
use std::time::{Duration, Instant};

mod digests;
mod rivals;
mod workload;

use rivals::{Rival, rival};
use workload::{Change, Random, Workload};

const RIVALS: [&str; 4] = ["ours", "radix", "crtc", "positional"];
/// Events that the lookups run beside, each of one block.
const EVENTS_PER_S: f64 = 500_000.0;
/// Lookups are timed for so long in each column.
const LOOKUPS_S: f64 = 1.5;
/// Changes applied in one go while the clock runs; their preparation is outside it.
const BATCH: usize = 512;
/// Events of one block whose rate is taken.
const SINGLES: usize = 400_000;

/// What one rival did in one column, as it crosses the pipe: numbers in this order.
const FIELDS: usize = 10;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [name, held, tokens, workers] = &arguments[..]
        && name != "--held"
        && !name.starts_with("--")
    {
        return run(name, number(held), number(tokens) as u32, number(workers) as u32);
    }
    let chosen = |option: &str, all: &[u64]| -> Vec<u64> {
        let at = arguments.iter().position(|argument| argument == option);
        at.map_or(all.to_vec(), |at| arguments[at + 1].split(',').map(number).collect())
    };
    digests::report();
    head();
    for held in chosen("--held", &[1_000_000, 10_000_000]) {
        for tokens in chosen("--tokens", &[4_096, 65_536]) {
            for workers in chosen("--workers", &[64, 1_024]) {
                column(held, tokens, workers);
            }
        }
    }
}

fn number(text: &str) -> u64 {
    text.parse().expect("a number")
}

fn head() {
    println!(
        "| blocks held | tokens | workers | index | p50 ns | p99 ns | hit p50 | miss p50 | beside events: p50 | p99 | events/s | blocks/s in runs | events/s of one | bytes/block |"
    );
    println!("|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
}

fn column(held: u64, tokens: u64, workers: u64) {
    let results: Vec<Vec<f64>> = RIVALS
        .iter()
        .map(|name| {
            let own = std::env::current_exe().expect("a path");
            let arguments = [name.to_string(), held.to_string(), tokens.to_string()];
            let output = Command::new(own).args(arguments).arg(workers.to_string()).output();
            let output = output.expect("a process");
            if !output.status.success() {
                eprintln!("{name}: {}", String::from_utf8_lossy(&output.stderr));
            }
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
        })
        .collect();
    for (name, result) in RIVALS.iter().zip(&results) {
        let cells: Vec<String> = result.iter().map(|value| cell(*value)).collect();
        println!("| {held} | {tokens} | {workers} | {name} | {} |", cells.join(" | "));
    }
    let ratios = (0..FIELDS).map(|at| {
        let all = results[1..].iter().filter_map(|result| result.get(at).copied());
        let is_rate = (6..9).contains(&at);
        let best = all.reduce(|a, b| if is_rate { a.max(b) } else { a.min(b) });
        let ours = results[0].get(at).copied();
        ours.zip(best).map_or("–".into(), |(ours, best)| format!("**{:.2}**", ours / best))
    });
    let ratios: Vec<String> = ratios.collect();
    println!("| | | | ours ÷ its best | {} |", ratios.join(" | "));
}

fn cell(value: f64) -> String {
    if value >= 1e6 { format!("{:.2} M", value / 1e6) } else { format!("{value:.0}") }
}

/// One rival in one column, in this process.
fn run(name: &str, held: u64, tokens: u32, workers: u32) {
    let workload = Workload::new(held, tokens / 16, workers);
    let before = resident_bytes();
    let mut index = rival(name, &workload, 2);
    let filling = fill(&mut *index, &workload);
    let bytes = resident_bytes() - before;
    let alone = lookups(&mut *index, &workload, 0.0);
    let singles: Vec<Change> = workload.churn().take(SINGLES).collect();
    let time: Duration = singles.chunks(BATCH).map(|batch| index.apply(&workload, batch)).sum();
    let singles_per_s = SINGLES as f64 / time.as_secs_f64();
    // The churn goes on where it was: every second change of a conversation takes back the first.
    let beside = lookups(&mut *index, &workload, EVENTS_PER_S);
    let [p50, p99, hit, miss, _] = alone;
    let [beside_p50, beside_p99, _, _, rate] = beside;
    let runs = workload.held as f64 / filling;
    let bytes = bytes as f64 / workload.held as f64;
    println!(
        "{p50} {p99} {hit} {miss} {beside_p50} {beside_p99} {rate} {runs} {singles_per_s} {bytes}"
    );
}

/// Returns the seconds that applying took.
fn fill(index: &mut dyn Rival, workload: &Workload) -> f64 {
    let mut time = Duration::ZERO;
    let mut batch = Vec::with_capacity(BATCH);
    for change in workload.fill() {
        batch.push(change);
        if batch.len() == BATCH {
            time += index.apply(workload, &batch);
            batch.clear();
        }
    }
    (time + index.apply(workload, &batch)).as_secs_f64()
}

/// p50, p99, p50 of hits, p50 of misses in nanoseconds, and the events a second that came beside.
fn lookups(index: &mut dyn Rival, workload: &Workload, events_per_s: f64) -> [f64; 5] {
    let (mut random, mut prefixes) = (Random(3), Vec::new());
    let (mut hits, mut misses) = (Vec::new(), Vec::new());
    // The churn of the rate before: it ended with SINGLES changes.
    let mut churn = workload.churn().skip(SINGLES);
    let (start, mut fed) = (Instant::now(), 0);
    while start.elapsed().as_secs_f64() < LOOKUPS_S {
        let due = (start.elapsed().as_secs_f64() * events_per_s) as usize;
        if due > fed {
            let changes: Vec<Change> = churn.by_ref().take(due - fed).collect();
            index.feed(workload, &changes);
            fed = due;
        }
        let depth = workload.query(&mut random, &mut prefixes);
        let (time, found) = index.lookup(&prefixes);
        assert_eq!(found, depth, "a wrong answer");
        let times = if depth > 0 { &mut hits } else { &mut misses };
        times.push(time.as_nanos() as f64);
    }
    index.settle();
    let rate = fed as f64 / start.elapsed().as_secs_f64();
    let mut all: Vec<f64> = hits.iter().chain(&misses).copied().collect();
    let at = |times: &mut Vec<f64>, share: f64| {
        times.sort_by(f64::total_cmp);
        times[((times.len() - 1) as f64 * share) as usize]
    };
    [at(&mut all, 0.5), at(&mut all, 0.99), at(&mut hits, 0.5), at(&mut misses, 0.5), rate]
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("pages");
    pages * 4_096
}
