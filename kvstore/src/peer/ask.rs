//! One request to one peer: many blocks, taken into memory as they come, checked before they are kept.

use std::time::Duration;

use tokio::time::Instant;

use super::blocks::Blocks;
use super::link::{Gone, Link, Receiving};
use super::wire::{self, AnswerHead, BlockHead, Request, Status, WireError};
use crate::key::Key;
use crate::store::Claim;

/// Bytes hashed at a time: enough for BLAKE3's widest path, few enough to be in the cache still.
const HASHED_BYTES: usize = 128 << 10;
/// Read and thrown away at a time.
const SKIPPED_BYTES: usize = 64 << 10;

/// What became of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is in the store.
    Kept {
        /// Its bytes.
        bytes: u64,
    },
    /// The peer does not hold it.
    Missing,
    /// The peer has too much to do, or had no time left.
    Busy,
    /// The bytes are not what their hash says, or belong to another namespace.
    Wrong,
    /// It is right, but the store here does not take it.
    NotKept,
    /// Nobody wanted it any more when it came.
    Unwanted,
}

/// Why a request ended before all was answered.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The connection is gone.
    #[error(transparent)]
    Gone(#[from] Gone),
    /// The stream broke.
    #[error("the stream broke: {0}")]
    Cut(String),
    /// What came cannot be read.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The deadline has passed.
    #[error("the deadline has passed")]
    Late,
}

/// Who hears what came of each key.
pub trait Listener {
    /// What the block with this number, of `len` bytes, may take the place of; none if it is not wanted, or
    /// not any more.
    fn claim(&self, index: usize, len: u64) -> Option<Claim>;

    /// The block with this number came to this, `took` after the one before it.
    fn told(&self, index: usize, told: Told, took: Duration, load: u16);
}

/// Asks for `keys`, at most [`wire::REQUEST_KEYS_MAX`], and takes in the answers.
///
/// # Errors
/// [`AskError`]; the keys not told of were not answered.
pub async fn ask<B: Blocks>(
    link: &Link,
    blocks: &B,
    keys: &[Key],
    deadline: Instant,
    listener: &impl Listener,
) -> Result<(), AskError> {
    match tokio::time::timeout_at(deadline, ask_all(link, blocks, keys, deadline, listener)).await {
        Ok(done) => done,
        Err(_) => Err(AskError::Late),
    }
}

async fn ask_all<B: Blocks>(
    link: &Link,
    blocks: &B,
    keys: &[Key],
    deadline: Instant,
    listener: &impl Listener,
) -> Result<(), AskError> {
    let mut last = Instant::now();
    let left = deadline.saturating_duration_since(last);
    let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
    let (mut sending, mut receiving) = link.request().await?;
    let request = Request { deadline_ms, keys: keys.to_vec() };
    sending.write_all(&request.encode()).await.map_err(|error| AskError::Cut(error.to_string()))?;
    let _ = sending.finish();
    for (index, key) in keys.iter().enumerate() {
        let (answer, told) = one(&mut receiving, blocks, *key, index, listener).await?;
        let now = Instant::now();
        listener.told(index, told, now - last, answer.load);
        last = now;
    }
    Ok(())
}

/// Reads one answer.
async fn one<B: Blocks>(
    receiving: &mut Receiving,
    blocks: &B,
    key: Key,
    index: usize,
    listener: &impl Listener,
) -> Result<(AnswerHead, Told), AskError> {
    let mut first = [0; wire::ANSWER_HEAD_BYTES];
    read(receiving, &mut first).await?;
    let answer = wire::decode_answer(&first)?;
    let told = match answer.status {
        Status::Missing => Told::Missing,
        Status::Busy | Status::Late => Told::Busy,
        Status::Block => {
            let mut rest = vec![0; answer.rest_bytes()];
            read(receiving, &mut rest).await?;
            let head = wire::decode_block_head(&answer, &rest)?;
            let len = head.len;
            block(receiving, blocks, key, head, &|| listener.claim(index, len)).await?
        }
    };
    Ok((answer, told))
}

/// Reads one block's bytes, straight into the store's memory.
async fn block<B: Blocks>(
    receiving: &mut Receiving,
    blocks: &B,
    key: Key,
    head: BlockHead,
    claim: &impl Fn() -> Option<Claim>,
) -> Result<Told, AskError> {
    // Names decide whose quota a block is charged to: a peer may not choose it.
    let is_ours = crate::key::NamespaceId::of(&head.namespace) == key.namespace;
    let reserved = match claim().filter(|_| is_ours) {
        Some(claim) => Some(blocks.reserve(key, &head, claim).await),
        None => None,
    };
    let mut slot = match reserved {
        Some(Ok(slot)) => slot,
        refused => {
            skip(receiving, head.len).await?;
            return Ok(match (is_ours, refused) {
                (false, _) => Told::Wrong,
                (true, Some(_)) => Told::NotKept,
                (true, None) => Told::Unwanted,
            });
        }
    };
    let Some(bytes) = slot.as_mut().get_mut(..head.len as usize) else {
        skip(receiving, head.len).await?;
        return Ok(Told::NotKept);
    };
    if read_hashed(receiving, bytes).await? != head.hash {
        return Ok(Told::Wrong);
    }
    if claim().is_none() {
        return Ok(Told::Unwanted);
    }
    let bytes = head.len;
    match blocks.commit(slot, key, head).await {
        Ok(()) => Ok(Told::Kept { bytes }),
        Err(_) => Ok(Told::NotKept),
    }
}

/// Fills `bytes` and hashes them while they are warm.
async fn read_hashed(receiving: &mut Receiving, bytes: &mut [u8]) -> Result<[u8; 32], AskError> {
    let mut hasher = blake3::Hasher::new();
    for piece in bytes.chunks_mut(HASHED_BYTES) {
        read(receiving, piece).await?;
        hasher.update(piece);
    }
    Ok(*hasher.finalize().as_bytes())
}

async fn skip(receiving: &mut Receiving, mut left: u64) -> Result<(), AskError> {
    while left > 0 {
        let piece = left.min(SKIPPED_BYTES as u64) as usize;
        match receiving.read_chunk(piece, true).await {
            Ok(Some(chunk)) => left = left.saturating_sub(chunk.bytes.len() as u64),
            Ok(None) => return Err(AskError::Cut("it ended early".to_owned())),
            Err(error) => return Err(AskError::Cut(error.to_string())),
        }
    }
    Ok(())
}

async fn read(receiving: &mut Receiving, bytes: &mut [u8]) -> Result<(), AskError> {
    receiving.read_exact(bytes).await.map_err(|error| AskError::Cut(error.to_string()))
}
