//! What an engine holds by its own word: its events from the first on, put together in the plainest way.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use dataplane::digest::{Unit, of_tokens, seed};
use hyper::body::Bytes;
use serde_json::Value;
use tokio::time::timeout;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

/// Guards against a hang; no test depends on its length.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is held after all batches so far.
#[derive(Debug, Default)]
pub struct Truth {
    /// The number of the next batch.
    pub next: u64,
    /// Blocks removed on the way.
    pub removed: usize,
    /// By the engine's hash of a block, the whole prompt up to and with it, and the tokens of a block.
    prompts: HashMap<Value, (Vec<u32>, usize)>,
}

impl Truth {
    /// Takes the next batch; one that was taken before is left. False: some before it are missing.
    pub fn take(&mut self, number: u64, payload: &[u8]) -> bool {
        if number != self.next {
            return number < self.next;
        }
        self.next += 1;
        let batch: Value = rmp_serde::from_slice(payload).unwrap();
        for event in batch[1].as_array().unwrap() {
            let hashes = event["block_hashes"].as_array();
            match event["type"].as_str().unwrap() {
                "BlockStored" => self.store(event),
                "BlockRemoved" => {
                    self.removed += hashes.unwrap().len();
                    hashes.unwrap().iter().for_each(|hash| drop(self.prompts.remove(hash)));
                }
                _ => self.prompts.clear(),
            }
        }
        true
    }

    /// Asks the replay socket for what is missing; it must still be there.
    pub async fn catch_up(&mut self, replay: &str) {
        for (number, payload) in replayed(replay, self.next).await {
            assert!(self.take(number, &payload), "{number} is replayed, {} is not", self.next);
        }
    }

    /// The blocks held, by the first 16 bytes of our digests.
    pub fn held(&self, model: &str) -> BTreeSet<u128> {
        let seed = seed(Unit::Tokens, model, "", "");
        let digest = |(tokens, size): &(Vec<u32>, usize)| {
            of_tokens(&seed, tokens, *size).last().unwrap().short()
        };
        self.prompts.values().map(digest).collect()
    }

    fn store(&mut self, event: &Value) {
        let size = usize::try_from(event["block_size"].as_u64().unwrap()).unwrap();
        let mut prompt = match &event["parent_block_hash"] {
            Value::Null => Vec::new(),
            parent => self.prompts[parent].0.clone(),
        };
        let tokens = event["token_ids"].as_array().unwrap();
        let tokens: Vec<u32> =
            tokens.iter().map(|token| u32::try_from(token.as_u64().unwrap()).unwrap()).collect();
        let hashes = event["block_hashes"].as_array().unwrap();
        for (hash, block) in hashes.iter().zip(tokens.chunks(size)) {
            prompt.extend(block);
            self.prompts.insert(hash.clone(), (prompt.clone(), size));
        }
    }
}

async fn replayed(endpoint: &str, first: u64) -> Vec<(u64, Bytes)> {
    let mut dealer = DealerSocket::new();
    while dealer.connect(endpoint).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut question = ZmqMessage::from(Bytes::new());
    question.push_back(Bytes::copy_from_slice(&first.to_be_bytes()));
    dealer.send(question).await.unwrap();
    let mut batches = Vec::new();
    loop {
        let message = timeout(PATIENCE, dealer.recv()).await.expect("a replay").unwrap();
        let frames = message.into_vec();
        let [_, _, number, payload] = frames.as_slice() else { panic!("{frames:?}") };
        if number[..] == [0xff; 8] {
            return batches;
        }
        batches.push((u64::from_be_bytes(number[..].try_into().unwrap()), payload.clone()));
    }
}
