//! What the engine holds, by its own events: a naive model, exact because it keeps the tokens.

use std::collections::HashMap;

use serde_json::Value;

use crate::feed::{Feed, events};
use crate::real::{BLOCK_TOKENS, CACHE_BLOCKS};

/// A block's parent, by the engine's hash, and its tokens: these name it.
type Name = (Option<u64>, Vec<u64>);

/// Blocks in the engine's cache.
#[derive(Default)]
pub struct Held {
    by_name: HashMap<Name, u64>,
    by_hash: HashMap<u64, Name>,
    /// The number of the next batch.
    pub next: u64,
    pub stored: usize,
    pub removed: usize,
}

impl Held {
    /// Takes in what was published since.
    pub fn catch_up(&mut self, feed: &Feed) {
        for (number, payload) in feed.replayed(self.next) {
            assert_eq!(number, self.next, "numbers have no gaps");
            self.next += 1;
            events(&payload).iter().for_each(|event| self.apply(event));
            assert!(self.by_hash.len() <= CACHE_BLOCKS, "more than the engine has");
        }
    }

    fn apply(&mut self, event: &Value) {
        let hashes = || event["block_hashes"].as_array().unwrap().iter().map(number);
        match event["type"].as_str().unwrap() {
            "BlockStored" => {
                assert_eq!((&event["medium"], number(&event["block_size"])), (&"GPU".into(), 32));
                let tokens: Vec<u64> =
                    event["token_ids"].as_array().unwrap().iter().map(number).collect();
                let mut parent = event["parent_block_hash"].as_u64();
                assert_eq!(tokens.len(), hashes().count() * BLOCK_TOKENS);
                for (hash, tokens) in hashes().zip(tokens.chunks(BLOCK_TOKENS)) {
                    let name = (parent, tokens.to_vec());
                    self.by_name.insert(name.clone(), hash);
                    self.by_hash.insert(hash, name);
                    self.stored += 1;
                    parent = Some(hash);
                }
            }
            "BlockRemoved" => {
                for hash in hashes() {
                    let name = self.by_hash.remove(&hash).expect("removed, but never stored");
                    self.by_name.remove(&name);
                    self.removed += 1;
                }
            }
            "AllBlocksCleared" => *self = Held { next: self.next, ..Held::default() },
            other => panic!("an event of type {other}"),
        }
    }

    /// Leading tokens of a prompt whose blocks are held.
    pub fn prefix(&self, tokens: &[u64]) -> usize {
        let mut parent = None;
        let found = tokens.chunks_exact(BLOCK_TOKENS).take_while(|block| {
            let hash = self.by_name.get(&(parent, block.to_vec())).copied();
            parent = hash;
            hash.is_some()
        });
        found.count() * BLOCK_TOKENS
    }

    /// Tokens the engine will find: the last token of a prompt is always computed.
    pub fn cached(&self, tokens: &[u64]) -> usize {
        self.prefix(&tokens[..tokens.len() - 1])
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

/// `fixtures/README.md` says how it was recorded.
#[test]
fn the_recorded_events_are_understood() {
    let mut bytes = &include_bytes!("../fixtures/vllm-0.32-events.bin")[..];
    let mut held = Held::default();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let (payload, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        events(payload).iter().for_each(|event| held.apply(event));
        assert!(held.by_hash.len() <= CACHE_BLOCKS);
        bytes = rest;
    }
    assert!(bytes.is_empty());
    assert_eq!(held.removed, 132);
    assert_eq!(held.stored - held.removed, held.by_hash.len(), "each stored once");
    let (_, first) = held.by_hash.values().find(|(parent, _)| parent.is_none()).unwrap();
    assert_eq!(held.prefix(first), BLOCK_TOKENS);
    assert_eq!(held.cached(first), 0, "the last token is always computed");
}
