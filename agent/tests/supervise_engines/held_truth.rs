//! What an engine holds by its own word: its events from the first on, put together in the plainest way.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use dataplane::digest::{Unit, of_tokens, seed};
use hyper::body::Bytes;
use serde_json::Value;
use tokio::time::timeout;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use crate::PATIENCE;

/// What is held after all events so far.
#[derive(Debug, Default)]
pub struct Truth {
    /// By the first 16 bytes of our digests.
    pub held: BTreeSet<u128>,
    /// Blocks removed on the way.
    pub removed: usize,
}

impl Truth {
    /// Asks the replay socket; everything must still be there.
    pub async fn of(replay: &str, model: &str) -> Truth {
        let mut truth = Truth::default();
        // The whole prompt up to and with each block.
        let mut prompts: HashMap<Value, (Vec<u32>, usize)> = HashMap::new();
        for payload in replayed(replay).await {
            let batch: Value = rmp_serde::from_slice(&payload).unwrap();
            for event in batch[1].as_array().unwrap() {
                let hashes = event["block_hashes"].as_array();
                match event["type"].as_str().unwrap() {
                    "BlockStored" => store(event, &mut prompts),
                    "BlockRemoved" => {
                        truth.removed += hashes.unwrap().len();
                        hashes.unwrap().iter().for_each(|hash| drop(prompts.remove(hash)));
                    }
                    _ => prompts.clear(),
                }
            }
        }
        let seed = seed(Unit::Tokens, model, "", "");
        let digest = |(tokens, size): &(Vec<u32>, usize)| {
            of_tokens(&seed, tokens, *size).last().unwrap().short()
        };
        truth.held = prompts.values().map(digest).collect();
        truth
    }
}

fn store(event: &Value, prompts: &mut HashMap<Value, (Vec<u32>, usize)>) {
    let size = usize::try_from(event["block_size"].as_u64().unwrap()).unwrap();
    let mut prompt = match &event["parent_block_hash"] {
        Value::Null => Vec::new(),
        parent => prompts[parent].0.clone(),
    };
    let tokens = event["token_ids"].as_array().unwrap();
    let tokens: Vec<u32> =
        tokens.iter().map(|token| u32::try_from(token.as_u64().unwrap()).unwrap()).collect();
    for (hash, block) in event["block_hashes"].as_array().unwrap().iter().zip(tokens.chunks(size)) {
        prompt.extend(block);
        prompts.insert(hash.clone(), (prompt.clone(), size));
    }
}

async fn replayed(endpoint: &str) -> Vec<Bytes> {
    let mut dealer = DealerSocket::new();
    while dealer.connect(endpoint).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut question = ZmqMessage::from(Bytes::new());
    question.push_back(Bytes::copy_from_slice(&0u64.to_be_bytes()));
    dealer.send(question).await.unwrap();
    let mut payloads = Vec::new();
    loop {
        let message = timeout(PATIENCE, dealer.recv()).await.expect("a replay").unwrap();
        let frames = message.into_vec();
        let [_, _, number, payload] = frames.as_slice() else { panic!("{frames:?}") };
        if number[..] == [0xff; 8] {
            return payloads;
        }
        let number = u64::from_be_bytes(number[..].try_into().unwrap());
        assert_eq!(number, payloads.len() as u64, "everything is replayed");
        payloads.push(payload.clone());
    }
}
