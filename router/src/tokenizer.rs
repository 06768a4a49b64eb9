//! Exact prompt tokens, made here: the model's own chat template and tokenizer, and a cache by which a prefix
//! seen before is not tokenized again.
//!
//! Owned here: [`ModelTokenizer`], what one model's files make of a body. Reading the files is in
//! [`files`], the template's dialect in [`template`], the engines' way with messages in [`conversation`], where
//! a text may be cut in [`cuts`], the cache in [`segments`], who has which tokenizer in [`shelf`], long texts
//! off the request's core in [`side`]. What a router does with the tokens is not decided here: see
//! [`crate::tokenize`].

pub mod conversation;
pub mod cuts;
pub mod files;
pub mod python;
pub mod segments;
pub mod shelf;
pub mod side;
pub mod template;

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use dataplane::digest::Digest;
use dataplane::wire::EngineKind;
use minijinja::value::{Serde, Value};
use tokenizers::Tokenizer;

use crate::parse::{Call, Prompt};
use conversation::{Conversation, Fields, Refusal};
use cuts::{CUT_SPACING_BYTES, Cuts};
use files::{Files, FilesError};
use segments::{ChainState, Key, Segment, SegmentCache, next_key};
use template::{Template, TemplateError};

/// A longer text is not tokenized here: two million tokens of English, more than any model takes.
pub const PROMPT_BYTES_MAX: usize = 8 << 20;

/// Why a prompt has no exact tokens from here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotExact {
    /// The request cannot be prepared as its engine would.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The template does not render it.
    #[error("{0}")]
    Template(#[from] TemplateError),
    /// The model has no chat template.
    #[error("the model's files have no chat template")]
    NoTemplate,
    /// The text is longer than is tokenized here.
    #[error("the prompt is longer than {PROMPT_BYTES_MAX} bytes")]
    TooLong,
    /// The tokenizer itself fails.
    #[error("the tokenizer fails: {0}")]
    Tokenizer(String),
}

impl NotExact {
    /// For metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            NotExact::Refused(refusal) => refusal.reason(),
            NotExact::Template(error) => error.reason(),
            NotExact::NoTemplate => "no_template",
            NotExact::TooLong => "too_long",
            NotExact::Tokenizer(_) => "tokenizer",
        }
    }
}

/// A rendered prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// What is tokenized.
    pub text: String,
    /// The tokenizer's own first and last tokens come with it.
    pub add_special: bool,
}

/// Of what digests are made.
#[derive(Clone, Copy, Debug)]
pub struct Naming {
    /// Before the first block.
    pub seed: Digest,
    /// Tokens of a block.
    pub block_tokens: usize,
}

/// How far the cache knows a text.
#[derive(Debug)]
pub struct Known {
    ends: Vec<usize>,
    keys: Vec<Key>,
    segments: Vec<Arc<Segment>>,
    key: Key,
}

impl Known {
    fn at(&self) -> usize {
        self.segments.len().checked_sub(1).map_or(0, |last| self.ends[last])
    }

    /// Bytes of `text` that are left to tokenize.
    pub fn bytes_left(&self, text: &Text) -> usize {
        text.text.len() - self.at()
    }
}

/// A prompt's exact tokens and digests, shared with the cache.
#[derive(Debug)]
pub struct Exact {
    segments: Vec<Arc<Segment>>,
    /// Tokens in all.
    pub prompt_tokens: u64,
    /// Of these, tokenized for an earlier prompt.
    pub cached_tokens: u64,
}

impl Exact {
    /// One digest per whole block.
    pub fn digests(&self) -> Rc<[Digest]> {
        let mut digests = Vec::with_capacity(self.segments.iter().map(|s| s.digests.len()).sum());
        for segment in &self.segments {
            digests.extend_from_slice(&segment.digests);
        }
        digests.into()
    }

    /// The token ids.
    pub fn tokens(&self) -> impl Iterator<Item = u32> + '_ {
        self.segments.iter().flat_map(|segment| segment.tokens.iter().copied())
    }
}

/// One model's tokenizer and templates.
pub struct ModelTokenizer {
    tokenizer: Tokenizer,
    cuts: Cuts,
    template: Option<Template>,
    template_tools: Option<Template>,
    special: Vec<(String, Value)>,
    identity: [u8; 32],
    ends: Option<Ends>,
    spacing_bytes: usize,
    prompts: AtomicU64,
    distrusted: AtomicBool,
    has_failed: AtomicBool,
}

/// What a tokenizer adds before and behind a text.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ends {
    first: Vec<u32>,
    last: Vec<u32>,
}

