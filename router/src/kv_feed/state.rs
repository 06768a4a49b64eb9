//! What is known of one worker's KV cache by its engine's own word, as all cores read it.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use dataplane::feed::Known;

/// What an agent told stays in force for so long after its last word: ten heartbeats.
pub const STALE_MS: u64 = 10_000;

/// The state of one worker's feed.
#[derive(Debug, Default)]
pub struct FeedState {
    known: AtomicU8,
    block_tokens: AtomicU32,
    heard_ms: AtomicU64,
    epoch: AtomicU64,
    batch: AtomicU64,
}

impl FeedState {
    /// Notes what its agent said at `now_ms`; `position` is [`Follower::position`] after it.
    ///
    /// [`Follower::position`]: dataplane::feed::Follower::position
    pub fn hear(&self, known: Known, block_tokens: u32, position: (u64, u64), now_ms: u64) {
        self.known.store(known as u8, Relaxed);
        self.epoch.store(position.0, Relaxed);
        self.batch.store(position.1, Relaxed);
        self.block_tokens.store(block_tokens, Relaxed);
        self.heard_ms.store(now_ms, Relaxed);
    }

    /// How much of the worker's cache the index has; nothing once its agent was silent for too long.
    pub fn known(&self, now_ms: u64) -> Known {
        if now_ms.saturating_sub(self.heard_ms.load(Relaxed)) > STALE_MS {
            return Known::None;
        }
        match self.known.load(Relaxed) {
            known if known == Known::Whole as u8 => Known::Whole,
            known if known == Known::Partial as u8 => Known::Partial,
            _ => Known::None,
        }
    }

    /// The engine's process followed, and the last batch taken of it.
    pub fn position(&self) -> (u64, u64) {
        (self.epoch.load(Relaxed), self.batch.load(Relaxed))
    }

    /// Tokens in a block, by the engine's own word; 0 is unknown.
    pub fn block_tokens(&self) -> u32 {
        self.block_tokens.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_agent_is_believed_for_a_while() {
        let state = FeedState::default();
        assert_eq!(state.known(1), Known::None);
        state.hear(Known::Whole, 16, (3, 7), 1_000);
        assert_eq!(state.position(), (3, 7));
        assert_eq!((state.known(1_000 + STALE_MS), state.block_tokens()), (Known::Whole, 16));
        assert_eq!(state.known(1_001 + STALE_MS), Known::None);
        state.hear(Known::Partial, 16, (3, 8), 50_000);
        assert_eq!(state.known(50_000), Known::Partial);
    }
}
