//! Faults in an order that a seed repeats.

use std::time::{Duration, Instant};

use super::llama::Llama;

/// Numbers from a seed (SplitMix64).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn ms(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most - least))
    }
}

/// What was done.
#[derive(Debug, Default)]
pub struct Done {
    killed: u32,
    stalled: u32,
    slowed: u32,
}

/// Disturbs one engine after another until `end`, and leaves them all running.
pub fn disturb(engines: &[Llama], mut dice: Dice, end: Instant) -> Done {
    let mut done = Done::default();
    while Instant::now() < end {
        std::thread::sleep(dice.ms(500, 2_500));
        let engine = &engines[dice.below(engines.len() as u64) as usize];
        match dice.below(3) {
            0 => {
                engine.kill();
                std::thread::sleep(dice.ms(1, 1_500));
                engine.restart();
                done.killed += 1;
            }
            1 => {
                engine.stop();
                // Some are shorter than the router's patience with an engine, some longer.
                std::thread::sleep(dice.ms(500, 5_000));
                engine.go_on();
                done.stalled += 1;
            }
            _ => {
                for _ in 0..dice.below(15) + 5 {
                    engine.stop();
                    std::thread::sleep(dice.ms(50, 200));
                    engine.go_on();
                    std::thread::sleep(dice.ms(20, 100));
                }
                done.slowed += 1;
            }
        }
    }
    done
}
