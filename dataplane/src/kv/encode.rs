//! Frames of the native door, written. What [`super::decode`](mod@super::decode) would refuse is refused
//! here too, by the same limits, so that a client hears of it before the daemon hangs up.

use super::{Answer, FRAME_HEAD_BYTES, FRAME_MAGIC, Got, Name, Request};

/// First byte of each payload.
pub(super) mod kind {
    pub const HELLO: u8 = 0;
    pub const LOOKUP: u8 = 1;
    pub const GET: u8 = 2;
    pub const RELEASE: u8 = 3;
    pub const PUT: u8 = 4;
    pub const PIN: u8 = 5;
    pub const PREFETCH: u8 = 6;
    pub const REMOVE: u8 = 7;
    pub const STATS: u8 = 8;
    pub const LIST: u8 = 9;
    pub const VERIFY: u8 = 10;
    pub const EVICT: u8 = 11;
    pub const DRAIN: u8 = 12;
    pub const WAKE: u8 = 13;
    /// Answers only.
    pub const BLOCKS: u8 = 64;
    pub const COUNT: u8 = 65;
    pub const SWEPT: u8 = 66;
    pub const REFUSED: u8 = 255;
}

/// First byte of what a GET found.
pub(super) mod got {
    pub const MISSING: u8 = 0;
    pub const LEASED: u8 = 1;
    /// Followed by the number of a fault.
    pub const FAILED: u8 = 2;
}

/// Appends one message as one frame.
pub fn encode<M: Put>(id: u64, message: &M, bytes: &mut Vec<u8>) {
    let begin = bytes.len();
    bytes.reserve(FRAME_HEAD_BYTES + message.size_hint());
    bytes.extend_from_slice(&FRAME_MAGIC);
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&id.to_le_bytes());
    message.put(bytes);
    // A payload over the limit, however long, is refused by the other side's decoder.
    let length = u32::try_from(bytes.len() - begin - FRAME_HEAD_BYTES).unwrap_or(u32::MAX);
    bytes[begin + 4..begin + 8].copy_from_slice(&length.to_le_bytes());
}

/// What can be written as a frame.
pub trait Put {
    /// About how many bytes it takes.
    fn size_hint(&self) -> usize;

    /// Appends kind and fields.
    fn put(&self, bytes: &mut Vec<u8>);
}

impl Put for Request {
    fn size_hint(&self) -> usize {
        match self {
            Request::Lookup { names }
            | Request::Get { names, .. }
            | Request::Pin { names, .. }
            | Request::Prefetch { names, .. }
            | Request::Remove { names } => 16 + size_of_val(names.as_slice()),
            Request::Put { blocks, .. } => {
                16 + blocks.iter().map(|block| 85 + block.label.len()).sum::<usize>()
            }
            Request::Release { leases } => 16 + size_of_val(leases.as_slice()),
            _ => 64,
        }
    }

    fn put(&self, bytes: &mut Vec<u8>) {
        match self {
            Request::Hello { version, namespace, client, staging_bytes, ring } => {
                bytes.push(kind::HELLO);
                put_u32(bytes, *version);
                put_bytes(bytes, namespace.as_bytes());
                put_bytes(bytes, client.as_bytes());
                put_u64(bytes, *staging_bytes);
                bytes.push(u8::from(*ring));
            }
            Request::Lookup { names } => {
                bytes.push(kind::LOOKUP);
                put_names(bytes, names);
            }
            Request::Get { names, deadline_ms } => {
                bytes.push(kind::GET);
                put_u32(bytes, *deadline_ms);
                put_names(bytes, names);
            }
            Request::Release { leases } => {
                bytes.push(kind::RELEASE);
                put_count(bytes, leases.len());
                leases.iter().for_each(|lease| put_u64(bytes, *lease));
            }
            Request::Put { durable, blocks } => {
                bytes.push(kind::PUT);
                bytes.push(u8::from(*durable));
                put_count(bytes, blocks.len());
                for block in blocks {
                    bytes.extend_from_slice(&block.name);
                    bytes.push(u8::from(block.parent.is_some()));
                    bytes.extend(block.parent.iter().flatten());
                    put_u64(bytes, block.offset);
                    put_u64(bytes, block.len);
                    put_bytes(bytes, &block.label);
                }
            }
            Request::Pin { names, pinned } => {
                bytes.push(kind::PIN);
                bytes.push(u8::from(*pinned));
                put_names(bytes, names);
            }
            Request::Prefetch { names, deadline_ms } => {
                bytes.push(kind::PREFETCH);
                put_u32(bytes, *deadline_ms);
                put_names(bytes, names);
            }
            Request::Remove { names } => {
                bytes.push(kind::REMOVE);
                put_names(bytes, names);
            }
            Request::Stats => bytes.push(kind::STATS),
            Request::List { everywhere, cursor, blocks_max } => {
                put_sweep(bytes, kind::LIST, *everywhere, *cursor, *blocks_max);
            }
            Request::Verify { everywhere, cursor, blocks_max } => {
                put_sweep(bytes, kind::VERIFY, *everywhere, *cursor, *blocks_max);
            }
            Request::Evict { everywhere, cursor, blocks_max } => {
                put_sweep(bytes, kind::EVICT, *everywhere, *cursor, *blocks_max);
            }
            Request::Drain => bytes.push(kind::DRAIN),
            Request::Wake => bytes.push(kind::WAKE),
        }
    }
}

