//! Where a text may be cut so that its parts, tokenized alone, are the whole tokenized: right behind
//! certain added tokens.
//!
//! A tokenizer splits a text at its added tokens first, leftmost and longest match, and only then
//! normalizes, pre-tokenizes and merges what lies between, each piece by itself. So behind an added token
//! that is *always* found where its text stands, the rest begins anew. It is always found if no other
//! added token can take part of its text: none contains it, is contained in it, or overlaps with it.
//! What depends on more than a piece (a word boundary, blanks swallowed to the right, a prefix for the
//! very first piece) rules a token out, or all of them. What is not known here is not trusted.

use std::collections::HashSet;

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;

/// Between two cuts lie at least so many bytes: about 64 tokens, so that what is kept for a cut is
/// mostly tokens.
pub const CUT_SPACING_BYTES: usize = 256;

/// Added tokens looked at. No tokenizer known has a tenth of it.
const ADDED_TOKENS_MAX: usize = 65_536;
/// A tokenizer with a longer one has no cuts: all parts of each are compared with all others.
const TOKEN_BYTES_MAX: usize = 256;

/// One entry of `added_tokens`, as far as it matters.
#[derive(Clone, Debug)]
pub struct Added {
    /// Its text.
    pub content: String,
    /// It is looked for in normalized text.
    pub normalized: bool,
    /// It counts only between word boundaries.
    pub single_word: bool,
    /// It swallows the blanks before it.
    pub lstrip: bool,
    /// It swallows the blanks behind it.
    pub rstrip: bool,
}

/// The safe cuts of one tokenizer.
#[derive(Debug)]
pub struct Cuts {
    finder: Option<AhoCorasick>,
    tokens: Vec<String>,
}

impl Cuts {
    /// No cut is safe.
    pub fn none() -> Self {
        Cuts { finder: None, tokens: Vec::new() }
    }

    /// The safe cuts of a tokenizer with these added tokens and this `tokenizer.json`.
    pub fn of(added: &[Added], file: &Value) -> Self {
        let pieces_stand_alone = pre_tokenizer_is_known(&file["pre_tokenizer"])
            && normalizer_is_known(&file["normalizer"])
            && file["model"]["dropout"].as_f64().is_none_or(|share| share == 0.0);
        let is_long = |token: &Added| token.content.len() > TOKEN_BYTES_MAX;
        if !pieces_stand_alone || added.len() > ADDED_TOKENS_MAX || added.iter().any(is_long) {
            return Cuts::none();
        }
        let has_normalizer = !is_idle(&file["normalizer"]);
        let texts = Texts::of(added);
        let words = added.iter().any(|token| token.single_word);
        let swallowing = added.iter().any(|token| token.rstrip);
        let tokens: Vec<String> = added
            .iter()
            .filter(|token| !token.single_word && !token.lstrip && !token.rstrip)
            .filter(|token| !(token.normalized && has_normalizer))
            .filter(|token| !words || token.content.ends_with(is_no_word))
            .filter(|token| !(swallowing && token.content.starts_with(char::is_whitespace)))
            .filter(|token| texts.is_apart(&token.content))
            .map(|token| token.content.clone())
            .collect();
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&tokens);
        match finder {
            Ok(finder) if !tokens.is_empty() => Cuts { finder: Some(finder), tokens },
            _ => Cuts::none(),
        }
    }

    /// The added tokens behind which a text may be cut.
    pub fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// Every safe cut in `text`, as byte offsets, at least `spacing` bytes apart. Depends on nothing behind a
    /// cut, so a text that goes on has the same ones.
    pub fn spaced<'a>(&'a self, text: &'a str, spacing: usize) -> impl Iterator<Item = usize> + 'a {
        let finds = self.finder.as_ref().map(|finder| finder.find_iter(text));
        let ends = finds.into_iter().flatten().map(|found| found.end());
        let mut last = 0;
        ends.filter(move |end| {
            let is_far = end - last >= spacing;
            if is_far {
                last = *end;
            }
            is_far
        })
    }
}

/// No part of a word, whoever is asked.
fn is_no_word(c: char) -> bool {
    c.is_ascii_punctuation() && c != '_'
}

/// All texts of added tokens, and the parts of them that another token could share.
struct Texts<'a> {
    whole: HashSet<&'a str>,
    inside: HashSet<&'a str>,
    heads: HashSet<&'a str>,
    tails: HashSet<&'a str>,
}

impl<'a> Texts<'a> {
    fn of(added: &'a [Added]) -> Self {
        let whole: HashSet<&str> = added.iter().map(|token| token.content.as_str()).collect();
        let (mut inside, mut heads, mut tails) = (HashSet::new(), HashSet::new(), HashSet::new());
        for text in &whole {
            let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).skip(1).collect();
            heads.extend(starts.iter().map(|&at| &text[..at]));
            tails.extend(starts.iter().map(|&at| &text[at..]));
            // Only what is another token's whole text matters of what lies inside.
            for from in std::iter::once(0).chain(starts.iter().copied()) {
                let ends = starts.iter().copied().filter(|&end| end > from);
                for end in ends.chain([text.len()]) {
                    let part = &text[from..end];
                    if part.len() < text.len() && whole.contains(part) {
                        inside.insert(part);
                    }
                }
            }
        }
        Texts { whole, inside, heads, tails }
    }

    /// No other token can take part of this one's text, nor can it itself.
    fn is_apart(&self, text: &str) -> bool {
        if text.is_empty() || self.inside.contains(text) {
            return false;
        }
        let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).skip(1).collect();
        let overlaps = starts
            .iter()
            .any(|&at| self.tails.contains(&text[..at]) || self.heads.contains(&text[at..]));
        let contains = std::iter::once(0).chain(starts.iter().copied()).any(|from| {
            let ends = starts.iter().copied().filter(|&end| end > from).chain([text.len()]);
            let mut parts = ends.map(|end| &text[from..end]);
            parts.any(|part| part.len() < text.len() && self.whole.contains(part))
        });
        !overlaps && !contains
    }
}

