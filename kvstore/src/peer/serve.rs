//! One request of a peer, answered: what is held here goes out, in order, as fast as the limits let it.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::blocks::{Blocks, Held, NotHad};
use super::limits::{Bucket, Egress};
use super::link::{Receiving, Sending};
use super::wire::{self, Request, Status, WireError};
use crate::key::Key;

/// Bytes that leave between two looks at the limits.
const PIECE_BYTES: usize = 256 << 10;
/// Longest that one request is worked on, whatever its asker waits for: a lease is held meanwhile.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Beyond the asker's deadline nothing is sent; so much later its stream is cut.
const GRACE: Duration = Duration::from_millis(250);

/// Why an answer ended early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The request cannot be read: the connection is closed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The asker stopped, or is gone.
    #[error("the asker stopped: {0}")]
    Stopped(String),
    /// It took longer than the asker waits.
    #[error("the asker's deadline has passed")]
    Late,
}

/// What one peer may have.
#[derive(Debug)]
pub struct Allowance {
    /// The cluster it is of, where that is not ours.
    pub foreign: Option<String>,
    /// Its own rate.
    pub bucket: RefCell<Bucket>,
    /// Requests of it that are answered now.
    pub answering: Cell<u16>,
}

/// Who hears what left.
pub trait Served {
    /// A block of so many bytes left.
    fn sent(&self, key: Key, bytes: u64);
    /// A block was not here.
    fn missed(&self, key: Key);
}

/// Answers one request.
///
/// # Errors
/// [`ServeError`].
pub async fn serve<B: Blocks>(
    blocks: &B,
    (mut sending, mut receiving): (Sending, Receiving),
    allowance: &Allowance,
    egress: &RefCell<Egress>,
    served: &impl Served,
) -> Result<(), ServeError> {
    let request_bytes_max = wire::REQUEST_HEAD_BYTES + wire::REQUEST_KEYS_MAX * wire::KEY_BYTES;
    let bytes =
        match tokio::time::timeout(ANSWER_MAX, receiving.read_to_end(request_bytes_max)).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(quinn::ReadToEndError::TooLong)) => return Err(WireError::TooLong.into()),
            Ok(Err(error)) => return Err(ServeError::Stopped(error.to_string())),
            Err(_) => return Err(ServeError::Late),
        };
    let request = Request::decode(&bytes)?;
    let left = Duration::from_millis(u64::from(request.deadline_ms)).min(ANSWER_MAX);
    let deadline = Instant::now() + left;
    let answers =
        answer_all(blocks, &mut sending, &request.keys, deadline, allowance, egress, served);
    match tokio::time::timeout(left + GRACE, answers).await {
        Ok(done) => done,
        Err(_) => {
            let _ = sending.reset(quinn::VarInt::from_u32(super::link::Close::Stopping as u32));
            Err(ServeError::Late)
        }
    }
}

async fn answer_all<B: Blocks>(
    blocks: &B,
    sending: &mut Sending,
    keys: &[Key],
    deadline: Instant,
    allowance: &Allowance,
    egress: &RefCell<Egress>,
    served: &impl Served,
) -> Result<(), ServeError> {
    for key in keys {
        let load = allowance.answering.get();
        let held = match Instant::now() < deadline {
            true => match blocks.held(*key).await {
                Ok(held) => held.ok_or(Status::Missing),
                Err(NotHad) => Err(Status::Busy),
            },
            false => Err(Status::Late),
        };
        match held {
            Ok(held) => {
                let head = held.head();
                write(sending, Bytes::from(wire::encode_block_head(&head, load))).await?;
                send(sending, held.into_bytes(), allowance, egress).await?;
                served.sent(*key, head.len);
            }
            Err(status) => {
                if status == Status::Missing {
                    served.missed(*key);
                }
                let answer = wire::encode_without_block(status, load);
                write(sending, Bytes::copy_from_slice(&answer)).await?;
            }
        }
    }
    let _ = sending.finish();
    Ok(())
}

/// Sends a block's bytes: all at once where nothing limits them, else piece by piece.
async fn send(
    sending: &mut Sending,
    mut bytes: Bytes,
    allowance: &Allowance,
    egress: &RefCell<Egress>,
) -> Result<(), ServeError> {
    let foreign = allowance.foreign.as_deref();
    if egress.borrow().is_unlimited(foreign) {
        return write(sending, bytes).await;
    }
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
        loop {
            let taken = {
                let mut bucket = allowance.bucket.borrow_mut();
                egress.borrow_mut().take(&mut bucket, foreign, piece.len() as u64, Instant::now())
            };
            match taken {
                Ok(()) => break,
                Err(wait) => tokio::time::sleep(wait).await,
            }
        }
        write(sending, piece).await?;
    }
    Ok(())
}

async fn write(sending: &mut Sending, bytes: Bytes) -> Result<(), ServeError> {
    sending.write_chunk(bytes).await.map_err(|error| ServeError::Stopped(error.to_string()))
}
