//! A blocking conversation with the KV daemon of this machine, over the native door's socket: what
//! `cgnctl kv` asks. One question at a time; nothing is put, and nothing of the daemon's memory is mapped.
//!
//! It owns the socket and the arena's descriptor. What is made of the answers is not decided here.

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dataplane::frame::FrameError;
use dataplane::kv::{self, Answer, Decoder, Fault, Got, Name, Request};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// Longest wait for one answer: a page of large blocks read from a slow disk.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(120);
/// Read from the socket at once.
const READ_BYTES: usize = 64 << 10;
/// Copied out of the arena at once.
const PIECE_BYTES: usize = 1 << 20;
/// Descriptors that may come with the daemon's Hello: its arena, and room for none that was not asked for.
const FDS_MAX: usize = 2;
/// How long a block may take to come from a slower tier, in ms.
const GET_TIME_MAX_MS: u32 = 60_000;

/// Why the daemon did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// There is no daemon at the socket.
    #[error("cannot reach cgn-kvcached at {}: {}", path.display(), cure(source))]
    Connect {
        /// The socket tried.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It said no.
    #[error("the daemon refused: {1}")]
    Refused(Fault, String),
    /// It hung up, or did not answer in time.
    #[error("the daemon did not answer ({0}); its log says more")]
    Lost(io::Error),
    /// What it said is not the native door's wire.
    #[error("what answers is no cgn-kvcached of this version: {0}")]
    Wire(#[from] FrameError),
    /// It answered another question.
    #[error("the daemon answered something else than was asked; is it of the same version?")]
    Unexpected,
    /// A block's bytes could not be copied.
    #[error("the block could not be copied: {0}")]
    Copy(io::Error),
}

/// What to do about a socket that cannot be dialled.
fn cure(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "there is no such socket; is cgn-kvcached running with kv.uds? Name another with --socket"
                .to_owned()
        }
        io::ErrorKind::ConnectionRefused => {
            "nobody listens there; start cgn-kvcached, or name another socket with --socket".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "permission denied; run as the daemon's user, or join the group that kv.uds_mode lets in"
                .to_owned()
        }
        _ => error.to_string(),
    }
}

/// One connection, about one namespace or about none.
#[derive(Debug)]
pub struct Daemon {
    socket: UnixStream,
    decoder: Decoder,
    last_id: u64,
    arena: Option<File>,
}

impl Daemon {
    /// Dials the daemon at `path` and greets it. An empty `namespace` is none; another one is made if the
    /// daemon does not know it.
    ///
    /// # Errors
    /// [`DaemonError`].
    pub fn dial(path: &Path, namespace: &str) -> Result<Daemon, DaemonError> {
        let failed = |source| DaemonError::Connect { path: path.to_owned(), source };
        let socket = UnixStream::connect(path).map_err(failed)?;
        socket.set_read_timeout(Some(ANSWER_TIME_MAX)).map_err(failed)?;
        socket.set_write_timeout(Some(ANSWER_TIME_MAX)).map_err(failed)?;
        let mut daemon = Daemon { socket, decoder: Decoder::default(), last_id: 0, arena: None };
        let hello = Request::Hello {
            version: kv::VERSION,
            namespace: namespace.to_owned(),
            client: "cgnctl".to_owned(),
            staging_bytes: 0,
            ring: false,
        };
        match daemon.ask(&hello)? {
            Answer::Hello { version: kv::VERSION, .. } => Ok(daemon),
            _ => Err(DaemonError::Unexpected),
        }
    }

    /// Asks and waits for the answer; a refusal is an error.
    ///
    /// # Errors
    /// [`DaemonError`].
    pub fn ask(&mut self, request: &Request) -> Result<Answer, DaemonError> {
        self.last_id += 1;
        let mut frame = Vec::new();
        kv::encode(self.last_id, request, &mut frame);
        // One that has no place says so and hangs up before it reads: its words are still there to be read.
        let sent = self.socket.write_all(&frame);
        loop {
            if let Some(answer) = self.poll_answer()? {
                return match answer {
                    Answer::Refused { fault, text } => Err(DaemonError::Refused(fault, text)),
                    answer => Ok(answer),
                };
            }
            if self.receive().map_err(DaemonError::Lost)? == 0 {
                let gone = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err(DaemonError::Lost(sent.err().unwrap_or(gone)));
            }
        }
    }

    /// Copies a block's bytes into `out`. `None`: no tier has it. Else how many bytes it has.
    ///
    /// # Errors
    /// [`DaemonError`].
    pub fn copy(&mut self, name: Name, out: &mut impl Write) -> Result<Option<u64>, DaemonError> {
        let request = Request::Get { names: vec![name], deadline_ms: GET_TIME_MAX_MS };
        let Answer::Get { blocks } = self.ask(&request)? else {
            return Err(DaemonError::Unexpected);
        };
        // The lease ends with the connection.
        let (mut at, len) = match blocks.as_slice() {
            [Got::Leased { offset, len, .. }] => (*offset, *len),
            [Got::Missing] => return Ok(None),
            [Got::Failed(fault)] => return Err(DaemonError::Refused(*fault, fault.to_string())),
            _ => return Err(DaemonError::Unexpected),
        };
        let arena = self.arena.as_ref().ok_or(DaemonError::Unexpected)?;
        let end = at.checked_add(len).ok_or(DaemonError::Unexpected)?;
        let mut piece = vec![0; PIECE_BYTES];
        while at < end {
            let wanted =
                usize::try_from(end - at).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
            arena.read_exact_at(&mut piece[..wanted], at).map_err(DaemonError::Copy)?;
            out.write_all(&piece[..wanted]).map_err(DaemonError::Copy)?;
            at += wanted as u64;
        }
        Ok(Some(len))
    }

    /// Waits until the daemon hangs up, which it does when it ends. False if it has not at `limit`.
    ///
    /// # Errors
    /// [`DaemonError::Lost`].
    pub fn wait_for_end(&mut self, limit: Duration) -> Result<bool, DaemonError> {
        self.socket.set_read_timeout(Some(limit)).map_err(DaemonError::Lost)?;
        match self.socket.read(&mut [0; 1]) {
            Ok(0) => Ok(true),
            Ok(_) => Err(DaemonError::Unexpected),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Ok(false),
                io::ErrorKind::ConnectionReset => Ok(true),
                _ => Err(DaemonError::Lost(error)),
            },
        }
    }

    /// The answer to the last question, or what the daemon says of the connection, when it has come whole.
    fn poll_answer(&mut self) -> Result<Option<Answer>, DaemonError> {
        match self.decoder.poll_frame()? {
            Some((id, _)) if id != self.last_id && id != 0 => Err(DaemonError::Unexpected),
            Some((_, payload)) => Ok(Some(kv::decode(payload)?)),
            None => Ok(None),
        }
    }

    /// Takes bytes, and the arena's descriptor when it comes with them.
    fn receive(&mut self) -> io::Result<usize> {
        let mut bytes = vec![0; READ_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            let mut into = [IoSliceMut::new(&mut bytes)];
            recvmsg(&self.socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut passed) = message
                && let Some(arena) = passed.next()
            {
                self.arena.get_or_insert(File::from(arena));
            }
        }
        self.decoder.push(&bytes[..received.bytes]);
        Ok(received.bytes)
    }
}
