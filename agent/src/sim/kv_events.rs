//! KV events in vLLM's wire format: what is said when blocks appear and disappear.
//!
//! A batch is the msgpack array `[ts, events, data_parallel_rank]`. An event is a map with a `type`
//! (vLLM from 0.24) or a tagged array (before). A block's hash on the wire is the last eight bytes
//! of our chained BLAKE3 digest as a big-endian integer, or all 32 bytes; it is the engine's own
//! name for the block and means nothing elsewhere: consumers hash the token ids themselves.
//!
//! Pure: events in, bytes out.

use std::sync::Arc;

use dataplane::digest::Digest;
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

/// The medium of every block here.
const MEDIUM: &str = "GPU";
/// The one KV cache group (full attention).
const GROUP_INDEX: u32 = 0;
/// The one data-parallel rank.
const DATA_PARALLEL_RANK: u32 = 0;

/// What happened to blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvEvent {
    /// Consecutive blocks, full and computed.
    Stored {
        /// Their digests.
        blocks: Vec<Digest>,
        /// The block before the first, `None` at the beginning of a prompt.
        parent: Option<Digest>,
        /// All their token ids.
        tokens: Vec<u32>,
        /// Tokens in each.
        block_tokens: usize,
        /// The request's `cache_salt`, given when the run begins at the first block.
        salt: Option<Arc<str>>,
    },
    /// Blocks whose place was needed.
    Removed {
        /// Their digests, in the order they went.
        blocks: Vec<Digest>,
    },
    /// Everything was forgotten.
    Cleared,
}

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EventEncoding {
    /// Maps with a `type`, as vLLM does from 0.24.
    Map,
    /// Tagged arrays, as vLLM did before.
    Array,
}

/// How block hashes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum HashForm {
    /// Unsigned 64-bit integers, vLLM's default.
    Int,
    /// 32-byte strings, as with `VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0`.
    Bytes,
}

/// The two choices together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventForm {
    /// Maps or arrays.
    pub encoding: EventEncoding,
    /// Integers or bytes.
    pub hashes: HashForm,
}

/// One batch as msgpack. `timestamp_s` is seconds since 1970.
///
/// # Errors
/// Whatever the encoder says; writing to memory gives it no reason to.
pub fn encode_batch(
    timestamp_s: f64,
    events: &[KvEvent],
    form: EventForm,
) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    let events: Vec<_> = events.iter().map(|event| Written { event, form }).collect();
    rmp_serde::to_vec(&(timestamp_s, events, DATA_PARALLEL_RANK))
}

struct Written<'a> {
    event: &'a KvEvent,
    form: EventForm,
}

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.form.encoding {
            EventEncoding::Map => self.serialize_as_map(serializer),
            EventEncoding::Array => self.serialize_as_array(serializer),
        }
    }
}

impl Written<'_> {
    /// Optional fields that stay at their default are left out, as msgspec does; which those are is
    /// read off vLLM's own bytes (the golden test).
    fn serialize_as_map<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.event {
            KvEvent::Stored { blocks, parent, tokens, block_tokens, salt } => {
                let fields = 9 + usize::from(salt.is_some());
                let mut map = serializer.serialize_map(Some(fields))?;
                map.serialize_entry("type", "BlockStored")?;
                map.serialize_entry("block_hashes", &self.hashes(blocks))?;
                map.serialize_entry("parent_block_hash", &parent.as_ref().map(|d| self.hash(d)))?;
                map.serialize_entry("token_ids", tokens)?;
                map.serialize_entry("block_size", block_tokens)?;
                map.serialize_entry("lora_id", &())?;
                map.serialize_entry("medium", MEDIUM)?;
                map.serialize_entry("lora_name", &())?;
                if let Some(keys) = extra_keys(blocks.len(), salt.as_deref()) {
                    map.serialize_entry("extra_keys", &keys)?;
                }
                map.serialize_entry("group_idx", &GROUP_INDEX)?;
                map.end()
            }
            KvEvent::Removed { blocks } => {
                let mut map = serializer.serialize_map(Some(4))?;
                map.serialize_entry("type", "BlockRemoved")?;
                map.serialize_entry("block_hashes", &self.hashes(blocks))?;
                map.serialize_entry("medium", MEDIUM)?;
                map.serialize_entry("group_idx", &GROUP_INDEX)?;
                map.end()
            }
            KvEvent::Cleared => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("type", "AllBlocksCleared")?;
                map.end()
            }
        }
    }

    fn serialize_as_array<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.event {
            KvEvent::Stored { blocks, parent, tokens, block_tokens, salt } => {
                let mut array = serializer.serialize_seq(Some(10))?;
                array.serialize_element("BlockStored")?;
                array.serialize_element(&self.hashes(blocks))?;
                array.serialize_element(&parent.as_ref().map(|d| self.hash(d)))?;
                array.serialize_element(tokens)?;
                array.serialize_element(block_tokens)?;
                array.serialize_element(&())?;
                array.serialize_element(MEDIUM)?;
                array.serialize_element(&())?;
                array.serialize_element(&extra_keys(blocks.len(), salt.as_deref()))?;
                array.serialize_element(&GROUP_INDEX)?;
                array.end()
            }
            KvEvent::Removed { blocks } => {
                let mut array = serializer.serialize_seq(Some(4))?;
                array.serialize_element("BlockRemoved")?;
                array.serialize_element(&self.hashes(blocks))?;
                array.serialize_element(MEDIUM)?;
                array.serialize_element(&GROUP_INDEX)?;
                array.end()
            }
            KvEvent::Cleared => {
                let mut array = serializer.serialize_seq(Some(1))?;
                array.serialize_element("AllBlocksCleared")?;
                array.end()
            }
        }
    }

    fn hashes(&self, blocks: &[Digest]) -> Vec<WrittenHash> {
        blocks.iter().map(|digest| self.hash(digest)).collect()
    }

    fn hash(&self, digest: &Digest) -> WrittenHash {
        match self.form.hashes {
            HashForm::Bytes => WrittenHash::Bytes(digest.0),
            HashForm::Int => {
                let mut last = [0; 8];
                last.copy_from_slice(&digest.0[24..]);
                WrittenHash::Int(u64::from_be_bytes(last))
            }
        }
    }
}

