//! Frames of the native door, read. Every length is checked before it is believed; a payload must end
//! where its fields end. What is read is written again in the same bytes.

use super::encode::{got, kind};
use super::{
    Answer, BATCH_MAX, FRAME_BYTES_MAX, FRAME_HEAD_BYTES, FRAME_MAGIC, Fault, Got, LABEL_BYTES_MAX,
    Listed, NAMESPACE_BYTES_MAX, Name, Place, Request, STATS_MAX, Staged, TEXT_BYTES_MAX, Tier,
};

/// Why bytes of the other side were refused. The connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// The first four bytes are not [`FRAME_MAGIC`].
    #[error("not a frame of the native door (magic {0:02x?}); is this the socket of cgn-kvcached?")]
    Magic([u8; 4]),
    /// The length is over [`FRAME_BYTES_MAX`].
    #[error("a frame of {0} bytes is over the limit of {FRAME_BYTES_MAX}")]
    TooLong(usize),
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

/// What can be read from a frame's payload.
pub trait Take: Sized {
    /// Reads kind and fields.
    ///
    /// # Errors
    /// Any [`KvError`]
    fn take(payload: &[u8]) -> Result<Self, KvError>;
}

/// One whole payload as a message.
///
/// # Errors
/// Any [`KvError`]
pub fn decode<M: Take>(payload: &[u8]) -> Result<M, KvError> {
    M::take(payload)
}

/// Cuts a byte stream into frames. Holds at most one incomplete frame and what was pushed since.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    at: usize,
}

impl Decoder {
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

    /// Id and payload of the next whole frame, or `None` until more bytes come.
    ///
    /// # Errors
    /// [`KvError::Magic`] and [`KvError::TooLong`]: hang up, there is no way back into step.
    pub fn poll_frame(&mut self) -> Result<Option<(u64, &[u8])>, KvError> {
        let rest = &self.bytes[self.at..];
        let Some(head) = rest.first_chunk::<FRAME_HEAD_BYTES>() else {
            // A foreign client is told apart before it has sent a whole head.
            let begun = &rest[..rest.len().min(FRAME_MAGIC.len())];
            if !FRAME_MAGIC.starts_with(begun) {
                let mut magic = [0; 4];
                magic[..begun.len()].copy_from_slice(begun);
                return Err(KvError::Magic(magic));
            }
            return Ok(None);
        };
        let mut fields = Fields(head);
        let magic = fields.array()?;
        if magic != FRAME_MAGIC {
            return Err(KvError::Magic(magic));
        }
        let length = fields.u32()? as usize;
        if length > FRAME_BYTES_MAX {
            return Err(KvError::TooLong(length));
        }
        let id = fields.u64()?;
        let begin = self.at + FRAME_HEAD_BYTES;
        let Some(payload) = self.bytes.get(begin..begin + length) else {
            return Ok(None);
        };
        self.at = begin + length;
        Ok(Some((id, payload)))
    }
}

impl Take for Request {
    fn take(payload: &[u8]) -> Result<Self, KvError> {
        let mut fields = Fields(payload);
        let message = match fields.byte()? {
            kind::HELLO => Request::Hello {
                version: fields.u32()?,
                namespace: fields.text("a namespace", NAMESPACE_BYTES_MAX)?,
                client: fields.text("a client's name", TEXT_BYTES_MAX)?,
                staging_bytes: fields.u64()?,
                ring: fields.flag()?,
            },
            kind::LOOKUP => Request::Lookup { names: fields.names()? },
            kind::GET => Request::Get { deadline_ms: fields.u32()?, names: fields.names()? },
            kind::RELEASE => Request::Release { leases: fields.list("leases", 8, Fields::u64)? },
            kind::PUT => Request::Put {
                durable: fields.flag()?,
                blocks: fields.list("blocks", 53, Fields::staged)?,
            },
            kind::PIN => Request::Pin { pinned: fields.flag()?, names: fields.names()? },
            kind::PREFETCH => {
                Request::Prefetch { deadline_ms: fields.u32()?, names: fields.names()? }
            }
            kind::REMOVE => Request::Remove { names: fields.names()? },
            kind::STATS => Request::Stats,
            kind::LIST => Request::List {
                everywhere: fields.flag()?,
                cursor: fields.u64()?,
                blocks_max: fields.u32()?,
            },
            kind::VERIFY => Request::Verify {
                everywhere: fields.flag()?,
                cursor: fields.u64()?,
                blocks_max: fields.u32()?,
            },
            kind::EVICT => Request::Evict {
                everywhere: fields.flag()?,
                cursor: fields.u64()?,
                blocks_max: fields.u32()?,
            },
            kind::DRAIN => Request::Drain,
            kind::WAKE => Request::Wake,
            other => return Err(KvError::Kind(other)),
        };
        fields.end(message)
    }
}

