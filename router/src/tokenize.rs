//! Phase *tokenize*: the prompt → the chain of digests that names its prefix.
//!
//! * Exact path, here: where the model's files are at hand, its own template and tokenizer say the token ids
//!   ([`crate::tokenizer`]); a prefix seen before is not tokenized again. Some prompts are compared with
//!   what an engine makes of them; a tokenizer that errs is not used any more.
//! * Exact path, learned: an engine of the model renders its chat template and tokenizes
//!   (llama.cpp `/apply-template` and `/tokenize`; vLLM and SGLang `/tokenize`). A body seen before is
//!   not sent again.
//! * Text path: the raw JSON of tools and messages. A conversation that grows by appending keeps its
//!   bytes, so prefixes are found; what is lost is only the equality of differently written requests.
//!
//! The engine gets the client's bytes either way. A failure here costs accuracy, never the request.

mod check;
mod engine;
mod here;

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;

use dataplane::digest::{Digest, Unit, of_text, of_tokens, seed};

use crate::cluster::ModelView;
use crate::config::KvMode;
use crate::parse::{Call, Prompt};
use crate::shard::Shard;
use crate::tokenizer::Naming;

/// How a prompt was cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Exact token ids.
    Tokens,
    /// Raw text.
    Text,
    /// Not at all.
    None,
}

impl Cut {
    /// For `route explain`.
    pub fn as_str(self) -> &'static str {
        match self {
            Cut::Tokens => "tokens",
            Cut::Text => "text",
            Cut::None => "none",
        }
    }
}

/// The name of a prompt's prefix.
#[derive(Clone, Debug)]
pub struct Prefix {
    /// How it was cut.
    pub cut: Cut,
    /// One digest per whole block.
    pub digests: Rc<[Digest]>,
    /// Tokens of the prompt; estimated on the text path, 0 where nothing was cut.
    pub prompt_tokens: u64,
    /// Bytes of the prompt's text in the request; 0 for token ids.
    pub text_bytes: u64,
    tokens_per_block: f64,
}

impl Prefix {
    /// Tokens in a block, on the exact path; 0 elsewhere.
    pub fn block_tokens(&self) -> u32 {
        if self.cut == Cut::Tokens { self.tokens_per_block as u32 } else { 0 }
    }

    /// Leading blocks an engine can take from its cache: it computes at least the last token anew.
    pub fn blocks_reusable(&self) -> usize {
        let tokens = self.prompt_tokens.saturating_sub(1);
        let blocks = tokens.checked_div(u64::from(self.block_tokens())).unwrap_or(0);
        self.digests.len().min(usize::try_from(blocks).unwrap_or(usize::MAX))
    }

    /// The prefix of a prompt whose exact tokens are known, by the digests of its whole blocks.
    pub fn of_tokens(
        digests: Rc<[Digest]>,
        prompt_tokens: u64,
        text_bytes: u64,
        block_tokens: usize,
    ) -> Self {
        let tokens_per_block = block_tokens as f64;
        Prefix { cut: Cut::Tokens, digests, prompt_tokens, text_bytes, tokens_per_block }
    }

    fn none(text_bytes: u64) -> Self {
        Prefix {
            cut: Cut::None,
            digests: Rc::new([]),
            prompt_tokens: 0,
            text_bytes,
            tokens_per_block: 0.0,
        }
    }

    /// Tokens of the prompt, estimated from its text where nothing else is known.
    pub fn tokens_estimated(&self, tokens_per_byte: f32) -> u64 {
        match self.prompt_tokens {
            0 => (self.text_bytes as f64 * f64::from(tokens_per_byte)) as u64,
            tokens => tokens,
        }
    }

    /// Tokens in so many leading blocks, never more than the prompt has.
    pub fn tokens_in(&self, blocks: usize) -> u64 {
        ((blocks as f64 * self.tokens_per_block) as u64).min(self.prompt_tokens)
    }
}

