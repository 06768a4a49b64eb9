//! The engine model: one worker with a cache, a queue and a clock.
//!
//! * Prefills run one at a time, in the order in which they came and their fetched blocks are there. One
//!   costs what [`Speeds`] say of the tokens that are not in the cache when it starts: batching changes
//!   when prefills run together, not how much there is to compute.
//! * Decoding requests take their share of each moment, so prefill is slower beside them; an answer takes
//!   `output · token_ms`. How many decode at once is not limited.
//! * A prompt's blocks are in the cache from the end of its prefill, and least recently used goes first.
//!   Answers take no room: what of them matters comes back as the next turn's prompt.
//!
//! Does not know of other workers, of the router or of traces.

use std::collections::VecDeque;

use dataplane::route::speeds::Speeds;

use super::cache::{Cache, Change};

/// What engines and the wires between them are like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Model {
    /// One batch of prefill, whatever its size, in ms.
    pub batch_ms: f64,
    /// Each token in a batch, in ms.
    pub token_ms: f64,
    /// The square of a batch's tokens, in ms.
    pub square_ms: f64,
    /// Tokens in a batch at most: longer prompts are computed in chunks.
    pub batch_tokens_max: u64,
    /// Attention to the tokens before: each token computed, times each token before it in the prompt,
    /// in ms. Not in the published model, which fits batches alone; 0 by default.
    pub attention_ms: f64,
    /// A token fetched from another worker, in ms.
    pub peer_token_ms: f64,
    /// Between two tokens of an answer, in ms.
    pub answer_token_ms: f64,
    /// From a change of an engine's cache until the router knows, in ms.
    pub event_delay_ms: f64,
    /// What was routed counts as present for so long without an event, in ms.
    pub prediction_ms: f64,
    /// Whether a KV daemon fetches blocks from other workers.
    pub peer_fetch: bool,
    /// Answers come from other workers: nothing slows prefill, and a prompt's KV goes over first.
    pub decodes_elsewhere: bool,
}

impl Default for Model {
    fn default() -> Self {
        Model {
            batch_ms: 16.5,
            token_ms: 1.518e-2,
            square_ms: 4.21e-7,
            batch_tokens_max: 8_192,
            attention_ms: 0.0,
            // 128 KiB over 5 GB/s.
            peer_token_ms: 0.0262,
            answer_token_ms: 20.0,
            event_delay_ms: 10.0,
            prediction_ms: 60_000.0,
            peer_fetch: false,
            decodes_elsewhere: false,
        }
    }
}

impl Model {
    /// Attention that grows without bound: a prompt is one batch, and each token looks at all before it.
    /// What is computed of `n + c` tokens costs `16.5 + 0.01518 n + 4.21e-7 ((n + c)² − c²)` ms.
    pub fn quadratic() -> Self {
        let linear = Model::default();
        Model {
            batch_tokens_max: u64::MAX,
            square_ms: 0.0,
            attention_ms: 2.0 * linear.square_ms,
            ..linear
        }
    }

    /// What a router that knows [`Model::quadratic`] reckons with.
    pub fn quadratic_speeds() -> Speeds {
        let model = Model::quadratic();
        Speeds {
            start_ms: model.batch_ms,
            token_ms: model.token_ms,
            pair_ms: model.attention_ms / 2.0,
            ..Speeds::default()
        }
    }

    /// A prefill of `prompt_tokens` of which the first `cached_tokens` are there, in ms.
    pub fn prefill_ms(&self, cached_tokens: u64, prompt_tokens: u64) -> f64 {
        let new_tokens = prompt_tokens.saturating_sub(cached_tokens).max(1);
        let (whole, rest) =
            (new_tokens / self.batch_tokens_max, new_tokens % self.batch_tokens_max);
        let batch_ms = |tokens: u64| {
            let tokens = tokens as f64;
            self.batch_ms + tokens * (self.token_ms + tokens * self.square_ms)
        };
        let rest_ms = if rest > 0 { batch_ms(rest) } else { 0.0 };
        let before = (cached_tokens + prompt_tokens) as f64 / 2.0;
        whole as f64 * batch_ms(self.batch_tokens_max)
            + rest_ms
            + new_tokens as f64 * before * self.attention_ms
    }

    /// Share of an engine's time that one decoding request takes: each token of an answer is one more
    /// token in a full batch.
    pub fn decode_share(&self, prompt_tokens: u32) -> f64 {
        let full = self.batch_tokens_max as f64;
        let token_ms = self.token_ms + 2.0 * full * self.square_ms;
        (token_ms + f64::from(prompt_tokens) * self.attention_ms) / self.answer_token_ms
    }
}

/// Prefill goes on at no less than this speed, however many decode: engines keep room for it.
const PREFILL_SHARE_MIN: f64 = 0.1;
/// The daemon fetches what would take at most so many times as long as computing it: a fetch does not
/// hold up the engine, computing does.
const FETCH_WORTH: f64 = 3.0;

/// A request at a worker.
#[derive(Clone, Debug)]
pub struct Job {
    /// Number in the trace.
    pub request: usize,
    /// When what the daemon fetches is there, in ms.
    pub ready_ms: f64,
    /// Leading blocks that the daemon brought or finds here.
    pub fetched_blocks: usize,
}

struct Running {
    job: Job,
    left_ms: f64,
}

/// What started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// Leading blocks found in this worker's cache.
    pub cached_blocks: usize,
    /// Leading blocks found there or fetched.
    pub found_blocks: usize,
}

/// One worker.
pub struct Engine {
    cache: Cache,
    queue: VecDeque<Job>,
    running: Option<Running>,
    clock_ms: f64,
    decode_share: f64,
    link_free_ms: f64,
    /// Rises whenever an announced end no longer holds.
    generation: u32,
    busy_ms: f64,
}

