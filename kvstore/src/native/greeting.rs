//! The first exchange of a connection: Hello, with descriptors both ways.
//!
//! It is the only place where descriptors are taken or passed; any that come later are closed by the
//! kernel, because later bytes are read without them.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use dataplane::frame::FrameError;
use dataplane::kv::{self, Answer, Decoder, Fault, Request, VERSION};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::socket::Stream;

/// A Hello with its text is shorter than this.
const HELLO_BYTES_MAX: usize = 4096;
/// Descriptors a client may pass; the kernel closes what is more.
const FDS_MAX: usize = 1;

/// Why a connection came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum GreetingError {
    /// The client went away, or the socket failed.
    #[error("the client went away: {0}")]
    Gone(#[from] std::io::Error),
    /// It does not speak the wire.
    #[error("not a client of the native door: {0}")]
    Wire(#[from] FrameError),
    /// It is refused, with these words.
    #[error("{0}: {1}")]
    Refused(Fault, String),
}

impl From<Errno> for GreetingError {
    fn from(error: Errno) -> GreetingError {
        GreetingError::Gone(error.into())
    }
}

/// What a client said first.
#[derive(Debug)]
pub struct Hello {
    /// Of its frame.
    pub id: u64,
    /// Name of the namespace it wants.
    pub namespace: String,
    /// What it calls itself.
    pub client: String,
    /// Length of its staging memory; 0 is none.
    pub staging_bytes: u64,
    /// The staging memory, not looked at yet.
    pub staging: Option<OwnedFd>,
    /// Whether it wants a ring.
    pub wants_ring: bool,
    /// What it sent behind its Hello.
    pub rest: Decoder,
}

/// Waits for a client's Hello. `socket` is the same as `stream`.
///
/// # Errors
/// Any [`GreetingError`].
pub async fn hear(stream: &Stream, socket: BorrowedFd<'_>) -> Result<Hello, GreetingError> {
    let (mut decoder, mut fds) = (Decoder::default(), Vec::new());
    loop {
        stream.readable().await?;
        let mut bytes = [0; HELLO_BYTES_MAX];
        let received = match receive(socket, &mut bytes, &mut fds)? {
            None => continue,
            Some(0) => return Err(Errno::PIPE.into()),
            Some(received) => received,
        };
        decoder.push(&bytes[..received]);
        let held = decoder.held_bytes();
        let (id, request) = match decoder.poll_frame()? {
            Some((id, payload)) => (id, kv::decode(payload)?),
            None if held >= HELLO_BYTES_MAX => {
                return Err(FrameError::TooLong { bytes: held, max: HELLO_BYTES_MAX }.into());
            }
            None => continue,
        };
        let Request::Hello { version, namespace, client, staging_bytes, ring } = request else {
            return Err(GreetingError::Refused(Fault::BadRequest, "say Hello first".to_owned()));
        };
        if version != VERSION {
            let text = format!("the daemon speaks version {VERSION}, the client {version}");
            return Err(GreetingError::Refused(Fault::Version, text));
        }
        let (staging, wants_ring) = (fds.pop(), ring);
        return Ok(Hello {
            id,
            namespace,
            client,
            staging_bytes,
            staging,
            wants_ring,
            rest: decoder,
        });
    }
}

/// What is there; none if nothing is after all.
fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<Option<usize>, GreetingError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = match recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags) {
        // Whoever else was woken by the same bytes: nobody, but then we look again.
        Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
        other => other?.bytes,
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            fds.extend(passed);
        }
    }
    // One is of use; a client that sends one with each byte keeps none of them open here.
    fds.truncate(FDS_MAX);
    Ok(Some(received))
}

/// Answers, and passes `fds` with it. Nothing was sent on the socket before, so there is room.
///
/// # Errors
/// [`GreetingError::Gone`].
pub fn answer(
    socket: BorrowedFd<'_>,
    id: u64,
    answer: &Answer,
    fds: &[BorrowedFd<'_>],
) -> Result<(), GreetingError> {
    let mut frame = Vec::new();
    kv::encode(id, answer, &mut frame);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::MSGSIZE.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = sendmsg(socket.as_fd(), &[IoSlice::new(&frame)], &mut control, flags)?;
    if sent == frame.len() { Ok(()) } else { Err(Errno::MSGSIZE.into()) }
}
