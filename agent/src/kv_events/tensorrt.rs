//! TensorRT-LLM's KV events: JSON that `POST /kv_cache_events` hands out once.
//!
//! Whoever asks takes the events away, so the agent must be the only one. `event_id` rises by one.
//! Events of several attention windows come mixed: the largest one counts. Blocks that are not full
//! are announced too and are left out; a block's size is the largest seen, which is a power of two.
//!
//! Read off TensorRT-LLM's sources; not tried against a running one. [`poll`] asks, the rest is pure.

use std::time::Duration;

use dataplane::feed::{Known, Level};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use super::decode::{EVENTS_MAX, HASHES_MAX, PAYLOAD_BYTES_MAX};
use super::event::{Attention, Batch, EngineHash, Event, Extra, Medium, Stored};
use super::subscribe::Ear;

/// Between two questions: what is newer is not known to routers.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Longest wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Between questions while there is no answer.
const AWAY_PAUSE: Duration = Duration::from_secs(1);
/// Smallest block that is believed: smaller announcements are ends of prompts.
const BLOCK_TOKENS_MIN: usize = 8;

/// What an answer said.
#[derive(Debug, PartialEq)]
pub struct Answer {
    /// The events that count.
    pub batch: Batch,
    /// Events before these are lost, or the engine began anew: forget everything first.
    pub is_lost: bool,
    /// These are the first there were.
    pub is_first: bool,
}

/// What has to be known of earlier answers to read the next.
#[derive(Debug, Default)]
pub struct Reader {
    next_id: Option<u64>,
    window: u64,
    block_tokens: usize,
}

#[derive(Deserialize)]
struct Record {
    event_id: u64,
    #[serde(default)]
    window_size: u64,
    #[serde(default)]
    attention_dp_rank: Option<u32>,
    data: serde_json::Value,
}

#[derive(Deserialize)]
struct StoredData {
    #[serde(default)]
    parent_hash: Option<serde_json::Value>,
    blocks: Vec<Block>,
}

#[derive(Deserialize)]
struct Block {
    block_hash: serde_json::Value,
    tokens: Vec<Token>,
    #[serde(default)]
    cache_level: u8,
    #[serde(default)]
    mm_keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Token {
    token_id: u32,
    #[serde(default)]
    token_extra_id: u64,
}

#[derive(Deserialize)]
struct RemovedData {
    block_hashes: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct UpdatedData {
    block_hash: serde_json::Value,
    #[serde(default)]
    cache_level: Option<Diff>,
}

#[derive(Deserialize)]
struct Diff {
    old_value: u8,
    new_value: u8,
}

impl Reader {
    /// One answer.
    ///
    /// # Errors
    /// When it is not a list of events; all that it said is lost.
    pub fn read(&mut self, body: &[u8]) -> serde_json::Result<Answer> {
        let records: Vec<Record> = serde_json::from_slice(body)?;
        let is_first =
            self.next_id.is_none() && records.first().is_some_and(|record| record.event_id == 0);
        let mut answer = Answer { batch: Batch::default(), is_lost: false, is_first };
        if records.len() > EVENTS_MAX {
            answer.is_lost = true;
        }
        for record in records.into_iter().take(EVENTS_MAX) {
            if self.next_id.is_some_and(|next| next != record.event_id) {
                answer.is_lost = true;
                answer.batch.events.clear();
            }
            self.next_id = Some(record.event_id.saturating_add(1));
            if record.window_size > self.window {
                // What was told of a smaller window does not count any more.
                answer.is_lost |= self.window > 0;
                answer.batch.events.clear();
                self.window = record.window_size;
            }
            if record.window_size == self.window {
                answer.batch.rank = answer.batch.rank.or(record.attention_dp_rank);
                self.record(&record.data, &mut answer);
            }
        }
        Ok(answer)
    }

    fn record(&mut self, data: &serde_json::Value, answer: &mut Answer) {
        let batch = &mut answer.batch;
        let read = match data["type"].as_str() {
            Some("created") => Some(vec![]),
            Some("stored") => StoredData::deserialize(data).ok().and_then(|data| {
                answer.is_lost |= self.has_larger_blocks(&data);
                self.stored(data)
            }),
            Some("removed") => RemovedData::deserialize(data).ok().and_then(|data| {
                let hashes: Option<_> = data.block_hashes.iter().map(hash).collect();
                Some(vec![Event::Removed { hashes: hashes?, medium: Medium::All, group: None }])
            }),
            Some("updated") => UpdatedData::deserialize(data).ok().and_then(updated),
            _ => {
                batch.unknown += 1;
                return;
            }
        };
        match read {
            Some(events) => batch.events.extend(events),
            None => batch.malformed += 1,
        }
    }

