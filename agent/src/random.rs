//! Randomness for jitter, injected so that decisions stay replayable. Not for secrets.

use std::hash::{BuildHasher, Hasher, RandomState};

/// splitmix64: one word of state, equal seeds give equal sequences.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// A sequence named by `seed`.
    pub fn from_seed(seed: u64) -> Self {
        Jitter(seed)
    }

    /// A sequence that differs from process to process.
    pub fn from_entropy() -> Self {
        Jitter(RandomState::new().build_hasher().finish())
    }

    /// The next number in `0.0..1.0`.
    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        // The upper 53 bits are exactly what an f64 holds.
        (word >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_sequences_within_the_unit_interval() {
        let (mut a, mut b) = (Jitter::from_seed(7), Jitter::from_seed(7));
        for _ in 0..1000 {
            let unit = a.unit();
            assert!((0.0..1.0).contains(&unit));
            assert!(unit.to_bits() == b.unit().to_bits());
        }
    }
}
