//! Where a message body ends: by length, by chunks (RFC 9112 §7.1) or by the end of the connection.
//!
//! [`BodyScanner`] is fed bytes as they come and never copies: it says how many belong to this body,
//! hands out the payload between the chunk heads, and knows when the last byte was seen.

/// A chunk-size line may not be longer, extensions included.
pub const CHUNK_LINE_BYTES_MAX: usize = 256;
/// All trailer lines together may not be longer.
pub const TRAILER_BYTES_MAX: usize = 8 << 10;

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none (a response to HEAD, 204, 304).
    None,
    /// Exactly so many bytes.
    Length(u64),
    /// Chunks up to the one of size 0.
    Chunked,
    /// Until the other side closes.
    UntilClose,
}

/// The chunk framing is broken. The connection cannot be used further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the chunked encoding is malformed")]
pub struct MalformedChunk;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Length { left: u64 },
    SizeLine { size: u64, digits: u8, line_bytes: u16, part: LinePart },
    SizeLineLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    Trailer { bytes: u16, line_bytes: u16 },
    TrailerLf { bytes: u16, line_bytes: u16 },
    UntilClose,
    Done,
}

/// Where in the line of a chunk's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinePart {
    Size,
    /// White space behind the size: an extension or the end of the line must follow.
    Padding,
    Extension,
}

const SIZE_LINE: State =
    State::SizeLine { size: 0, digits: 0, line_bytes: 0, part: LinePart::Size };

/// Follows one body through the bytes of its connection.
#[derive(Clone, Debug)]
pub struct BodyScanner {
    state: State,
}

impl BodyScanner {
    /// A scanner at the first byte of the body.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(left) => State::Length { left },
            Framing::Chunked => SIZE_LINE,
            Framing::UntilClose => State::UntilClose,
        };
        BodyScanner { state }
    }

    /// Whether the last byte of the body was seen. Never true for a body that ends by closing.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the other side may close here without having cut the body short.
    pub fn may_close(&self) -> bool {
        matches!(self.state, State::Done | State::UntilClose)
    }

    /// Whether a chunk of ours could be inserted here.
    pub fn at_chunk_boundary(&self) -> bool {
        self.state == SIZE_LINE
    }

    /// Takes `bytes`; calls `payload` for each run of body content in order. Returns how many of
    /// `bytes` belong to this body; less than all of them only when it is done.
    ///
    /// # Errors
    /// [`MalformedChunk`].
    pub fn feed(
        &mut self,
        bytes: &[u8],
        mut payload: impl FnMut(&[u8]),
    ) -> Result<usize, MalformedChunk> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let taken = match self.state {
                State::Done => break,
                State::UntilClose => {
                    payload(rest);
                    rest.len()
                }
                State::Length { left } => {
                    let (run, left) = split_run(rest, left);
                    payload(run);
                    self.state = if left == 0 { State::Done } else { State::Length { left } };
                    run.len()
                }
                State::Data { left } => {
                    let (run, left) = split_run(rest, left);
                    payload(run);
                    self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                    run.len()
                }
                _ => {
                    self.state = step(self.state, rest[0])?;
                    1
                }
            };
            at += taken;
        }
        Ok(at)
    }
}

fn split_run(rest: &[u8], left: u64) -> (&[u8], u64) {
    let take = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
    (&rest[..take], left - take as u64)
}