/// Nothing is changed by it.
fn is_idle(normalizer: &Value) -> bool {
    normalizer.is_null()
        || (normalizer["type"] == "Sequence"
            && normalizer["normalizers"].as_array().is_some_and(|all| all.iter().all(is_idle)))
}

/// Normalizers see one piece at a time, whichever they are.
fn normalizer_is_known(normalizer: &Value) -> bool {
    if normalizer.is_null() {
        return true;
    }
    match normalizer["type"].as_str() {
        Some("Sequence") => normalizer["normalizers"]
            .as_array()
            .is_some_and(|all| all.iter().all(normalizer_is_known)),
        Some(
            "BertNormalizer" | "Strip" | "StripAccents" | "NFC" | "NFD" | "NFKC" | "NFKD"
            | "Lowercase" | "Nmt" | "Precompiled" | "Replace" | "Prepend" | "ByteLevel",
        ) => true,
        _ => false,
    }
}

/// These see one piece at a time, too, but for Metaspace, which may treat the very first one apart.
fn pre_tokenizer_is_known(pre_tokenizer: &Value) -> bool {
    if pre_tokenizer.is_null() {
        return true;
    }
    match pre_tokenizer["type"].as_str() {
        Some("Sequence") => pre_tokenizer["pretokenizers"]
            .as_array()
            .is_some_and(|all| all.iter().all(pre_tokenizer_is_known)),
        Some("Metaspace") => {
            matches!(pre_tokenizer["prepend_scheme"].as_str(), Some("always" | "never"))
        }
        Some(
            "BertPreTokenizer" | "ByteLevel" | "Delimiter" | "CharDelimiterSplit" | "Whitespace"
            | "WhitespaceSplit" | "Split" | "Punctuation" | "Digits" | "UnicodeScripts"
            | "FixedLength",
        ) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn added(content: &str) -> Added {
        Added {
            content: content.to_owned(),
            normalized: false,
            single_word: false,
            lstrip: false,
            rstrip: false,
        }
    }

    fn tokens(added: &[Added], file: &Value) -> Vec<String> {
        Cuts::of(added, file).tokens().to_vec()
    }

    #[test]
    fn tokens_that_others_can_take_part_of_are_no_cuts() {
        for (others, is_cut) in [
            (vec!["<b>"], true),
            (vec!["<a>>"], false), // longer, begins with it
            (vec!["x<a>"], false), // longer, ends with it
            (vec!["x<"], false),   // overlaps from the left
            (vec![">x"], false),   // overlaps to the right
            (vec!["a"], false),    // inside
        ] {
            let mut all = vec![added("<a>")];
            all.extend(others.iter().map(|text| added(text)));
            assert_eq!(tokens(&all, &json!({})).contains(&"<a>".to_owned()), is_cut, "{others:?}");
        }
        assert!(tokens(&[added("aXa")], &json!({})).is_empty(), "overlaps with itself");
    }

    #[test]
    fn what_depends_on_more_than_a_piece_rules_out() {
        let one = || added("<a>");
        assert_eq!(tokens(&[one()], &json!({})), ["<a>"]);
        assert!(tokens(&[Added { rstrip: true, ..one() }], &json!({})).is_empty());
        assert!(tokens(&[Added { lstrip: true, ..one() }], &json!({})).is_empty());
        assert!(tokens(&[Added { single_word: true, ..one() }], &json!({})).is_empty());
        let normalized = [Added { normalized: true, ..one() }];
        assert_eq!(
            tokens(&normalized, &json!({"normalizer": {"type": "Sequence", "normalizers": []}})),
            ["<a>"]
        );
        assert!(tokens(&normalized, &json!({"normalizer": {"type": "NFC"}})).is_empty());
        assert_eq!(tokens(&[one()], &json!({"normalizer": {"type": "NFC"}})), ["<a>"]);
        for pre_tokenizer in [
            json!({"type": "Metaspace", "prepend_scheme": "first"}),
            json!({"type": "Metaspace"}),
            json!({"type": "Unheard"}),
            json!({"type": "Sequence", "pretokenizers": [{"type": "Unheard"}]}),
        ] {
            assert!(tokens(&[one()], &json!({ "pre_tokenizer": pre_tokenizer })).is_empty());
        }
        assert!(tokens(&[one()], &json!({"model": {"dropout": 0.1}})).is_empty());
    }

    #[test]
    fn cuts_are_spaced_and_do_not_depend_on_what_follows() {
        let cuts = Cuts::of(&[added("<a>")], &json!({}));
        let text = "<a>12345<a>1<a>123456789<a>";
        let found: Vec<usize> = cuts.spaced(text, 8).collect();
        assert_eq!(found, [11, 27]);
        for end in 0..=text.len() {
            let prefix: Vec<usize> = cuts.spaced(&text[..end], 8).collect();
            assert_eq!(prefix, found.iter().copied().filter(|at| *at <= end).collect::<Vec<_>>());
        }
        assert_eq!(Cuts::none().spaced(text, 0).count(), 0);
    }
}
