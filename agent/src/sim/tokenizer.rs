//! A stateless, reversible tokenizer: no vocabulary file, and the same ids on every machine.
//!
//! A token is a piece of one to three bytes, packed with its length:
//!
//! ```text
//!  31      24 23      16 15       8 7        0
//!  |  length | byte 0   | byte 1   | byte 2   |   length 3; shorter pieces fill the low bytes
//! ```
//!
//! Text is cut from the left: a whitespace character begins a piece, a newline is one by itself, a
//! piece takes whole characters while they fit, and a character of four bytes is cut in two (three
//! bytes and one). So neither what follows a newline or a special token, where messages of a chat
//! meet, nor the end of an answer changes the pieces before it: a longer history begins with the
//! tokens of the shorter. Decoding is the identity on any UTF-8. The three special tokens have the
//! ids of SmolLM2's.

/// `<|endoftext|>`
pub const END_OF_TEXT: u32 = 0;
/// `<|im_start|>`, opens a chat message.
pub const MESSAGE_START: u32 = 1;
/// `<|im_end|>`, closes a chat message.
pub const MESSAGE_END: u32 = 2;
/// One more than the highest id.
pub const VOCABULARY_TOKENS: u32 = 4 << 24;
/// A piece holds no more bytes.
const PIECE_BYTES_MAX: usize = 3;

const SPECIALS: [(&str, u32); 3] =
    [("<|endoftext|>", END_OF_TEXT), ("<|im_start|>", MESSAGE_START), ("<|im_end|>", MESSAGE_END)];

/// Whether special tokens written out in the text become their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// `<|im_end|>` becomes one token, as in a rendered template.
    Parsed,
    /// `<|im_end|>` is ten characters like any others.
    Literal,
}

/// An id that names no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("token id {0} is not in the vocabulary")]
pub struct UnknownToken(pub u32);

/// The tokens of `text`.
pub fn encode(text: &str, specials: Specials) -> Vec<u32> {
    let mut tokens = Vec::with_capacity(text.len() / 2 + 1);
    match specials {
        Specials::Literal => encode_pieces(text, &mut tokens),
        Specials::Parsed => {
            let mut rest = text;
            while let Some((at, length, id)) = next_special(rest) {
                encode_pieces(&rest[..at], &mut tokens);
                tokens.push(id);
                rest = &rest[at + length..];
            }
            encode_pieces(rest, &mut tokens);
        }
    }
    tokens
}

/// The bytes of `tokens`: UTF-8 when they came from [`encode`], anything when they did not.
///
/// # Errors
/// [`UnknownToken`], the first one.
pub fn decode(tokens: &[u32]) -> Result<Vec<u8>, UnknownToken> {
    let mut bytes = Vec::with_capacity(tokens.len() * PIECE_BYTES_MAX);
    for &token in tokens {
        decode_one(token, &mut bytes)?;
    }
    Ok(bytes)
}

/// How many bytes `token` stands for.
///
/// # Errors
/// [`UnknownToken`]
pub fn token_bytes(token: u32) -> Result<usize, UnknownToken> {
    if let Some((name, _)) = SPECIALS.iter().find(|(_, id)| *id == token) {
        return Ok(name.len());
    }
    let length = (token >> 24) as usize;
    let value = token & 0x00ff_ffff;
    let fits = (1..=PIECE_BYTES_MAX).contains(&length) && u64::from(value) < 1 << (8 * length);
    if fits { Ok(length) } else { Err(UnknownToken(token)) }
}

fn decode_one(token: u32, bytes: &mut Vec<u8>) -> Result<(), UnknownToken> {
    let length = token_bytes(token)?;
    match SPECIALS.iter().find(|(_, id)| *id == token) {
        Some((name, _)) => bytes.extend_from_slice(name.as_bytes()),
        None => bytes.extend_from_slice(&token.to_be_bytes()[4 - length..]),
    }
    Ok(())
}

fn next_special(text: &str) -> Option<(usize, usize, u32)> {
    text.match_indices("<|").find_map(|(at, _)| {
        let here = &text[at..];
        SPECIALS
            .iter()
            .find(|(name, _)| here.starts_with(name))
            .map(|(name, id)| (at, name.len(), *id))
    })
}