/// One byte of chunk framing.
fn step(state: State, byte: u8) -> Result<State, MalformedChunk> {
    Ok(match state {
        State::SizeLine { size, digits, line_bytes, part } => {
            let line_bytes = line_bytes + 1;
            if usize::from(line_bytes) > CHUNK_LINE_BYTES_MAX {
                return Err(MalformedChunk);
            }
            let part = match (byte, part) {
                (b'\r', _) if digits > 0 => return Ok(State::SizeLineLf { size }),
                (b'\r' | b'\n', _) => return Err(MalformedChunk),
                (_, LinePart::Extension) => LinePart::Extension,
                (b';', _) if digits > 0 => LinePart::Extension,
                (b' ' | b'\t', _) if digits > 0 => LinePart::Padding,
                (_, LinePart::Padding) => return Err(MalformedChunk),
                (_, LinePart::Size) => {
                    let digit = char::from(byte).to_digit(16).ok_or(MalformedChunk)?;
                    let size = size.checked_mul(16).ok_or(MalformedChunk)? + u64::from(digit);
                    let digits = digits.saturating_add(1);
                    return Ok(State::SizeLine { size, digits, line_bytes, part });
                }
            };
            State::SizeLine { size, digits, line_bytes, part }
        }
        State::SizeLineLf { size } if byte == b'\n' => match size {
            0 => State::Trailer { bytes: 0, line_bytes: 0 },
            left => State::Data { left },
        },
        State::DataCr if byte == b'\r' => State::DataLf,
        State::DataLf if byte == b'\n' => SIZE_LINE,
        State::Trailer { bytes, line_bytes } => {
            if usize::from(bytes) >= TRAILER_BYTES_MAX {
                return Err(MalformedChunk);
            }
            match byte {
                b'\r' => State::TrailerLf { bytes: bytes + 1, line_bytes },
                b'\n' => return Err(MalformedChunk),
                _ => State::Trailer { bytes: bytes + 1, line_bytes: line_bytes + 1 },
            }
        }
        State::TrailerLf { bytes, line_bytes } if byte == b'\n' => match line_bytes {
            0 => State::Done,
            _ => State::Trailer { bytes: bytes + 1, line_bytes: 0 },
        },
        _ => return Err(MalformedChunk),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(chunks: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
            bytes.extend(format!("{:x};ext=1\r\n", chunk.len()).bytes());
            bytes.extend(chunk);
            bytes.extend(b"\r\n");
        }
        bytes.extend(b"0\r\nTrailer: x\r\n\r\n");
        bytes
    }

    fn run(scanner: &mut BodyScanner, parts: &[&[u8]]) -> Result<(Vec<u8>, usize), MalformedChunk> {
        let (mut out, mut taken) = (Vec::new(), 0);
        for part in parts {
            taken += scanner.feed(part, |run| out.extend_from_slice(run))?;
        }
        Ok((out, taken))
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_payload_and_the_exact_end(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6),
            cut in 0usize..400,
        ) {
            let mut bytes = encode(&chunks);
            let end = bytes.len();
            bytes.extend(b"HTTP/1.1 200 OK");
            let cut = cut.min(bytes.len());
            let mut scanner = BodyScanner::new(Framing::Chunked);
            let mut parts = vec![&bytes[..cut]];
            if cut < end { parts.push(&bytes[cut..]); }
            let (out, taken) = run(&mut scanner, &parts).unwrap();
            prop_assert_eq!(out, chunks.concat());
            prop_assert_eq!(taken, end);
            prop_assert!(scanner.is_done());
        }

        #[test]
        fn hostile_chunks_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut scanner = BodyScanner::new(Framing::Chunked);
            let _ = scanner.feed(&bytes, |_| ());
        }
    }

    #[test]
    fn broken_framing_is_refused() {
        for bad in [
            "x\r\n",
            "\r\n",
            "5\r\nhelloX",
            "5\nhello",
            "fffffffffffffffff\r\n",
            "0\r\n\n",
            "5 5\r\n",
            " 5\r\n",
            "+5\r\n",
            "0x5\r\n",
            "-1\r\n",
        ] {
            let mut scanner = BodyScanner::new(Framing::Chunked);
            assert!(run(&mut scanner, &[bad.as_bytes()]).is_err(), "{bad:?}");
        }
        let long = format!("1;{}\r\n", "e".repeat(CHUNK_LINE_BYTES_MAX));
        assert!(run(&mut BodyScanner::new(Framing::Chunked), &[long.as_bytes()]).is_err());
    }

    #[test]
    fn a_length_ends_where_it_says() {
        let mut scanner = BodyScanner::new(Framing::Length(3));
        assert_eq!(run(&mut scanner, &[b"ab", b"cdef"]).unwrap(), (b"abc".to_vec(), 3));
        assert!(scanner.is_done());
    }
}
