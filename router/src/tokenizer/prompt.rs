//! A rendered prompt's tokens, from its parts: what the cache knows, and the rest.
//!
//! Text is cut where [`super::cuts`] says; each part is tokenized once, by whoever asks first. Works on what it
//! is given; what is kept is owned by [`super::segments`].

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use dataplane::digest::Digest;

use super::segments::{ChainState, Key, Segment, SegmentCache, next_key};
use super::{ModelTokenizer, NotExact};

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
        joined(self.segments.iter().map(|segment| &*segment.digests))
    }

    /// The token ids.
    pub fn tokens(&self) -> impl Iterator<Item = u32> + '_ {
        self.segments.iter().flat_map(|segment| segment.tokens.iter().copied())
    }
}

/// One chain of the parts that the cache keeps.
pub fn joined<'a>(parts: impl Iterator<Item = &'a [Digest]> + Clone) -> Rc<[Digest]> {
    let mut digests = Vec::with_capacity(parts.clone().map(<[Digest]>::len).sum());
    for part in parts {
        digests.extend_from_slice(part);
    }
    digests.into()
}

impl ModelTokenizer {
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
    fn piece(&self, text: &Text, range: Range<usize>) -> Result<Box<[u32]>, NotExact> {
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
