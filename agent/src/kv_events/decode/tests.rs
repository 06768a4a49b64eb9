//! Golden bytes of real encoders, and what writers of other years leave out or add.

use dataplane::feed::Level;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

/// Written with vLLM's own encoder library: ts 1.5, rank 0; one block stored (tokens 1..4), one
/// removed, all cleared.
const GOLDEN_MAP: &str = "\
    93cb3ff80000000000009389a474797065ab426c6f636b53746f726564ac626c6f636b5f68617368\
    657391cf112210f47de98115b1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f6964\
    739401020304aa626c6f636b5f73697a6504a76c6f72615f6964c0a66d656469756da3475055a96c\
    6f72615f6e616d65c0a967726f75705f6964780084a474797065ac426c6f636b52656d6f766564ac\
    626c6f636b5f68617368657391cf112210f47de98115a66d656469756da3475055a967726f75705f\
    6964780081a474797065b0416c6c426c6f636b73436c656172656400";
/// The array form of earlier years; what is removed has a digest of 32 bytes.
const GOLDEN_ARRAY: &str = "\
    93cb3ff8000000000000939aab426c6f636b53746f72656491cf112210f47de98115c09401020304\
    04c0a3475055c0c00094ac426c6f636b52656d6f76656491c4201111111111111111111111111111\
    111111111111111111111111111111111111a3475055c091b0416c6c426c6f636b73436c65617265\
    6400";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
}

const GPU: Medium = Medium::Local(Level::Gpu);

fn golden_stored() -> Event {
    Event::Stored(Stored {
        hashes: vec![EngineHash(1_234_567_890_123_456_789)],
        parent: None,
        tokens: vec![1, 2, 3, 4],
        block_tokens: 4,
        medium: GPU,
        adapter: String::new(),
        extra: vec![Extra::None],
        group: Some(0),
        attention: Attention::Unsaid,
    })
}

#[test]
fn the_map_form_is_read() {
    let read = batch(&bytes(GOLDEN_MAP)).unwrap();
    let removed = Event::Removed {
        hashes: vec![EngineHash(1_234_567_890_123_456_789)],
        medium: GPU,
        group: Some(0),
    };
    let events = vec![golden_stored(), removed, Event::Cleared];
    assert_eq!(read, Batch { rank: Some(0), events, unknown: 0, malformed: 0 });
}

#[test]
fn the_array_form_is_read() {
    let read = batch(&bytes(GOLDEN_ARRAY)).unwrap();
    let hash = EngineHash(0x1111_1111_1111_1111_1111_1111_1111_1111);
    let removed = Event::Removed { hashes: vec![hash], medium: GPU, group: None };
    let events = vec![golden_stored(), removed, Event::Cleared];
    assert_eq!(read, Batch { rank: Some(0), events, unknown: 0, malformed: 0 });
}

fn read(events: Json) -> Batch {
    batch(&rmp_serde::to_vec(&json!([1.5, events, null])).unwrap()).unwrap()
}

fn stored(event: Json) -> Stored {
    let mut read = read(json!([event]));
    assert_eq!((read.unknown, read.malformed), (0, 0), "{read:?}");
    let Some(Event::Stored(stored)) = read.events.pop() else { panic!("{read:?}") };
    stored
}

#[test]
fn hashes_with_a_sign_are_their_64_bits() {
    let event = json!(["BlockStored", [-1, 5, i64::MIN], -2, [1], 1]);
    let stored = stored(event);
    assert_eq!(
        stored.hashes,
        [EngineHash(u128::from(u64::MAX)), EngineHash(5), EngineHash(1 << 63)]
    );
    assert_eq!(stored.parent, Some(EngineHash(u128::from(u64::MAX) - 1)));
}

#[test]
fn a_short_array_is_an_older_writer() {
    for length in 5..=8 {
        let whole = json!(["BlockStored", [7], null, [1, 2], 2, null, "GPU", null]);
        let stored = stored(json!(whole.as_array().unwrap()[..length]));
        assert_eq!((stored.tokens.as_slice(), stored.medium), ([1, 2].as_slice(), GPU));
    }
    let read = read(json!([["BlockRemoved", [7]], ["AllBlocksCleared"]]));
    assert_eq!(read.events.len(), 2);
}

#[test]
fn the_tail_of_an_array_is_told_apart_by_type() {
    let head = json!(["BlockStored", [7], null, [1, 2], 2, null, "CPU"]);
    let with = |tail: Json| {
        let mut event = head.as_array().unwrap().clone();
        event.extend(tail.as_array().unwrap().iter().cloned());
        stored(Json::Array(event))
    };
    let full = with(json!(["adapter", [["adapter", "salt"]], 1, "full_attention", null]));
    assert_eq!((full.adapter.as_str(), full.group), ("adapter", Some(1)));
    assert_eq!(full.extra, [Extra::Salt("salt".into())]);
    assert_eq!((full.attention, full.medium), (Attention::Full, Medium::Local(Level::Host)));
    let sliding = with(json!([null, null, 2, "sliding_window", 128]));
    assert_eq!((sliding.group, sliding.attention), (Some(2), Attention::Partial));
    let images = with(json!([null, null, [{"mm_hash": 1}], 3]));
    assert_eq!((images.extra.as_slice(), images.group), ([Extra::Opaque].as_slice(), Some(3)));
    let sglang = with(json!([{"cache_salt": "s", "later": [1, {"a": 2}]}]));
    assert_eq!(sglang.extra, [Extra::Salt("s".into())]);
    let windowed = with(json!([null, null, 0, null, 64]));
    assert_eq!(windowed.attention, Attention::Partial);
}