impl Take for Answer {
    fn take(payload: &[u8]) -> Result<Self, KvError> {
        let mut fields = Fields(payload);
        let message = match fields.byte()? {
            kind::HELLO => Answer::Hello {
                version: fields.u32()?,
                arena_bytes: fields.u64()?,
                block_bytes_max: fields.u64()?,
                leases_max: fields.u32()?,
                requests_max: fields.u32()?,
                ring_bytes: fields.u64()?,
            },
            kind::LOOKUP => Answer::Lookup { tiers: fields.list("tiers", 1, Fields::tier)? },
            kind::GET => Answer::Get { blocks: fields.list("blocks", 1, Fields::got)? },
            kind::BLOCKS => Answer::Blocks { results: fields.list("results", 1, Fields::result)? },
            kind::COUNT => Answer::Count { blocks: fields.u64()? },
            kind::STATS => {
                let lines = fields.list_up_to("stats", STATS_MAX, 12, |fields| {
                    Ok((fields.text("a counter's name", TEXT_BYTES_MAX)?, fields.u64()?))
                })?;
                Answer::Stats { lines }
            }
            kind::LIST => Answer::List {
                next: fields.u64()?,
                blocks: fields.list("blocks", 62, Fields::listed)?,
            },
            kind::SWEPT => {
                Answer::Swept { seen: fields.u64()?, dropped: fields.u64()?, next: fields.u64()? }
            }
            kind::DRAIN => Answer::Draining,
            kind::REFUSED => Answer::Refused {
                fault: fields.fault()?,
                text: fields.text("an error's text", TEXT_BYTES_MAX)?,
            },
            other => return Err(KvError::Kind(other)),
        };
        fields.end(message)
    }
}

/// What is left of a payload.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn slice(&mut self, length: usize) -> Result<&'a [u8], KvError> {
        let (field, rest) = self.0.split_at_checked(length).ok_or(KvError::Torn)?;
        self.0 = rest;
        Ok(field)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], KvError> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(KvError::Torn)?;
        self.0 = rest;
        Ok(*field)
    }

    fn byte(&mut self) -> Result<u8, KvError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    fn u32(&mut self) -> Result<u32, KvError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, KvError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn flag(&mut self) -> Result<bool, KvError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(KvError::Value("a flag")),
        }
    }

    fn option<T>(
        &mut self,
        take: fn(&mut Self) -> Result<T, KvError>,
    ) -> Result<Option<T>, KvError> {
        if self.flag()? { take(self).map(Some) } else { Ok(None) }
    }

    fn bytes(&mut self, what: &'static str, max: usize) -> Result<&'a [u8], KvError> {
        let length = self.u32()? as usize;
        if length > max {
            return Err(KvError::Limit(what));
        }
        self.slice(length)
    }

    fn text(&mut self, what: &'static str, max: usize) -> Result<String, KvError> {
        let bytes = self.bytes(what, max)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| KvError::Value(what))
    }

    fn list<T>(
        &mut self,
        what: &'static str,
        item_bytes_min: usize,
        take: fn(&mut Self) -> Result<T, KvError>,
    ) -> Result<Vec<T>, KvError> {
        self.list_up_to(what, BATCH_MAX, item_bytes_min, take)
    }

    /// A list whose count is not believed before that many of the shortest items could be there.
    fn list_up_to<T>(
        &mut self,
        what: &'static str,
        max: usize,
        item_bytes_min: usize,
        take: fn(&mut Self) -> Result<T, KvError>,
    ) -> Result<Vec<T>, KvError> {
        let count = self.u32()? as usize;
        if count > max {
            return Err(KvError::Limit(what));
        }
        if count * item_bytes_min > self.0.len() {
            return Err(KvError::Torn);
        }
        (0..count).map(|_| take(self)).collect()
    }

    fn names(&mut self) -> Result<Vec<Name>, KvError> {
        let count = self.u32()? as usize;
        if count > BATCH_MAX {
            return Err(KvError::Limit("names"));
        }
        let (names, _) = self.slice(count * size_of::<Name>())?.as_chunks();
        Ok(names.to_vec())
    }

    fn place(&mut self) -> Result<Place, KvError> {
        Ok((self.array()?, self.array()?))
    }

    fn tier(&mut self) -> Result<Tier, KvError> {
        Tier::from_number(self.byte()?).ok_or(KvError::Value("a tier"))
    }

    fn fault(&mut self) -> Result<Fault, KvError> {
        Fault::from_number(self.byte()?).ok_or(KvError::Value("a fault"))
    }

    fn result(&mut self) -> Result<Result<bool, Fault>, KvError> {
        match self.byte()? {
            0 => Ok(Ok(false)),
            1 => Ok(Ok(true)),
            number => {
                Fault::from_number(number - 1).map(Err).ok_or(KvError::Value("a block's result"))
            }
        }
    }

    fn got(&mut self) -> Result<Got, KvError> {
        match self.byte()? {
            got::MISSING => Ok(Got::Missing),
            got::LEASED => {
                Ok(Got::Leased { lease: self.u64()?, offset: self.u64()?, len: self.u64()? })
            }
            got::FAILED => Ok(Got::Failed(self.fault()?)),
            _ => Err(KvError::Value("what was got")),
        }
    }

    fn staged(&mut self) -> Result<Staged, KvError> {
        Ok(Staged {
            name: self.array()?,
            parent: self.option(Fields::array)?,
            offset: self.u64()?,
            len: self.u64()?,
            label: self.bytes("a label", LABEL_BYTES_MAX)?.to_vec(),
        })
    }

    fn listed(&mut self) -> Result<Listed, KvError> {
        Ok(Listed {
            place: self.place()?,
            tier: self.tier()?,
            pinned: self.flag()?,
            len: self.u64()?,
            label: self.bytes("a label", LABEL_BYTES_MAX)?.to_vec(),
        })
    }

    fn end<M>(self, message: M) -> Result<M, KvError> {
        if self.0.is_empty() { Ok(message) } else { Err(KvError::Trailing) }
    }
}

#[cfg(test)]
mod tests;
