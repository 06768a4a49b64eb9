//! One sequence on its way through the scheduler: what it has computed and which blocks it holds.

use std::sync::Arc;

use dataplane::digest::{self, Digest};

use super::{Report, Script, Submission, Ticket};

/// A waiting or running sequence. The blocks named in it are held in the cache on its behalf.
#[derive(Debug)]
pub struct Sequence {
    /// Its name.
    pub ticket: Ticket,
    submission: Submission,
    /// Tokens of the script already said.
    pub generated: usize,
    /// Tokens whose KV is there, from the cache or computed.
    pub computed: usize,
    /// Tokens the step in flight computes for it.
    pub scheduled: usize,
    /// Digests of all whole blocks of the tokens known so far.
    pub digests: Vec<Digest>,
    seed: Digest,
    /// How many of `digests` it holds in the cache, from the first.
    pub held_blocks: usize,
    /// Reserved blocks that are not full yet.
    pub private_blocks: usize,
    /// How it goes; complete when it finishes.
    pub report: Report,
    /// Submitted at.
    pub arrived_us: u64,
    /// First admitted at; `None` before.
    pub admitted_us: Option<u64>,
    /// First token said at.
    pub first_token_us: u64,
}

impl Sequence {
    /// A new one, waiting.
    pub fn new(
        ticket: Ticket,
        submission: Submission,
        seed: &Digest,
        block_tokens: usize,
        now_us: u64,
    ) -> Self {
        Sequence {
            ticket,
            digests: digest::of_tokens(seed, &submission.prompt, block_tokens),
            submission,
            generated: 0,
            computed: 0,
            scheduled: 0,
            seed: *seed,
            held_blocks: 0,
            private_blocks: 0,
            report: Report::default(),
            arrived_us: now_us,
            admitted_us: None,
            first_token_us: 0,
        }
    }

    /// Says the next token: it is known from now on, its KV is not there yet.
    pub fn say_next(&mut self, block_tokens: usize) -> usize {
        let index = self.generated;
        self.generated += 1;
        if self.known().is_multiple_of(block_tokens) {
            let block = self.block(self.digests.len(), block_tokens);
            let parent = self.digests.last().unwrap_or(&self.seed);
            let bytes: Vec<u8> = block.iter().flat_map(|token| token.to_le_bytes()).collect();
            self.digests.push(digest::chain(parent, &bytes));
        }
        index
    }

    /// Gives up everything computed; what was said stays said.
    pub fn reset(&mut self) {
        self.computed = 0;
        self.scheduled = 0;
        self.held_blocks = 0;
        self.private_blocks = 0;
    }

    /// Tokens known: the prompt and what was said.
    pub fn known(&self) -> usize {
        self.submission.prompt.len() + self.generated
    }

    /// Tokens of the prompt.
    pub fn prompt_len(&self) -> usize {
        self.submission.prompt.len()
    }

    /// Whether the next computed token is one it said itself, the usual step of decoding.
    pub fn decodes(&self) -> bool {
        self.generated > 0 && self.computed + 1 == self.known()
    }

    /// Whether the script is at its end.
    pub fn is_at_end(&self) -> bool {
        self.generated == self.submission.script.len()
    }

    /// What it says.
    pub fn script(&self) -> &Arc<Script> {
        &self.submission.script
    }

    /// The salt of its cache.
    pub fn salt(&self) -> Option<&Arc<str>> {
        self.submission.salt.as_ref()
    }

    /// The blocks it holds.
    pub fn held(&self) -> &[Digest] {
        &self.digests[..self.held_blocks]
    }

    /// Blocks it needs beyond those it has, to compute up to `tokens` tokens.
    pub fn blocks_missing(&self, tokens: usize, block_tokens: usize) -> usize {
        tokens.div_ceil(block_tokens).saturating_sub(self.held_blocks + self.private_blocks)
    }

    /// The tokens of block `index`, all of them known.
    pub fn block(&self, index: usize, block_tokens: usize) -> Vec<u32> {
        let prompt = &self.submission.prompt;
        (index * block_tokens..(index + 1) * block_tokens)
            .map(|at| match prompt.get(at) {
                Some(&token) => token,
                None => self.submission.script.token(at - prompt.len()),
            })
            .collect()
    }
}
