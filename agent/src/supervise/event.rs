//! What can happen to a replica, in words.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use crate::engine::{Expected, Facts};

/// One process of a replica.
#[derive(Clone, Debug)]
pub struct Run {
    /// Rises with each start, over all replicas and lives of the agent.
    pub epoch: u64,
    /// Its process id, which is also its group's.
    pub pid: u32,
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    /// What it was rendered to be.
    pub expected: Expected,
    /// Where its output goes.
    pub log_path: PathBuf,
    /// Tokens in a block of its KV cache, 0 until it says; none where it has no KV events.
    pub kv_block_tokens: Option<Arc<AtomicU32>>,
}

/// Requests an engine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Being worked on.
    pub running: u32,
    /// Accepted, waiting for a slot.
    pub waiting: u32,
}

/// Something that happened to one replica.
#[derive(Clone, Debug)]
pub enum Event {
    /// The process runs.
    Spawned(Run),
    /// It cannot be started until something is changed; the line says what.
    Refused(String),
    /// The system would not spawn it.
    SpawnFailed(String),
    /// A probe ended.
    Probed {
        /// Of which process.
        epoch: u64,
        /// How.
        outcome: ProbeOutcome,
    },
    /// The process and its group are gone and reaped.
    Exited {
        /// Which process.
        epoch: u64,
        /// "exited with status 1" or "was ended by SIGKILL".
        how: String,
        /// The last line of its log that speaks of an error.
        log_line: String,
    },
}

/// How a probe ended.
#[derive(Clone, Debug, PartialEq)]
pub enum ProbeOutcome {
    /// The engine serves.
    Up {
        /// What it says of itself, if that was asked.
        facts: Option<Facts>,
        /// What it is working on, where it says.
        in_flight: Option<InFlight>,
    },
    /// It does not, or not in time; the line says how.
    Down(String),
}

/// What an event changed that is worth counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Nothing.
    Nothing,
    /// The engine became ready.
    Ready {
        /// This long after it was spawned.
        after: Duration,
    },
}