fn encode_pieces(text: &str, tokens: &mut Vec<u32>) {
    let bytes = text.as_bytes();
    let mut start = 0;
    for (at, character) in text.char_indices() {
        let end = at + character.len_utf8();
        let begins = character.is_ascii_whitespace() || bytes[start] == b'\n';
        if at > start && (begins || end - start > PIECE_BYTES_MAX) {
            tokens.push(pack(&bytes[start..at]));
            start = at;
        }
        if end - at > PIECE_BYTES_MAX {
            tokens.push(pack(&bytes[at..at + PIECE_BYTES_MAX]));
            tokens.push(pack(&bytes[at + PIECE_BYTES_MAX..end]));
            start = end;
        }
    }
    if start < bytes.len() {
        tokens.push(pack(&bytes[start..]));
    }
}

fn pack(piece: &[u8]) -> u32 {
    debug_assert!((1..=PIECE_BYTES_MAX).contains(&piece.len()));
    let value = piece.iter().fold(0, |value, &byte| value << 8 | u32::from(byte));
    (piece.len() as u32) << 24 | value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn specials_are_one_token_only_where_they_are_parsed() {
        let text = "<|im_start|>user\nhi<|im_end|>";
        let parsed = encode(text, Specials::Parsed);
        assert_eq!((parsed[0], parsed[parsed.len() - 1]), (MESSAGE_START, MESSAGE_END));
        assert!(!encode(text, Specials::Literal).contains(&MESSAGE_START));
    }

    #[test]
    fn pieces_begin_at_whitespace_and_hold_three_bytes() {
        let pieces: Vec<_> = encode("a  bcdef\nx🚀é", Specials::Parsed)
            .iter()
            .map(|&token| decode(&[token]).unwrap())
            .collect();
        let expected: [&[u8]; 9] =
            [b"a", b" ", b" bc", b"def", b"\n", b"x", b"\xf0\x9f\x9a", b"\x80", b"\xc3\xa9"];
        assert_eq!(pieces, expected);
    }

    #[test]
    fn ids_outside_the_vocabulary_are_refused() {
        for id in [3, 0x0100_0100, 0x0201_0000, 0x0400_0000, u32::MAX] {
            assert_eq!(decode(&[id]), Err(UnknownToken(id)));
        }
    }

    proptest! {
        #[test]
        fn decoding_what_was_encoded_is_the_identity(text in any_text(), literal in any::<bool>()) {
            let specials = if literal { Specials::Literal } else { Specials::Parsed };
            let tokens = encode(&text, specials);
            prop_assert!(tokens.iter().all(|&token| token < VOCABULARY_TOKENS));
            prop_assert_eq!(decode(&tokens).unwrap(), text.into_bytes());
        }

        #[test]
        fn what_follows_a_special_token_or_newline_does_not_change_what_came_before(
            head in any_text(), tail in any_text(),
        ) {
            for seam in ["<|im_end|>", "\n"] {
                let before = encode(&format!("{head}{seam}"), Specials::Parsed);
                let all = encode(&format!("{head}{seam}{tail}"), Specials::Parsed);
                prop_assert_eq!(&all[..before.len()], &before[..]);
            }
        }

        #[test]
        fn a_text_cut_behind_any_piece_has_the_same_first_pieces(
            text in "[ -~é🚀\n]{0,40}", at in any::<prop::sample::Index>(),
        ) {
            let tokens = encode(&text, Specials::Literal);
            let kept = &tokens[..at.index(tokens.len() + 1)];
            if let Ok(cut) = String::from_utf8(decode(kept).unwrap()) {
                prop_assert_eq!(encode(&cut, Specials::Literal), kept);
            }
        }
    }

    fn any_text() -> impl Strategy<Value = String> {
        prop::collection::vec(
            prop_oneof![
                any::<String>(),
                Just("<|im_end|>".to_owned()),
                Just("<|im_".to_owned()),
                Just("🚀 né".to_owned()),
            ],
            0..6,
        )
        .prop_map(|parts| parts.concat())
    }
}
