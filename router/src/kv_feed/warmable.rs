//! Whether a worker can be given KV state, as its agent told it and all cores read it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::state::STALE_MS;

/// The last word of it.
#[derive(Debug, Default)]
pub struct SharedWarmable {
    block_tokens: AtomicU32,
    heard_ms: AtomicU64,
}

impl SharedWarmable {
    /// Notes what the agent said at `now_ms`.
    pub fn hear(&self, block_tokens: u32, now_ms: u64) {
        self.block_tokens.store(block_tokens, Relaxed);
        self.heard_ms.store(now_ms, Relaxed);
    }

    /// Tokens in a block of what can be asked for; 0: nothing, also once the agent was silent for too long.
    pub fn block_tokens(&self, now_ms: u64) -> u32 {
        let block_tokens = self.block_tokens.load(Relaxed);
        let is_stale = || now_ms.saturating_sub(self.heard_ms.load(Relaxed)) > STALE_MS;
        if block_tokens == 0 || is_stale() { 0 } else { block_tokens }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts_until_it_is_old() {
        let warmable = SharedWarmable::default();
        assert_eq!(warmable.block_tokens(1), 0);
        warmable.hear(16, 100);
        assert_eq!(warmable.block_tokens(100 + STALE_MS), 16);
        assert_eq!(warmable.block_tokens(101 + STALE_MS), 0);
    }
}
