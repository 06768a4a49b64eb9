//! One step of the scheduler: who computes how much, and what comes of it.

use super::super::kv_events::KvEvent;
use super::super::script::Finish;
use super::sequence::Sequence;
use super::{Outcome, Scheduler};

impl Scheduler {
    /// Decides the next step and puts it in flight; nothing to do leaves the engine idle.
    pub(super) fn begin_step(&mut self, now_us: u64) {
        let mut removed = Vec::new();
        let mut budget = self.limits.batched_tokens_max;
        let preempted = self.schedule_running(&mut budget, &mut removed);
        if !preempted {
            self.admit_waiting(&mut budget, &mut removed, now_us);
        }
        self.stats.blocks_removed_total += removed.len() as u64;
        if !removed.is_empty() {
            self.events.push(KvEvent::Removed { blocks: removed });
        }
        let scheduled = self.running.iter().filter(|s| s.scheduled > 0);
        let (mut prefill_tokens, mut decodes, mut seqs) = (0, false, 0);
        for sequence in scheduled {
            seqs += 1;
            if sequence.decodes() {
                decodes = true;
            } else {
                prefill_tokens += sequence.scheduled;
            }
        }
        if seqs == 0 {
            assert!(self.running.is_empty(), "a running sequence always gets a part of the budget");
            return;
        }
        let used = self.cache.used() as f64 / self.cache.blocks_max() as f64;
        let step_us = self.limits.timing.step_us(prefill_tokens, decodes, used);
        self.step_ends_us = Some(now_us.saturating_add(step_us));
        self.stats.steps_total += 1;
        self.stats.step_seqs_total += seqs;
    }

    /// Ends the step: full blocks are stored, sequences that caught up say a token.
    pub(super) fn complete_step(&mut self, now_us: u64, outcomes: &mut Vec<Outcome>) {
        let mut still_running = Vec::with_capacity(self.running.len());
        for mut sequence in std::mem::take(&mut self.running) {
            let scheduled = std::mem::take(&mut sequence.scheduled);
            sequence.computed += scheduled;
            self.store_full_blocks(&mut sequence);
            if scheduled > 0 && sequence.computed == sequence.known() {
                self.say(&mut sequence, now_us, outcomes);
                if sequence.is_at_end() {
                    self.finish(sequence, now_us, outcomes);
                    continue;
                }
            }
            still_running.push(sequence);
        }
        self.running = still_running;
    }

    /// Gives each running sequence its part. Says whether one was preempted.
    fn schedule_running(&mut self, budget: &mut usize, removed: &mut Vec<super::Digest>) -> bool {
        let block_tokens = self.limits.block_tokens;
        let (mut at, mut preempted) = (0, false);
        while at < self.running.len() && *budget > 0 {
            let sequence = &self.running[at];
            let part = (sequence.known() - sequence.computed).min(*budget);
            let missing = sequence.blocks_missing(sequence.computed + part, block_tokens);
            if self.cache.reserve(missing, removed) {
                let sequence = &mut self.running[at];
                sequence.private_blocks += missing;
                sequence.scheduled = part;
                *budget -= part;
                at += 1;
            } else {
                // The youngest; it may be this one, then the loop ends.
                preempted = true;
                self.preempt_youngest();
            }
        }
        preempted
    }

    fn preempt_youngest(&mut self) {
        let Some(mut victim) = self.running.pop() else {
            return;
        };
        self.cache.release(victim.held(), victim.private_blocks);
        victim.reset();
        self.waiting.push_front(victim);
        self.stats.preemptions_total += 1;
    }