impl ModelTokenizer {
    /// Reads the files of `folder`. Takes a second for a large vocabulary.
    ///
    /// # Errors
    /// [`FilesError`].
    pub fn load(folder: &Path) -> Result<Self, FilesError> {
        Ok(ModelTokenizer::of(Files::read(folder)?))
    }

    fn of(files: Files) -> Self {
        let cuts = Cuts::of(&files.added, &files.file);
        let ends = ends(&files.tokenizer);
        // Nothing is known of what is added where, so a text must stay whole.
        let cuts = if ends.is_some() { cuts } else { Cuts::none() };
        let special =
            files.special.iter().map(|(name, value)| (name.clone(), Value::from(Serde(value))));
        ModelTokenizer {
            cuts,
            ends,
            spacing_bytes: CUT_SPACING_BYTES,
            special: special.collect(),
            tokenizer: files.tokenizer,
            template: files.template,
            template_tools: files.template_tools,
            identity: files.identity,
            prompts: AtomicU64::new(0),
            distrusted: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
        }
    }

    /// The same with cuts at least so many bytes apart.
    #[must_use]
    pub fn with_spacing(mut self, bytes: usize) -> Self {
        self.spacing_bytes = bytes;
        self
    }

    /// Where texts are cut.
    pub fn cuts(&self) -> &Cuts {
        &self.cuts
    }

    /// The engine counted other tokens than we did.
    pub fn is_distrusted(&self) -> bool {
        self.distrusted.load(Relaxed)
    }

    /// From now on this tokenizer is not used. Whether it was until now.
    pub fn distrust(&self) -> bool {
        !self.distrusted.swap(true, Relaxed)
    }

    /// Whether no prompt failed before this one.
    pub fn is_first_failure(&self) -> bool {
        !self.has_failed.swap(true, Relaxed)
    }

    /// Whether the prompt at hand is to be compared with what its engine makes of it: the first one, and a
    /// `share` of all.
    pub fn is_check_due(&self, share: f64) -> bool {
        let number = self.prompts.fetch_add(1, Relaxed);
        share > 0.0 && number.is_multiple_of((1.0 / share).round().max(1.0) as u64)
    }

    /// The text that an engine of `kind` makes of `call`.
    ///
    /// # Errors
    /// All of [`NotExact`] but the last.
    pub fn text(
        &self,
        kind: EngineKind,
        call: &Call,
        body: &str,
        now_s: u64,
    ) -> Result<Text, NotExact> {
        if body.len() > PROMPT_BYTES_MAX {
            return Err(NotExact::TooLong);
        }
        let fields = Fields::read(body)?;
        match call.prompt {
            Prompt::Text(_) => {
                let add_special = fields.add_special_tokens.unwrap_or(true);
                Ok(Text { text: fields.completion()?, add_special })
            }
            Prompt::Chat { .. } => {
                let has_tools = matches!(call.prompt, Prompt::Chat { tools: Some(_), .. });
                let for_tools = self.template_tools.as_ref().filter(|_| has_tools);
                let template = for_tools.or(self.template.as_ref()).ok_or(NotExact::NoTemplate)?;
                let conversation = fields.chat(kind, template.wants_parts())?;
                let text = self.render(template, conversation, now_s)?;
                Ok(Text { text, add_special: fields.add_special_tokens.unwrap_or(false) })
            }
            Prompt::Tokens(_) | Prompt::Opaque(_) | Prompt::Many => {
                Err(Refusal::Field("the prompt").into())
            }
        }
    }

    fn render(
        &self,
        template: &Template,
        conversation: Conversation,
        now_s: u64,
    ) -> Result<String, NotExact> {
        let variables = self.special.iter().cloned().chain(conversation.variables);
        let mut text = template.render(Value::from_pairs(variables), now_s, PROMPT_BYTES_MAX)?;
        if let Some(last) = conversation.continued {
            let length =
                continued_length(&text, &last).ok_or(Refusal::Field("continue_final_message"))?;
            text.truncate(length);
        }
        Ok(text)
    }

    /// How far `cache` knows `text`.
    pub fn known(&self, cache: &SegmentCache, text: &Text, naming: &Naming) -> Known {
        let mut ends: Vec<usize> = self.cuts.spaced(&text.text, self.spacing_bytes).collect();
        if ends.last().is_none_or(|last| *last < text.text.len()) {
            ends.push(text.text.len());
        }
        let mut key = self.start_key(text, naming);
        let (mut at, mut keys, mut segments) = (0, Vec::with_capacity(ends.len()), Vec::new());
        for &end in &ends {
            let next = next_key(&key, &text.text[at..end]);
            let Some(segment) = cache.find(&next) else { break };
            segments.push(segment);
            keys.push(next);
            (at, key) = (end, next);
        }
        Known { ends, keys, segments, key }
    }

