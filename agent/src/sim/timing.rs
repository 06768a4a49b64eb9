//! How long a step takes.
//!
//! The model is that of Dynamo's mocker (its own fit to a real engine): with `T` new prompt tokens
//! in the step and `u` the share of the KV cache in use,
//!
//! ```text
//! prefill_ms = 4.21e-7·T² + 1.518e-2·T + 16.5        if T > 0
//! decode_ms  = max(1, -25.74·u² + 54.01·u + 5.74)    if any sequence decodes
//! ```
//!
//! A step that does both takes their sum. The whole is divided by the speed-up ratio; a ratio of 0
//! means no waiting at all.

/// The time model with its speed-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Steps are this many times faster than the model; 0 is "no time at all".
    pub speedup_ratio: f64,
}

impl Timing {
    /// Microseconds of a step with `prefill_tokens` new prompt tokens and, if `decodes`, at least
    /// one decoding sequence, while the share `cache_used` of the blocks is in use.
    pub fn step_us(&self, prefill_tokens: usize, decodes: bool, cache_used: f64) -> u64 {
        if self.speedup_ratio <= 0.0 {
            return 0;
        }
        let mut step_ms = 0.0;
        if prefill_tokens > 0 {
            let t = prefill_tokens as f64;
            step_ms += 4.21e-7 * t * t + 1.518e-2 * t + 16.5;
        }
        if decodes {
            step_ms += (-25.74 * cache_used * cache_used + 54.01 * cache_used + 5.74).max(1.0);
        }
        (step_ms * 1000.0 / self.speedup_ratio).round() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_gives_its_stated_values() {
        let real = Timing { speedup_ratio: 1.0 };
        assert_eq!(real.step_us(1000, false, 0.0), 32_101);
        assert_eq!(real.step_us(0, true, 0.0), 5_740);
        assert_eq!(real.step_us(0, true, 1.0), 34_010);
        assert_eq!(real.step_us(1000, true, 0.0), 37_841);
        assert_eq!(Timing { speedup_ratio: 10.0 }.step_us(1000, false, 0.0), 3_210);
        assert_eq!(Timing { speedup_ratio: 0.0 }.step_us(1000, true, 0.5), 0);
    }
}
