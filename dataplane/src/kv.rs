//! The native wire of the KV daemon: what a client on the same node says to `cgn-kvcached` over its
//! Unix socket.
//!
//! A client dials and says [`Request::Hello`]; the daemon answers [`Answer::Hello`] and passes two
//! descriptors with it: its arena, which the client maps read-only, and, where the client asked for
//! one, a [`ring`]. From then on each request carries an `id` and is answered once by a frame with
//! the same `id`, in the order in which the work is done, which need not be the order of asking.
//! [`Request::Release`] and [`Request::Wake`] alone have no answer. One frame may speak of [`BATCH_MAX`] blocks.
//!
//! Bytes of blocks never go through the socket. A GET hands out a lease: an offset into the arena, where the
//! bytes stay as they are until the lease is released or the connection ends. A PUT names bytes in the
//! client's own staging memory, a memfd that it passed with its Hello; the daemon copies them, so no client
//! can change what another reads.
//!
//! A [`frame`](crate::frame) has the id in its head, and its payload is
//!
//! ```text
//!  0      1
//!  | kind | fields |
//! ```
//!
//! All numbers are little-endian and of fixed width; lists and texts have a `u32` count before them; names
//! are 32 bytes. `docs/wire.md` shows each message. This is sans-IO: bytes in, messages out.

mod decode;
mod encode;
mod fault;
pub mod ring;

pub use decode::Decoder;
pub use encode::{Put, encode};
pub use fault::Fault;

use crate::frame::Format;
pub use crate::frame::{Take, decode};

/// Both sides say it first; a daemon that hears another number refuses with [`Fault::Version`].
pub const VERSION: u32 = 1;
/// First four bytes of each frame.
pub const FRAME_MAGIC: [u8; 4] = *b"CGK1";
/// Bytes before the payload.
pub const FRAME_HEAD_BYTES: usize = 16;
/// A payload may not be longer: [`BATCH_MAX`] names or leases fit many times, and a PUT of as many blocks with
/// labels of 170 bytes; with longer ones it takes more frames.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Its frames.
const FORMAT: Format = Format {
    wire: "cgn-kvcached's native door",
    magic: FRAME_MAGIC,
    head_bytes: FRAME_HEAD_BYTES,
    payload_bytes_max: FRAME_BYTES_MAX,
};
/// Most blocks in one frame: 4,096 blocks of 16 tokens are 65,536 tokens of one prompt.
pub const BATCH_MAX: usize = 4096;
/// Most lines in one list: with the longest labels they fit into a frame.
pub const LIST_MAX: usize = 900;
/// Longest name of a namespace, in bytes: a model's path, a layout and a rank fit.
pub const NAMESPACE_BYTES_MAX: usize = 256;
/// Longest label of a block, in bytes: the keys that engines' connectors make are below 300.
pub const LABEL_BYTES_MAX: usize = 1024;
/// Longest text in an answer, in bytes.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Most lines of [`Answer::Stats`].
pub const STATS_MAX: usize = 1024;
/// Bytes of a block's name.
pub const NAME_BYTES: usize = 32;
/// Bytes of a namespace's id.
pub const NAMESPACE_ID_BYTES: usize = 16;

/// The name of a block within its namespace: a chained digest ([`crate::digest`]), or what the client makes.
pub type Name = [u8; NAME_BYTES];
/// A block of any namespace: the namespace's id and the block's name.
pub type Place = ([u8; NAMESPACE_ID_BYTES], Name);

/// The id of the namespace called `name`: the first half of BLAKE3 over it.
pub fn namespace_id(name: &str) -> [u8; NAMESPACE_ID_BYTES] {
    let mut half = [0; NAMESPACE_ID_BYTES];
    half.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..NAMESPACE_ID_BYTES]);
    half
}

/// The name of a block that came by the RESP door under this key.
pub fn name_of_label(label: &[u8]) -> Name {
    *blake3::hash(label).as_bytes()
}

/// Where a block lies, as far as the node itself knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Tier {
    /// In the daemon's memory: a GET is a lease at once.
    Ram = 1,
    /// On NVMe: a GET reads it first.
    Disk = 2,
}

impl Tier {
    /// By its number on the wire.
    pub fn from_number(number: u8) -> Option<Tier> {
        match number {
            1 => Some(Tier::Ram),
            2 => Some(Tier::Disk),
            _ => None,
        }
    }

    /// The name in tables and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Tier::Ram => "ram",
            Tier::Disk => "disk",
        }
    }
}

/// A block that a client wrote into its staging memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staged {
    /// The block's name.
    pub name: Name,
    /// The block before it in its prefix; it must be there, or come earlier in the same frame.
    pub parent: Option<Name>,
    /// Where it begins in the staging memory, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The client's own words for it, for `cgnctl kv ls`.
    pub label: Vec<u8>,
}

