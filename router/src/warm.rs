//! Phase *warm*: before a prompt is sent to a worker that lacks its beginning, its agent may give the engine
//! the KV state of it ([`dataplane::feed::Warm`]; llama.cpp's slots out of the KV daemon).
//!
//! The request waits for that as long as computing would take, at most `kv.warm_ms_max`, and is sent then
//! whatever came of it: its bytes are the client's in any case, and the engine finds by itself what it
//! was given. Where no agent says that it can, nothing is asked and nothing is waited for.

mod desk;

pub use desk::Desk;

use std::rc::Rc;
use std::time::{Duration, Instant};

use dataplane::feed::{WARM_DIGESTS_MAX, Warm};

use crate::admit::Ticket;
use crate::candidates::Seat;
use crate::config::Kv;
use crate::record::Record;
use crate::shard::Shard;
use crate::tokenize::Prefix;
use crate::trace::request_trace::Step;
use crate::watch::{Phase, Watch};

/// Between two looks whether the answer is there. A state takes ten times as long at least; a wake-up
/// across threads would need a socket for each.
const LOOK: Duration = Duration::from_millis(1);
/// A state with less of the prompt than one part in so many is not asked for: llama.cpp takes a slot by what
/// it has in common with a prompt only above a tenth of it.
const SHARE_MIN: usize = 8;

/// What is worth asking for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Worth {
    /// Leading blocks that are named.
    blocks: usize,
    /// Of these a state must have so many.
    blocks_min: usize,
    /// Tokens of the named blocks that the worker lacks.
    lacking_tokens: u64,
}

/// What to ask for, if a worker that holds `held_tokens` of the prompt lacks enough of it. `block_tokens` is how
/// the agent cuts; 0: it cannot warm.
fn worth(prefix: &Prefix, held_tokens: u64, block_tokens: u32, kv: &Kv) -> Option<Worth> {
    if block_tokens == 0 || block_tokens != prefix.block_tokens() || kv.warm_ms_max == 0 {
        return None;
    }
    let blocks = prefix.blocks_reusable().min(WARM_DIGESTS_MAX);
    let lacking_tokens = prefix.tokens_in(blocks).saturating_sub(held_tokens);
    if lacking_tokens < kv.warm_tokens_min.max(1) {
        return None;
    }
    let wanted_tokens = held_tokens.saturating_add(kv.warm_tokens_min);
    let wanted = wanted_tokens.div_ceil(u64::from(block_tokens));
    let blocks_min = usize::try_from(wanted).unwrap_or(usize::MAX).max(blocks / SHARE_MIN);
    (blocks_min <= blocks).then_some(Worth { blocks, blocks_min, lacking_tokens })
}

/// How long a request waits: not longer than computing the tokens takes, where that is known (base and time
/// per token), and not longer than `kv.warm_ms_max`.
fn patience(learned: Option<(f64, f64)>, lacking_tokens: u64, kv: &Kv) -> Duration {
    let most = kv.warm_ms_max as f64;
    let compute_ms = learned.map(|(base_ms, token_ms)| base_ms + token_ms * lacking_tokens as f64);
    let ms = compute_ms.filter(|ms| ms.is_finite()).map_or(most, |ms| ms.clamp(1.0, most));
    Duration::from_millis(ms as u64)
}

