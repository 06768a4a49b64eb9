//! An endless, reproducible stream of English-like words.
//!
//! The bytes come from BLAKE3's extendable output, so a word depends on the key alone. A few words
//! hold characters of two and four bytes on purpose: whoever relays the stream must not cut them.

/// 64 words, so six bits choose one evenly.
const WORDS: [&str; 64] = [
    "the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "with", "as",
    "they", "be", "at", "one", "have", "this", "from", "by", "hot", "word", "but", "what", "some",
    "we", "can", "out", "other", "were", "all", "there", "when", "your", "how", "said", "each",
    "which", "do", "their", "time", "will", "way", "about", "many", "then", "them", "write",
    "would", "like", "these", "long", "make", "thing", "see", "look", "more", "café", "naïve",
    "Zürich", "🚀", "could",
];
/// A sentence has from this many words …
const SENTENCE_WORDS_MIN: u8 = 5;
/// … to this many more (a power of two, so a mask chooses evenly).
const SENTENCE_WORDS_SPREAD: u8 = 8;

/// The stream. Each item but the first begins with a space.
pub struct Words {
    bytes: blake3::OutputReader,
    left_in_sentence: u8,
    begins_sentence: bool,
    is_first: bool,
}

impl Words {
    /// The stream of `key`.
    pub fn new(key: &blake3::Hasher) -> Self {
        Words {
            bytes: key.finalize_xof(),
            left_in_sentence: 0,
            begins_sentence: true,
            is_first: true,
        }
    }

    /// A number in `0..below`; 0 for `below` 0. The bias is below 2^-32 for the sizes used here.
    pub fn number(&mut self, below: u32) -> u32 {
        let mut bytes = [0; 8];
        self.bytes.fill(&mut bytes);
        u64::from_le_bytes(bytes).checked_rem(u64::from(below)).unwrap_or(0) as u32
    }

    /// Appends the next word to `text`.
    pub fn write_next(&mut self, text: &mut String) {
        let mut bytes = [0; 2];
        self.bytes.fill(&mut bytes);
        if self.begins_sentence {
            self.left_in_sentence = SENTENCE_WORDS_MIN + bytes[1] % SENTENCE_WORDS_SPREAD;
        }
        if !self.is_first {
            text.push(' ');
        }
        let word = WORDS[usize::from(bytes[0]) % WORDS.len()];
        match (self.begins_sentence, word.chars().next()) {
            (true, Some(first)) => {
                text.extend(first.to_uppercase());
                text.push_str(&word[first.len_utf8()..]);
            }
            _ => text.push_str(word),
        }
        self.left_in_sentence -= 1;
        self.begins_sentence = self.left_in_sentence == 0;
        if self.begins_sentence {
            text.push('.');
        }
        self.is_first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(key: &[u8], words: usize) -> String {
        let mut stream = Words::new(blake3::Hasher::new().update(key));
        let mut text = String::new();
        (0..words).for_each(|_| stream.write_next(&mut text));
        text
    }

    #[test]
    fn the_key_alone_decides_the_words() {
        assert_eq!(text(b"a", 100), text(b"a", 100));
        assert_ne!(text(b"a", 100), text(b"b", 100));
    }

    #[test]
    fn sentences_begin_large_and_end_with_a_dot() {
        let text = text(b"a", 500);
        for sentence in text.split(". ").filter(|sentence| !sentence.is_empty()) {
            let first = sentence.chars().next().unwrap();
            assert!(first.is_uppercase() || !first.is_alphabetic(), "{sentence}");
        }
        assert!(text.contains('.') && !text.contains("  "));
    }
}
