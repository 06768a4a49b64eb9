//! What the wires between Cognitora's processes have in common: a byte stream cut into frames, why bytes
//! are refused, and the reading of the simplest fields.
//!
//! One frame is
//!
//! ```text
//!  0       4         8            head_bytes
//!  | magic | len u32 | rest of head | payload |    len counts the payload, little-endian
//! ```
//!
//! What a payload says is each wire's: [`crate::feed`], [`crate::kv`], [`crate::wire`]. Sans-IO: bytes in,
//! frames out.

/// What is the same for all frames of one wire.
#[derive(Debug)]
pub struct Format {
    /// What an error calls it.
    pub wire: &'static str,
    /// First four bytes of each frame.
    pub magic: [u8; 4],
    /// Bytes before the payload: magic, length, and what else the wire has there. At least 8.
    pub head_bytes: usize,
    /// A longer payload is refused before it is waited for.
    pub payload_bytes_max: usize,
}

/// Why bytes of the other side were refused. The connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first four bytes are not the wire's.
    #[error("not a frame of {wire} (magic {magic:02x?}); is the other side of the same version?")]
    Magic {
        /// What was expected.
        wire: &'static str,
        /// What came; zeros behind it if fewer came.
        magic: [u8; 4],
    },
    /// The length is over the wire's limit.
    #[error("a frame of {bytes} bytes is over the limit of {max}")]
    TooLong {
        /// What the frame says.
        bytes: usize,
        /// [`Format::payload_bytes_max`], or less where less may come.
        max: usize,
    },
    /// The frame ended within a field.
    #[error("the frame is torn")]
    Torn,
    /// Something stands behind the last field.
    #[error("the frame goes on behind its last field")]
    Trailing,
    /// A field has a value it cannot have.
    #[error("{0} has a value it cannot have")]
    Value(&'static str),
    /// A list or text is longer than allowed.
    #[error("{0} is over its limit")]
    Limit(&'static str),
    /// A kind of frame that is not known here.
    #[error("a frame of kind {0} is not known here; is the other side of the same version?")]
    Kind(u8),
}

/// Cuts a byte stream into frames. Holds at most one incomplete frame and what was pushed since.
#[derive(Debug, Default)]
pub struct Cutter {
    bytes: Vec<u8>,
    at: usize,
}

/// One whole frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its head behind magic and length.
    pub head: &'a [u8],
    /// What follows the head.
    pub payload: &'a [u8],
}

impl Cutter {
    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.at);
        self.at = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes held that no frame was made of yet.
    pub fn held_bytes(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next whole frame, or `None` until more bytes come.
    ///
    /// # Errors
    /// [`FrameError::Magic`] and [`FrameError::TooLong`]: hang up, there is no way back into step.
    pub fn poll_frame(&mut self, format: &Format) -> Result<Option<Frame<'_>>, FrameError> {
        let rest = &self.bytes[self.at..];
        // A stranger is told apart before it has sent a whole head.
        let begun = &rest[..rest.len().min(format.magic.len())];
        if !format.magic.starts_with(begun) {
            let mut magic = [0; 4];
            magic[..begun.len()].copy_from_slice(begun);
            return Err(FrameError::Magic { wire: format.wire, magic });
        }
        let Some((head, rest)) = rest.split_at_checked(format.head_bytes) else { return Ok(None) };
        let mut head = Fields(&head[begun.len()..]);
        let bytes = head.u32()? as usize;
        if bytes > format.payload_bytes_max {
            return Err(FrameError::TooLong { bytes, max: format.payload_bytes_max });
        }
        let Some(payload) = rest.get(..bytes) else { return Ok(None) };
        self.at += format.head_bytes + bytes;
        Ok(Some(Frame { head: head.0, payload }))
    }
}

/// What can be read from a frame's payload.
pub trait Take: Sized {
    /// Reads kind and fields.
    ///
    /// # Errors
    /// Any [`FrameError`].
    fn take(payload: &[u8]) -> Result<Self, FrameError>;
}

/// One whole payload as a message.
///
/// # Errors
/// Any [`FrameError`].
pub fn decode<M: Take>(payload: &[u8]) -> Result<M, FrameError> {
    M::take(payload)
}

/// What is left of a payload.
#[derive(Debug)]
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn slice(&mut self, length: usize) -> Result<&'a [u8], FrameError> {
        let (field, rest) = self.0.split_at_checked(length).ok_or(FrameError::Torn)?;
        self.0 = rest;
        Ok(field)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(FrameError::Torn)?;
        self.0 = rest;
        Ok(*field)
    }

    pub fn byte(&mut self) -> Result<u8, FrameError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    pub fn u32(&mut self) -> Result<u32, FrameError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, FrameError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub fn flag(&mut self) -> Result<bool, FrameError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FrameError::Value("a flag")),
        }
    }

    /// UTF-8 of `length` bytes.
    pub fn utf8(&mut self, what: &'static str, length: usize) -> Result<String, FrameError> {
        let bytes = self.slice(length)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| FrameError::Value(what))
    }

    /// `message`, if nothing is left.
    pub fn end<M>(&self, message: M) -> Result<M, FrameError> {
        if self.0.is_empty() { Ok(message) } else { Err(FrameError::Trailing) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn format(head_bytes: usize) -> Format {
        Format { wire: "the test", magic: *b"CGT1", head_bytes, payload_bytes_max: 40 }
    }

    proptest! {
        #[test]
        fn any_cut_of_the_stream_gives_the_same_frames(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6),
            cuts in prop::collection::vec(1usize..20, 1..20),
            id_bytes in 0usize..9,
        ) {
            let format = format(8 + id_bytes);
            let mut stream = Vec::new();
            for payload in &payloads {
                stream.extend_from_slice(&format.magic);
                stream.extend_from_slice(&(payload.len() as u32).to_le_bytes());
                stream.extend(std::iter::repeat_n(7, id_bytes));
                stream.extend_from_slice(payload);
            }
            let (mut cutter, mut got, mut at) = (Cutter::default(), Vec::new(), 0);
            let mut cuts = cuts.into_iter().cycle();
            while at < stream.len() {
                let end = (at + cuts.next().unwrap()).min(stream.len());
                cutter.push(&stream[at..end]);
                at = end;
                while let Some(frame) = cutter.poll_frame(&format).unwrap() {
                    prop_assert!(frame.head == vec![7; id_bytes]);
                    got.push(frame.payload.to_vec());
                }
            }
            prop_assert_eq!(cutter.held_bytes(), 0);
            prop_assert_eq!(got, payloads);
        }
    }

    #[test]
    fn a_stranger_and_a_length_are_refused_before_they_are_waited_for() {
        let polled = |bytes: &[u8]| {
            let mut cutter = Cutter::default();
            cutter.push(bytes);
            cutter.poll_frame(&format(16)).map(|frame| frame.is_some())
        };
        let magic = |magic| Err(FrameError::Magic { wire: "the test", magic });
        assert_eq!(polled(b""), Ok(false));
        assert_eq!(polled(b"CG"), Ok(false));
        assert_eq!(polled(b"CH"), magic(*b"CH\0\0"));
        assert_eq!(polled(b"GET / HTTP/1.1"), magic(*b"GET "));
        assert_eq!(polled(b"CGT1\x28\0\0\0"), Ok(false));
        let long = b"CGT1\x29\0\0\0........";
        assert_eq!(polled(long), Err(FrameError::TooLong { bytes: 41, max: 40 }));
        assert_eq!(polled(b"CGT1\0\0\0\0........"), Ok(true));
    }
}
