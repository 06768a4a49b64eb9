//! Exact prompt tokens, made here: the model's own chat template and tokenizer, and a cache by which a prefix
//! seen before is not tokenized again.
//!
//! Owned here: [`ModelTokenizer`], what one model's files make of a body. Reading the files is in
//! [`files`], the template's dialect in [`template`], the engines' way with messages in [`conversation`], where
//! a text may be cut in [`cuts`], tokens from parts in
//! `prompt`, the cache in [`segments`], who has which tokenizer in [`shelf`], long texts
//! off the request's core in [`side`]. What a router does with the tokens is not decided here: see
//! [`crate::tokenize`].

pub mod conversation;
pub mod cuts;
pub mod files;
mod prompt;
pub mod python;
pub mod segments;
pub mod shelf;
pub mod side;
pub mod template;
mod tools;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use dataplane::wire::EngineKind;
use minijinja::value::{Serde, Value};
use tokenizers::Tokenizer;

use crate::parse::{Call, Prompt};
use conversation::{Conversation, Fields, Refusal};
use cuts::{CUT_SPACING_BYTES, Cuts};
use files::{Files, FilesError};
pub use prompt::{Exact, Known, Naming, Text, joined};
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
