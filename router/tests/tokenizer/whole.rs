//! The property the cache stands on: tokens and digests from its parts are those of the whole text.

use std::path::Path;

use dataplane::digest::{Unit, of_tokens, seed};
use dataplane::wire::EngineKind;
use proptest::prelude::*;
use router::openai::Endpoint;
use router::parse::{Call, json_call};
use router::tokenizer::segments::SegmentCache;
use router::tokenizer::{ModelTokenizer, Naming, NotExact, Text};

use super::models;

const BLOCK_TOKENS: usize = 16;

fn naming(salt: &str) -> Naming {
    Naming { seed: seed(Unit::Tokens, "m", "", salt), block_tokens: BLOCK_TOKENS }
}

/// Tokenizes through the cache, and whole; both must agree. The tokens that the cache had.
fn agree(tokenizer: &ModelTokenizer, cache: &SegmentCache, text: &Text, salt: &str) -> u64 {
    let exact = tokenizer.exact(cache, text, &naming(salt)).unwrap();
    let whole = tokenizer.encode(&text.text, text.add_special).unwrap();
    let parts: Vec<u32> = exact.tokens().collect();
    assert_eq!(parts, *whole, "{:?}", text.text);
    assert_eq!(exact.prompt_tokens, whole.len() as u64);
    let digests = of_tokens(&naming(salt).seed, &whole, BLOCK_TOKENS);
    assert_eq!(*exact.digests(), *digests);
    exact.cached_tokens
}

fn chat(messages: &[(String, String)]) -> (Call, String) {
    let messages: Vec<_> = messages
        .iter()
        .map(|(role, content)| serde_json::json!({"role": role, "content": content}))
        .collect();
    let body = serde_json::json!({"model": "m", "messages": messages}).to_string();
    (json_call(Endpoint::Chat, body.as_bytes()).unwrap(), body)
}

fn rendered(tokenizer: &ModelTokenizer, messages: &[(String, String)]) -> Text {
    let (call, body) = chat(messages);
    tokenizer.text(EngineKind::Vllm, &call, &body, 0).unwrap()
}

/// What users write, special tokens and parts of them included.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "[a-z]{1,8} ",
        2 => "[ \\n\\t\\r]{1,5}",
        2 => "[0-9]{1,6}",
        2 => "[\\p{L}\\p{M}\\p{S}]{1,4}",
        1 => Just("e\u{301}\u{200d}👩‍👩‍👧 Å".to_owned()),
        3 => prop::sample::select(vec![
            "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
            "<|begin_of_text|>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<think>", "</think>",
            "<tool_call>", "<|begin|>", "<|", "|>", "<|im_", "<｜tool▁sep｜>", "<|im_start|", "'s", "</",
        ]).prop_map(str::to_owned),
    ]
}

fn conversation() -> impl Strategy<Value = Vec<(String, String)>> {
    let content = || prop::collection::vec(word(), 0..60).prop_map(|words| words.concat());
    let role = prop::sample::select(vec!["user", "assistant"]).prop_map(str::to_owned);
    let first = prop::sample::select(vec!["system", "user"]).prop_map(str::to_owned);
    (first, content(), prop::collection::vec((role, content()), 0..10))
        .prop_map(|(role, content, rest)| std::iter::once((role, content)).chain(rest).collect())
}

/// Every turn of each conversation, in a cache that others have used and that is too small for all.
fn turns_agree(folder: &Path, cases: u32) {
    for spacing in [1, 32, 256] {
        let tokenizer = ModelTokenizer::load(folder).unwrap().with_spacing(spacing);
        assert!(!tokenizer.cuts().tokens().is_empty());
        let cache = SegmentCache::new(1 << 20);
        let small = SegmentCache::new(64 << 10);
        let config =
            ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
        let run = proptest::test_runner::TestRunner::new(config).run(&conversation(), |messages| {
            for turns in 1..=messages.len() {
                let text = rendered(&tokenizer, &messages[..turns]);
                agree(&tokenizer, &cache, &text, "");
                agree(&tokenizer, &small, &text, "salt");
                let completion = Text { add_special: true, ..text };
                agree(&tokenizer, &cache, &completion, "");
            }
            Ok(())
        });
        run.unwrap();
        assert!(cache.bytes() <= 1 << 20 && small.bytes() <= 64 << 10);
    }
}

