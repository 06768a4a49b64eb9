//! What tokens cost an engine in milliseconds: computed, or fetched from where they lie.
//!
//! A prefill is `start + token · n`, and with attention `+ pair · ((n + c)² − c²)` for the last `n` of `n + c`
//! tokens: cached tokens are looked at but not computed. The defaults are a published fit of one modern GPU
//! that computes in batches of 8,192 tokens, so without the square. Where they are off by a factor, all
//! of an engine's times are off by the same factor, and most decisions stay.

use serde::{Deserialize, Serialize};

use super::exact;

/// Milliseconds per token, by what is done with it.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Speeds {
    /// One prefill, whatever its length, in ms.
    #[serde(with = "exact")]
    pub start_ms: f64,
    /// Each token computed, in ms.
    #[serde(with = "exact")]
    pub token_ms: f64,
    /// Attention: half of what a token costs for each token before it, in ms.
    #[serde(with = "exact")]
    pub pair_ms: f64,
    /// A token brought from the worker's own host memory, in ms.
    #[serde(with = "exact")]
    pub host_token_ms: f64,
    /// A token brought from the worker's own disk, in ms.
    #[serde(with = "exact")]
    pub disk_token_ms: f64,
    /// A token fetched from another node's KV daemon, in ms.
    #[serde(with = "exact")]
    pub peer_token_ms: f64,
    /// Share of the engine's time that one decoding request takes from prefill.
    #[serde(with = "exact")]
    pub decode_share: f64,
}

impl Default for Speeds {
    fn default() -> Self {
        Speeds {
            start_ms: 16.5,
            // 16.5 + 0.01518 n + 4.21e-7 n² ms at n = 8,192, for each of the n.
            token_ms: 0.0206,
            pair_ms: 0.0,
            // 128 KiB a token over 20, 6 and 5 GB/s: PCIe 4, one NVMe disk, and a 40 Gbit/s network.
            host_token_ms: 0.0066,
            disk_token_ms: 0.0218,
            peer_token_ms: 0.0262,
            // A decoded token costs what one more token of prefill does at 12,000 tokens of context,
            // 0.025 ms, once in 20 ms.
            decode_share: 0.00127,
        }
    }
}

/// Leading tokens of a prompt that a worker can have without computing them. Each level counts what it
/// holds beyond the faster ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// In the engine's own cache.
    pub gpu_tokens: u64,
    /// In the node's memory.
    pub host_tokens: u64,
    /// On the node's disk.
    pub disk_tokens: u64,
    /// At another node's KV daemon.
    pub peer_tokens: u64,
}

impl Held {
    /// On all levels together.
    pub fn total(&self) -> u64 {
        let near = self.gpu_tokens.saturating_add(self.host_tokens);
        near.saturating_add(self.disk_tokens).saturating_add(self.peer_tokens)
    }
}

/// What a prompt costs at one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Price {
    /// The engine computes for so long.
    pub compute_ms: f64,
    /// And waits for so long for what is fetched.
    pub fetch_ms: f64,
}

impl Price {
    /// From the start to the first token.
    pub fn total_ms(&self) -> f64 {
        self.compute_ms + self.fetch_ms
    }
}

impl Speeds {
    /// Computing tokens `from..to` of a prompt, without the start of a prefill.
    pub fn compute_ms(&self, from: u64, to: u64) -> f64 {
        let (from, to) = (from.min(to) as f64, to as f64);
        (to - from) * (self.token_ms + self.pair_ms * (to + from))
    }

    /// A prefill of `prompt_tokens` of which the first `cached_tokens` are there.
    pub fn prefill_ms(&self, cached_tokens: u64, prompt_tokens: u64) -> f64 {
        self.start_ms + self.compute_ms(cached_tokens, prompt_tokens)
    }

    /// The cheapest way to a first token: each level is fetched where that is faster than computing it.
    pub fn price(&self, held: &Held, prompt_tokens: u64) -> Price {
        let mut at = held.gpu_tokens.min(prompt_tokens);
        let mut price = Price { compute_ms: self.start_ms, fetch_ms: 0.0 };
        let levels = [
            (held.host_tokens, self.host_token_ms),
            (held.disk_tokens, self.disk_token_ms),
            (held.peer_tokens, self.peer_token_ms),
        ];
        for (tokens, token_ms) in levels {
            if tokens == 0 {
                continue;
            }
            let to = at.saturating_add(tokens).min(prompt_tokens);
            let (fetch_ms, compute_ms) = ((to - at) as f64 * token_ms, self.compute_ms(at, to));
            if fetch_ms < compute_ms {
                price.fetch_ms += fetch_ms;
            } else {
                price.compute_ms += compute_ms;
            }
            at = to;
        }
        price.compute_ms += self.compute_ms(at, prompt_tokens);
        price
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_held() -> impl Strategy<Value = Held> {
        (0u64..9_000, 0u64..9_000, 0u64..9_000, 0u64..9_000).prop_map(|(gpu, host, disk, peer)| {
            Held { gpu_tokens: gpu, host_tokens: host, disk_tokens: disk, peer_tokens: peer }
        })
    }

    #[test]
    fn a_prefill_in_two_parts_costs_the_whole_and_one_more_start() {
        let speeds = Speeds::default();
        let parts = speeds.prefill_ms(0, 5_000) + speeds.prefill_ms(5_000, 12_000);
        let whole = speeds.prefill_ms(0, 12_000) + speeds.start_ms;
        assert!((parts - whole).abs() < 1e-6, "{parts} {whole}");
    }

    #[test]
    fn attention_makes_the_same_tokens_dearer_behind_a_longer_prefix() {
        let speeds = Speeds { pair_ms: 1e-6, ..Speeds::default() };
        assert!(speeds.compute_ms(50_000, 51_000) > speeds.compute_ms(0, 1_000));
        let linear = Speeds::default();
        let (deep, shallow) = (linear.compute_ms(50_000, 51_000), linear.compute_ms(0, 1_000));
        assert!((deep - shallow).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn more_of_a_prompt_on_any_level_never_costs_more(
            held in any_held(), more in 0u64..4_000, level in 0usize..4, prompt_tokens in 0u64..40_000,
            pair_ms in prop::sample::select(vec![0.0, 4.21e-7, 1e-5]),
        ) {
            let speeds = Speeds { pair_ms, ..Speeds::default() };
            let mut fuller = held;
            match level {
                0 => fuller.gpu_tokens += more,
                1 => fuller.host_tokens += more,
                2 => fuller.disk_tokens += more,
                _ => fuller.peer_tokens += more,
            }
            let (less, more) = (speeds.price(&held, prompt_tokens), speeds.price(&fuller, prompt_tokens));
            prop_assert!(more.total_ms() <= less.total_ms() + 1e-9);
        }

        #[test]
        fn a_price_is_never_above_computing_all(held in any_held(), prompt_tokens in 0u64..40_000) {
            let speeds = Speeds::default();
            let price = speeds.price(&held, prompt_tokens);
            prop_assert!(price.compute_ms >= speeds.start_ms && price.fetch_ms >= 0.0);
            prop_assert!(price.total_ms() <= speeds.prefill_ms(0, prompt_tokens) + 1e-9);
        }
    }
}