    /// Tokens are the same under each seed, but digests are not; and what one tenant's salt names, no other
    /// tenant's request finds.
    fn start_key(&self, text: &Text, naming: &Naming) -> Key {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"cognitora tokens v1");
        hasher.update(&self.identity);
        hasher.update(&naming.seed.0);
        hasher.update(&(naming.block_tokens as u64).to_le_bytes());
        hasher.update(&[u8::from(text.add_special)]);
        *hasher.finalize().as_bytes()
    }

    /// Tokenizes what is left of `text`, and keeps it.
    ///
    /// # Errors
    /// [`NotExact::Tokenizer`].
    pub fn finish(
        &self,
        cache: &SegmentCache,
        text: &Text,
        naming: &Naming,
        known: Known,
    ) -> Result<Exact, NotExact> {
        let at = known.at();
        let Known { ends, keys, mut segments, mut key } = known;
        let cached_tokens = segments.iter().map(|segment| segment.tokens.len() as u64).sum();
        let mut state = match segments.last() {
            Some(last) => last.end.clone(),
            None => ChainState::new(naming.seed),
        };
        let mut from = at;
        let mut fresh = Vec::new();
        for &end in &ends[segments.len()..] {
            let is_last = end == text.text.len();
            let tokens = self.piece(text, from..end)?;
            let digests = state.extend(&tokens, naming.block_tokens).into();
            let segment = Arc::new(Segment { tokens, digests, end: state.clone() });
            key = next_key(&key, &text.text[from..end]);
            // A short tail is the beginning of an answer: the next turn does not have it as it stands.
            if !is_last || end - from >= self.spacing_bytes {
                fresh.push((key, Arc::clone(&segment)));
            }
            segments.push(segment);
            from = end;
        }
        cache.keep(&fresh);
        cache.touch(&keys);
        let prompt_tokens = segments.iter().map(|segment| segment.tokens.len() as u64).sum();
        Ok(Exact { segments, prompt_tokens, cached_tokens })
    }

    /// The tokens of one piece between two cuts, with what is added to the text as a whole.
    fn piece(&self, text: &Text, range: std::ops::Range<usize>) -> Result<Box<[u32]>, NotExact> {
        let piece = &text.text[range.clone()];
        if !text.add_special {
            return self.encode(piece, false);
        }
        let Some(ends) = &self.ends else {
            return self.encode(piece, true);
        };
        let mut tokens = Vec::new();
        if range.start == 0 {
            tokens.extend_from_slice(&ends.first);
        }
        tokens.extend_from_slice(&self.encode(piece, false)?);
        if range.end == text.text.len() {
            tokens.extend_from_slice(&ends.last);
        }
        Ok(tokens.into())
    }

    /// The tokens of `text`, whole, as the tokenizer alone would say.
    ///
    /// # Errors
    /// [`NotExact::Tokenizer`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Box<[u32]>, NotExact> {
        let encoding = self.tokenizer.encode_fast(text, add_special);
        let encoding = encoding.map_err(|error| NotExact::Tokenizer(error.to_string()))?;
        Ok(encoding.get_ids().into())
    }

    /// All of the above, on the spot.
    ///
    /// # Errors
    /// [`NotExact::Tokenizer`].
    pub fn exact(
        &self,
        cache: &SegmentCache,
        text: &Text,
        naming: &Naming,
    ) -> Result<Exact, NotExact> {
        let known = self.known(cache, text, naming);
        self.finish(cache, text, naming, known)
    }
}

/// What `tokenizer` adds before and behind a text. `None` where trials do not agree.
fn ends(tokenizer: &Tokenizer) -> Option<Ends> {
    let trial = |text: &str| {
        let ids = |add| Some(tokenizer.encode(text, add).ok()?.get_ids().to_vec());
        let (bare, whole) = (ids(false)?, ids(true)?);
        let marks = tokenizer.encode(text, true).ok()?.get_special_tokens_mask().to_vec();
        let before = marks.iter().take_while(|mark| **mark == 1).count();
        let behind = whole.len().checked_sub(before + bare.len())?;
        let (first, last) = (whole[..before].to_vec(), whole[whole.len() - behind..].to_vec());
        (whole[before..whole.len() - behind] == bare).then_some(Ends { first, last })
    };
    let found = trial("a")?;
    (trial("b c")? == found).then_some(found)
}

/// Up to where a rendered conversation is kept whose last message goes on (`apply_chat_template`).
fn continued_length(text: &str, last: &str) -> Option<usize> {
    let trimmed = last.trim();
    let at = text.rfind(trimmed)?;
    let from_left = last.trim_start();
    let is_whole =
        text.get(at..).is_some_and(|rest| rest.starts_with(from_left)) && from_left == last;
    Some(at + if is_whole { from_left.len() } else { trimmed.len() })
}
