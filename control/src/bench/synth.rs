//! Traces made up, so that a policy is not judged by one trace alone.
//!
//! * [`Kind::Chats`]: many conversations of some turns, started from a few shared system prompts; now and
//!   then one with a long document.
//! * [`Kind::Agents`]: bursts of agents that share tools and a repository, then go through many steps,
//!   each a little longer than the one before.
//!
//! * [`Kind::Documents`]: single questions, each about a few documents of a pool of which some are asked
//!   for much more than others; the pool changes slowly. The policy was not looked at on this one until it was done.
//! * [`Kind::Fresh`]: no two prompts alike, so that only load matters.
//!
//! The same kind, length and seed give the same trace, as lines of the usual format.

use dataplane::route::pick::shuffle;

use super::trace::Line;

/// What the traffic is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Multi-turn chats.
    Chats,
    /// Agents at work.
    Agents,
    /// Questions about documents of a shared pool.
    Documents,
    /// Prompts that have nothing in common.
    Fresh,
}

/// A prompt's text: pieces, each with its identity and its length in tokens.
type Pieces = Vec<(u64, u32)>;

/// Numbers from a seed (SplitMix64).
struct Draw(u64);

impl Draw {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        shuffle(self.0)
    }

    /// Between 0 and 1, neither included.
    fn uniform(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    fn below(&mut self, end: u64) -> u64 {
        self.bits() % end.max(1)
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.uniform().ln()
    }

    /// Log-normal around `median`; two thirds lie within a factor of `e^sigma`.
    fn around(&mut self, median: f64, sigma: f64) -> f64 {
        let normal =
            (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos();
        median * (sigma * normal).exp()
    }

    fn tokens(&mut self, median: f64, sigma: f64, max: u32) -> u32 {
        (self.around(median, sigma) as u32).clamp(1, max)
    }
}

/// Makes a trace of `requests` lines in order of time.
pub fn lines(kind: Kind, requests: usize, block_tokens: u32, seed: u64) -> Vec<Line> {
    let mut draw = Draw(shuffle(seed));
    let mut lines = Vec::new();
    let mut clock_ms = 0.0;
    // More than asked for, so that the end is cut where all are still at it.
    while lines.len() < requests + requests / 2 {
        match kind {
            Kind::Chats => {
                clock_ms += draw.exponential(400.0);
                chat(&mut draw, clock_ms, block_tokens, &mut lines);
            }
            Kind::Agents => {
                clock_ms += draw.exponential(60_000.0);
                burst(&mut draw, clock_ms, block_tokens, &mut lines);
            }
            Kind::Documents => {
                clock_ms += draw.exponential(100.0);
                question(&mut draw, clock_ms, block_tokens, &mut lines);
            }
            Kind::Fresh => {
                clock_ms += draw.exponential(100.0);
                let pieces = vec![(draw.bits(), draw.tokens(3_000.0, 1.2, 100_000))];
                let answer_tokens = draw.tokens(250.0, 0.8, 4_000);
                lines.push(line(clock_ms, &pieces, answer_tokens, block_tokens));
            }
        }
    }
    lines.sort_by(|a, b| a.timestamp.total_cmp(&b.timestamp));
    lines.truncate(requests);
    lines
}

/// One conversation.
fn chat(draw: &mut Draw, start_ms: f64, block_tokens: u32, lines: &mut Vec<Line>) {
    // A few system prompts are asked for often, the rest seldom.
    let system = (draw.uniform().powi(3) * 40.0) as u64;
    let mut pieces: Pieces = vec![(system, 300 + (shuffle(system) % 3_000) as u32)];
    if draw.uniform() < 0.15 {
        pieces.push((draw.bits(), draw.tokens(8_000.0, 0.8, 60_000)));
    }
    let turns = 1 + draw.exponential(5.0) as usize;
    let mut at_ms = start_ms;
    for _ in 0..turns.min(60) {
        pieces.push((draw.bits(), draw.tokens(90.0, 1.0, 8_000)));
        let answer_tokens = draw.tokens(250.0, 0.8, 4_000);
        lines.push(line(at_ms, &pieces, answer_tokens, block_tokens));
        pieces.push((draw.bits(), answer_tokens));
        at_ms += f64::from(answer_tokens) * 20.0 + draw.around(30_000.0, 1.0);
    }
}

/// Some agents set to work at once on one repository.
fn burst(draw: &mut Draw, start_ms: f64, block_tokens: u32, lines: &mut Vec<Line>) {
    let tools = draw.below(3);
    let repository = (draw.bits(), draw.tokens(15_000.0, 0.6, 60_000));
    let agents = 1 + draw.exponential(8.0) as usize;
    for _ in 0..agents.min(60) {
        let mut pieces: Pieces = vec![(tools, 6_000), repository];
        pieces.push((draw.bits(), draw.tokens(300.0, 0.7, 4_000)));
        let mut at_ms = start_ms + draw.exponential(500.0);
        for _ in 0..(3 + draw.exponential(15.0) as usize).min(100) {
            let answer_tokens = draw.tokens(120.0, 0.7, 2_000);
            lines.push(line(at_ms, &pieces, answer_tokens, block_tokens));
            pieces.push((draw.bits(), answer_tokens));
            pieces.push((draw.bits(), draw.tokens(600.0, 1.1, 12_000)));
            at_ms += f64::from(answer_tokens) * 20.0 + draw.around(4_000.0, 0.8);
        }
    }
}

/// One question about one to three documents, the most asked for first in the prompt.
fn question(draw: &mut Draw, at_ms: f64, block_tokens: u32, lines: &mut Vec<Line>) {
    // A tenth of the pool is new every ten minutes or so.
    let pool = (at_ms / 60_000.0) as u64;
    let mut documents: Vec<u64> = (0..=draw.below(3))
        .map(|_| {
            let rank = (draw.uniform().powi(3) * 2_000.0) as u64;
            shuffle(rank ^ (((pool + rank) / 100) << 32))
        })
        .collect();
    documents.sort_unstable();
    documents.dedup();
    let mut pieces: Pieces = vec![(7, 1_200)];
    pieces.extend(documents.into_iter().map(|document| {
        let length = Draw(document).tokens(4_000.0, 0.9, 40_000);
        (document, length)
    }));
    pieces.push((draw.bits(), draw.tokens(60.0, 0.8, 2_000)));
    let answer_tokens = draw.tokens(200.0, 0.7, 2_000);
    lines.push(line(at_ms, &pieces, answer_tokens, block_tokens));
}

/// The request for a prompt of these pieces.
fn line(at_ms: f64, pieces: &Pieces, answer_tokens: u32, block_tokens: u32) -> Line {
    let mut hash_ids = Vec::new();
    let (mut chain, mut filled) = (0, 0);
    for &(piece, tokens) in pieces {
        let mut from = 0;
        while from < tokens {
            let taken = (block_tokens - filled).min(tokens - from);
            chain = shuffle(chain ^ shuffle(piece ^ u64::from(from) << 32 ^ u64::from(taken)));
            filled += taken;
            from += taken;
            if filled == block_tokens {
                hash_ids.push(chain);
                filled = 0;
            }
        }
    }
    if filled > 0 {
        hash_ids.push(chain);
    }
    let input_length = pieces.iter().map(|(_, tokens)| tokens).sum();
    Line { timestamp: at_ms.floor(), input_length, output_length: answer_tokens, hash_ids }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::trace::Trace;

    #[test]
    fn a_seed_makes_one_trace_that_can_be_read() {
        for kind in [Kind::Chats, Kind::Agents, Kind::Documents, Kind::Fresh] {
            let made = |seed| lines(kind, 500, 64, seed);
            let trace = Trace::of(made(1), 64).unwrap();
            assert_eq!(trace.requests().len(), 500);
            let shares = trace.unique_blocks() < trace.blocks();
            assert_eq!(shares, kind != Kind::Fresh, "{kind:?}: what came before");
            let text = |seed| serde_json::to_string(&made(seed)).unwrap();
            assert_eq!(text(1), text(1));
            assert_ne!(text(1), text(2));
        }
    }

    #[test]
    fn prompts_that_begin_alike_begin_with_the_same_blocks() {
        let first = line(0.0, &vec![(1, 100), (2, 50)], 1, 64);
        let second = line(0.0, &vec![(1, 100), (2, 50), (3, 64)], 1, 64);
        assert_eq!(first.hash_ids[..2], second.hash_ids[..2]);
        assert_eq!((first.hash_ids.len(), second.hash_ids.len()), (3, 4));
        assert_ne!(first.hash_ids[2], second.hash_ids[2], "the last was not full");
    }
}
