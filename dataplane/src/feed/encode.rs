//! Frames of the feed, written. What [`super::decode`](mod@super::decode) would refuse is not made
//! here: callers keep to the limits, and the round trip is a property.

use super::{
    FRAME_HEAD_BYTES, FRAME_MAGIC, Known, Level, Load, NAME_BYTES_MAX, Op, ToAgent, ToRouter, Warm,
};

/// First byte of each payload.
pub(super) mod kind {
    pub const HELLO: u8 = 0;
    pub const WANT: u8 = 1;
    pub const STATE: u8 = 2;
    pub const BATCH: u8 = 3;
    pub const SNAPSHOT: u8 = 4;
    pub const GONE: u8 = 5;
    pub const LOAD: u8 = 6;
    pub const OTHERS: u8 = 7;
    pub const WARM: u8 = 8;
    pub const WARMABLE: u8 = 9;
    pub const WARMED: u8 = 10;
}

/// First byte of each operation. The three of Set are the levels.
pub(super) mod op {
    pub const SET_GPU: u8 = 0;
    pub const SET_HOST: u8 = 1;
    pub const SET_DISK: u8 = 2;
    pub const REMOVE: u8 = 3;
    pub const CLEAR: u8 = 4;
}

/// One message as one frame.
pub fn encode<M: Put>(message: &M) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(message.size_hint());
    bytes.extend_from_slice(&FRAME_MAGIC);
    bytes.extend_from_slice(&[0; 4]);
    message.put(&mut bytes);
    // Callers keep frames far below this; one that does not is refused by the other side's decoder.
    let length = u32::try_from(bytes.len() - FRAME_HEAD_BYTES).unwrap_or(u32::MAX);
    bytes[4..FRAME_HEAD_BYTES].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// What can be written as a frame.
pub trait Put {
    /// About how many bytes it takes.
    fn size_hint(&self) -> usize {
        64
    }

    /// Appends kind and fields.
    fn put(&self, bytes: &mut Vec<u8>);
}

impl Put for ToAgent {
    fn size_hint(&self) -> usize {
        match self {
            ToAgent::Warm(warm) => warm.digests.len() * 32 + 128,
            _ => 64,
        }
    }

    fn put(&self, bytes: &mut Vec<u8>) {
        match self {
            ToAgent::Hello { version, process } => {
                bytes.push(kind::HELLO);
                put_number(bytes, *version);
                put_text(bytes, process);
            }
            ToAgent::Want { worker } => {
                bytes.push(kind::WANT);
                put_text(bytes, worker);
            }
            ToAgent::Load { worker, load } => {
                bytes.push(kind::LOAD);
                put_text(bytes, worker);
                put_load(bytes, *load);
            }
            ToAgent::Warm(warm) => put_warm(bytes, warm),
        }
    }
}

impl Put for ToRouter {
    fn size_hint(&self) -> usize {
        match self {
            ToRouter::Batch { ops, .. } | ToRouter::Snapshot { sets: ops, .. } => {
                ops.iter().map(|op| op.len() * 16 + 8).sum::<usize>() + 128
            }
            _ => 64,
        }
    }

    fn put(&self, bytes: &mut Vec<u8>) {
        match self {
            ToRouter::Hello { version, process } => {
                bytes.push(kind::HELLO);
                put_number(bytes, *version);
                put_text(bytes, process);
            }
            ToRouter::State { worker, epoch, seq, known, block_tokens } => {
                bytes.push(kind::STATE);
                put_text(bytes, worker);
                put_number(bytes, *epoch);
                put_number(bytes, *seq);
                bytes.push(match known {
                    Known::None => 0,
                    Known::Partial => 1,
                    Known::Whole => 2,
                });
                put_number(bytes, u64::from(*block_tokens));
            }
            ToRouter::Batch { worker, epoch, seq, ops } => {
                bytes.push(kind::BATCH);
                put_text(bytes, worker);
                put_number(bytes, *epoch);
                put_number(bytes, *seq);
                put_ops(bytes, ops);
            }
            ToRouter::Snapshot { worker, epoch, seq, part, last, sets } => {
                bytes.push(kind::SNAPSHOT);
                put_text(bytes, worker);
                put_number(bytes, *epoch);
                put_number(bytes, *seq);
                put_number(bytes, u64::from(*part));
                bytes.push(u8::from(*last));
                put_ops(bytes, sets);
            }
            ToRouter::Gone { worker, epoch } => {
                bytes.push(kind::GONE);
                put_text(bytes, worker);
                put_number(bytes, *epoch);
            }
            ToRouter::Others { worker, load, routers } => {
                bytes.push(kind::OTHERS);
                put_text(bytes, worker);
                put_load(bytes, *load);
                put_number(bytes, u64::from(*routers));
            }
            ToRouter::Warmable { worker, block_tokens } => {
                bytes.push(kind::WARMABLE);
                put_text(bytes, worker);
                put_number(bytes, u64::from(*block_tokens));
            }
            ToRouter::Warmed { worker, ticket, tokens } => {
                bytes.push(kind::WARMED);
                put_text(bytes, worker);
                put_number(bytes, *ticket);
                put_number(bytes, u64::from(*tokens));
            }
        }
    }
}

fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number as u8) | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// A name that is too long is cut: nobody is called so, and a frame must stay acceptable.
fn put_text(bytes: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(NAME_BYTES_MAX)];
    put_number(bytes, text.len() as u64);
    bytes.extend_from_slice(text.as_bytes());
}

/// A load out of bounds is cut to them, for the same reason.
fn put_load(bytes: &mut Vec<u8>, load: Load) {
    let load = load.bounded();
    put_number(bytes, u64::from(load.inflight));
    put_number(bytes, u64::from(load.waiting));
    put_number(bytes, load.queued_us);
}

fn put_warm(bytes: &mut Vec<u8>, warm: &Warm) {
    bytes.push(kind::WARM);
    put_text(bytes, &warm.worker);
    put_number(bytes, warm.ticket);
    put_number(bytes, u64::from(warm.deadline_ms));
    put_number(bytes, u64::from(warm.blocks_min));
    put_number(bytes, warm.digests.len() as u64);
    for digest in &warm.digests {
        bytes.extend_from_slice(&digest.0);
    }
}

fn put_ops(bytes: &mut Vec<u8>, ops: &[Op]) {
    put_number(bytes, ops.len() as u64);
    for each in ops {
        let (tag, digests) = match each {
            Op::Set { level: Level::Gpu, digests } => (op::SET_GPU, digests.as_slice()),
            Op::Set { level: Level::Host, digests } => (op::SET_HOST, digests.as_slice()),
            Op::Set { level: Level::Disk, digests } => (op::SET_DISK, digests.as_slice()),
            Op::Remove { digests } => (op::REMOVE, digests.as_slice()),
            Op::Clear => (op::CLEAR, [].as_slice()),
        };
        bytes.push(tag);
        put_number(bytes, digests.len() as u64);
        for digest in digests {
            bytes.extend_from_slice(&digest.to_le_bytes());
        }
    }
}