enum WrittenHash {
    Int(u64),
    Bytes([u8; 32]),
}

impl Serialize for WrittenHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            WrittenHash::Int(hash) => serializer.serialize_u64(*hash),
            WrittenHash::Bytes(hash) => serializer.serialize_bytes(hash),
        }
    }
}

/// One entry per block; only the first block of a prompt carries the salt.
fn extra_keys(blocks: usize, salt: Option<&str>) -> Option<Vec<Option<[&str; 1]>>> {
    let salt = salt?;
    let mut keys = vec![None; blocks];
    if let Some(first) = keys.first_mut() {
        *first = Some([salt]);
    }
    Some(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes generated with vLLM's own encoder library: ts 1.5, rank 0; one block stored (tokens
    /// 1..4), one removed, all cleared.
    const GOLDEN_MAP: &str = "\
        93cb3ff80000000000009389a474797065ab426c6f636b53746f726564ac626c6f636b5f68617368\
        657391cf112210f47de98115b1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f6964\
        739401020304aa626c6f636b5f73697a6504a76c6f72615f6964c0a66d656469756da3475055a96c\
        6f72615f6e616d65c0a967726f75705f6964780084a474797065ac426c6f636b52656d6f766564ac\
        626c6f636b5f68617368657391cf112210f47de98115a66d656469756da3475055a967726f75705f\
        6964780081a474797065b0416c6c426c6f636b73436c656172656400";
    /// The same of the array era, but for the hash and group of the removed block, which that
    /// sample wrote as bytes and nil.
    const GOLDEN_ARRAY_HEAD: &str = "93cb3ff8000000000000939aab426c6f636b53746f72656491cf112210f47d\
        e98115c0940102030404c0a3475055c0c00094ac426c6f636b52656d6f76656491";
    const GOLDEN_ARRAY_TAIL: &str = "91b0416c6c426c6f636b73436c656172656400";

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn golden_events() -> [KvEvent; 3] {
        let mut digest = Digest([0x11; 32]);
        digest.0[24..].copy_from_slice(&1_234_567_890_123_456_789u64.to_be_bytes());
        [
            KvEvent::Stored {
                blocks: vec![digest],
                parent: None,
                tokens: vec![1, 2, 3, 4],
                block_tokens: 4,
                salt: None,
            },
            KvEvent::Removed { blocks: vec![digest] },
            KvEvent::Cleared,
        ]
    }

    fn encoded(encoding: EventEncoding, hashes: HashForm) -> String {
        hex(&encode_batch(1.5, &golden_events(), EventForm { encoding, hashes }).unwrap())
    }

    #[test]
    fn the_map_form_is_vllms_byte_for_byte() {
        assert_eq!(encoded(EventEncoding::Map, HashForm::Int), GOLDEN_MAP);
    }

    #[test]
    fn the_array_form_is_vllms_byte_for_byte() {
        let said = encoded(EventEncoding::Array, HashForm::Int);
        let removed = "cf112210f47de98115a347505500";
        assert_eq!(said, format!("{GOLDEN_ARRAY_HEAD}{removed}{GOLDEN_ARRAY_TAIL}"));
    }

    #[test]
    fn hashes_as_bytes_are_whole_digests() {
        let said = encoded(EventEncoding::Array, HashForm::Bytes);
        let digest = format!("c420{}112210f47de98115", "11".repeat(24));
        assert!(said.contains(&format!("426c6f636b52656d6f76656491{digest}a347505500")), "{said}");
    }

    #[test]
    fn a_salt_stands_with_the_first_block_only() {
        let event = KvEvent::Stored {
            blocks: vec![Digest([1; 32]), Digest([2; 32])],
            parent: None,
            tokens: vec![1, 2],
            block_tokens: 1,
            salt: Some("t1".into()),
        };
        let form = EventForm { encoding: EventEncoding::Map, hashes: HashForm::Int };
        let said = hex(&encode_batch(0.0, &[event], form).unwrap());
        // "extra_keys": [["t1"], nil]
        assert!(said.contains("aa65787472615f6b6579739291a27431c0"), "{said}");
    }
}