/// Names the prefix of `call`.
pub async fn prefix(shard: &Shard, model: &ModelView, call: &Call, body: &[u8]) -> Prefix {
    let text_bytes = text_ranges(&call.prompt).iter().map(|range| range.len() as u64).sum();
    let mode = shard.config.kv.mode;
    let count = |path| shard.stats.tokenize.with_label_values(&[path]).inc();
    if mode == KvMode::Off || matches!(call.prompt, Prompt::Many) {
        return Prefix::none(text_bytes);
    }
    let now_ms = shard.now_ms();
    let block_tokens = model.block_tokens(now_ms).unwrap_or(shard.config.kv.block_tokens);
    if let Prompt::Tokens(range) = &call.prompt {
        let Ok(tokens) = sonic_rs::from_slice::<Vec<u32>>(&body[range.clone()]) else {
            return Prefix::none(text_bytes);
        };
        count("given");
        return exact(call, &tokens, text_bytes, block_tokens);
    }
    let is_exact = mode == KvMode::Auto && !matches!(call.prompt, Prompt::Opaque(_));
    if is_exact
        && let Some(exact) =
            here::exact(shard, model, call, body, &naming(call, block_tokens)).await
    {
        count(if exact.cached_tokens > 0 { "exact_cached" } else { "exact" });
        return Prefix::of_tokens(exact.digests(), exact.prompt_tokens, text_bytes, block_tokens);
    }
    if is_exact
        && let Some(prefix) = by_engine(shard, model, call, body, text_bytes, block_tokens).await
    {
        return prefix;
    }
    if mode == KvMode::Auto && model.workers.len() < 2 {
        return Prefix::none(text_bytes);
    }
    count("text");
    text(shard, call, body, text_bytes)
}

/// By the token ids that an engine says the prompt has, now or when it was asked before.
async fn by_engine(
    shard: &Shard,
    model: &ModelView,
    call: &Call,
    body: &[u8],
    text_bytes: u64,
    block_tokens: usize,
) -> Option<Prefix> {
    let count = |path| shard.stats.tokenize.with_label_values(&[path]).inc();
    let other_than =
        |but: Option<&str>| engine::that_tokenizes(model, call.endpoint, but, shard.now_ms());
    let mut worker = other_than(None)?;
    let key = short_hash(call, body, block_tokens);
    if let Some((digests, prompt_tokens)) = shard.tokens.borrow().find(key) {
        count("cached");
        return Some(Prefix::of_tokens(digests, prompt_tokens, text_bytes, block_tokens));
    }
    for asked in 1..=engine::ASKED_MAX {
        match engine::ask(shard, &worker, call, body).await {
            Ok(tokens) => {
                let tokens = tokens?;
                count("engine");
                let prefix = exact(call, &tokens, text_bytes, block_tokens);
                let entry = (Rc::clone(&prefix.digests), prefix.prompt_tokens);
                shard.tokens.borrow_mut().keep(key, entry);
                return Some(prefix);
            }
            Err(engine::Unreachable) if asked < engine::ASKED_MAX => {
                worker = other_than(Some(&worker.worker.id))?;
            }
            Err(engine::Unreachable) => {}
        }
    }
    None
}

fn exact(call: &Call, tokens: &[u32], text_bytes: u64, block_tokens: usize) -> Prefix {
    let Naming { seed, block_tokens } = naming(call, block_tokens);
    let digests = of_tokens(&seed, tokens, block_tokens);
    Prefix::of_tokens(digests.into(), tokens.len() as u64, text_bytes, block_tokens)
}

/// What digests over token ids of `call` are made of.
fn naming(call: &Call, block_tokens: usize) -> Naming {
    let salt = call.cache_salt.as_deref().unwrap_or_default();
    let seed = seed(Unit::Tokens, &call.model, "", salt);
    Naming { seed, block_tokens }
}

fn text(shard: &Shard, call: &Call, body: &[u8], text_bytes: u64) -> Prefix {
    let salt = call.cache_salt.as_deref().unwrap_or_default();
    let seed = seed(Unit::Text, &call.model, "", salt);
    let block_bytes = shard.config.kv.block_bytes;
    let digests = match text_ranges(&call.prompt).as_slice() {
        [one] => of_text(&seed, &body[one.clone()], block_bytes),
        several => {
            let joined: Vec<&[u8]> = several.iter().map(|range| &body[range.clone()]).collect();
            of_text(&seed, &joined.concat(), block_bytes)
        }
    };
    let tokens_per_byte = f64::from(shard.cluster.tokens_per_byte());
    Prefix {
        cut: Cut::Text,
        digests: digests.into(),
        prompt_tokens: (text_bytes as f64 * tokens_per_byte) as u64,
        text_bytes,
        tokens_per_block: block_bytes as f64 * tokens_per_byte,
    }
}

