//! Bytes of a RESP client to commands: arrays of bulk strings, and inline commands. No I/O.
//!
//! The parser keeps what is short (names, keys, options) and hands the rest over: where a value comes
//! next it says its length, and the caller takes that many bytes off the wire itself, straight to where
//! they belong. Any split of the bytes gives the same events. It does not know what commands mean
//! beyond where their values stand. Follows the Redis serialization protocol; its limits are ours.

mod arguments;
mod inline;

pub use arguments::Arguments;

/// Longest argument that is not a value. Keys are shorter (`KEY_BYTES_MAX` of the door).
pub const ARGUMENT_BYTES_MAX: usize = 16 << 10;
/// Bytes of all arguments of one command but its values: an MGET of 1024 long keys.
pub const COMMAND_BYTES_MAX: usize = 256 << 10;
/// Arguments of one command, its name included.
pub const ARGUMENTS_MAX: usize = 4096;
/// Longest inline command.
pub const INLINE_BYTES_MAX: usize = 16 << 10;
/// Longest value, as in redis.
pub const VALUE_BYTES_MAX: usize = 512 << 20;
/// Arguments before a login, as in redis.
pub const LOGIN_ARGUMENTS_MAX: usize = 10;
/// Length of any argument before a login, as in redis.
pub const LOGIN_BYTES_MAX: usize = 16 << 10;
/// Digits, sign and line end of a count or a length: more is not a number we take.
const NUMBER_BYTES_MAX: usize = 24;

/// What the bytes amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A whole command is in [`Parser::arguments`].
    Command,
    /// The next `len` bytes are the value at this place of the command. The caller takes them off the
    /// wire itself and then goes on feeding; in the arguments the value is an empty one.
    Value {
        /// Bytes of the value.
        len: usize,
    },
    /// A whole command came, too long to be kept. Its bytes are gone; the connection may go on.
    TooLong,
}

/// Why the connection cannot go on. Displays as redis words it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The count of an array is no number or more than [`ARGUMENTS_MAX`].
    #[error("Protocol error: invalid multibulk length")]
    Count,
    /// A length is no number, negative or more than [`VALUE_BYTES_MAX`].
    #[error("Protocol error: invalid bulk length")]
    Length,
    /// More arguments than a client may send before its login.
    #[error("Protocol error: unauthenticated multibulk length")]
    LoginCount,
    /// A longer argument than a client may send before its login.
    #[error("Protocol error: unauthenticated bulk length")]
    LoginLength,
    /// No line end after so many digits.
    #[error("Protocol error: too big count string")]
    Number,
    /// An argument does not begin with `$`.
    #[error("Protocol error: expected '$', got '{}'", .0.escape_ascii())]
    Dollar(u8),
    /// An argument is not followed by its line end.
    #[error("Protocol error: expected CRLF after an argument")]
    Ending,
    /// An inline command longer than [`INLINE_BYTES_MAX`].
    #[error("Protocol error: too big inline request")]
    Inline,
    /// An inline command whose quotes do not close.
    #[error("Protocol error: unbalanced quotes in request")]
    Quotes,
    /// An inline command that speaks HTTP: a browser was sent here.
    #[error("Protocol error: this is RESP, not HTTP")]
    Http,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between commands.
    Start,
    /// In the line that says how many arguments come.
    Count,
    /// Before the `$` of an argument.
    Dollar,
    /// In the line that says how long an argument is.
    Length,
    /// In an argument: so many bytes are missing.
    Argument { left: usize },
    /// In an argument that is not kept.
    Skip { left: usize },
    /// Before the line end of an argument: so many bytes of it are missing.
    Ending { left: u8 },
    /// In an inline command.
    Inline,
}

/// The state between two pieces of input.
#[derive(Debug)]
pub struct Parser {
    state: State,
    arguments: Arguments,
    /// Arguments still to come.
    missing: usize,
    number: [u8; NUMBER_BYTES_MAX],
    number_len: usize,
    /// The inline command so far.
    line: Vec<u8>,
    is_too_long: bool,
    is_logged_in: bool,
}

impl Default for Parser {
    fn default() -> Self {
        Self {
            state: State::Start,
            arguments: Arguments::default(),
            missing: 0,
            number: [0; NUMBER_BYTES_MAX],
            number_len: 0,
            line: Vec::new(),
            is_too_long: false,
            is_logged_in: false,
        }
    }
}

impl Parser {
    /// The arguments of the command so far. Whole after [`Event::Command`], until more is fed.
    pub fn arguments(&self) -> &Arguments {
        &self.arguments
    }

    /// Whether a command has begun and is not over.
    pub fn is_amid(&self) -> bool {
        self.state != State::Start
    }

    /// Whether the client may send values and long commands.
    pub fn set_logged_in(&mut self, is_logged_in: bool) {
        self.is_logged_in = is_logged_in;
    }

    /// Takes bytes off the front of `input` up to the next event, or all of them. Returns how many it
    /// took and the event.
    ///
    /// # Errors
    /// [`ProtocolError`]: answer it and close; the parser is of no further use.
    pub fn feed(&mut self, input: &[u8]) -> Result<(usize, Option<Event>), ProtocolError> {
        let mut used = 0;
        while used < input.len() {
            let (step, event) = self.step(&input[used..])?;
            used += step;
            if event.is_some() {
                return Ok((used, event));
            }
        }
        Ok((used, None))
    }

