//! What it costs the agent to take KV events: `cargo bench --workspace --bench kv_events`.
//!
//! Batches as vLLM writes them (maps, integers for hashes, blocks of 16 tokens) are decoded, translated
//! and put into frames, on one thread, while a cache of [`HELD`] blocks is full: each stored block has
//! one removed for it. One block stored and removed counts as one.

use agent::kv_events::decode;
use agent::kv_events::writer::Writer;
use agent::sim::kv_events::{EventEncoding, EventForm, HashForm, KvEvent, encode_batch};
use dataplane::digest::{Digest, Unit, of_tokens, seed};
use dataplane::feed::encode;
use nix::sys::resource::{UsageWho, getrusage};

/// Blocks in the engine's cache.
const HELD: usize = 65_536;
/// Blocks in one prompt.
const PROMPT_BLOCKS: usize = 64;
/// Tokens in a block.
const BLOCK_TOKENS: usize = 16;
/// Prompts measured.
const PROMPTS: usize = 8_000;
/// The rate that the share of a core is given for.
const BLOCKS_PER_S: f64 = 50_000.0;

fn main() {
    let kept = HELD / PROMPT_BLOCKS;
    let payloads: Vec<Vec<u8>> = (0..kept + PROMPTS).map(|prompt| payload(prompt, kept)).collect();
    let mut writer = Writer::new("node/deployment/0", 1, "model", true, 1);
    let (filling, measured) = payloads.split_at(kept);
    let mut feed_bytes = 0;
    for payload in filling {
        take(&mut writer, payload);
    }
    let begun = cpu_s();
    for payload in measured {
        feed_bytes += take(&mut writer, payload);
    }
    let spent = cpu_s() - begun;
    assert_eq!(writer.blocks()[0] as usize, HELD);
    let blocks = (PROMPTS * PROMPT_BLOCKS) as f64;
    println!(
        "{:.0} ns a block, {:.2} % of a core at {BLOCKS_PER_S} blocks/s; {:.1} bytes from the engine, {:.1} to each router",
        spent / blocks * 1e9,
        spent / blocks * BLOCKS_PER_S * 100.0,
        measured.iter().map(Vec::len).sum::<usize>() as f64 / blocks,
        feed_bytes as f64 / blocks,
    );
}

/// CPU time of this process, which has one thread: others on the machine do not count.
fn cpu_s() -> f64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |usage| {
        let (user, system) = (usage.user_time(), usage.system_time());
        (user.tv_sec() + system.tv_sec()) as f64 + (user.tv_usec() + system.tv_usec()) as f64 / 1e6
    })
}

/// Gives the bytes for a router.
fn take(writer: &mut Writer, payload: &[u8]) -> usize {
    let Ok(batch) = decode::batch(payload) else { return 0 };
    writer.take(0, batch).iter().map(|frame| encode(frame).len()).sum()
}

/// A prompt is stored; the one that came `kept` before it is removed.
fn payload(prompt: usize, kept: usize) -> Vec<u8> {
    let mut events = vec![KvEvent::Stored {
        blocks: hashes(prompt),
        parent: None,
        tokens: tokens(prompt),
        block_tokens: BLOCK_TOKENS,
        salt: None,
    }];
    if let Some(gone) = prompt.checked_sub(kept) {
        let mut blocks = hashes(gone);
        blocks.reverse();
        events.insert(0, KvEvent::Removed { blocks });
    }
    let form = EventForm { encoding: EventEncoding::Map, hashes: HashForm::Int };
    encode_batch(1.5, &events, form).unwrap_or_default()
}

fn tokens(prompt: usize) -> Vec<u32> {
    (0..PROMPT_BLOCKS * BLOCK_TOKENS).map(|at| (prompt * 7919 + at * 31) as u32 % 128_000).collect()
}

fn hashes(prompt: usize) -> Vec<Digest> {
    of_tokens(&seed(Unit::Tokens, "engine", "", &prompt.to_string()), &tokens(prompt), BLOCK_TOKENS)
}
