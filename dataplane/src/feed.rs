//! The feed: what an agent tells routers of the KV blocks its engines hold, and what routers tell each
//! other through it of the load they give them.
//!
//! A router dials the agent of each node and says [`ToAgent::Hello`]. The agent says Hello too, then a
//! [`ToRouter::State`] for each worker it has, again at each change and once a second. For a worker
//! that a router asks for with [`ToAgent::Want`] it sends one snapshot and every [`ToRouter::Batch`]
//! after it. Numbers of batches rise by one; a router that sees a gap says Want again. What a router
//! keeps for that is a [`Follower`].
//!
//! The other way a router says [`ToAgent::Load`] of each worker behind the agent: what it gave it itself,
//! when that changed and once a second ([`crate::route::share`]). The agent adds up, and tells each
//! router what the others gave: [`ToRouter::Others`]. A router counts as long as its connection lives.
//!
//! Where an engine can take KV state from outside (llama.cpp's slots), the agent says so once a second:
//! [`ToRouter::Warmable`]. A router that is about to send such a worker a prompt says [`ToAgent::Warm`]
//! first, and the agent answers once with [`ToRouter::Warmed`], or not at all where it cannot any more:
//! a router waits for a time of its own.
//!
//! Of what is held, blocks are named by the first 16 bytes of our digests ([`crate::digest::Digest::short`]), which do
//! not compress: what saves bytes is that a batch says only what is different after it. At each
//! [`Level`] the blocks held there or faster are closed under prefixes between two batches, and also
//! after each part of a snapshot: where a block is told, the blocks before it are told too.
//!
//! A [`frame`](crate::frame)'s payload is
//!
//! ```text
//!  0      1
//!  | kind | fields |
//! ```
//!
//! Numbers are LEB128 varints, texts and lists have their length before them, digests are 16 bytes
//! little-endian. All of this is sans-IO; who listens and dials is not decided here.

mod decode;
mod encode;
mod follow;

pub use decode::Decoder;
pub use encode::{Put, encode};
pub use follow::{Follower, Step};

pub use crate::digest::Digest;
use crate::frame::Format;
pub use crate::frame::{Take, decode};
pub use crate::route::index::Level;
pub use crate::route::share::Load;

/// Both sides say it first; a side that hears another number hangs up.
pub const VERSION: u64 = 3;
/// First four bytes of each frame.
pub const FRAME_MAGIC: [u8; 4] = *b"CGF1";
/// Bytes before the payload.
pub const FRAME_HEAD_BYTES: usize = 8;
/// A frame may not be longer: [`DIGESTS_MAX`] digests and a name fit three times over.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Its frames.
const FORMAT: Format = Format {
    wire: "the feed",
    magic: FRAME_MAGIC,
    head_bytes: FRAME_HEAD_BYTES,
    payload_bytes_max: FRAME_BYTES_MAX,
};
/// Most digests in one frame; what is more goes into several.
pub const DIGESTS_MAX: usize = 16_384;
/// Most digests in one [`Warm`], whole ones of 32 bytes: 65,536 tokens in blocks of 16. Of a longer prompt
/// the beginning is asked for.
pub const WARM_DIGESTS_MAX: usize = 4_096;
/// Most operations in one frame.
pub const OPS_MAX: usize = 64;
/// Longest name of a worker or process: the parts of a worker id are bounded below this.
pub const NAME_BYTES_MAX: usize = 512;

/// One change of what a worker holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// From now on these are held at `level`, whatever they were before.
    Set {
        /// Where.
        level: Level,
        /// Which.
        digests: Vec<u128>,
    },
    /// These are not held any more.
    Remove {
        /// Which.
        digests: Vec<u128>,
    },
    /// Nothing is held any more.
    Clear,
}

impl Op {
    /// How many digests it names.
    pub fn len(&self) -> usize {
        match self {
            Op::Set { digests, .. } | Op::Remove { digests } => digests.len(),
            Op::Clear => 0,
        }
    }

    /// Whether it names none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How much of what a worker holds the agent knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Known {
    /// Nothing: the engine has not been heard yet.
    None,
    /// What is told is held, but more may be: events were lost before they could be read.
    Partial,
    /// All of it.
    Whole,
}

