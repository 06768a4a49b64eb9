//! One data plane's connection: hello in, snapshots and questions out, answers and usage in.
//!
//! Reading and writing go on side by side, so a data plane that does not read for a while can still
//! answer, and the other way round. Either ending ends both.

use std::sync::Arc;
use std::time::Duration;

use dataplane::frame::FrameError;
use dataplane::wire::{
    Decoder, FromPlane, Snapshot, ToPlane, USAGE_TENANTS_MAX, WireError, encode,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tracing::{error, info};

use super::{Planes, Seat};

/// A data plane says who it is, and soon.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// One that takes no bytes for so long is hung up on; it will dial again.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 16 << 10;

/// Why a connection ended before the data plane hung up.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The system.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Bytes that are no message.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// Something else than a hello came first.
    #[error("the first frame is not a hello")]
    NoHello,
    /// No router can have so many.
    #[error("usage of {0} tenants was told at once, {USAGE_TENANTS_MAX} are the most")]
    TooManyTenants(usize),
    /// No hello came, or no byte was taken.
    #[error("the data plane is stuck")]
    Stuck,
}

/// Serves the connection to its end.
///
/// # Errors
/// [`ConnectionError`]; the connection is closed in any case.
pub async fn serve(
    stream: UnixStream,
    planes: &Planes,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
) -> Result<(), ConnectionError> {
    let (reader, writer) = stream.into_split();
    let mut inbound = Inbound { reader, decoder: Decoder::default(), bytes: vec![0; READ_BYTES] };
    let hello = tokio::time::timeout(HELLO_TIMEOUT, inbound.message()).await;
    let (process, version, pid) = match hello.map_err(|_| ConnectionError::Stuck)?? {
        Some(FromPlane::Hello { process, version, pid }) => (process, version, pid),
        Some(_) => return Err(ConnectionError::NoHello),
        None => return Ok(()),
    };
    info!(process, version, pid, "a data plane attached");
    let mut seat = planes.join(process.clone());
    let id = seat.id();
    let listen = async {
        while let Some(message) = inbound.message().await? {
            match &message {
                FromPlane::Usage { tenants, .. } if tenants.len() > USAGE_TENANTS_MAX => {
                    return Err(ConnectionError::TooManyTenants(tenants.len()));
                }
                _ => planes.answer(id, message),
            }
        }
        Ok(())
    };
    let ended = tokio::select! {
        ended = listen => ended,
        ended = tell(writer, snapshots, &mut seat) => ended,
    };
    info!(process, pid, "a data plane went away");
    ended
}

/// The newest snapshot first and after each change; questions, and answers about usage, between.
async fn tell(
    mut writer: OwnedWriteHalf,
    mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    seat: &mut Seat<'_>,
) -> Result<(), ConnectionError> {
    snapshots.mark_changed();
    let (planes, id) = (seat.planes, seat.id());
    loop {
        let message = tokio::select! {
            changed = snapshots.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let Some(newest) = snapshots.borrow_and_update().clone() else { continue };
                ToPlane::Snapshot(Snapshot::clone(&newest))
            }
            question = seat.questions.recv() => match question {
                Some(question) => question,
                None => return Ok(()),
            },
            () = seat.usage_wanted.notified() => {
                let Some(usage) = planes.usage_of_others(id) else { continue };
                usage
            }
        };
        let frame = match encode(&message) {
            Ok(frame) => frame,
            Err(WireError::Frame(FrameError::TooLong { bytes, .. })) => {
                // The data planes go on with what they have, which beats having nothing.
                error!(bytes, "a message is too long for the local wire and was not sent");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let written = tokio::time::timeout(WRITE_TIMEOUT, writer.write_all(&frame)).await;
        written.map_err(|_| ConnectionError::Stuck)??;
    }
}

struct Inbound {
    reader: OwnedReadHalf,
    decoder: Decoder,
    bytes: Vec<u8>,
}

impl Inbound {
    /// `None` when the other side hung up.
    async fn message(&mut self) -> Result<Option<FromPlane>, ConnectionError> {
        loop {
            if let Some(message) = self.decoder.poll_message()? {
                return Ok(Some(message));
            }
            let count = self.reader.read(&mut self.bytes).await?;
            if count == 0 {
                return Ok(None);
            }
            self.decoder.push(&self.bytes[..count]);
        }
    }
}
