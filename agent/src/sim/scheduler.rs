//! The scheduler: continuous batching with chunked prefill over the block cache.
//!
//! It plays one step at a time, as vLLM's does. A step gives each running sequence, in the order
//! they were admitted, its next token or the next part of its prompt, within a budget of tokens;
//! then it admits waiting sequences, first come first served, while a seat, budget and blocks are
//! there. A running sequence that gets no block makes the youngest one give up its blocks and wait
//! again at the front (preemption by recomputation); the oldest is never preempted by another, and
//! no request is taken that could not run alone, so there is always progress.
//!
//! A discrete state machine: time comes in as microseconds, outcomes and events go out, and the
//! same calls give the same answers. It does not know what a token means, nor who asked.

use std::collections::VecDeque;
use std::sync::Arc;

use dataplane::digest::{self, Digest, Unit};

use super::blocks::BlockCache;
use super::kv_events::KvEvent;
use super::script::Script;
use super::timing::Timing;

mod sequence;
mod step;

use sequence::Sequence;

/// What the scheduler may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Sequences that run at once.
    pub seqs_max: usize,
    /// Tokens computed in one step.
    pub batched_tokens_max: usize,
    /// Tokens in a block.
    pub block_tokens: usize,
    /// Blocks in the cache.
    pub cache_blocks: usize,
    /// Sequences that may wait.
    pub queue_max: usize,
    /// How long steps take.
    pub timing: Timing,
}

/// One sequence to run: a prompt and the answer it will get.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Token ids of the prompt; not empty.
    pub prompt: Arc<[u32]>,
    /// What will be said.
    pub script: Arc<Script>,
    /// Separates caches: equal prompts under unequal salts share nothing.
    pub salt: Option<Arc<str>>,
}

/// Names a submitted sequence; never used twice.
pub type Ticket = u64;

/// Why a submission was not taken. Nothing of it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// The queue is full; later there may be room.
    #[error("the queue is full: {waiting} sequences wait, {queue_max} may")]
    QueueFull {
        /// Sequences waiting now.
        waiting: usize,
        /// The limit.
        queue_max: usize,
    },
    /// It would not fit even alone.
    #[error("the request needs {needed} KV blocks and the cache has {cache_blocks}")]
    TooLarge {
        /// Blocks of the prompt and the whole answer.
        needed: usize,
        /// Blocks there are.
        cache_blocks: usize,
    },
}

/// What happened to a sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The token at `index` of its script is said.
    Token {
        /// Which sequence.
        ticket: Ticket,
        /// Which token.
        index: usize,
    },
    /// Its script is at the end.
    Finished {
        /// Which sequence.
        ticket: Ticket,
        /// How it went.
        report: Report,
    },
}

/// How a sequence went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Prompt tokens found in the cache when it was first admitted.
    pub cached_tokens: usize,
    /// Microseconds in the queue before that.
    pub queued_us: u64,
    /// Microseconds from there to the first token.
    pub prefill_us: u64,
    /// Microseconds from the first token to the last.
    pub decode_us: u64,
}

/// What one step brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turn {
    /// What happened to sequences, in order.
    pub outcomes: Vec<Outcome>,
    /// What happened to blocks, in order.
    pub events: Vec<KvEvent>,
}

/// Counters and gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sequences running now.
    pub running: usize,
    /// Sequences waiting now.
    pub waiting: usize,
    /// Blocks reserved or held now.
    pub blocks_used: usize,
    /// Blocks under a digest now, held or idle.
    pub blocks_stored: usize,
    /// Prompt tokens looked up in the cache.
    pub cache_queried_tokens_total: u64,
    /// Of those, found.
    pub cache_hit_tokens_total: u64,
    /// Prompt tokens of sequences that got to their first token.
    pub prompt_tokens_total: u64,
    /// Of those, taken from the cache.
    pub prompt_cached_tokens_total: u64,
    /// Tokens said.
    pub generated_tokens_total: u64,
    /// Microseconds of prefill, summed over sequences.
    pub prefill_us_total: u64,
    /// Microseconds of decoding, summed over sequences.
    pub decode_us_total: u64,
    /// Steps.
    pub steps_total: u64,
    /// Sequences in all steps.
    pub step_seqs_total: u64,
    /// Longest sequence seen, prompt and answer.
    pub sequence_tokens_max: u64,
    /// Sequences that gave up their blocks to another.
    pub preemptions_total: u64,
    /// Sequences that stopped by themselves, at a stop string or with a tool call.
    pub finished_stop_total: u64,
    /// Sequences that met `max_tokens` or the end of the context.
    pub finished_length_total: u64,
    /// Sequences whose client went away.
    pub aborted_total: u64,
    /// Blocks removed to make place.
    pub blocks_removed_total: u64,
}

