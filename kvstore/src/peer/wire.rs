//! Bytes between daemons: a request for blocks, the head of each answer, and the frames of gossip.
//!
//! Pure: slices in, values out. All numbers are little-endian. What comes in was written by another
//! process: each length is checked before it is believed, and nothing here allocates more than the
//! slice it was given can justify. `docs/wire.md` shows the same bytes.

use crate::key::{Key, Name, NamespaceId};

/// The protocol's name in the TLS handshake; another version has another name.
pub const ALPN: &[u8] = b"cgn-kv/1";
/// Bytes of a key: namespace, then name.
pub const KEY_BYTES: usize = 48;
/// Keys in one request: a prefix of 16,384 tokens in blocks of 16, one round trip.
pub const REQUEST_KEYS_MAX: usize = 1024;
/// Bytes before the keys of a request.
pub const REQUEST_HEAD_BYTES: usize = 8;
/// Bytes that begin each answer.
pub const ANSWER_HEAD_BYTES: usize = 8;
/// Bytes that follow where there is a block, before its namespace's name and its label.
pub const BLOCK_HEAD_BYTES: usize = 88;
/// Longest value: what the RESP door takes.
pub const VALUE_BYTES_MAX: u64 = 512 << 20;
/// Longest label, as in the store.
pub const LABEL_BYTES_MAX: usize = 1024;
/// Bytes of a frame of gossip after its length.
pub const FRAME_BYTES_MAX: usize = 64 << 10;
/// Hot blocks offered in one frame.
pub const HOT_BLOCKS_MAX: usize = 64;
/// Bytes of one of them: key, then length.
pub const OFFERED_BYTES: usize = KEY_BYTES + 8;
/// Addresses in one frame.
pub const PEERS_MAX: usize = 256;

const FETCH: u8 = 1;
const HAS_PARENT: u8 = 1;

/// Why bytes of a peer cannot be read. The connection they came on is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Fewer bytes than their own lengths say, or more.
    #[error("the lengths in it do not add up")]
    Length,
    /// A kind, status or flag of another version.
    #[error("a kind of message that is not known")]
    Kind,
    /// A length beyond what this version allows.
    #[error("a length beyond its limit")]
    TooLong,
    /// Text that is no UTF-8, or a name with control characters.
    #[error("text that cannot be read")]
    Text,
}

/// A request for blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// How long the asker waits, in ms, from when it sent this.
    pub deadline_ms: u32,
    /// Which blocks, answered in this order.
    pub keys: Vec<Key>,
}

/// What precedes the bytes of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockHead {
    /// Bytes of the value.
    pub len: u64,
    /// BLAKE3 of the value.
    pub hash: [u8; 32],
    /// The block before it in its prefix.
    pub parent: Option<Key>,
    /// The name of its namespace.
    pub namespace: String,
    /// What a client called it.
    pub label: Box<[u8]>,
}

/// The first bytes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerHead {
    /// What follows.
    pub status: Status,
    /// Requests that the peer answers now: its load.
    pub load: u16,
    has_parent: bool,
    namespace_len: usize,
    label_len: usize,
}

/// What a peer says to one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It does not hold the block.
    Missing,
    /// The block follows.
    Block,
    /// It has too much to do.
    Busy,
    /// The asker's deadline has passed.
    Late,
}

impl AnswerHead {
    /// Bytes up to the value: the rest of the head, the namespace's name and the label.
    pub fn rest_bytes(&self) -> usize {
        match self.status {
            Status::Block => BLOCK_HEAD_BYTES + self.namespace_len + self.label_len,
            _ => 0,
        }
    }
}

/// Writes a key.
pub fn put_key(out: &mut Vec<u8>, key: &Key) {
    out.extend_from_slice(&key.namespace.0);
    out.extend_from_slice(&key.name.0);
}

/// Reads a key from exactly [`KEY_BYTES`].
fn key(bytes: &[u8]) -> Result<Key, WireError> {
    let (namespace, name) = bytes.split_at_checked(16).ok_or(WireError::Length)?;
    Ok(Key {
        namespace: NamespaceId(namespace.try_into().map_err(|_| WireError::Length)?),
        name: Name(name.try_into().map_err(|_| WireError::Length)?),
    })
}

impl Request {
    /// Its bytes. More than [`REQUEST_KEYS_MAX`] keys are cut off: ask again for the rest.
    pub fn encode(&self) -> Vec<u8> {
        let keys = &self.keys[..self.keys.len().min(REQUEST_KEYS_MAX)];
        let mut out = Vec::with_capacity(REQUEST_HEAD_BYTES + keys.len() * KEY_BYTES);
        out.extend_from_slice(&[FETCH, 0]);
        out.extend_from_slice(&(keys.len() as u16).to_le_bytes());
        out.extend_from_slice(&self.deadline_ms.to_le_bytes());
        keys.iter().for_each(|key| put_key(&mut out, key));
        out
    }