#[test]
fn a_small_tokenizer_agrees_with_itself() {
    turns_agree(models::small().path(), 64);
}

#[test]
fn real_tokenizers_agree_with_themselves() {
    for (_, folder) in models::real() {
        turns_agree(&folder, 24);
    }
}

/// Texts that are no conversation at all.
#[test]
fn any_text_agrees() {
    let folder = models::small();
    let folders = models::real().into_iter().map(|(_, folder)| folder);
    for folder in folders.chain([folder.path().to_owned()]) {
        let tokenizer = ModelTokenizer::load(&folder).unwrap().with_spacing(1);
        let cache = SegmentCache::new(1 << 20);
        let texts = prop::collection::vec(word(), 0..40).prop_map(|words| words.concat());
        let config =
            ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
        let run = proptest::test_runner::TestRunner::new(config).run(
            &(texts, any::<bool>()),
            |(text, add_special)| {
                agree(&tokenizer, &cache, &Text { text, add_special }, "");
                Ok(())
            },
        );
        run.unwrap();
    }
}

#[test]
fn the_next_turn_tokenizes_only_what_is_new() {
    let small = models::small();
    let folders = models::real().into_iter().map(|(_, folder)| folder);
    for folder in folders.chain([small.path().to_owned()]) {
        let tokenizer = ModelTokenizer::load(&folder).unwrap();
        let cache = SegmentCache::new(64 << 20);
        let mut messages = vec![("system".to_owned(), "you are brief ".repeat(100))];
        let mut before = 0;
        for turn in 0..8 {
            messages
                .push(("user".to_owned(), format!("question {turn} {}", "and why ".repeat(60))));
            let text = rendered(&tokenizer, &messages);
            let cached = agree(&tokenizer, &cache, &text, "");
            // What the turn before ended with is the beginning of an answer.
            assert!(cached + 70 >= before, "turn {turn}: {cached} of {before}");
            before = tokenizer.encode(&text.text, false).unwrap().len() as u64;
            // Under another salt the same turns came just as often.
            assert_eq!(agree(&tokenizer, &cache, &text, "other"), cached);
            messages
                .push(("assistant".to_owned(), format!("answer {turn} {}", "because ".repeat(60))));
        }
    }
}

#[test]
fn bad_prompts_are_errors() {
    let folder = models::small();
    let tokenizer = ModelTokenizer::load(folder.path()).unwrap();
    let text = |body: &str| {
        let call = json_call(Endpoint::Chat, body.as_bytes()).unwrap();
        tokenizer.text(EngineKind::Vllm, &call, body, 0)
    };
    let long = "x".repeat(10 << 20);
    let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{long}"}}]}}"#);
    assert_eq!(text(&body).unwrap_err(), NotExact::TooLong);
    for content in [r#""\ud800""#, r#""\udc00x""#, r#""\u12""#, "null,", "{}"] {
        let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":{content}}}]}}"#);
        let Ok(call) = json_call(Endpoint::Chat, body.as_bytes()) else { continue };
        assert!(tokenizer.text(EngineKind::Vllm, &call, &body, 0).is_err(), "{content}");
    }
}

#[test]
fn broken_files_say_which_and_what_to_do() {
    let error = |change: &dyn Fn(&Path)| {
        let folder = models::small();
        change(folder.path());
        ModelTokenizer::load(folder.path()).err().unwrap().to_string()
    };
    let missing = error(&|folder| std::fs::remove_file(folder.join("tokenizer.json")).unwrap());
    assert!(missing.contains("tokenizer.json") && missing.contains("point `files`"), "{missing}");
    for text in ["", "{}", "[]", "{\"model\":{\"type\":\"BPE\"", "nonsense", &"[".repeat(100_000)] {
        let broken = error(&|folder| models::write(folder, "tokenizer.json", text));
        assert!(
            broken.contains("tokenizer.json") && broken.contains("copy the model's own"),
            "{broken}"
        );
    }
    let template = |source: &str| {
        let source = source.to_owned();
        error(&move |folder| models::write(folder, "chat_template.jinja", &source))
    };
    assert!(template("{% for %}").contains("chat_template.jinja"));
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    assert!(template(endless).contains("too many steps"));
}
