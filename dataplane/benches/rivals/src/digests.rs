//! What the digests of a prompt of 65,536 tokens cost: ours against its xxh3.

use std::time::Instant;

use dataplane::digest::{Digest, Unit, chain, of_tokens, seed};
use dynamo_kv_router::protocols::{
    BlockHashOptions, compute_block_hash_for_seq, compute_seq_hash_for_block,
};

/// A prompt of before: where a new one says the same, its digests are known. Comparing is exact and needs
/// no hash of the tokens.
struct Kept {
    tokens: Vec<u32>,
    digests: Vec<Digest>,
}

impl Kept {
    fn digests_of(&self, tokens: &[u32], digests: &mut Vec<Digest>) {
        // Whole kilobytes first: such comparisons are the machine's fastest loop.
        let pieces = self.tokens.chunks(256).zip(tokens.chunks(256));
        let same = 256 * pieces.take_while(|(a, b)| a == b).count();
        let rest = self.tokens[same..].chunks(16).zip(tokens[same..].chunks(16));
        let known = same / 16 + rest.take_while(|(a, b)| a == b).count();
        digests.clear();
        digests.extend_from_slice(&self.digests[..known]);
        let mut parent = self.digests[known - 1];
        for block in tokens[known * 16..].chunks_exact(16) {
            let bytes: Vec<u8> = block.iter().flat_map(|token| token.to_le_bytes()).collect();
            parent = chain(&parent, &bytes);
            digests.push(parent);
        }
    }
}

fn median_us(mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..200)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

pub fn report() {
    let tokens: Vec<u32> = (0..65_536).collect();
    let seed = seed(Unit::Tokens, "model", "", "");
    let ours = median_us(|| {
        std::hint::black_box(of_tokens(&seed, &tokens, 16));
    });
    let kept = Kept { tokens: tokens.clone(), digests: of_tokens(&seed, &tokens, 16) };
    let mut longer = tokens.clone();
    longer.truncate(tokens.len() - 64);
    longer.extend(1_000_000..1_000_064);
    let mut digests = Vec::new();
    let warm = median_us(|| kept.digests_of(std::hint::black_box(&longer), &mut digests));
    assert_eq!(digests, of_tokens(&seed, &longer, 16));
    let options = BlockHashOptions::default();
    let local = median_us(|| {
        std::hint::black_box(compute_block_hash_for_seq(&tokens, 16, options));
    });
    let chained = median_us(|| {
        let local = compute_block_hash_for_seq(&tokens, 16, options);
        std::hint::black_box(compute_seq_hash_for_block(&local));
    });
    println!("| 65,536 tokens, 4,096 blocks | µs |\n|---|--:|");
    println!("| ours, BLAKE3 chained | {ours:.0} |");
    println!("| ours, 65,472 tokens the same as in a prompt that was kept, 64 new | {warm:.0} |");
    println!("| xxh3 of each block, what its tree looks up | {local:.0} |");
    println!("| xxh3 of each block, chained | {chained:.0} |\n");
}