impl Put for Answer {
    fn size_hint(&self) -> usize {
        match self {
            Answer::Lookup { tiers } => 16 + tiers.len(),
            Answer::Get { blocks } => 16 + 25 * blocks.len(),
            Answer::List { blocks, .. } => {
                32 + blocks.iter().map(|block| 95 + block.label.len()).sum::<usize>()
            }
            Answer::Blocks { results } => 16 + results.len(),
            _ => 64,
        }
    }

    fn put(&self, bytes: &mut Vec<u8>) {
        match self {
            Answer::Hello {
                version,
                arena_bytes,
                block_bytes_max,
                leases_max,
                requests_max,
                ring_bytes,
            } => {
                bytes.push(kind::HELLO);
                put_u32(bytes, *version);
                put_u64(bytes, *arena_bytes);
                put_u64(bytes, *block_bytes_max);
                put_u32(bytes, *leases_max);
                put_u32(bytes, *requests_max);
                put_u64(bytes, *ring_bytes);
            }
            Answer::Lookup { tiers } => {
                bytes.push(kind::LOOKUP);
                put_count(bytes, tiers.len());
                bytes.extend(tiers.iter().map(|tier| *tier as u8));
            }
            Answer::Get { blocks } => {
                bytes.push(kind::GET);
                put_count(bytes, blocks.len());
                blocks.iter().for_each(|block| put_got(bytes, *block));
            }
            Answer::Blocks { results } => {
                bytes.push(kind::BLOCKS);
                put_count(bytes, results.len());
                bytes.extend(results.iter().map(|result| match result {
                    Ok(was_there) => u8::from(*was_there),
                    // The lowest fault is 1: 2 and above are faults.
                    Err(fault) => fault.number() + 1,
                }));
            }
            Answer::Count { blocks } => {
                bytes.push(kind::COUNT);
                put_u64(bytes, *blocks);
            }
            Answer::Stats { lines } => {
                bytes.push(kind::STATS);
                put_count(bytes, lines.len());
                for (name, value) in lines {
                    put_bytes(bytes, name.as_bytes());
                    put_u64(bytes, *value);
                }
            }
            Answer::List { blocks, next } => put_list(bytes, blocks, *next),
            Answer::Swept { seen, dropped, next } => {
                bytes.push(kind::SWEPT);
                put_u64(bytes, *seen);
                put_u64(bytes, *dropped);
                put_u64(bytes, *next);
            }
            Answer::Draining => bytes.push(kind::DRAIN),
            Answer::Refused { fault, text } => {
                bytes.push(kind::REFUSED);
                bytes.push(fault.number());
                put_bytes(bytes, text.as_bytes());
            }
        }
    }
}

fn put_list(bytes: &mut Vec<u8>, blocks: &[super::Listed], next: u64) {
    bytes.push(kind::LIST);
    put_u64(bytes, next);
    put_count(bytes, blocks.len());
    for block in blocks {
        bytes.extend_from_slice(&block.place.0);
        bytes.extend_from_slice(&block.place.1);
        bytes.push(block.tier as u8);
        bytes.push(u8::from(block.pinned));
        put_u64(bytes, block.len);
        put_bytes(bytes, &block.label);
    }
}

fn put_got(bytes: &mut Vec<u8>, block: Got) {
    match block {
        Got::Missing => bytes.push(got::MISSING),
        Got::Leased { lease, offset, len } => {
            bytes.push(got::LEASED);
            put_u64(bytes, lease);
            put_u64(bytes, offset);
            put_u64(bytes, len);
        }
        Got::Failed(fault) => bytes.extend_from_slice(&[got::FAILED, fault.number()]),
    }
}

fn put_sweep(bytes: &mut Vec<u8>, kind: u8, everywhere: bool, cursor: u64, blocks_max: u32) {
    bytes.push(kind);
    bytes.push(u8::from(everywhere));
    put_u64(bytes, cursor);
    put_u32(bytes, blocks_max);
}

fn put_names(bytes: &mut Vec<u8>, names: &[Name]) {
    put_count(bytes, names.len());
    bytes.extend_from_slice(names.as_flattened());
}

fn put_bytes(bytes: &mut Vec<u8>, value: &[u8]) {
    put_count(bytes, value.len());
    bytes.extend_from_slice(value);
}

/// A count that does not fit is over every limit, and refused by the other side as such.
fn put_count(bytes: &mut Vec<u8>, count: usize) {
    put_u32(bytes, u32::try_from(count).unwrap_or(u32::MAX));
}

fn put_u32(bytes: &mut Vec<u8>, value: u32) {
    bytes.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(bytes: &mut Vec<u8>, value: u64) {
    bytes.extend_from_slice(&value.to_le_bytes());
}
