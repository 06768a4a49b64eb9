//! What the digests of a prompt of 65,536 tokens cost: ours against its xxh3.

use std::time::Instant;

use dataplane::digest::{Unit, of_tokens, seed};
use dynamo_kv_router::protocols::{
    BlockHashOptions, compute_block_hash_for_seq, compute_seq_hash_for_block,
};

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
    println!("| xxh3 of each block, what its tree looks up | {local:.0} |");
    println!("| xxh3 of each block, chained | {chained:.0} |\n");
}