impl Engine {
    /// An idle worker with an empty cache.
    pub fn new(cache_blocks: usize) -> Self {
        Engine {
            cache: Cache::new(cache_blocks),
            queue: VecDeque::new(),
            running: None,
            clock_ms: 0.0,
            decode_share: 0.0,
            link_free_ms: 0.0,
            generation: 0,
            busy_ms: 0.0,
        }
    }

    /// Leading blocks in the cache.
    pub fn depth(&self, blocks: &[u32]) -> usize {
        self.cache.depth(blocks)
    }

    /// Engine time used so far, in ms.
    pub fn busy_ms(&self) -> f64 {
        self.busy_ms
    }

    /// Queues a request. Where blocks of it are held elsewhere and fetching them is worth it, they are
    /// fetched; the answer is when they will be there.
    pub fn push(&mut self, now_ms: f64, request: usize, fetch: Option<Fetch>) -> f64 {
        let mut job = Job { request, ready_ms: now_ms, fetched_blocks: 0 };
        if let Some(fetch) = fetch {
            let ready_ms = self.link_free_ms.max(now_ms) + fetch.fetch_ms;
            if ready_ms - now_ms <= FETCH_WORTH * fetch.compute_ms {
                self.link_free_ms = ready_ms;
                job = Job { request, ready_ms, fetched_blocks: fetch.blocks };
            }
        }
        let ready_ms = job.ready_ms;
        self.queue.push_back(job);
        ready_ms
    }

    /// The request that can start now, if the engine is free.
    pub fn next(&mut self, now_ms: f64) -> Option<Job> {
        if self.running.is_some() {
            return None;
        }
        let at = self.queue.iter().position(|job| job.ready_ms <= now_ms)?;
        self.queue.remove(at)
    }

    /// Starts what [`Engine::next`] gave; `work_ms` is told what was found of its blocks.
    pub fn start(
        &mut self,
        now_ms: f64,
        job: Job,
        blocks: &[u32],
        work_ms: impl FnOnce(Started) -> f64,
    ) -> Started {
        self.settle(now_ms);
        let cached_blocks = self.cache.depth(blocks);
        let started =
            Started { cached_blocks, found_blocks: cached_blocks.max(job.fetched_blocks) };
        // Used from now on: what comes in between must not push it out first.
        self.cache.use_all(&blocks[..cached_blocks], |_| {});
        let left_ms = work_ms(started);
        self.busy_ms += left_ms;
        self.running = Some(Running { job, left_ms });
        started
    }

    /// When the running prefill will end if nothing else changes, and the generation of that word.
    pub fn announce(&mut self) -> Option<(f64, u32)> {
        let running = self.running.as_ref()?;
        self.generation = self.generation.wrapping_add(1);
        Some((self.clock_ms + running.left_ms / self.rate(), self.generation))
    }

    /// Ends the running prefill, if `generation` is the last word on it.
    pub fn finish(&mut self, now_ms: f64, generation: u32) -> Option<Job> {
        if generation != self.generation {
            return None;
        }
        self.settle(now_ms);
        self.running.take().map(|running| running.job)
    }

    /// Puts a prompt into the cache.
    pub fn store(&mut self, blocks: &[u32], changed: impl FnMut(Change)) {
        self.cache.use_all(blocks, changed);
    }

    /// A request begins (`share` above 0) or ends to decode.
    pub fn decode(&mut self, now_ms: f64, share: f64) {
        self.settle(now_ms);
        self.decode_share = (self.decode_share + share).max(0.0);
    }

    /// Counts what decoding took.
    pub fn decoded(&mut self, ms: f64) {
        self.busy_ms += ms;
    }

    fn rate(&self) -> f64 {
        (1.0 - self.decode_share).max(PREFILL_SHARE_MIN)
    }

    fn settle(&mut self, now_ms: f64) {
        let passed_ms = (now_ms - self.clock_ms).max(0.0);
        self.clock_ms = self.clock_ms.max(now_ms);
        let rate = self.rate();
        if let Some(running) = &mut self.running {
            running.left_ms = (running.left_ms - passed_ms * rate).max(0.0);
        }
    }
}

/// Blocks that the daemon could bring.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fetch {
    /// Leading blocks that would be there then.
    pub blocks: usize,
    /// Bringing those that miss, in ms of the link.
    pub fetch_ms: f64,
    /// Computing them instead, in ms.
    pub compute_ms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quadratic_engine_costs_its_formula_and_its_router_knows_it() {
        let (model, speeds) = (Model::quadratic(), Model::quadratic_speeds());
        for (cached, prompt) in [(0u64, 1u64), (0, 8_192), (0, 100_000), (40_000, 41_000)] {
            let (c, n) = (cached as f64, (prompt - cached) as f64);
            let formula_ms = 16.5 + 0.015_18 * n + 4.21e-7 * ((n + c) * (n + c) - c * c);
            assert!((model.prefill_ms(cached, prompt) - formula_ms).abs() < 1e-6 * formula_ms);
            assert!((speeds.prefill_ms(cached, prompt) - formula_ms).abs() < 1e-6 * formula_ms);
        }
    }

    #[test]
    fn the_linear_engine_cuts_long_prompts_into_batches() {
        let model = Model::default();
        let batch_ms = model.prefill_ms(0, 8_192);
        assert!((model.prefill_ms(0, 4 * 8_192) - 4.0 * batch_ms).abs() < 1e-6);
        assert!(model.prefill_ms(0, 8_193) > batch_ms + model.batch_ms);
    }
}