    /// Reads a whole request.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Request, WireError> {
        let (head, body) = bytes.split_at_checked(REQUEST_HEAD_BYTES).ok_or(WireError::Length)?;
        if head[0] != FETCH || head[1] != 0 {
            return Err(WireError::Kind);
        }
        let count = usize::from(u16::from_le_bytes([head[2], head[3]]));
        if count > REQUEST_KEYS_MAX {
            return Err(WireError::TooLong);
        }
        if count == 0 || body.len() != count * KEY_BYTES {
            return Err(WireError::Length);
        }
        Ok(Request {
            deadline_ms: u32::from_le_bytes([head[4], head[5], head[6], head[7]]),
            keys: body.chunks_exact(KEY_BYTES).map(key).collect::<Result<_, _>>()?,
        })
    }
}

/// An answer without a block.
pub fn encode_without_block(status: Status, load: u16) -> [u8; ANSWER_HEAD_BYTES] {
    let load = load.to_le_bytes();
    let status = match status {
        Status::Missing => 0,
        Status::Block => 1,
        Status::Busy => 2,
        Status::Late => 3,
    };
    [status, 0, load[0], load[1], 0, 0, 0, 0]
}

/// All that precedes the bytes of a block. A label that is too long is left out: it is the client's own
/// name of the block and nothing is found by it.
pub fn encode_block_head(head: &BlockHead, load: u16) -> Vec<u8> {
    let label: &[u8] = if head.label.len() > LABEL_BYTES_MAX { &[] } else { &head.label };
    let mut out = Vec::with_capacity(
        ANSWER_HEAD_BYTES + BLOCK_HEAD_BYTES + head.namespace.len() + label.len(),
    );
    out.extend_from_slice(&encode_without_block(Status::Block, load)[..4]);
    out[1] = if head.parent.is_some() { HAS_PARENT } else { 0 };
    out.extend_from_slice(&(head.namespace.len() as u16).to_le_bytes());
    out.extend_from_slice(&(label.len() as u16).to_le_bytes());
    out.extend_from_slice(&head.len.to_le_bytes());
    out.extend_from_slice(&head.hash);
    match &head.parent {
        Some(parent) => put_key(&mut out, parent),
        None => out.extend_from_slice(&[0; KEY_BYTES]),
    }
    out.extend_from_slice(head.namespace.as_bytes());
    out.extend_from_slice(label);
    out
}

/// Reads the first bytes of an answer.
///
/// # Errors
/// [`WireError`].
pub fn decode_answer(bytes: &[u8; ANSWER_HEAD_BYTES]) -> Result<AnswerHead, WireError> {
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let status = match bytes[0] {
        0 => Status::Missing,
        1 => Status::Block,
        2 => Status::Busy,
        3 => Status::Late,
        _ => return Err(WireError::Kind),
    };
    let (namespace_len, label_len) = (usize::from(word(4)), usize::from(word(6)));
    let head = AnswerHead {
        status,
        load: word(2),
        has_parent: bytes[1] == HAS_PARENT,
        namespace_len,
        label_len,
    };
    match status {
        Status::Block if bytes[1] > HAS_PARENT => Err(WireError::Kind),
        Status::Block
            if namespace_len > crate::namespace::NAME_BYTES_MAX || label_len > LABEL_BYTES_MAX =>
        {
            Err(WireError::TooLong)
        }
        Status::Block => Ok(head),
        _ if bytes[1] != 0 || namespace_len != 0 || label_len != 0 => Err(WireError::Length),
        _ => Ok(head),
    }
}

/// Reads what follows an answer's first bytes, up to the value: exactly [`AnswerHead::rest_bytes`].
///
/// # Errors
/// [`WireError`].
pub fn decode_block_head(head: &AnswerHead, bytes: &[u8]) -> Result<BlockHead, WireError> {
    if head.status != Status::Block || bytes.len() != head.rest_bytes() {
        return Err(WireError::Length);
    }
    let (fixed, names) = bytes.split_at(BLOCK_HEAD_BYTES);
    let (namespace, label) = names.split_at(head.namespace_len);
    let len = u64::from_le_bytes(fixed[..8].try_into().map_err(|_| WireError::Length)?);
    if len > VALUE_BYTES_MAX {
        return Err(WireError::TooLong);
    }
    let parent = key(&fixed[40..])?;
    Ok(BlockHead {
        len,
        hash: fixed[8..40].try_into().map_err(|_| WireError::Length)?,
        parent: head.has_parent.then_some(parent),
        namespace: text(namespace)?,
        label: label.into(),
    })
}

