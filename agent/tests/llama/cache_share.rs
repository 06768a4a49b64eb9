//! How much of the prompts comes from the engines' caches: routed by us, round robin, and with one
//! worker that has all the cache. Counted by the engines themselves.
//!
//! The caches hold all conversations between them as long as each lives with one worker: at its end
//! a conversation has some 410 tokens of 22.5 KiB, so ten of them fit into 96 MiB and twenty do not.
//! With room for everything everywhere round robin finds more, though never all: two thirds of what
//! there is, at four turns.

use std::net::SocketAddr;

use crate::conversation::{Share, hold};
use crate::smollm2::{self, Parts, Size, up};

const SEED: u64 = 7;
const EACH_OF_TWO: Size = Size { replicas: 2, slots: 4, cache_ram_mib: 96 };
const ALL_IN_ONE: Size = Size { replicas: 1, slots: 8, cache_ram_mib: 192 };

/// Through our router, and how many tokens it expected to be cached.
fn routed(parts: &Parts, size: Size) -> (Share, f64) {
    let house = parts.house();
    up(&house, size);
    let share = hold(SEED, |_| house.http());
    (share, house.metric("cgn_router_predicted_prefix_tokens_total"))
}

/// To the engines themselves, one after the other.
fn round_robin(parts: &Parts, size: Size) -> Share {
    let house = parts.house();
    let engines = up(&house, size);
    let address = |url: &str| url.strip_prefix("http://").unwrap().parse().unwrap();
    let engines: Vec<SocketAddr> = engines.iter().map(|engine| address(&engine.url)).collect();
    hold(SEED, |request| engines[request % engines.len()])
}

#[test]
fn routed_turns_find_their_prefix_as_with_one_worker_and_far_more_often_than_round_robin() {
    let Some(parts) = smollm2::find() else { return };
    // Side by side, on engines of their own: each asks for one answer at a time.
    let ((routed, predicted), (one, _), round_robin) = std::thread::scope(|scope| {
        let others = scope.spawn(|| round_robin(&parts, EACH_OF_TWO));
        let two = routed(&parts, EACH_OF_TWO);
        let one = routed(&parts, ALL_IN_ONE);
        (two, one, others.join().unwrap())
    });
    let line = |name: &str, share: Share| {
        println!(
            "{name:<30} {:>6} of {:>6} prompt tokens from cache: {:.3}",
            share.cached_tokens,
            share.prompt_tokens,
            share.value()
        );
    };
    line("cgn-router, two workers", routed);
    line("round robin, two workers", round_robin);
    line("one worker with all the cache", one);
    println!("cgn-router expected {predicted} tokens");
    assert!(routed.value() >= 1.5 * round_robin.value());
    assert!(routed.value() >= 0.95 * one.value());
    // What the router believed is what the engines had, but for blocks that were not full and the
    // answers, which it does not tokenize: some 15 tokens a turn.
    let off = (predicted - routed.cached_tokens as f64).abs();
    assert!(off <= 0.1 * routed.cached_tokens as f64, "off by {off}");
}