    fn step(&mut self, input: &[u8]) -> Result<(usize, Option<Event>), ProtocolError> {
        match self.state {
            State::Start => Ok((self.start(input[0]), None)),
            State::Count => match self.number(input)? {
                (used, None) => Ok((used, None)),
                (used, Some(number)) => Ok((used, self.count(number)?)),
            },
            State::Dollar if input[0] == b'$' => {
                self.state = State::Length;
                Ok((1, None))
            }
            State::Dollar => Err(ProtocolError::Dollar(input[0])),
            State::Length => match self.number(input)? {
                (used, None) => Ok((used, None)),
                (used, Some(number)) => Ok((used, self.length(number)?)),
            },
            State::Argument { left } => {
                let taken = left.min(input.len());
                self.arguments.extend(&input[..taken]);
                self.advance(left - taken, |left| State::Argument { left });
                Ok((taken, None))
            }
            State::Skip { left } => {
                let taken = left.min(input.len());
                self.advance(left - taken, |left| State::Skip { left });
                Ok((taken, None))
            }
            State::Ending { left } => self.ending(left, input[0]),
            State::Inline => self.inline(input),
        }
    }

    /// The first byte of a command says its form.
    fn start(&mut self, first: u8) -> usize {
        self.arguments.clear();
        self.is_too_long = false;
        self.number_len = 0;
        self.state = if first == b'*' { State::Count } else { State::Inline };
        usize::from(first == b'*')
    }

    /// Collects a line of digits: once its line end is there, the number, if it is one.
    fn number(&mut self, input: &[u8]) -> Result<(usize, Option<Option<i64>>), ProtocolError> {
        for (at, &byte) in input.iter().enumerate() {
            if byte == b'\n' {
                let line = self.number[..self.number_len].strip_suffix(b"\r");
                self.number_len = 0;
                return Ok((at + 1, Some(line.and_then(number))));
            }
            let free = self.number.get_mut(self.number_len).ok_or(ProtocolError::Number)?;
            *free = byte;
            self.number_len += 1;
        }
        Ok((input.len(), None))
    }

    fn count(&mut self, count: Option<i64>) -> Result<Option<Event>, ProtocolError> {
        let count = count.ok_or(ProtocolError::Count)?;
        // As redis: a command of nothing is nothing, and not answered.
        let Ok(count) = usize::try_from(count) else {
            self.state = State::Start;
            return Ok(None);
        };
        if count > ARGUMENTS_MAX {
            return Err(ProtocolError::Count);
        }
        if !self.is_logged_in && count > LOGIN_ARGUMENTS_MAX {
            return Err(ProtocolError::LoginCount);
        }
        self.missing = count;
        self.state = if count == 0 { State::Start } else { State::Dollar };
        Ok(None)
    }

    fn length(&mut self, length: Option<i64>) -> Result<Option<Event>, ProtocolError> {
        let len = length.and_then(|length| usize::try_from(length).ok());
        let len = len.filter(|len| *len <= VALUE_BYTES_MAX).ok_or(ProtocolError::Length)?;
        if !self.is_logged_in && len > LOGIN_BYTES_MAX {
            return Err(ProtocolError::LoginLength);
        }
        if !self.is_too_long && self.arguments.is_value_next() {
            self.arguments.push();
            self.missing -= 1;
            self.state = State::Ending { left: 2 };
            return Ok(Some(Event::Value { len }));
        }
        self.missing -= 1;
        self.is_too_long |= len > ARGUMENT_BYTES_MAX;
        self.is_too_long |= self.arguments.bytes_len() + len > COMMAND_BYTES_MAX;
        if self.is_too_long {
            self.advance(len, |left| State::Skip { left });
        } else {
            self.arguments.push();
            self.advance(len, |left| State::Argument { left });
        }
        Ok(None)
    }

    /// `left` bytes of an argument are missing; without any, its line end comes.
    fn advance(&mut self, left: usize, inside: fn(usize) -> State) {
        self.state = if left == 0 { State::Ending { left: 2 } } else { inside(left) };
    }

    fn ending(&mut self, left: u8, byte: u8) -> Result<(usize, Option<Event>), ProtocolError> {
        if byte != (if left == 2 { b'\r' } else { b'\n' }) {
            return Err(ProtocolError::Ending);
        }
        self.state = match (left, self.missing) {
            (2, _) => State::Ending { left: 1 },
            (_, 0) => State::Start,
            _ => State::Dollar,
        };
        let event = (self.state == State::Start).then(|| self.whole());
        Ok((1, event))
    }

    fn whole(&self) -> Event {
        if self.is_too_long { Event::TooLong } else { Event::Command }
    }

    fn inline(&mut self, input: &[u8]) -> Result<(usize, Option<Event>), ProtocolError> {
        let end = input.iter().position(|byte| *byte == b'\n');
        let piece = &input[..end.unwrap_or(input.len())];
        if self.line.len() + piece.len() > INLINE_BYTES_MAX {
            return Err(ProtocolError::Inline);
        }
        self.line.extend_from_slice(piece);
        let Some(end) = end else {
            return Ok((input.len(), None));
        };
        self.state = State::Start;
        let line = std::mem::take(&mut self.line);
        inline::split(&line, &mut self.arguments).ok_or(ProtocolError::Quotes)?;
        if speaks_http(&self.arguments) {
            return Err(ProtocolError::Http);
        }
        let is_command = !self.arguments.is_empty();
        Ok((end + 1, is_command.then_some(Event::Command)))
    }
}

/// A browser that is led to this port sends its head line by line; none may count as a command.
fn speaks_http(arguments: &Arguments) -> bool {
    let name = arguments.get(0).unwrap_or_default();
    name.eq_ignore_ascii_case(b"post") || name.eq_ignore_ascii_case(b"host:")
}

/// A decimal number: digits, perhaps after one minus.
fn number(line: &[u8]) -> Option<i64> {
    let digits = line.strip_prefix(b"-").unwrap_or(line);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(line).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
