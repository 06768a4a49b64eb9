//! The text unit: one digest per whole block of prompt text, hashed side by side.
//!
//! Text is hashed for every request, a chain of single hashes would cost more than the rest of the
//! request. So the blocks are the leaves of BLAKE3 trees, and a core hashes many leaves at once:
//!
//! * `leaf[i]` = the chaining value of block `i` as a BLAKE3 input of its own (not root);
//! * [`GROUP`] blocks are a group; `tree[i]` = the BLAKE3 tree over the leaves of `i`'s group up to
//!   and with `i` (left subtrees full, as BLAKE3 splits; inner nodes are its parent nodes, not root);
//! * `digest[i]` = `parent(digest of the last block of the group before, tree[i])`, where the first
//!   group follows the seed.
//!
//! Each node is a BLAKE3 compression, leaves and parents have different flags, and the shape of the
//! tree depends on `i` alone: two texts with one digest would be a collision of BLAKE3.
//!
//! Not here: what the text of a prompt is. That is the router's to say.

use blake3::IncrementCounter;
use blake3::hazmat::{ChainingValue, HasherExt};
use blake3::platform::Platform;

use super::Digest;

/// Blocks in a group: as many as the widest vectors BLAKE3 knows (AVX-512) take at once.
pub const GROUP: usize = 16;

/// BLAKE3's initial value: the key of plain hashing.
const IV: [u32; 8] = [
    0x6A09_E667,
    0xBB67_AE85,
    0x3C6E_F372,
    0xA54F_F53A,
    0x510E_527F,
    0x9B05_688C,
    0x1F83_D9AB,
    0x5BE0_CD19,
];
/// BLAKE3's flags, by its specification.
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 2;
const PARENT: u8 = 4;

/// One digest per whole block of `block_bytes` bytes of text. A `block_bytes` of 0 gives none.
///
/// 256, 512 and 1024 are the fast ones; other sizes give the same by the slow way.
pub fn of_text(seed: &Digest, text: &[u8], block_bytes: usize) -> Vec<Digest> {
    match block_bytes {
        0 => Vec::new(),
        256 => digests(seed, text.as_chunks::<256>().0, wide),
        512 => digests(seed, text.as_chunks::<512>().0, wide),
        1024 => digests(seed, text.as_chunks::<1024>().0, wide),
        _ => {
            let blocks: Vec<&[u8]> = text.chunks_exact(block_bytes).collect();
            digests(seed, &blocks, one_by_one)
        }
    }
}

/// Hashes a group of blocks into the leaves at the front of the array.
type Leaves<B> = fn(&[B], &mut [ChainingValue; GROUP]);

fn digests<B>(seed: &Digest, blocks: &[B], leaves: Leaves<B>) -> Vec<Digest> {
    let mut digests = Vec::with_capacity(blocks.len());
    let mut before = seed.0;
    let mut tree = [ChainingValue::default(); GROUP];
    for group in blocks.chunks(GROUP) {
        leaves(group, &mut tree);
        grow(&mut tree, group.len());
        let mut nodes = [[0; 64]; GROUP];
        for (node, right) in nodes.iter_mut().zip(&tree) {
            *node = pair(&before, right);
        }
        parents(&nodes[..group.len()], &mut tree);
        before = tree[group.len() - 1];
        digests.extend(tree[..group.len()].iter().copied().map(Digest));
    }
    digests
}

/// Turns leaves into the trees over all leaves up to each: a prefix scan, in as many rounds as the
/// tree is high. In the round of `half`, each odd run of so many joins the full run left of it.
fn grow(tree: &mut [ChainingValue; GROUP], count: usize) {
    let mut half = 1;
    while half < count {
        let joining = || (0..count).filter(|at| at & half != 0);
        let mut nodes = [[0; 64]; GROUP / 2];
        let mut joined = [ChainingValue::default(); GROUP];
        for (node, at) in nodes.iter_mut().zip(joining()) {
            *node = pair(&tree[(at & !(half - 1)) - 1], &tree[at]);
        }
        parents(&nodes[..joining().count()], &mut joined);
        for (value, at) in joined.iter().zip(joining()) {
            tree[at] = *value;
        }
        half *= 2;
    }
}

fn pair(left: &ChainingValue, right: &ChainingValue) -> [u8; 64] {
    let mut node = [0; 64];
    node[..32].copy_from_slice(left);
    node[32..].copy_from_slice(right);
    node
}

/// Leaves of blocks of a size BLAKE3 can take as one chunk each, side by side.
fn wide<const N: usize>(blocks: &[[u8; N]], out: &mut [ChainingValue; GROUP]) {
    hash_many(blocks, 0, CHUNK_START, CHUNK_END, out);
}

