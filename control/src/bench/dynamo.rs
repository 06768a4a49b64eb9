//! NVIDIA Dynamo's published cost function with its default parameters, for comparison.
//!
//! ```text
//! cost = max(0, (active_prefill_tokens + prompt_tokens) / block_tokens − overlap_blocks)
//!      + decode blocks in use there if this request came too
//! ```
//!
//! Defaults as of 1.6.1: `prefill_load_scale` and `overlap_score_credit` 1, no decay of it, temperature 0
//! with random ties, no prediction on route (overlap is what events said), blocks in use count once however
//! many requests share them, answers add none. Prefill tokens count from the decision to the first token.
//! Its queue is not modelled: it opens far above the loads here.

use super::cache::BlockMap;

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