impl Known {
    /// The name in metrics and in `route explain`.
    pub fn as_str(self) -> &'static str {
        match self {
            Known::None => "none",
            Known::Partial => "partial",
            Known::Whole => "whole",
        }
    }
}

/// Router to agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToAgent {
    /// First frame of a connection.
    Hello {
        /// [`VERSION`]
        version: u64,
        /// `cgn-router`, for the agent's log.
        process: String,
    },
    /// Send a snapshot of this worker now, and its batches from then on.
    Want {
        /// Worker id.
        worker: String,
    },
    /// What this router has given a worker. Takes the place of what it said of it before.
    Load {
        /// Worker id; one that the agent does not have is nothing to it.
        worker: String,
        /// The router's own.
        load: Load,
    },
    /// A prompt is about to be sent to a worker: give it the KV state of its prefix first.
    Warm(Warm),
}

/// What a router asks of an agent before it sends a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warm {
    /// Worker id; one that the agent does not have, or cannot warm, is answered with 0 tokens.
    pub worker: String,
    /// The router's own number, for the answer. One connection uses each once.
    pub ticket: u64,
    /// After this it is of no use any more, in ms from now.
    pub deadline_ms: u32,
    /// Leading blocks of the prompt that a state must have in common with it to be worth the while.
    pub blocks_min: u32,
    /// The blocks of the prompt, from the first; at most [`WARM_DIGESTS_MAX`].
    pub digests: Vec<Digest>,
}

/// Agent to router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToRouter {
    /// First frame of a connection; also the heartbeat of an agent that has no worker to speak of.
    Hello {
        /// [`VERSION`]
        version: u64,
        /// `cgn-agent`.
        process: String,
    },
    /// Where a worker's feed stands; also the heartbeat. Sent for every worker, wanted or not.
    State {
        /// Worker id.
        worker: String,
        /// Of the engine's process: what an older one held is gone.
        epoch: u64,
        /// Number of the last batch; 0 before the first.
        seq: u64,
        /// How much is known.
        known: Known,
        /// Tokens in a block, by the engine's own word; 0 until it said.
        block_tokens: u32,
    },
    /// The next changes.
    Batch {
        /// Worker id.
        worker: String,
        /// As in [`ToRouter::State`].
        epoch: u64,
        /// One more than the last.
        seq: u64,
        /// In order.
        ops: Vec<Op>,
    },
    /// A part of all that is held.
    Snapshot {
        /// Worker id.
        worker: String,
        /// As in [`ToRouter::State`].
        epoch: u64,
        /// The batch after which it was taken.
        seq: u64,
        /// Counts from 0.
        part: u32,
        /// Whether it is the last.
        last: bool,
        /// Only [`Op::Set`].
        sets: Vec<Op>,
    },
    /// The engine's process has ended; nothing is held any more.
    Gone {
        /// Worker id.
        worker: String,
        /// Of the process that ended.
        epoch: u64,
    },
    /// What the other routers have given a worker. Takes the place of what was said of it before.
    Others {
        /// Worker id.
        worker: String,
        /// Their sum, without what the hearer said itself.
        load: Load,
        /// How many they are.
        routers: u32,
    },
    /// A worker can be given KV state. Repeated once a second as long as that is so.
    Warmable {
        /// Worker id.
        worker: String,
        /// Tokens in a block of the digests its states are known by; prompts cut otherwise find none.
        block_tokens: u32,
    },
    /// What became of a [`Warm`].
    Warmed {
        /// Worker id.
        worker: String,
        /// As it was asked.
        ticket: u64,
        /// Leading tokens of the prompt that the worker was given; 0: none.
        tokens: u32,
    },
}

impl ToRouter {
    /// Whom it is about; none for Hello.
    pub fn worker(&self) -> Option<&str> {
        match self {
            ToRouter::Hello { .. } => None,
            ToRouter::State { worker, .. }
            | ToRouter::Batch { worker, .. }
            | ToRouter::Snapshot { worker, .. }
            | ToRouter::Gone { worker, .. }
            | ToRouter::Others { worker, .. }
            | ToRouter::Warmable { worker, .. }
            | ToRouter::Warmed { worker, .. } => Some(worker),
        }
    }
}
