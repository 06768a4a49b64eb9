//! How long to wait before the next start: exponential, bounded, with jitter.

use std::time::Duration;

/// The pause after `failures` failures in a row (1 or more). `unit` is a random number in
/// `0.0..1.0`: the pause is between half and the whole of `initial * 2^(failures-1)`, so engines
/// that died together do not come back together.
pub fn pause(failures: u32, initial: Duration, max: Duration, unit: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(31);
    let full = initial.saturating_mul(1 << doublings).min(max);
    full.mul_f64(0.5 + 0.5 * unit.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_doubles_up_to_the_limit() {
        let at = |failures| pause(failures, Duration::from_secs(1), Duration::from_secs(60), 1.0);
        let seconds: Vec<u64> = (1..=9).map(|failures| at(failures).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    proptest! {
        #[test]
        fn it_stays_between_half_and_the_whole(failures in any::<u32>(), unit in 0.0f64..1.0) {
            let (initial, max) = (Duration::from_secs(1), Duration::from_secs(60));
            let paused = pause(failures, initial, max, unit);
            prop_assert!(paused >= initial / 2 && paused <= max);
        }
    }
}
