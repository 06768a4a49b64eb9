//! What a router keeps of one worker's feed, to turn frames into changes of its index, each once and
//! in order, whatever the line did to them.
//!
//! Frames may be dropped, doubled, late or out of order; after that, heartbeats and snapshots that
//! arrive lead to the agent's own state. It asks nobody itself: [`Step::Resync`] is for its caller to
//! say [`super::ToAgent::Want`].

use super::{Known, Op, ToRouter};

/// What to do to the index after a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// Make these changes.
    Apply(Vec<Op>),
    /// Forget everything of this worker, then make these changes.
    Reset(Vec<Op>),
    /// Something is missing: ask for a snapshot. `forget`: what is held belongs to a process that has
    /// ended, so forget it now; else it is the best there is until the snapshot comes.
    Resync {
        /// Forget everything of this worker.
        forget: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A snapshot is needed.
    Waiting,
    /// A snapshot is coming; `part` is next. `moved`: a part came since the last heartbeat.
    Receiving { part: u32, moved: bool },
    /// All batches up to `seq` were applied.
    InStep,
}

/// One worker as far as a router has followed it.
#[derive(Clone, Debug)]
pub struct Follower {
    /// The line is new: whatever epoch it tells is the right one.
    is_fresh: bool,
    epoch: u64,
    seq: u64,
    phase: Phase,
    known: Known,
    block_tokens: u32,
}

impl Default for Follower {
    fn default() -> Self {
        Follower {
            is_fresh: true,
            epoch: 0,
            seq: 0,
            phase: Phase::Waiting,
            known: Known::None,
            block_tokens: 0,
        }
    }
}

impl Follower {
    /// How much of what the worker holds is in the index: nothing it was told is missing, and the
    /// agent itself knows this much.
    pub fn known(&self) -> Known {
        match self.phase {
            Phase::InStep => self.known,
            _ => self.known.min(Known::Partial),
        }
    }

    /// Tokens in a block; 0 is unknown.
    pub fn block_tokens(&self) -> u32 {
        self.block_tokens
    }

    /// Whether every batch told so far was applied.
    pub fn is_in_step(&self) -> bool {
        self.phase == Phase::InStep
    }

    /// The engine's process followed, and the last batch applied of it.
    pub fn position(&self) -> (u64, u64) {
        (self.epoch, self.seq)
    }

    /// The line broke. What is held stays until the next one tells more.
    pub fn disconnected(&mut self) {
        self.is_fresh = true;
        self.phase = Phase::Waiting;
    }

    /// Takes a frame about this worker.
    pub fn take(&mut self, frame: ToRouter) -> Step {
        match frame {
            ToRouter::Hello { .. }
            | ToRouter::Others { .. }
            | ToRouter::Warmable { .. }
            | ToRouter::Warmed { .. } => Step::Nothing,
            ToRouter::State { epoch, seq, known, block_tokens, .. } => match self.meet(epoch) {
                Meeting::Older => Step::Nothing,
                Meeting::Same => {
                    (self.known, self.block_tokens) = (known, block_tokens);
                    self.heartbeat(seq)
                }
                Meeting::Newer => {
                    (self.known, self.block_tokens) = (known, block_tokens);
                    self.begin_epoch(seq, None)
                }
            },
            ToRouter::Batch { epoch, seq, ops, .. } => match self.meet(epoch) {
                Meeting::Older => Step::Nothing,
                Meeting::Same => self.batch(seq, ops),
                Meeting::Newer => self.begin_epoch(seq, Some(ops)),
            },
            ToRouter::Snapshot { epoch, seq, part, last, sets, .. } => {
                let meeting = self.meet(epoch);
                match meeting {
                    Meeting::Older => Step::Nothing,
                    Meeting::Newer if part > 0 => Step::Resync { forget: true },
                    Meeting::Newer => self.begin_snapshot(seq, last, sets),
                    Meeting::Same => self.snapshot(seq, part, last, sets),
                }
            }
            ToRouter::Gone { epoch, .. } => match self.meet(epoch) {
                Meeting::Older => Step::Nothing,
                Meeting::Same | Meeting::Newer => {
                    self.phase = Phase::Waiting;
                    self.known = Known::None;
                    Step::Reset(Vec::new())
                }
            },
        }
    }

    /// A newer epoch leaves nothing of the older one.
    fn meet(&mut self, epoch: u64) -> Meeting {
        let is_other = if self.is_fresh { epoch != self.epoch } else { epoch > self.epoch };
        if is_other {
            self.epoch = epoch;
            self.seq = 0;
            self.phase = Phase::Waiting;
            self.known = Known::None;
            self.block_tokens = 0;
        } else if epoch < self.epoch {
            return Meeting::Older;
        }
        self.is_fresh = false;
        if is_other { Meeting::Newer } else { Meeting::Same }
    }

    /// The first word of a new epoch: its batches begin at 1, before it nothing is held.
    fn begin_epoch(&mut self, seq: u64, ops: Option<Vec<Op>>) -> Step {
        let first = u64::from(ops.is_some());
        if seq != first {
            return Step::Resync { forget: true };
        }
        self.seq = seq;
        self.phase = Phase::InStep;
        Step::Reset(ops.unwrap_or_default())
    }

    fn heartbeat(&mut self, seq: u64) -> Step {
        match &mut self.phase {
            Phase::InStep if seq <= self.seq => Step::Nothing,
            Phase::Receiving { moved, .. } if *moved => {
                *moved = false;
                Step::Nothing
            }
            _ => self.resync(),
        }
    }

    fn batch(&mut self, seq: u64, ops: Vec<Op>) -> Step {
        match (self.phase, seq.checked_sub(self.seq)) {
            (Phase::InStep, Some(1)) => {
                self.seq = seq;
                Step::Apply(ops)
            }
            (Phase::InStep, Some(2..)) => self.resync(),
            // Known already, or in the snapshot that is coming; if not, the next heartbeat says so.
            _ => Step::Nothing,
        }
    }

    fn snapshot(&mut self, seq: u64, part: u32, last: bool, sets: Vec<Op>) -> Step {
        match self.phase {
            Phase::InStep if seq <= self.seq => Step::Nothing,
            Phase::Waiting if part == 0 && seq >= self.seq => self.begin_snapshot(seq, last, sets),
            Phase::Waiting => Step::Nothing,
            Phase::Receiving { .. } if seq < self.seq => Step::Nothing,
            Phase::Receiving { part: next, .. } if seq == self.seq && part <= next => {
                if part < next {
                    return Step::Nothing;
                }
                self.phase = after(part, last);
                Step::Apply(sets)
            }
            _ if seq > self.seq && part == 0 => self.begin_snapshot(seq, last, sets),
            _ => self.resync(),
        }
    }

    fn begin_snapshot(&mut self, seq: u64, last: bool, sets: Vec<Op>) -> Step {
        self.seq = seq;
        self.phase = after(0, last);
        Step::Reset(sets)
    }

    fn resync(&mut self) -> Step {
        self.phase = Phase::Waiting;
        Step::Resync { forget: false }
    }
}

/// Behind `part` of a snapshot.
fn after(part: u32, last: bool) -> Phase {
    if last {
        Phase::InStep
    } else {
        Phase::Receiving { part: part.saturating_add(1), moved: true }
    }
}

enum Meeting {
    Older,
    Same,
    Newer,
}

#[cfg(test)]
mod tests;
