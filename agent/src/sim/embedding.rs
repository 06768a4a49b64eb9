//! Embedding vectors without a model: the normalised sum of one pseudo-random vector per token.
//!
//! So equal inputs have equal vectors on every machine, and inputs that share words are closer than
//! inputs that do not, which is all a test of a caller can ask for.

/// Components of a vector.
pub const DIMENSIONS: usize = 64;

/// The vector of `tokens`, of length 1.
pub fn embed(seed: u64, tokens: &[u32]) -> [f32; DIMENSIONS] {
    let mut sum = [0f32; DIMENSIONS];
    for token in tokens {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"cgn-sim-engine embedding v1\0");
        hasher.update(&seed.to_le_bytes());
        hasher.update(&token.to_le_bytes());
        let mut bytes = [0; DIMENSIONS];
        hasher.finalize_xof().fill(&mut bytes);
        for (component, byte) in sum.iter_mut().zip(bytes) {
            *component += f32::from(byte) - 127.5;
        }
    }
    // No sum of odd halves is zero in all components at once in practice; the guard is for the
    // rest.
    let length = sum.iter().map(|component| component * component).sum::<f32>().sqrt().max(1e-6);
    sum.map(|component| component / length)
}

/// Base64 of little-endian floats, as OpenAI's clients ask for by default.
pub fn base64(vector: &[f32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|component| component.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            text.push(match digit <= group.len() {
                true => char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]),
                false => '=',
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::tokenizer::{Specials, encode};

    fn vector(text: &str) -> [f32; DIMENSIONS] {
        embed(7, &encode(text, Specials::Parsed))
    }

    #[test]
    fn shared_words_bring_vectors_closer() {
        let cosine =
            |a: &str, b: &str| -> f32 { vector(a).iter().zip(vector(b)).map(|(x, y)| x * y).sum() };
        assert!((cosine("the quick fox", "the quick fox") - 1.0).abs() < 1e-3);
        assert!(cosine("the quick fox", "the quick dog") > cosine("the quick fox", "pay my tax"));
    }

    #[test]
    fn base64_is_the_standard_one() {
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[1.0, -2.5]), "AACAPwAAIMA=");
        assert_eq!(base64(&[0.0, 0.0, 1.0]), "AAAAAAAAAAAAAIA/");
    }
}