    /// Whether the blocks told before were not full ones, as is seen now.
    fn has_larger_blocks(&mut self, data: &StoredData) -> bool {
        let sizes = data.blocks.iter().map(|block| block.tokens.len());
        let largest =
            sizes.filter(|size| size.is_power_of_two() && *size >= BLOCK_TOKENS_MIN).max();
        let before = self.block_tokens;
        self.block_tokens = before.max(largest.unwrap_or(0));
        before > 0 && self.block_tokens > before
    }

    /// Full blocks in a row, one event for each level they are at. What follows a block that is not
    /// full is not told.
    fn stored(&self, data: StoredData) -> Option<Vec<Event>> {
        let mut parent = match &data.parent_hash {
            None | Some(serde_json::Value::Null) => None,
            Some(value) => Some(hash(value)?),
        };
        let mut events = Vec::new();
        let is_full = |block: &Block| block.tokens.len() == self.block_tokens;
        for block in data.blocks.into_iter().take(HASHES_MAX).take_while(is_full) {
            let name = hash(&block.block_hash)?;
            let is_opaque = !block.mm_keys.is_empty()
                || block.tokens.iter().any(|token| token.token_extra_id != 0);
            events.push(Event::Stored(Stored {
                hashes: vec![name],
                parent,
                tokens: block.tokens.iter().map(|token| token.token_id).collect(),
                block_tokens: u32::try_from(self.block_tokens).ok()?,
                medium: place(block.cache_level),
                adapter: String::new(),
                extra: vec![if is_opaque { Extra::Opaque } else { Extra::None }],
                group: None,
                attention: Attention::Full,
            }));
            parent = Some(name);
        }
        Some(events)
    }
}

/// A block moved from one level to another.
fn updated(data: UpdatedData) -> Option<Vec<Event>> {
    let hashes = vec![hash(&data.block_hash)?];
    let Some(Diff { old_value, new_value }) = data.cache_level else { return Some(vec![]) };
    Some(vec![
        Event::Stored(Stored {
            hashes: hashes.clone(),
            parent: None,
            tokens: vec![],
            block_tokens: 0,
            medium: place(new_value),
            adapter: String::new(),
            extra: vec![Extra::None],
            group: None,
            attention: Attention::Full,
        }),
        Event::Removed { hashes, medium: place(old_value), group: None },
    ])
}

fn place(cache_level: u8) -> Medium {
    match cache_level {
        0 => Medium::Local(Level::Gpu),
        1 => Medium::Local(Level::Host),
        _ => Medium::Unknown,
    }
}

fn hash(value: &serde_json::Value) -> Option<EngineHash> {
    let bits = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned))?;
    Some(EngineHash(bits.into()))
}

/// Asks `url` for events until it is dropped.
pub async fn poll(url: String, ear: Ear) {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut reader = Reader::default();
    loop {
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, ask(&client, &url)).await;
        let answer = match answered.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
            Ok(body) => reader.read(&body).map_err(|error| error.to_string()),
            Err(why) => Err(why),
        };
        match answer {
            Ok(answer) => {
                if answer.is_lost {
                    ear.clear(Known::Partial);
                } else if answer.is_first {
                    ear.set_known(Known::Whole);
                }
                ear.take_batch(answer.batch);
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            Err(why) => {
                tracing::debug!(worker = ear.worker, why, "no KV events");
                tokio::time::sleep(AWAY_PAUSE).await;
            }
        }
    }
}