fn text(bytes: &[u8]) -> Result<String, WireError> {
    let text = std::str::from_utf8(bytes).map_err(|_| WireError::Text)?;
    if text.chars().any(char::is_control) { Err(WireError::Text) } else { Ok(text.to_owned()) }
}

/// A block that a peer may take a copy of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered {
    /// Which.
    pub key: Key,
    /// Bytes of its value, as the sender says: what its receiver counts on, not what it believes.
    pub bytes: u64,
}

/// What a daemon tells a peer unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The first one: where the sender can be dialled (`host:port`), or nothing.
    Hello(String),
    /// Fingerprints of blocks it holds.
    Added(Vec<u64>),
    /// Fingerprints of blocks it no longer holds.
    Removed(Vec<u64>),
    /// Blocks that many ask it for: the receiver may keep copies.
    Hot(Vec<Offered>),
    /// Where other daemons can be dialled.
    Known(Vec<String>),
}

impl Frame {
    /// Its bytes with their length before them. Lists longer than a frame holds are cut off.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; 4];
        match self {
            Frame::Hello(address) => {
                out.push(1);
                put_text(&mut out, address);
            }
            Frame::Added(prints) => put_prints(&mut out, 2, prints),
            Frame::Removed(prints) => put_prints(&mut out, 3, prints),
            Frame::Hot(blocks) => {
                out.push(4);
                for Offered { key, bytes } in blocks.iter().take(HOT_BLOCKS_MAX) {
                    put_key(&mut out, key);
                    out.extend_from_slice(&bytes.to_le_bytes());
                }
            }
            Frame::Known(addresses) => {
                out.push(5);
                let few = addresses.iter().take(PEERS_MAX);
                few.for_each(|address| put_text(&mut out, address));
            }
        }
        let len = (out.len() - 4) as u32;
        out[..4].copy_from_slice(&len.to_le_bytes());
        out
    }

    /// Reads a frame without its length.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Frame, WireError> {
        if bytes.len() > FRAME_BYTES_MAX {
            return Err(WireError::TooLong);
        }
        let (kind, body) = bytes.split_first().ok_or(WireError::Length)?;
        match kind {
            1 => match texts(body, 1)?.pop() {
                Some(address) => Ok(Frame::Hello(address)),
                None => Err(WireError::Length),
            },
            2 => Ok(Frame::Added(prints(body)?)),
            3 => Ok(Frame::Removed(prints(body)?)),
            4 if body.len() > HOT_BLOCKS_MAX * OFFERED_BYTES => Err(WireError::TooLong),
            4 if !body.len().is_multiple_of(OFFERED_BYTES) => Err(WireError::Length),
            4 => {
                let blocks = body.chunks_exact(OFFERED_BYTES).map(offered);
                Ok(Frame::Hot(blocks.collect::<Result<_, _>>()?))
            }
            5 => Ok(Frame::Known(texts(body, PEERS_MAX)?)),
            _ => Err(WireError::Kind),
        }
    }
}

/// Fingerprints that fit one frame.
pub const FRAME_PRINTS_MAX: usize = (FRAME_BYTES_MAX - 1) / 8;

fn put_prints(out: &mut Vec<u8>, kind: u8, prints: &[u64]) {
    out.push(kind);
    let few = prints.iter().take(FRAME_PRINTS_MAX);
    few.for_each(|print| out.extend_from_slice(&print.to_le_bytes()));
}

fn offered(bytes: &[u8]) -> Result<Offered, WireError> {
    let (named, len) = bytes.split_at_checked(KEY_BYTES).ok_or(WireError::Length)?;
    let bytes = u64::from_le_bytes(len.try_into().map_err(|_| WireError::Length)?);
    if bytes > VALUE_BYTES_MAX {
        return Err(WireError::TooLong);
    }
    Ok(Offered { key: key(named)?, bytes })
}

fn prints(body: &[u8]) -> Result<Vec<u64>, WireError> {
    let (words, rest) = body.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(WireError::Length);
    }
    Ok(words.iter().map(|word| u64::from_le_bytes(*word)).collect())
}

/// An address has at most 255 bytes: a DNS name has at most 253, so longer ones are cut where nobody
/// can be dialled anyway.
fn put_text(out: &mut Vec<u8>, text: &str) {
    let end = (0..=text.len().min(255)).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    out.push(end as u8);
    out.extend_from_slice(&text.as_bytes()[..end]);
}

fn texts(mut body: &[u8], texts_max: usize) -> Result<Vec<String>, WireError> {
    let mut found = Vec::new();
    while let Some((len, rest)) = body.split_first() {
        let (first, rest) = rest.split_at_checked(usize::from(*len)).ok_or(WireError::Length)?;
        if found.len() == texts_max {
            return Err(WireError::TooLong);
        }
        found.push(text(first)?);
        body = rest;
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
