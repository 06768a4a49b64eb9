//! What each fuzz target does with its bytes, and what must hold whatever they are. Used by the
//! targets (`cargo +nightly fuzz run TARGET`) and by `tests/corpus.rs`, which replays the corpus.

use std::path::Path;

use dataplane::config;
use dataplane::feed::{self, FRAME_HEAD_BYTES, Follower, ToAgent, ToRouter};
use dataplane::kv::{self, ring};
use dataplane::route::decision::Decision;
use dataplane::wire::{Decoder, FromPlane, ScoreWeights, ToPlane, encode};

/// Frames of the local wire: what is understood can be said again in the same words.
pub fn frame(bytes: &[u8]) {
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    while let Ok(Some(message)) = decoder.poll_message::<ToPlane>() {
        assert!(encode(&message).is_ok());
    }
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    while let Ok(Some(message)) = decoder.poll_message::<FromPlane>() {
        assert!(encode(&message).is_ok());
    }
}

/// A configuration: an error is one line and names a line within the text.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(error) = config::parse::<ScoreWeights>(Path::new("f"), text) {
        let said = error.to_string();
        assert_eq!(said.lines().count(), 1, "{said:?}");
    }
}

/// A line of the decision log: what is read is written again in the same words, and decides something.
pub fn decision(bytes: &[u8]) {
    if let Ok(decision) = Decision::from_line(bytes) {
        let line = decision.to_line().expect("a decision that was read can be written");
        let again = Decision::from_line(&line).expect("what was written can be read");
        assert_eq!(again.to_line().ok(), Some(line));
        assert_eq!(decision.again(None), again.again(None));
    }
}

/// Frames of the feed: what is understood has one encoding, and a follower takes it whatever it says.
pub fn feed(bytes: &[u8]) {
    let mut follower = Follower::default();
    let mut decoder = feed::Decoder::default();
    decoder.push(bytes);
    while let Ok(Some(payload)) = decoder.poll_payload() {
        if let Ok(message) = feed::decode::<ToRouter>(payload) {
            assert_eq!(&feed::encode(&message)[FRAME_HEAD_BYTES..], payload);
            let _ = follower.take(message);
        }
        if let Ok(message) = feed::decode::<ToAgent>(payload) {
            assert_eq!(&feed::encode(&message)[FRAME_HEAD_BYTES..], payload);
        }
    }
}

/// Frames of the KV daemon's native door, and what stands in a ring: what is understood has one encoding.
pub fn native(bytes: &[u8]) {
    let mut decoder = kv::Decoder::default();
    decoder.push(bytes);
    while let Ok(Some((id, payload))) = decoder.poll_frame() {
        let mut again = Vec::new();
        if let Ok(request) = kv::decode::<kv::Request>(payload) {
            kv::encode(id, &request, &mut again);
            assert_eq!(&again[kv::FRAME_HEAD_BYTES..], payload);
        }
        again.clear();
        if let Ok(answer) = kv::decode::<kv::Answer>(payload) {
            kv::encode(id, &answer, &mut again);
            assert_eq!(&again[kv::FRAME_HEAD_BYTES..], payload);
        }
    }
    let words: Vec<u64> =
        bytes.as_chunks::<8>().0.iter().map(|chunk| u64::from_le_bytes(*chunk)).collect();
    for words in words.as_chunks::<8>().0 {
        if let Some(submission) = ring::Submission::from_words(*words) {
            assert_eq!(submission.to_words(), *words);
        }
    }
    for words in words.as_chunks::<4>().0 {
        if let Some(completion) = ring::Completion::from_words(*words) {
            assert_eq!(completion.to_words(), *words);
        }
    }
}
