//! Block digests. `digest[i]` names the whole prefix `[0..=i]`: equal content at another position, under
//! another model or in another unit (token ids, text) never collides. Only whole blocks are named; the
//! tail of a prompt that does not fill a block is not.
//!
//! * Token ids are chained: `digest[i] = BLAKE3(digest[i-1] ‖ block[i])`.
//! * Text is long and hashed for every request: its blocks are leaves of BLAKE3 trees, see [`of_text`].
//!
//! The index keeps the first 16 of the 32 bytes ([`Digest::short`]): with 2^30 blocks in a cluster
//! the chance of one accidental collision is below 2^-68, and a wrong hit costs a recompute, never a
//! wrong answer.

mod text;

pub use text::of_text;

/// What a chain is made of. Part of the seed, so the two spaces never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Blocks of token ids, each four bytes little-endian.
    Tokens,
    /// Blocks of raw prompt text, for engines whose tokenizer is not at hand.
    Text,
}

/// A 32-byte BLAKE3 digest that names a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The first 16 bytes, as the routing index keeps them.
    pub fn short(&self) -> u128 {
        let mut head = [0u8; 16];
        head.copy_from_slice(&self.0[..16]);
        u128::from_le_bytes(head)
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", blake3::Hash::from_bytes(self.0).to_hex())
    }
}

/// The digest before the first block: names the space, not a prefix.
///
/// `model`, `adapter` (LoRA name, empty for none) and `salt` (the tenant's cache salt, empty for
/// none) are length-prefixed, so no two triples share an encoding.
pub fn seed(unit: Unit, model: &str, adapter: &str, salt: &str) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(match unit {
        Unit::Tokens => b"cognitora block v1 tokens\0",
        Unit::Text => b"cognitora block v2 text\0\0\0",
    });
    for part in [model, adapter, salt] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    Digest(*hasher.finalize().as_bytes())
}

/// Blocks of up to 64 token ids are hashed in one go.
const CHAIN_BYTES_INLINE: usize = 256;

/// The digest of `block` behind `parent`.
pub fn chain(parent: &Digest, block: &[u8]) -> Digest {
    // A usual block fits beside its parent; hashed in one go it does not pay for a hasher's tree.
    let mut whole = [0u8; 32 + CHAIN_BYTES_INLINE];
    if let Some(inline) = whole.get_mut(32..32 + block.len()) {
        inline.copy_from_slice(block);
        whole[..32].copy_from_slice(&parent.0);
        return Digest(*blake3::hash(&whole[..32 + block.len()]).as_bytes());
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&parent.0);
    hasher.update(block);
    Digest(*hasher.finalize().as_bytes())
}

/// One digest per whole block of `block_tokens` ids. A `block_tokens` of 0 gives none.
pub fn of_tokens(seed: &Digest, tokens: &[u32], block_tokens: usize) -> Vec<Digest> {
    if block_tokens == 0 {
        return Vec::new();
    }
    let mut parent = *seed;
    let mut bytes = Vec::with_capacity(block_tokens * 4);
    let mut digests = Vec::with_capacity(tokens.len() / block_tokens);
    for block in tokens.chunks_exact(block_tokens) {
        bytes.clear();
        bytes.extend(block.iter().flat_map(|token| token.to_le_bytes()));
        parent = chain(&parent, &bytes);
        digests.push(parent);
    }
    digests
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_digest_names_the_whole_prefix() {
        let seed = seed(Unit::Tokens, "m", "", "");
        let one = of_tokens(&seed, &[1, 2, 3, 4, 5, 6, 7, 8], 4);
        let other = of_tokens(&seed, &[9, 2, 3, 4, 5, 6, 7, 8], 4);
        assert_eq!(one.len(), 2);
        assert_ne!(one[1], other[1], "equal second blocks behind unequal first ones");
    }

    #[test]
    fn a_block_of_any_length_is_chained_alike() {
        let parent = seed(Unit::Tokens, "m", "", "");
        for length in [0, 1, 64, CHAIN_BYTES_INLINE, CHAIN_BYTES_INLINE + 1, 3000] {
            let block = vec![7u8; length];
            let whole = blake3::hash(&[&parent.0[..], &block].concat());
            assert_eq!(chain(&parent, &block), Digest(*whole.as_bytes()));
        }
    }

    #[test]
    fn seeds_keep_their_parts_apart() {
        let all = [
            seed(Unit::Tokens, "ab", "", ""),
            seed(Unit::Tokens, "a", "b", ""),
            seed(Unit::Tokens, "a", "", "b"),
            seed(Unit::Text, "ab", "", ""),
        ];
        for (i, a) in all.iter().enumerate() {
            for b in &all[i + 1..] {
                assert_ne!(a, b);
            }
        }
    }

    /// The digest is a wire and disk format, so it may not drift unnoticed. The value was also computed
    /// by the Python package `blake3` from the definition above.
    #[test]
    fn golden() {
        let digests =
            of_tokens(&seed(Unit::Tokens, "m", "", ""), &(1..=16).collect::<Vec<_>>(), 16);
        assert_eq!(format!("{:?}", digests[0]), GOLDEN_BLOCK_1_TO_16);
    }
    const GOLDEN_BLOCK_1_TO_16: &str =
        "ea3622fe3552741d2ae9f6a33e37e62c58b9ec8545b935b91e0f852a699152d2";

    proptest! {
        #[test]
        fn equal_prefixes_give_equal_digests_up_to_the_first_difference(
            a in prop::collection::vec(0u32..4, 0..64),
            b in prop::collection::vec(0u32..4, 0..64),
            block in 1usize..8,
        ) {
            let seed = seed(Unit::Tokens, "m", "", "");
            let (x, y) = (of_tokens(&seed, &a, block), of_tokens(&seed, &b, block));
            let common = a.iter().zip(&b).take_while(|(p, q)| p == q).count() / block;
            for i in 0..x.len().min(y.len()) {
                prop_assert_eq!(x[i] == y[i], i < common);
            }
        }
    }
}
