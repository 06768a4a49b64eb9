//! NVIDIA Dynamo's published cost function and its queue, for comparison.
//!
//! ```text
//! cost = max(0, (active_prefill_tokens + prompt_tokens) / block_tokens − overlap_blocks)
//!      + decode blocks in use there if this request came too
//! ```
//!
//! As 1.6.1 has it when nothing is configured: `prefill_load_scale` and `overlap_score_credit` 1, no decay
//! of it, `decode_active_request_weight` 0, temperature 0 with random ties, no prediction on route (overlap
//! is what events said), blocks in use count once however many requests share them, answers add none,
//! and no queue. Prefill tokens count from the decision to the first token.
//!
//! [`Settings`] are those that are off by default and could help it. With a queue a request waits while every worker has more
//! prefill tokens than a share of the engine's batch; assumed is that its overlap is looked up again when
//! it leaves the queue, which is in its favour.

use super::cache::BlockMap;

/// `max_num_batched_tokens` of the engines.
const BATCH_TOKENS: f64 = 8_192.0;

/// Settings of its that are off by default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Settings {
    /// `router_queue_threshold`: requests wait while all workers have more than this share of a batch
    /// of prefill tokens. Older releases had 4.0.
    pub queue_threshold: Option<f64>,
    /// `router_queue_policy`: those with the fewest tokens to compute first (`wspt`), not in order of
    /// arrival (`fcfs`).
    pub shortest_first: bool,
    /// `router_predicted_ttl_secs`: what was routed counts as present, for as long as ours does.
    pub predicts: bool,
}

/// What it keeps of one worker.
#[derive(Default)]
struct Worker {
    prefill_tokens: u64,
    /// Requests by block in use.
    blocks: BlockMap<u32>,
}

/// Its state over all workers.
pub struct Dynamo {
    workers: Vec<Worker>,
    block_tokens: f64,
}

impl Dynamo {
    /// Idle workers.
    pub fn new(workers: usize, block_tokens: u32) -> Self {
        Dynamo {
            workers: (0..workers).map(|_| Worker::default()).collect(),
            block_tokens: f64::from(block_tokens),
        }
    }

    /// Whether every worker has more prefill tokens than this share of a batch.
    pub fn all_exceed(&self, share: f64) -> bool {
        let tokens = share * BATCH_TOKENS;
        self.workers.iter().all(|worker| worker.prefill_tokens as f64 > tokens)
    }

    /// The cost of a worker.
    pub fn cost(&self, worker: usize, prompt_tokens: u32, blocks: &[u32], overlap: usize) -> f64 {
        let worker = &self.workers[worker];
        let tokens = (worker.prefill_tokens + u64::from(prompt_tokens)) as f64;
        let prefill_blocks = (tokens / self.block_tokens - overlap as f64).max(0.0);
        let new = blocks.iter().filter(|block| !worker.blocks.contains_key(block)).count();
        prefill_blocks + (worker.blocks.len() + new) as f64
    }

    /// A request was given to a worker, which must compute `new_tokens`.
    pub fn add(&mut self, worker: usize, new_tokens: u64, blocks: &[u32]) {
        let worker = &mut self.workers[worker];
        worker.prefill_tokens += new_tokens;
        for block in blocks {
            *worker.blocks.entry(*block).or_default() += 1;
        }
    }

    /// Its first token came.
    pub fn prefilled(&mut self, worker: usize, new_tokens: u64) {
        let worker = &mut self.workers[worker];
        worker.prefill_tokens = worker.prefill_tokens.saturating_sub(new_tokens);
    }

    /// Its last token came.
    pub fn free(&mut self, worker: usize, blocks: &[u32]) {
        let held = &mut self.workers[worker].blocks;
        for block in blocks {
            if let Some(requests) = held.get_mut(block) {
                *requests -= 1;
                if *requests == 0 {
                    held.remove(block);
                }
            }
        }
    }
}
