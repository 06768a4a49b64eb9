//! KV events as a router's subscriber gets them.

use std::time::Duration;

use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::time::timeout;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage};

use super::process::{Engine, PATIENCE};

/// One message: (number, payload).
type Batch = (u64, Bytes);

struct Feed {
    engine: Engine,
    subscriber: SubSocket,
    replay: String,
    topic: &'static str,
    /// The batch that proved the subscription.
    first: Batch,
}

impl Feed {
    /// Starts an engine and subscribes; a subscription takes a moment, so small requests are made
    /// until one of them is heard.
    async fn start(args: &[&str]) -> Feed {
        let topic = "kv@sim";
        let own = [
            "--kv-events-endpoint",
            "tcp://*:0",
            "--kv-events-replay-endpoint",
            "tcp://127.0.0.1:0",
            "--kv-events-topic",
            topic,
            "--speedup-ratio",
            "0",
        ];
        let engine = Engine::start(&[&own[..], args].concat());
        let source = engine.get("/kv_event_sources").await.json()["0"].clone();
        assert_eq!((&source["publisher"], &source["topic"]), (&json!("zmq"), &json!(topic)));
        let mut subscriber = SubSocket::new();
        subscriber.connect(source["endpoint"].as_str().unwrap()).await.unwrap();
        subscriber.subscribe(topic).await.unwrap();
        let replay = source["replay_endpoint"].as_str().unwrap().to_owned();
        for attempt in 0..100 {
            let prompt = format!("{attempt:03} knock, knock, knock, is anybody there at all?");
            engine.ok("/v1/completions", json!({"prompt": prompt, "max_tokens": 1})).await;
            let heard = timeout(Duration::from_millis(300), subscriber.recv()).await;
            if let Ok(message) = heard {
                let first = batch(message.unwrap(), topic);
                return Feed { engine, subscriber, replay, topic, first };
            }
        }
        panic!("the subscriber never heard anything");
    }

    async fn next(&mut self) -> Batch {
        let message = timeout(PATIENCE, self.subscriber.recv()).await.expect("an event").unwrap();
        batch(message, self.topic)
    }

    async fn replayed(&self, from: u64) -> Vec<Batch> {
        let mut dealer = DealerSocket::new();
        dealer.connect(&self.replay).await.unwrap();
        let mut question = ZmqMessage::from(Bytes::new());
        question.push_back(Bytes::copy_from_slice(&from.to_be_bytes()));
        dealer.send(question).await.unwrap();
        let mut batches = Vec::new();
        loop {
            let message = timeout(PATIENCE, dealer.recv()).await.expect("a reply").unwrap();
            let frames = message.into_vec();
            let [empty, topic, number, payload] = frames.as_slice() else { panic!("{frames:?}") };
            assert!(empty.is_empty());
            if number[..] == [0xff; 8] {
                assert!(topic.is_empty() && payload.is_empty());
                return batches;
            }
            assert_eq!(topic, self.topic);
            let number = u64::from_be_bytes(number[..].try_into().unwrap());
            batches.push((number, payload.clone()));
        }
    }
}

fn batch(message: ZmqMessage, topic: &str) -> Batch {
    let frames = message.into_vec();
    let [first, number, payload] = frames.as_slice() else { panic!("{frames:?}") };
    assert_eq!(first, topic);
    (u64::from_be_bytes(number[..].try_into().unwrap()), payload.clone())
}

/// The events of a batch; the envelope is checked.
fn events(payload: &[u8]) -> Vec<Value> {
    let batch: Value = rmp_serde::from_slice(payload).unwrap();
    assert!(batch[0].as_f64().unwrap() > 1.6e9, "seconds since 1970");
    assert_eq!(batch[2], 0);
    batch[1].as_array().unwrap().clone()
}

