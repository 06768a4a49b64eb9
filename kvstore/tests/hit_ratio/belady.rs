//! The best that can be done: what is used again last, or never, goes first; even at once.
use std::collections::{BTreeSet, HashMap};

use super::trace::Request;

/// Of a chain each block is used again no later than its children, so throwing out by next use, and the
/// deeper block of two, never leaves a child without its parent: the optimum by blocks is one by prefixes.
pub fn hits(capacity: usize, requests: &[Request]) -> u64 {
    let mut uses: HashMap<u64, Vec<usize>> = HashMap::new();
    for (at, request) in requests.iter().enumerate().rev() {
        request.iter().for_each(|&block| uses.entry(block).or_default().push(at));
    }
    // Next use, depth, block; the last goes first.
    let mut kept: BTreeSet<(usize, usize, u64)> = BTreeSet::new();
    let mut known: HashMap<u64, (usize, usize, u64)> = HashMap::new();
    let mut hits = 0;
    for request in requests {
        hits += request.iter().take_while(|block| known.contains_key(block)).count() as u64;
        for (depth, &block) in request.iter().enumerate() {
            let of_block = uses.get_mut(&block).unwrap();
            of_block.pop();
            let entry = (of_block.last().copied().unwrap_or(usize::MAX), depth, block);
            if let Some(before) = known.insert(block, entry) {
                kept.remove(&before);
            }
            kept.insert(entry);
        }
        while kept.len() > capacity {
            let (_, _, block) = kept.pop_last().unwrap();
            known.remove(&block);
        }
    }
    hits
}