fn parents(nodes: &[[u8; 64]], out: &mut [ChainingValue; GROUP]) {
    hash_many(nodes, PARENT, 0, 0, out);
}

/// Leaves of blocks of any size but 0. This is the definition; [`wide`] is only faster.
fn one_by_one(blocks: &[&[u8]], out: &mut [ChainingValue; GROUP]) {
    for (leaf, block) in out.iter_mut().zip(blocks) {
        *leaf = blake3::Hasher::new().update(block).finalize_non_root();
    }
}

/// At most [`GROUP`] inputs, each by itself, through the vector code of the `blake3` crate.
///
/// Its `platform` module is public but promises no stability. Should it go, [`one_by_one`] and
/// `blake3::hazmat::merge_subtrees_non_root` say the same; the tests hold the two equal.
fn hash_many<const N: usize>(
    inputs: &[[u8; N]],
    flags: u8,
    flags_start: u8,
    flags_end: u8,
    out: &mut [ChainingValue; GROUP],
) {
    let Some(first) = inputs.first() else { return };
    let mut refs = [first; GROUP];
    for (slot, input) in refs.iter_mut().zip(inputs) {
        *slot = input;
    }
    let refs = &refs[..inputs.len().min(GROUP)];
    let (platform, no) = (Platform::detect(), IncrementCounter::No);
    platform.hash_many(refs, &IV, 0, no, flags, flags_start, flags_end, out.as_flattened_mut());
}

#[cfg(test)]
mod tests {
    use blake3::hazmat::{Mode, merge_subtrees_non_root};
    use proptest::prelude::*;

    use super::super::{Unit, seed};
    use super::*;

    /// The definition at the head of this file, read aloud: recursive, and with public functions only.
    fn by_definition(seed: &Digest, text: &[u8], block_bytes: usize) -> Vec<Digest> {
        fn tree(leaves: &[ChainingValue]) -> ChainingValue {
            if let [one] = leaves {
                return *one;
            }
            let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
            merge_subtrees_non_root(&tree(left), &tree(right), Mode::Hash)
        }
        let leaves: Vec<ChainingValue> = text
            .chunks_exact(block_bytes)
            .map(|block| blake3::Hasher::new().update(block).finalize_non_root())
            .collect();
        let mut digests = Vec::new();
        let mut before = *seed;
        for group in leaves.chunks(16) {
            let of = |n| merge_subtrees_non_root(&before.0, &tree(&group[..n]), Mode::Hash);
            digests.extend((1..=group.len()).map(|n| Digest(of(n))));
            before = digests[digests.len() - 1];
        }
        digests
    }

    /// 20 blocks of 512 bytes, byte `i` of the text being `i` modulo 251: the last one lies in the
    /// second group. The value was also computed by a program of its own from BLAKE3's specification.
    #[test]
    fn golden() {
        let text: Vec<u8> = (0..20 * 512).map(|i| (i % 251) as u8).collect();
        let digests = of_text(&seed(Unit::Text, "m", "", ""), &text, 512);
        assert_eq!(digests.len(), 20);
        assert_eq!(format!("{:?}", digests[19]), GOLDEN_BLOCK_20);
    }
    const GOLDEN_BLOCK_20: &str =
        "7b3c574ba1b81e7612c1f8259480232b7a9c9b9f50882e35a1d76dd46242d565";

    #[test]
    fn a_text_below_one_block_and_blocks_of_nothing_have_no_digests() {
        let seed = seed(Unit::Text, "m", "", "");
        assert!(of_text(&seed, &[7; 511], 512).is_empty());
        assert!(of_text(&seed, &[7; 511], 0).is_empty());
    }

    proptest! {
        #[test]
        fn every_size_follows_the_definition(
            text in prop::collection::vec(any::<u8>(), 0..40_000),
            block_bytes in prop_oneof![Just(256), Just(512), Just(1024), 100usize..5_000],
        ) {
            let seed = seed(Unit::Text, "m", "", "salt");
            prop_assert_eq!(
                of_text(&seed, &text, block_bytes),
                by_definition(&seed, &text, block_bytes)
            );
        }

        #[test]
        fn equal_prefixes_give_equal_digests_up_to_the_first_difference(
            text in prop::collection::vec(any::<u8>(), 1..40_000),
            at in any::<prop::sample::Index>(),
        ) {
            let seed = seed(Unit::Text, "m", "", "");
            let mut other = text.clone();
            let at = at.index(text.len());
            other[at] ^= 1;
            let (a, b) = (of_text(&seed, &text, 512), of_text(&seed, &other, 512));
            for i in 0..a.len() {
                prop_assert_eq!(a[i] == b[i], i < at / 512);
            }
        }
    }
}