#[tokio::test]
async fn stored_events_carry_the_tokens_of_the_prompt_and_can_be_replayed() {
    let mut feed = Feed::start(&[]).await;
    let mut live = vec![feed.first.clone()];
    let prompt = "Forty words or so of text that make more than two blocks. ".repeat(3);
    feed.engine.ok("/v1/completions", json!({"prompt": prompt, "max_tokens": 1})).await;
    let tokens = feed.engine.ok("/tokenize", json!({ "prompt": prompt })).await;
    let tokens = tokens["tokens"].as_array().unwrap();
    let whole = tokens.len() / 16 * 16;
    let (mut stored, mut parent) = (Vec::new(), Value::Null);
    while stored.len() < whole {
        let next = feed.next().await;
        for event in events(&next.1) {
            assert_eq!((&event["type"], &event["medium"]), (&json!("BlockStored"), &json!("GPU")));
            assert_eq!(event["block_size"], 16);
            assert_eq!(event["parent_block_hash"], parent);
            let hashes = event["block_hashes"].as_array().unwrap();
            let ids = event["token_ids"].as_array().unwrap();
            assert_eq!(ids.len(), hashes.len() * 16);
            assert!(hashes.iter().all(Value::is_u64));
            parent = hashes.last().unwrap().clone();
            stored.extend(ids.iter().cloned());
        }
        live.push(next);
    }
    assert_eq!(stored, tokens[..whole]);
    for pair in live.windows(2) {
        assert_eq!(pair[1].0, pair[0].0 + 1, "numbers have no gaps");
    }
    let replayed = feed.replayed(live[0].0).await;
    assert_eq!(replayed, live, "a replay is the same bytes");
    let all = feed.replayed(0).await;
    assert_eq!(all.first().map(|batch| batch.0), Some(0));
    assert_eq!(all.last(), live.last());
    assert_eq!(feed.replayed(u64::MAX - 1).await, []);
}

#[tokio::test]
async fn a_small_cache_tells_what_it_removes() {
    let mut feed = Feed::start(&["--cache-blocks", "12", "--context-length", "128"]).await;
    for index in 0..6 {
        let prompt = format!("{index} {}", "some text that fills several blocks ".repeat(5));
        feed.engine.ok("/v1/completions", json!({"prompt": prompt, "max_tokens": 1})).await;
    }
    // All batches from the first on, so that each removal has its store before it.
    let (mut there, mut removed) = (std::collections::HashSet::new(), 0);
    let mut last = feed.first.0;
    for (number, payload) in feed.replayed(0).await {
        last = last.max(number);
        for event in events(&payload) {
            for hash in event["block_hashes"].as_array().unwrap() {
                let hash = hash.as_u64().unwrap();
                if event["type"] == "BlockStored" {
                    assert!(there.insert(hash), "stored twice");
                } else {
                    assert_eq!(event["type"], "BlockRemoved");
                    assert!(there.remove(&hash), "removed, but never stored");
                    removed += 1;
                }
            }
        }
        assert!(there.len() <= 12, "never more than the cache holds");
    }
    assert!(removed > 0);
    while feed.first.0 < last {
        let next = feed.next().await;
        assert_eq!(next.0, feed.first.0 + 1);
        feed.first = next;
    }
    assert!(feed.engine.post("/reset_prefix_cache", json!({})).await.status.is_success());
    assert_eq!(events(&feed.next().await.1), [json!({"type": "AllBlocksCleared"})]);
}

#[tokio::test]
async fn the_older_encoding_is_arrays() {
    let feed = Feed::start(&["--kv-event-encoding", "array"]).await;
    let event = &events(&feed.first.1)[0];
    assert_eq!(event[0], "BlockStored");
    assert_eq!((&event[4], &event[6]), (&json!(16), &json!("GPU")));
    assert_eq!(event.as_array().unwrap().len(), 10);
}

#[tokio::test]
async fn a_unix_socket_left_by_a_killed_engine_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let endpoint = format!("ipc://{}/kv", folder.path().display());
    for _ in 0..2 {
        let engine = Engine::start(&["--kv-events-endpoint", &endpoint]);
        assert_eq!(engine.get("/kv_event_sources").await.json()["0"]["endpoint"], json!(endpoint));
    }
}
