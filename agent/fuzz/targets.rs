//! What each fuzz target does with its bytes, and what must hold whatever they are. Used by the
//! targets (`cargo +nightly fuzz run TARGET`) and by `tests/corpus.rs`, which replays the corpus.

use agent::kv_events::event::Batch;
use agent::kv_events::writer::Writer;
use agent::kv_events::{decode, tensorrt};
use agent::slots::file;
use agent::slots::value::Value;
use dataplane::feed::{Follower, Op, Step, ToRouter};
use std::collections::BTreeMap;

/// An engine's batch, taken twice: what a router follows is what a snapshot says.
pub fn kv_events(bytes: &[u8]) {
    let Ok(batch) = decode::batch(bytes) else { return };
    tell_twice(batch);
}

/// An answer of TensorRT-LLM, taken twice.
pub fn tensorrt(bytes: &[u8]) {
    let mut reader = tensorrt::Reader::default();
    if let Ok(answer) = reader.read(bytes) {
        tell_twice(answer.batch);
    }
    let _ = reader.read(bytes);
}

/// A slot file of llama.cpp: its tokens are as many as it has bytes for, or it is refused.
pub fn slot_file(bytes: &[u8]) {
    if let Ok(tokens) = file::tokens(bytes, bytes.len() as u64) {
        assert!(tokens.len() * 4 < bytes.len());
        assert!(tokens.iter().all(|token| i32::try_from(*token).is_ok()));
    }
}

/// What the KV daemon has of a slot's state: what is understood has one encoding.
pub fn slot_value(bytes: &[u8]) {
    if let Some(value) = Value::decode(bytes) {
        assert_eq!(value.encode(), bytes);
    }
}

fn tell_twice(batch: Batch) {
    let mut writer = Writer::new("w", 1, "m", true, 1);
    let (mut follower, mut held) = (Follower::default(), BTreeMap::new());
    follow(&mut follower, &mut held, vec![writer.state()]);
    for batch in [batch.clone(), batch] {
        let frames = writer.take(0, batch);
        follow(&mut follower, &mut held, frames);
        let snapshot = writer.snapshot();
        let (mut anew, mut told) = (Follower::default(), BTreeMap::new());
        follow(
            &mut anew,
            &mut told,
            (0..snapshot.parts()).map(|part| snapshot.part(part)).collect(),
        );
        assert_eq!(held, told);
    }
}

fn follow(
    follower: &mut Follower,
    held: &mut BTreeMap<u128, dataplane::feed::Level>,
    frames: Vec<ToRouter>,
) {
    for frame in frames {
        let ops = match follower.take(frame) {
            Step::Apply(ops) => ops,
            Step::Reset(ops) => {
                held.clear();
                ops
            }
            Step::Nothing | Step::Resync { .. } => continue,
        };
        for op in ops {
            match op {
                Op::Set { level, digests } => held.extend(digests.iter().map(|d| (*d, level))),
                Op::Remove { digests } => held.retain(|digest, _| !digests.contains(digest)),
                Op::Clear => held.clear(),
            }
        }
    }
}