/// The parts of the body a template reads, in its order, without what closes them: the bracket or
/// quote at the end is not there any more when the conversation goes on.
fn text_ranges(prompt: &Prompt) -> Vec<Range<usize>> {
    let open = |range: &Range<usize>| range.start..range.end.saturating_sub(1).max(range.start);
    match prompt {
        Prompt::Chat { messages, tools: None } => vec![open(messages)],
        Prompt::Chat { messages, tools: Some(tools) } => vec![tools.clone(), open(messages)],
        Prompt::Text(text) | Prompt::Opaque(text) => vec![open(text)],
        Prompt::Tokens(_) | Prompt::Many => Vec::new(),
    }
}

/// Any field may change what a template renders, so the whole body is the key. It is hashed from its
/// own start, where BLAKE3 is at its widest; what stands before it would cost more than it.
fn short_hash(call: &Call, body: &[u8], block_tokens: usize) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(blake3::hash(body).as_bytes());
    hasher.update(call.endpoint.as_str().as_bytes());
    hasher.update(&(block_tokens as u64).to_le_bytes());
    Digest(*hasher.finalize().as_bytes()).short()
}

/// Prompts tokenized lately, oldest first out.
#[derive(Debug)]
pub struct TokenCache {
    entries_max: usize,
    entries: HashMap<u128, (Rc<[Digest]>, u64)>,
    order: VecDeque<u128>,
}

impl TokenCache {
    /// A cache of at most `entries_max` prompts.
    pub fn new(entries_max: usize) -> Self {
        TokenCache { entries_max, entries: HashMap::new(), order: VecDeque::new() }
    }

    fn find(&self, key: u128) -> Option<(Rc<[Digest]>, u64)> {
        self.entries.get(&key).map(|(digests, tokens)| (Rc::clone(digests), *tokens))
    }

    fn keep(&mut self, key: u128, entry: (Rc<[Digest]>, u64)) {
        if self.entries_max == 0 || self.entries.insert(key, entry).is_some() {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > self.entries_max
            && let Some(oldest) = self.order.pop_front()
        {
            self.entries.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::Endpoint;

    #[test]
    fn the_cache_keeps_the_youngest_within_its_limit() {
        let mut cache = TokenCache::new(2);
        for key in [1, 2, 2, 3] {
            cache.keep(key, (Rc::new([]), key as u64));
        }
        assert!(cache.find(1).is_none());
        assert_eq!(cache.find(2).map(|(_, tokens)| tokens), Some(2));
        assert_eq!(cache.find(3).map(|(_, tokens)| tokens), Some(3));
        let mut none = TokenCache::new(0);
        none.keep(1, (Rc::new([]), 1));
        assert!(none.entries.is_empty());
    }

    /// The text of a conversation is a prefix of the text of the same conversation one turn later.
    #[test]
    fn a_conversation_that_goes_on_keeps_its_text() {
        let text = |body: &str| {
            let call = crate::parse::json_call(Endpoint::Chat, body.as_bytes()).unwrap();
            text_ranges(&call.prompt).into_iter().map(|r| body[r].to_owned()).collect::<String>()
        };
        let one =
            text(r#"{"model":"m","messages":[{"role":"user","content":"a"}],"tools":[{"x":1}]}"#);
        let two = text(
            r#"{"tools":[{"x":1}],"model":"m","messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
        );
        assert!(two.starts_with(&one), "{one} / {two}");
    }

    #[test]
    fn tokens_of_a_match_never_exceed_the_prompt() {
        let prefix = Prefix {
            cut: Cut::Text,
            digests: Rc::new([]),
            prompt_tokens: 100,
            text_bytes: 400,
            tokens_per_block: 64.0,
        };
        assert_eq!(prefix.tokens_in(1), 64);
        assert_eq!(prefix.tokens_in(2), 100);
    }
}
