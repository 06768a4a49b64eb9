//! Requests as lists of blocks: the published trace, and made-up ones.
use serde_json::Value;

pub type Request = Vec<u64>;

/// One request a line, its blocks in `hash_ids`, from the root on.
pub fn read(text: &str) -> Vec<Request> {
    let request = |line: &str| -> Request {
        let line: Value = serde_json::from_str(line).unwrap();
        line["hash_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
    };
    text.lines().map(request).collect()
}

/// Requests of one block each: of every 10,000, half for 8,000 blocks of which block n is asked for in
/// proportion to 1/n, and then half for new ones.
pub fn hot_and_scans(requests: usize) -> Vec<Request> {
    let weights = (1..=8_000).scan(0.0, |sum, rank| {
        *sum += 1.0 / f64::from(rank);
        Some(*sum)
    });
    let weights: Vec<f64> = weights.collect();
    let mut state = 1_u64;
    let mut random = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    let mut block = |at: usize| -> u64 {
        let value = random() * weights[weights.len() - 1];
        match at % 10_000 {
            0..5_000 => weights.partition_point(|&weight| weight < value) as u64,
            _ => 1_000_000 + at as u64,
        }
    };
    (0..requests).map(|at| vec![block(at)]).collect()
}