/// The state machine.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    model: String,
    cache: BlockCache,
    waiting: VecDeque<Sequence>,
    /// In the order of admission, the oldest first.
    running: Vec<Sequence>,
    /// When the step in flight ends.
    step_ends_us: Option<u64>,
    next_ticket: Ticket,
    events: Vec<KvEvent>,
    stats: Stats,
}

impl Scheduler {
    /// An idle engine. `model` is part of every block's digest.
    pub fn new(limits: Limits, model: &str) -> Self {
        Scheduler {
            limits,
            model: model.to_owned(),
            cache: BlockCache::new(limits.cache_blocks),
            waiting: VecDeque::new(),
            running: Vec::new(),
            step_ends_us: None,
            next_ticket: 0,
            events: Vec::new(),
            stats: Stats::default(),
        }
    }

    /// Takes all of `submissions` or none. The tickets are consecutive; the first is returned.
    ///
    /// # Errors
    /// [`NotTaken`]
    pub fn submit(
        &mut self,
        submissions: Vec<Submission>,
        now_us: u64,
    ) -> Result<Ticket, NotTaken> {
        let Limits { queue_max, seqs_max, cache_blocks, block_tokens, .. } = self.limits;
        // Free seats count as room: what is admitted at the next step never really waits.
        let seats = seqs_max.saturating_sub(self.running.len());
        if self.waiting.len() + submissions.len() > queue_max + seats {
            return Err(NotTaken::QueueFull { waiting: self.waiting.len(), queue_max });
        }
        for submission in &submissions {
            let needed = (submission.prompt.len() + submission.script.len()).div_ceil(block_tokens);
            if needed > cache_blocks {
                return Err(NotTaken::TooLarge { needed, cache_blocks });
            }
        }
        let first = self.next_ticket;
        for submission in submissions {
            let seed = self.seed(submission.salt.as_deref());
            self.waiting.push_back(Sequence::new(
                self.next_ticket,
                submission,
                &seed,
                block_tokens,
                now_us,
            ));
            self.next_ticket += 1;
        }
        Ok(first)
    }

    /// Ends a sequence whose client went away; what it computed stays in the cache. False if it was
    /// not there (any more).
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        let sequence = match self.running.iter().position(|s| s.ticket == ticket) {
            Some(at) => Some(self.running.remove(at)),
            None => {
                let at = self.waiting.iter().position(|s| s.ticket == ticket);
                at.and_then(|at| self.waiting.remove(at))
            }
        };
        let Some(sequence) = sequence else {
            return false;
        };
        self.cache.release(sequence.held(), sequence.private_blocks);
        self.stats.aborted_total += 1;
        true
    }

    /// Completes the step in flight if it has ended by `now_us`, begins the next, and tells what
    /// happened. At most one step a call, so a caller with no time to wait can still listen
    /// between.
    pub fn step(&mut self, now_us: u64) -> Turn {
        let mut outcomes = Vec::new();
        match self.step_ends_us {
            Some(ends_us) if ends_us > now_us => {}
            Some(ends_us) => {
                self.step_ends_us = None;
                self.complete_step(ends_us, &mut outcomes);
                self.begin_step(ends_us);
            }
            None => self.begin_step(now_us),
        }
        Turn { outcomes, events: std::mem::take(&mut self.events) }
    }

    /// Forgets every block. Refused, with false, while a request holds one.
    pub fn clear_cache(&mut self) -> bool {
        let cleared = self.cache.clear();
        if cleared {
            self.events.push(KvEvent::Cleared);
        }
        cleared
    }

    /// When [`Scheduler::step`] will next have something to do; `None` while idle.
    pub fn next_wake_us(&self) -> Option<u64> {
        self.step_ends_us
    }

    /// The numbers as of now.
    pub fn stats(&self) -> Stats {
        Stats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            blocks_used: self.cache.used(),
            blocks_stored: self.cache.stored(),
            ..self.stats
        }
    }

    /// Tickets that run now, the oldest first.
    pub fn running_tickets(&self) -> impl Iterator<Item = Ticket> {
        self.running.iter().map(|sequence| sequence.ticket)
    }

    /// The first digest of a chain. The prefix keeps this engine's names apart from the digests
    /// routers compute, so that nobody can mistake the one for the other.
    fn seed(&self, salt: Option<&str>) -> Digest {
        let model = format!("cgn-sim-engine:{}", self.model);
        digest::seed(Unit::Tokens, &model, "", salt.unwrap_or(""))
    }
}

#[cfg(test)]
mod tests;
