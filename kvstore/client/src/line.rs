//! The socket to the daemon: one request out, its answer in. Owns the bytes between frames.
//!
//! A line that failed once stays lost: what came after would be answers to other questions. Its
//! descriptor stays open as long as it lives, because hanging up gives leases back.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use dataplane::kv::{self, Answer, Decoder, Request};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::error::Error;

/// Read at once: answers to a few blocks fit, a long one takes some turns.
const READ_BYTES: usize = 64 << 10;
/// Descriptors that come with the daemon's Hello: arena and ring.
const FDS_MAX: usize = 2;

/// One connection.
pub(crate) struct Line {
    socket: UnixStream,
    decoder: Decoder,
    buffer: Box<[u8]>,
    out: Vec<u8>,
    last_id: u64,
    timeout: Duration,
    lost: Option<String>,
}

impl Line {
    /// Dials. Neither reading nor writing takes longer than `timeout`.
    pub(crate) fn dial(path: &Path, timeout: Duration) -> Result<Line, Error> {
        let failed = |source| Error::Connect { path: path.to_owned(), source };
        let socket = UnixStream::connect(path).map_err(failed)?;
        socket.set_read_timeout(Some(timeout)).map_err(failed)?;
        socket.set_write_timeout(Some(timeout)).map_err(failed)?;
        Ok(Line {
            socket,
            decoder: Decoder::default(),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            out: Vec::new(),
            last_id: 0,
            timeout,
            lost: None,
        })
    }

    /// Says Hello, with the staging memory where there is one; the answer and the descriptors with it.
    pub(crate) fn greet(
        &mut self,
        hello: &Request,
        staging: Option<BorrowedFd<'_>>,
    ) -> Result<(Answer, Vec<OwnedFd>), Error> {
        self.last_id += 1;
        kv::encode(self.last_id, hello, &mut self.out);
        let fds: Vec<_> = staging.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(Error::Invalid("the descriptor of the staging memory cannot be passed"));
        }
        let head = [IoSlice::new(&self.out)];
        // A daemon that has no place hangs up at once, and may have said why.
        let sent = retry(|| sendmsg(&self.socket, &head, &mut control, SendFlags::NOSIGNAL));
        if let Ok(sent) = sent
            && sent < self.out.len()
        {
            return Err(Error::Lost("the greeting did not go through at once".to_owned()));
        }
        self.out.clear();
        let mut fds = Vec::new();
        loop {
            if let Some(answer) = self.poll_answer()? {
                return Ok((answer, fds));
            }
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut into = [IoSliceMut::new(&mut self.buffer)];
            let received =
                retry(|| recvmsg(&self.socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC));
            let bytes = match received {
                Ok(message) => message.bytes,
                Err(error) => return Err(self.lose(error)),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(passed) = message {
                    fds.extend(passed);
                }
            }
            self.took(bytes)?;
        }
    }

    /// Tells which leases are over, asks, and waits for the answer. A refusal is an error.
    pub(crate) fn ask(&mut self, over: Vec<u64>, request: &Request) -> Result<Answer, Error> {
        self.usable()?;
        self.put_releases(over);
        self.last_id += 1;
        kv::encode(self.last_id, request, &mut self.out);
        self.send()?;
        loop {
            match self.poll_answer()? {
                Some(Answer::Refused { fault, text }) => {
                    return Err(Error::Refused { fault, text });
                }
                Some(answer) => return Ok(answer),
                None => {
                    let read = retry_io(|| self.socket.read(&mut self.buffer));
                    let bytes = read.map_err(|error| self.lose(error))?;
                    self.took(bytes)?;
                }
            }
        }
    }

    /// Says what has no answer.
    pub(crate) fn tell(&mut self, over: Vec<u64>, request: Option<&Request>) -> Result<(), Error> {
        self.usable()?;
        self.put_releases(over);
        if let Some(request) = request {
            kv::encode(0, request, &mut self.out);
        }
        self.send()
    }

    fn put_releases(&mut self, over: Vec<u64>) {
        for leases in over.chunks(kv::BATCH_MAX) {
            kv::encode(0, &Request::Release { leases: leases.to_vec() }, &mut self.out);
        }
    }

    fn send(&mut self) -> Result<(), Error> {
        let sent = self.socket.write_all(&self.out);
        self.out.clear();
        sent.map_err(|error| self.lose(error))
    }

    /// The answer to the last question, when it has come whole.
    fn poll_answer(&mut self) -> Result<Option<Answer>, Error> {
        let polled = match self.decoder.poll_frame() {
            Ok(None) => return Ok(None),
            // Number 0 is about the connection: the daemon says why it is about to hang up.
            Ok(Some((id, _))) if id != self.last_id && id != 0 => {
                self.lost = Some(format!("an answer to request {id}, {} was asked", self.last_id));
                return self.usable().map(|()| None);
            }
            Ok(Some((_, payload))) => kv::decode(payload),
            Err(error) => Err(error),
        };
        polled.map(Some).map_err(|error| {
            self.lost = Some(error.to_string());
            Error::Wire(error)
        })
    }

    fn took(&mut self, bytes: usize) -> Result<(), Error> {
        if bytes == 0 {
            return Err(self.lose(io::Error::from(io::ErrorKind::UnexpectedEof)));
        }
        self.decoder.push(&self.buffer[..bytes]);
        Ok(())
    }

    fn usable(&self) -> Result<(), Error> {
        self.lost.as_ref().map_or(Ok(()), |why| Err(Error::Lost(why.clone())))
    }

    fn lose(&mut self, error: impl Into<io::Error>) -> Error {
        let error = error.into();
        let why = match error.kind() {
            io::ErrorKind::UnexpectedEof => "it hung up".to_owned(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                self.lost = Some("it did not answer in time".to_owned());
                return Error::TimedOut(self.timeout.as_millis());
            }
            _ => error.to_string(),
        };
        self.lost = Some(why.clone());
        Error::Lost(why)
    }
}

/// Again after a signal.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    rustix::io::retry_on_intr(&mut call)
}

fn retry_io<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
