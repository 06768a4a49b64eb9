//! The life of one connection: bytes to commands, values to their slots, replies back. In order.
//!
//! It owns the client's socket, its small buffer and its state. Commands are carried out in [`call`].

use std::io;
use std::time::{Duration, Instant};

use super::call::Call;
use super::client::{Client, Refusal, store_refusal};
use super::command::Entry;
use super::parse::{Event, Parser, ProtocolError};
use super::reply::Output;
use super::wire::Wire;
use crate::arena::Slot;
use crate::executor::breath;

/// Bytes read at a time, but for values.
const INPUT_BYTES: usize = 4 << 10;
/// Full buffers of commands taken from one client before others have their turn.
const FULL_READS_PER_TURN_MAX: usize = 16;

/// A value taken off the wire.
pub(super) enum Value {
    /// It is stored once the command is whole.
    Slot(Slot),
    /// There was no place for it, and its bytes are gone.
    Refused(Refusal),
}

/// What the connection does after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Goes on.
    Command,
    /// Sends what is written and closes.
    Close,
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Over {
    /// The client closed it, or asked to.
    #[error("closed")]
    Closed,
    /// The client does not speak RESP.
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    /// The socket.
    #[error("{0}")]
    Socket(#[from] io::Error),
}

/// One connection.
pub(super) struct Connection {
    wire: Wire,
    parser: Parser,
    input: Box<[u8]>,
    /// What of `input` is not parsed yet.
    unread: std::ops::Range<usize>,
    /// Reads in a row that left more to read.
    full_reads: usize,
    output: Output,
    client: Client,
    values: Vec<Value>,
    /// When the login must be there.
    login_deadline: Instant,
    /// When the command that has begun must be whole.
    deadline: Option<Instant>,
}

impl Connection {
    /// A client that just came in.
    pub(super) fn new(wire: Wire, client: Client, now: Instant) -> Self {
        let login_deadline = now + Duration::from_secs(client.terms.config.login_s);
        Self {
            wire,
            parser: Parser::default(),
            input: vec![0; INPUT_BYTES].into_boxed_slice(),
            unread: 0..0,
            full_reads: 0,
            output: Output::default(),
            client,
            values: Vec::new(),
            login_deadline,
            deadline: None,
        }
    }

    /// Serves the client until the connection is over.
    pub(super) async fn serve(mut self) -> Over {
        let over = loop {
            if let Err(over) = self.step().await {
                break over;
            }
        };
        if let Over::Protocol(error) = &over {
            self.output.error(&format!("ERR {error}"));
        }
        if !matches!(over, Over::Socket(_)) {
            // What was answered before is sent; if the client is gone there is nobody to tell.
            let _ = self.wire.write(&mut self.output).await;
        }
        over
    }

    /// Takes what is in the buffer one event further, or fills the buffer.
    async fn step(&mut self) -> Result<(), Over> {
        self.parser.set_logged_in(self.client.is_logged_in());
        let (used, event) = self.parser.feed(&self.input[self.unread.clone()])?;
        self.unread.start += used;
        match event {
            None => self.fill().await,
            Some(Event::Value { len }) => self.receive(len).await,
            Some(Event::TooLong) => {
                self.over_with_command();
                self.output
                    .error("ERR the command's arguments are too long; only values may be long");
                Ok(())
            }
            Some(Event::Command) => {
                let next = self.call().await?;
                self.over_with_command();
                if self.output.is_full() {
                    self.wire.write(&mut self.output).await?;
                }
                if next == Next::Close { Err(Over::Closed) } else { Ok(()) }
            }
        }
    }

    fn over_with_command(&mut self) {
        self.values.clear();
        self.deadline = None;
    }

    /// Reads into the buffer, which is empty, and sends replies meanwhile.
    async fn fill(&mut self) -> Result<(), Over> {
        let patience = self.patience()?;
        let read = self.wire.read(&mut self.input, &mut self.output, patience).await?;
        self.unread = 0..read;
        // A client that writes faster than it is served never lets the read wait.
        self.full_reads = if read == self.input.len() { self.full_reads + 1 } else { 0 };
        if self.full_reads >= FULL_READS_PER_TURN_MAX {
            self.full_reads = 0;
            breath().await;
        }
        if read == 0 { Err(Over::Closed) } else { Ok(()) }
    }

    /// How long the next bytes may take.
    fn patience(&mut self) -> Result<Option<Duration>, Over> {
        let deadline = if self.parser.is_amid() {
            let stall = self.client.terms.config.pace().stall;
            Some(*self.deadline.get_or_insert_with(|| Instant::now() + stall))
        } else if self.client.is_logged_in() {
            return Ok(self.client.terms.config.idle());
        } else {
            Some(self.login_deadline)
        };
        let Some(deadline) = deadline else { return Ok(None) };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Over::Socket(io::ErrorKind::TimedOut.into()));
        }
        Ok(Some(left))
    }

    /// Takes a value off the wire: to its place in the arena, or nowhere.
    async fn receive(&mut self, len: usize) -> Result<(), Over> {
        let mut value = self.place(len).await;
        let pace = self.client.terms.config.pace();
        self.deadline = Some(Instant::now() + pace.allows(len as u64));
        let ready = len.min(self.unread.len());
        if let Value::Slot(slot) = &mut value {
            let from = self.unread.start;
            slot.bytes_mut()[..ready].copy_from_slice(&self.input[from..from + ready]);
        }
        self.unread.start += ready;
        let mut filled = ready;
        while filled < len {
            let left = self.patience()?.map(|left| left.min(pace.stall));
            let read = match &mut value {
                Value::Slot(slot) => {
                    let rest = &mut slot.bytes_mut()[filled..];
                    self.wire.read(rest, &mut self.output, left).await?
                }
                Value::Refused(_) => {
                    let piece = (len - filled).min(self.input.len());
                    self.wire.read(&mut self.input[..piece], &mut self.output, left).await?
                }
            };
            if read == 0 {
                return Err(Over::Closed);
            }
            filled += read;
        }
        self.values.push(value);
        self.deadline = Some(Instant::now() + pace.stall);
        Ok(())
    }

    /// Memory for the value of the key before it.
    async fn place(&mut self, len: usize) -> Value {
        let arguments = self.parser.arguments();
        let label = arguments.len().checked_sub(2).and_then(|index| arguments.get(index));
        let entry = arguments.get(0).and_then(Entry::find);
        let (Some(label), Some(entry)) = (label, entry) else {
            return Value::Refused("ERR syntax error".to_owned());
        };
        // A refusal that is not heard again, as of `check` when the command is whole, is heard now.
        if let Err(refusal) = self.client.check(entry) {
            return Value::Refused(refusal);
        }
        let key = match self.client.key(label) {
            Ok(key) => key,
            Err(refusal) => return Value::Refused(refusal),
        };
        match self.client.store.reserve(key, len).await {
            Ok(slot) => Value::Slot(slot),
            Err(error) => Value::Refused(store_refusal(&error)),
        }
    }

    /// Carries out the command that is whole.
    async fn call(&mut self) -> io::Result<Next> {
        let call = Call {
            client: &mut self.client,
            arguments: self.parser.arguments(),
            values: &mut self.values,
            output: &mut self.output,
            wire: &mut self.wire,
        };
        call.run().await
    }
}