    fn admit_waiting(&mut self, budget: &mut usize, removed: &mut Vec<super::Digest>, now_us: u64) {
        let block_tokens = self.limits.block_tokens;
        while self.running.len() < self.limits.seqs_max && *budget > 0 {
            let Some(sequence) = self.waiting.front() else {
                return;
            };
            // The last known token is always computed: its logits are what the next token needs.
            let whole = ((sequence.known() - 1) / block_tokens).min(sequence.digests.len());
            let matched = self.cache.match_prefix(&sequence.digests[..whole]);
            let cached = matched * block_tokens;
            let part = (sequence.known() - cached).min(*budget);
            let missing = (cached + part).div_ceil(block_tokens) - matched;
            if !self.cache.has_room(&sequence.digests[..matched], missing) {
                return;
            }
            let Some(mut sequence) = self.waiting.pop_front() else {
                return;
            };
            self.cache.hold(&sequence.digests[..matched]);
            let reserved = self.cache.reserve(missing, removed);
            assert!(reserved, "there was room a moment ago");
            sequence.held_blocks = matched;
            sequence.private_blocks = missing;
            sequence.computed = cached;
            sequence.scheduled = part;
            *budget -= part;
            if sequence.admitted_us.is_none() {
                sequence.admitted_us = Some(now_us);
                sequence.report.queued_us = now_us.saturating_sub(sequence.arrived_us);
                sequence.report.cached_tokens = cached;
                self.stats.cache_queried_tokens_total += sequence.prompt_len() as u64;
                self.stats.cache_hit_tokens_total += cached as u64;
            }
            self.running.push(sequence);
        }
    }

    /// Stores the blocks that became full; blocks that are new make events, consecutive ones one.
    fn store_full_blocks(&mut self, sequence: &mut Sequence) {
        let block_tokens = self.limits.block_tokens;
        let mut run: Option<KvEvent> = None;
        while (sequence.held_blocks + 1) * block_tokens <= sequence.computed {
            let index = sequence.held_blocks;
            let digest = sequence.digests[index];
            let before = index.checked_sub(1).map(|before| sequence.digests[before]);
            let is_new = self.cache.store(digest, before);
            sequence.held_blocks += 1;
            sequence.private_blocks -= 1;
            if !is_new {
                self.events.extend(run.take());
                continue;
            }
            let block = sequence.block(index, block_tokens);
            match &mut run {
                Some(KvEvent::Stored { blocks, tokens, .. }) => {
                    blocks.push(digest);
                    tokens.extend(block);
                }
                _ => {
                    run = Some(KvEvent::Stored {
                        blocks: vec![digest],
                        parent: before,
                        tokens: block,
                        block_tokens,
                        salt: sequence.salt().filter(|_| index == 0).cloned(),
                    });
                }
            }
        }
        self.events.extend(run);
    }

    fn say(&mut self, sequence: &mut Sequence, now_us: u64, outcomes: &mut Vec<Outcome>) {
        if sequence.generated == 0 {
            sequence.first_token_us = now_us;
            let admitted_us = sequence.admitted_us.unwrap_or(now_us);
            sequence.report.prefill_us = now_us.saturating_sub(admitted_us);
            self.stats.prefill_us_total += sequence.report.prefill_us;
            self.stats.prompt_tokens_total += sequence.prompt_len() as u64;
            self.stats.prompt_cached_tokens_total += sequence.report.cached_tokens as u64;
        }
        if !sequence.is_at_end() {
            let index = sequence.say_next(self.limits.block_tokens);
            self.stats.generated_tokens_total += 1;
            outcomes.push(Outcome::Token { ticket: sequence.ticket, index });
        }
    }

    fn finish(&mut self, mut sequence: Sequence, now_us: u64, outcomes: &mut Vec<Outcome>) {
        self.cache.release(sequence.held(), sequence.private_blocks);
        sequence.report.decode_us = now_us.saturating_sub(sequence.first_token_us);
        self.stats.decode_us_total += sequence.report.decode_us;
        self.stats.sequence_tokens_max =
            self.stats.sequence_tokens_max.max(sequence.known() as u64);
        match sequence.script().finish() {
            Finish::Length => self.stats.finished_length_total += 1,
            Finish::Stop | Finish::StopString(_) | Finish::ToolCalls => {
                self.stats.finished_stop_total += 1;
            }
        }
        outcomes.push(Outcome::Finished { ticket: sequence.ticket, report: sequence.report });
    }
}