/// Has the worker of `seat` given what it lacks of the prompt, if that can be and is worth it. What it was
/// given counts as held by it from then on.
pub async fn worker(
    shard: &Shard,
    watch: &Rc<Watch>,
    ticket: &Ticket,
    prefix: &Prefix,
    seat: &mut Seat,
    record: &mut Record,
) {
    let block_tokens = seat.worker.life.warmable.block_tokens(shard.now_ms());
    let kv = &shard.config.kv;
    let Some(worth) = worth(prefix, seat.prefix_tokens, block_tokens, kv) else { return };
    let Some(agent) = &seat.worker.worker.kv_feed else { return };
    let limit = patience(ticket.life().forecast.learned(), worth.lacking_tokens, kv);
    let wish = Warm {
        worker: seat.worker.worker.id.clone(),
        ticket: 0,
        deadline_ms: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
        blocks_min: u32::try_from(worth.blocks_min).unwrap_or(u32::MAX),
        digests: prefix.digests[..worth.blocks].to_vec(),
    };
    let begun = Instant::now();
    let Some(asked) = shard.cluster.warming.ask(agent, wish) else {
        return shard.stats.warms.with_label_values(&["busy"]).inc();
    };
    let step = record.enter(Step::Warm);
    watch.enter(Phase::Queue);
    let answer = loop {
        monoio::time::sleep(LOOK).await;
        let answer = asked.answer();
        if answer.is_some() || watch.verdict().is_some() || begun.elapsed() >= limit {
            break answer;
        }
    };
    watch.enter(Phase::Busy);
    record.leave(step);
    let ended = Instant::now();
    shard.strike(ended);
    shard.stats.warm_wait.observe((ended - begun).as_secs_f64());
    let result = match answer {
        Some(0) => "nothing",
        Some(tokens) => {
            let held = u64::from(tokens).min(prefix.prompt_tokens);
            let more = held.saturating_sub(seat.prefix_tokens);
            shard.stats.warm_tokens.inc_by(more);
            seat.prefix_tokens += more;
            "warmed"
        }
        None if watch.verdict().is_some() => "given_up",
        None => "late",
    };
    shard.stats.warms.with_label_values(&[result]).inc();
}

#[cfg(test)]
mod tests {
    use dataplane::digest::Digest;

    use super::*;

    fn prefix(tokens: u64) -> Prefix {
        let digests = vec![Digest([1; 32]); tokens as usize / 16];
        Prefix::of_tokens(digests.into(), tokens, 0, 16)
    }

    #[test]
    fn only_what_is_lacking_and_is_enough_is_asked_for() {
        let kv = Kv::default();
        let of = |tokens, held| worth(&prefix(tokens), held, 16, &kv);
        // 1,000 tokens are 62 whole blocks.
        let whole = Worth { blocks: 62, blocks_min: 16, lacking_tokens: 992 };
        assert_eq!(of(1_000, 0), Some(whole));
        let rest = Worth { blocks: 62, blocks_min: 32, lacking_tokens: 736 };
        assert_eq!(of(1_000, 256), Some(rest));
        assert_eq!(of(1_000, 737), None, "255 tokens are lacking");
        assert_eq!(of(256, 0), None, "the last token is computed in any case");
        assert_eq!(of(272, 0).unwrap().blocks, 16);
        assert_eq!(of(64_000, 0).unwrap().blocks_min, 499, "an eighth of what is named");
        assert_eq!(of(1_000_000, 0).unwrap().blocks, WARM_DIGESTS_MAX);
    }

    #[test]
    fn nobody_is_asked_who_cannot_or_cuts_otherwise_or_where_it_is_off() {
        let kv = Kv::default();
        assert_eq!(worth(&prefix(1_000), 0, 0, &kv), None);
        assert_eq!(worth(&prefix(1_000), 0, 32, &kv), None);
        let off = Kv { warm_ms_max: 0, ..Kv::default() };
        assert_eq!(worth(&prefix(1_000), 0, 16, &off), None);
        let any = Kv { warm_tokens_min: 0, ..Kv::default() };
        assert!(worth(&prefix(17), 0, 16, &any).is_some());
        assert_eq!(worth(&prefix(17), 16, 16, &any), None, "nothing is lacking");
    }

    #[test]
    fn a_request_waits_no_longer_than_computing_takes() {
        let kv = Kv { warm_ms_max: 500, ..Kv::default() };
        let ms = |learned| patience(learned, 1_000, &kv).as_millis();
        assert_eq!(ms(None), 500);
        assert_eq!(ms(Some((10.0, 0.1))), 110);
        assert_eq!(ms(Some((10.0, 5.0))), 500);
        assert_eq!(ms(Some((0.0, 0.0))), 1);
        assert_eq!(ms(Some((f64::NAN, 0.0))), 500);
        assert_eq!(ms(Some((-5.0, 0.0))), 1);
    }
}
