//! Replays the committed corpus of each fuzz target (`agent/fuzz`).
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use agent::kv_events::decode;
use agent::kv_events::event::Event;

#[path = "../fuzz/targets.rs"]
mod targets;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().flatten().collect();
    assert!(!files.is_empty(), "{folder} is empty");
    for file in files {
        run(&std::fs::read(file.path()).unwrap());
    }
}

#[test]
fn kv_events() {
    replay("kv_events", targets::kv_events);
}

#[test]
fn tensorrt_answers() {
    replay("tensorrt", targets::tensorrt);
}

#[test]
fn slot_files() {
    replay("slot_file", targets::slot_file);
}

#[test]
fn slot_values() {
    replay("slot_value", targets::slot_value);
}

/// Batches as a real vLLM 0.32 wrote them: each has its length before it.
#[test]
fn every_event_of_a_real_vllm_is_understood() {
    let mut rest: &[u8] = include_bytes!("fixtures/vllm-0.32-events.bin");
    let (mut stored, mut removed) = (0, 0);
    while let Some((length, more)) = rest.split_first_chunk::<4>() {
        let (payload, behind) = more.split_at(u32::from_le_bytes(*length) as usize);
        rest = behind;
        let batch = decode::batch(payload).unwrap();
        assert_eq!((batch.unknown, batch.malformed, batch.rank), (0, 0, Some(0)));
        for event in &batch.events {
            match event {
                Event::Stored(event) => {
                    let tokens = event.hashes.len() * event.block_tokens as usize;
                    assert_eq!(event.tokens.len(), tokens);
                    stored += event.hashes.len();
                }
                Event::Removed { hashes, .. } => removed += hashes.len(),
                Event::Cleared => {}
            }
        }
        targets::kv_events(payload);
    }
    assert!(stored > 100 && removed > 0, "{stored} stored, {removed} removed");
}