/// Client to daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// First frame of a connection. A staging memfd comes with it when `staging_bytes` is not 0.
    Hello {
        /// [`VERSION`]
        version: u32,
        /// Name of the namespace all further requests are about. Empty: of none, for one who only asks
        /// about all of them.
        namespace: String,
        /// Name of the client, for the daemon's log and metrics.
        client: String,
        /// Length of the staging memfd; 0 is none.
        staging_bytes: u64,
        /// Whether the client wants a [`ring`], to poll.
        ring: bool,
    },
    /// How many leading blocks are on the node, and where.
    Lookup {
        /// In the order of the prefix.
        names: Vec<Name>,
    },
    /// Leases on blocks, fetched from slower tiers where need be.
    Get {
        /// Which.
        names: Vec<Name>,
        /// A block that takes longer is [`Got::Missing`], in ms from now; 0 is the daemon's own limit.
        deadline_ms: u32,
    },
    /// Gives leases back. Has no answer; an id that is not held is ignored.
    Release {
        /// Ids out of [`Got::Leased`].
        leases: Vec<u64>,
    },
    /// Takes blocks out of the staging memory, one after the other.
    Put {
        /// Answer only when they are on disk for good.
        durable: bool,
        /// Which.
        blocks: Vec<Staged>,
    },
    /// Keeps blocks from being evicted, or lets them go again.
    Pin {
        /// Which.
        names: Vec<Name>,
        /// Whether to keep them.
        pinned: bool,
    },
    /// Brings blocks into memory.
    Prefetch {
        /// In the order of the prefix.
        names: Vec<Name>,
        /// After this it is of no use any more, in ms from now.
        deadline_ms: u32,
    },
    /// Forgets blocks.
    Remove {
        /// Which.
        names: Vec<Name>,
    },
    /// The daemon's counters.
    Stats,
    /// Blocks in memory and on disk, in no order that means anything.
    List {
        /// Of every namespace, not of one's own only. For the daemon's own user.
        everywhere: bool,
        /// 0, then what the answer says.
        cursor: u64,
        /// At most this many, and at most [`LIST_MAX`].
        blocks_max: u32,
    },
    /// Reads blocks whole and compares them with their digests. For the daemon's own user.
    Verify {
        /// Of every namespace, not of one's own only.
        everywhere: bool,
        /// 0, then what the answer says.
        cursor: u64,
        /// At most this many, and at most [`LIST_MAX`].
        blocks_max: u32,
    },
    /// Forgets blocks. For the daemon's own user.
    Evict {
        /// Of every namespace, not of one's own only.
        everywhere: bool,
        /// 0, then what the answer says.
        cursor: u64,
        /// At most this many, and at most [`LIST_MAX`].
        blocks_max: u32,
    },
    /// Takes nothing new from now on, writes what is in memory to disk and ends. For the daemon's own user.
    Drain,
    /// There is something in the [`ring`] of a daemon that sleeps. Has no answer.
    Wake,
}

/// What a GET found of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Got {
    /// The bytes, until `lease` is released.
    Leased {
        /// For [`Request::Release`].
        lease: u64,
        /// Where they begin in the arena, in bytes.
        offset: u64,
        /// Their length in bytes.
        len: u64,
    },
    /// In no tier, or not in time.
    Missing,
    /// There may be one, but it cannot be had now.
    Failed(Fault),
}

/// One line of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Namespace and name.
    pub place: Place,
    /// Where it lies at best.
    pub tier: Tier,
    /// Whether it is kept from eviction.
    pub pinned: bool,
    /// Its length in bytes.
    pub len: u64,
    /// The client's own words for it.
    pub label: Vec<u8>,
}

/// Daemon to client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To Hello. The arena's memfd comes with it, then the ring's where one was asked for and given.
    Hello {
        /// [`VERSION`]
        version: u32,
        /// Length of the arena's memfd in bytes.
        arena_bytes: u64,
        /// Longest block in bytes.
        block_bytes_max: u64,
        /// Most leases a connection may hold at once.
        leases_max: u32,
        /// Most requests of a connection at work at once; more wait in the socket.
        requests_max: u32,
        /// Length of the ring's memfd in bytes; 0 is none.
        ring_bytes: u64,
    },
    /// To Lookup: the tier of each leading block; what follows the last of them is not on the node.
    Lookup {
        /// As many as the depth.
        tiers: Vec<Tier>,
    },
    /// To Get: one for each block asked for.
    Get {
        /// In the order of asking.
        blocks: Vec<Got>,
    },
    /// To Put, Pin and Remove: one for each block. `Ok(false)`: there was no such block.
    Blocks {
        /// In the order of asking.
        results: Vec<Result<bool, Fault>>,
    },
    /// To Prefetch: how many of them are in memory now or on their way.
    Count {
        /// Blocks.
        blocks: u64,
    },
    /// To Stats.
    Stats {
        /// Name and value, in a fixed order.
        lines: Vec<(String, u64)>,
    },
    /// To List.
    List {
        /// Some of them.
        blocks: Vec<Listed>,
        /// Where to go on; 0 is the end.
        next: u64,
    },
    /// To Verify and Evict: what was done, and where to go on.
    Swept {
        /// Blocks looked at.
        seen: u64,
        /// Blocks that were wrong or were forgotten.
        dropped: u64,
        /// Where to go on; 0 is the end.
        next: u64,
    },
    /// To Drain: it has begun.
    Draining,
    /// The request as a whole was refused. After a refused Hello the daemon hangs up.
    Refused {
        /// Why.
        fault: Fault,
        /// What to do about it, for a person.
        text: String,
    },
}