async fn ask(client: &Client<HttpConnector, Empty<Bytes>>, url: &str) -> Result<Bytes, String> {
    let request = Request::post(url).body(Empty::new()).map_err(|error| error.to_string())?;
    let answer = client.request(request).await.map_err(|error| error.to_string())?;
    if !answer.status().is_success() {
        return Err(format!("{url} answers {}", answer.status()));
    }
    let body = Limited::new(answer.into_body(), PAYLOAD_BYTES_MAX).collect().await;
    Ok(body.map_err(|error| error.to_string())?.to_bytes())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn tokens(count: u32) -> Value {
        (0..count)
            .map(|id| json!({"type": "unique_token", "token_id": id, "token_extra_id": 0}))
            .collect()
    }

    fn block(hash: i64, count: u32) -> Value {
        json!({"type": "stored_block", "block_hash": hash, "tokens": tokens(count),
            "cache_level": 0, "priority": 35})
    }

    fn stored(id: u64, window: u64, blocks: Vec<Value>) -> Value {
        json!({"event_id": id, "window_size": window,
            "data": {"type": "stored", "parent_hash": null, "blocks": blocks}})
    }

    fn read(reader: &mut Reader, events: Value) -> Answer {
        reader.read(events.to_string().as_bytes()).unwrap()
    }

    fn hashes(answer: &Answer) -> Vec<u128> {
        let of = |event: &Event| match event {
            Event::Stored(stored) => stored.hashes[0].0,
            Event::Removed { hashes, .. } => hashes[0].0,
            Event::Cleared => 0,
        };
        answer.batch.events.iter().map(of).collect()
    }

    #[test]
    fn full_blocks_of_the_largest_window_count() {
        let mut reader = Reader::default();
        let created = json!({"event_id": 0, "window_size": 4096,
            "data": {"type": "created", "num_blocks_per_cache_level": [9, 0]}});
        let events = json!([
            created,
            stored(1, 512, vec![block(9, 32)]),
            stored(2, 4096, vec![block(1, 32), block(-2, 32), block(3, 7)])
        ]);
        let answer = read(&mut reader, events);
        assert!(!answer.is_lost);
        assert_eq!(hashes(&answer), [1, u128::from((-2i64).cast_unsigned())]);
        let Event::Stored(second) = &answer.batch.events[1] else { panic!() };
        assert_eq!((second.parent, second.tokens.len()), (Some(EngineHash(1)), 32));
        let gone = json!([{"event_id": 3, "window_size": 4096,
            "data": {"type": "removed", "block_hashes": [1]}}]);
        assert!(matches!(
            read(&mut reader, gone).batch.events.as_slice(),
            [Event::Removed { medium: Medium::All, .. }]
        ));
        let moved = json!([{"event_id": 4, "window_size": 4096, "data": {"type": "updated",
            "block_hash": 1, "cache_level": {"type": "event_diff", "old_value": 0, "new_value": 1}}}]);
        let answer = read(&mut reader, moved);
        assert!(matches!(
            answer.batch.events.as_slice(),
            [Event::Stored(_), Event::Removed { medium: Medium::Local(Level::Gpu), .. }]
        ));
    }

    #[test]
    fn missing_numbers_and_larger_blocks_forget_what_was() {
        let mut reader = Reader::default();
        assert!(!read(&mut reader, json!([stored(0, 1, vec![block(1, 16)])])).is_lost);
        assert!(read(&mut reader, json!([stored(1, 1, vec![block(2, 32)])])).is_lost);
        assert!(!read(&mut reader, json!([stored(2, 1, vec![block(3, 32)])])).is_lost);
        assert!(read(&mut reader, json!([stored(9, 1, vec![block(3, 32)])])).is_lost);
        assert!(read(&mut reader, json!([stored(0, 1, vec![block(3, 32)])])).is_lost);
    }

    #[test]
    fn what_cannot_be_read_is_counted() {
        let mut reader = Reader::default();
        assert!(reader.read(b"{}").is_err());
        let events = json!([
            {"event_id": 0, "data": {"type": "stored", "blocks": 5}},
            {"event_id": 1, "data": {"type": "pinned"}},
            {"event_id": 2, "data": 7},
            {"event_id": 3, "data": {"type": "removed", "block_hashes": ["x"]}},
        ]);
        let answer = read(&mut reader, events);
        assert_eq!((answer.batch.malformed, answer.batch.unknown), (2, 2));
        let mut image = block(5, 16);
        image["mm_keys"] = json!([{"hash": "x"}]);
        let answer = read(&mut Reader::default(), json!([stored(0, 0, vec![image])]));
        let Event::Stored(stored) = &answer.batch.events[0] else { panic!() };
        assert_eq!(stored.extra, [Extra::Opaque]);
    }
}
