//! What happens to one in so many messages of a line: it is dropped, comes twice, or comes late.

use std::time::Duration;

/// A line that was silent for so long has brought what was late.
pub const QUIET: Duration = Duration::from_millis(300);
/// Messages that pass one that is late, at most.
const LATE_MAX: u64 = 8;

/// Decides, and keeps what is late.
pub struct Trouble<T> {
    state: u64,
    percent: u64,
    /// With how many still pass before them.
    late: Vec<(u64, T)>,
    /// Messages that did not pass as they should.
    pub harmed: u64,
    /// All messages.
    pub seen: u64,
}

impl<T: Clone> Trouble<T> {
    pub fn new(seed: u64, percent: u64) -> Self {
        Trouble { state: seed, percent, late: Vec::new(), harmed: 0, seen: 0 }
    }

    /// A message comes in; what goes out.
    pub fn pass(&mut self, message: T) -> Vec<T> {
        self.seen += 1;
        let mut out = Vec::new();
        let mut came_late = None;
        if self.below(100) >= self.percent {
            out.push(message);
        } else {
            self.harmed += 1;
            match self.below(3) {
                0 => {}
                1 => out.extend([message.clone(), message]),
                _ => came_late = Some((1 + self.below(LATE_MAX), message)),
            }
        }
        self.late.iter_mut().for_each(|(left, _)| *left -= 1);
        out.extend(self.late.extract_if(.., |(left, _)| *left == 0).map(|(_, message)| message));
        self.late.extend(came_late);
        out
    }

    /// It is quiet: what is late has come.
    pub fn settle(&mut self) -> Vec<T> {
        self.late.drain(..).map(|(_, message)| message).collect()
    }

    /// A generator of small numbers (SplitMix64).
    fn below(&mut self, limit: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}