fn map(more: Json) -> Json {
    let mut event = json!({"type": "BlockStored", "block_hashes": [1, 2],
        "parent_block_hash": null, "token_ids": [1, 2, 3, 4], "block_size": 2});
    event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    event
}

#[test]
fn every_optional_field_of_the_map_form_is_taken_or_passed_over() {
    let said = stored(map(json!({"medium": "STORAGE", "lora_id": 3, "lora_name": "l",
        "extra_keys": [["l", "s"], ["l"]], "group_idx": 4, "kv_cache_spec_kind": "mla_attention",
        "kv_cache_spec_sliding_window": null, "locality": "LOCAL", "ownership": "fs",
        "session_id": "x", "lookahead_token_ids": [[1, 2], []], "of_next_year": {"a": [1]}})));
    assert_eq!(said.medium, Medium::Local(Level::Disk));
    assert_eq!((said.adapter.as_str(), said.group), ("l", Some(4)));
    assert_eq!(said.extra, [Extra::Salt("s".into()), Extra::None]);
    assert_eq!(said.attention, Attention::Full);
    assert_eq!(stored(map(json!({"locality": "REMOTE"}))).medium, Medium::Remote);
    assert_eq!(stored(map(json!({"locality": "NEARBY"}))).medium, Medium::Unknown);
    assert_eq!(stored(map(json!({"cache_salt": "s"}))).extra, [Extra::Salt("s".into())]);
}

#[test]
fn what_token_ids_do_not_name_is_opaque() {
    for more in [
        json!({"extra_keys": [[["image", 0]], null]}),
        json!({"extra_keys": [[7], null]}),
        json!({"extra_keys": [["two", "texts"], null]}),
        json!({"lora_id": 1}),
        json!({"token_ids": [[1, 2], [2, 3]]}),
        json!({"token_ids": [1, 2, 3, 4294967296u64]}),
        json!({"token_ids": [1, 2, 3, -1]}),
        json!({"block_mm_infos": [{"hash": "x"}, null]}),
    ] {
        assert_eq!(stored(map(more.clone())).extra[0], Extra::Opaque, "{more}");
    }
    let later = stored(map(json!({"extra_keys": [null, [["image", 3]]]})));
    assert_eq!(later.extra, [Extra::None, Extra::Opaque]);
    let not_first = stored(map(json!({"parent_block_hash": 9, "extra_keys": [["text"], null]})));
    assert_eq!(not_first.extra[0], Extra::Opaque);
}

#[test]
fn placeholders_name_blocks_without_tokens() {
    let event = json!({"type": "BlockStored", "block_hashes": [1], "parent_block_hash": null,
        "token_ids": [], "block_size": 0, "medium": "CPU"});
    let placeholder = stored(event);
    assert_eq!((placeholder.block_tokens, placeholder.tokens.len()), (0, 0));
}

#[test]
fn an_event_that_cannot_be_read_costs_only_itself() {
    let good = json!(["AllBlocksCleared"]);
    for bad in [
        json!(["BlockStored", "no list"]),
        json!(["BlockStored", [{}], null, [1], 1]),
        json!({"block_hashes": [1]}),
        json!({"type": 5}),
        json!({"type": "BlockStored", "block_hashes": [1], "block_size": -4}),
        json!({"type": "BlockStored", "block_hashes": [1], "token_ids": "x"}),
        json!([]),
        json!(7),
        json!({"type": "BlockRemoved", "block_hashes": ["text"]}),
    ] {
        let read = read(json!([bad, good]));
        assert_eq!(
            (read.malformed, read.events.as_slice()),
            (1, [Event::Cleared].as_slice()),
            "{bad}"
        );
    }
    let read = read(json!([["BlockPinned", [1], {"x": 2}], {"type": "New", "y": [1]}, good]));
    assert_eq!((read.unknown, read.events.len()), (2, 1));
}

#[test]
fn a_batch_that_is_no_batch_is_refused() {
    for bad in [json!(null), json!([]), json!([1.0]), json!([1.0, 5]), json!({"a": 1})] {
        assert!(batch(&rmp_serde::to_vec(&bad).unwrap()).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn a_torn_payload_is_refused(cut in 0usize..200) {
        for golden in [GOLDEN_MAP, GOLDEN_ARRAY] {
            let whole = bytes(golden);
            if cut < whole.len() {
                prop_assert!(batch(&whole[..cut]).is_err());
            }
        }
    }

    #[test]
    fn changed_bytes_are_survived(
        at in prop::collection::vec((0usize..240, any::<u8>()), 1..5),
        is_map in any::<bool>(),
    ) {
        let mut payload = bytes(if is_map { GOLDEN_MAP } else { GOLDEN_ARRAY });
        for (at, byte) in at {
            let at = at % payload.len();
            payload[at] = byte;
        }
        let _ = batch(&payload);
    }

    #[test]
    fn hostile_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = batch(&bytes);
    }
}
