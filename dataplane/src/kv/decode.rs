//! Frames of the native door, read. Every length is checked before it is believed; a payload must end
//! where its fields end. What is read is written again in the same bytes.

use super::encode::{got, kind};
use super::{
    Answer, BATCH_MAX, FORMAT, Fault, Got, LABEL_BYTES_MAX, Listed, NAMESPACE_BYTES_MAX, Name,
    Place, Request, STATS_MAX, Staged, TEXT_BYTES_MAX, Tier,
};
use crate::frame::{Cutter, Fields, FrameError, Take};

/// Cuts a byte stream into frames: a [`Cutter`] of this wire.
#[derive(Debug, Default)]
pub struct Decoder(Cutter);

impl Decoder {
    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.push(bytes);
    }

    /// Bytes held that no frame was made of yet.
    pub fn held_bytes(&self) -> usize {
        self.0.held_bytes()
    }

    /// Id and payload of the next whole frame, or `None` until more bytes come.
    ///
    /// # Errors
    /// As [`Cutter::poll_frame`].
    pub fn poll_frame(&mut self) -> Result<Option<(u64, &[u8])>, FrameError> {
        let Some(frame) = self.0.poll_frame(&FORMAT)? else { return Ok(None) };
        Ok(Some((Fields(frame.head).u64()?, frame.payload)))
    }
}

impl Take for Request {
    fn take(payload: &[u8]) -> Result<Self, FrameError> {
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
            other => return Err(FrameError::Kind(other)),
        };
        fields.end(message)
    }
}

impl Take for Answer {
    fn take(payload: &[u8]) -> Result<Self, FrameError> {
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
            other => return Err(FrameError::Kind(other)),
        };
        fields.end(message)
    }
}

impl<'a> Fields<'a> {
    fn option<T>(
        &mut self,
        take: fn(&mut Self) -> Result<T, FrameError>,
    ) -> Result<Option<T>, FrameError> {
        if self.flag()? { take(self).map(Some) } else { Ok(None) }
    }

    /// A length or count of at most `max`.
    fn length(&mut self, what: &'static str, max: usize) -> Result<usize, FrameError> {
        let length = self.u32()? as usize;
        if length > max { Err(FrameError::Limit(what)) } else { Ok(length) }
    }

    fn bytes(&mut self, what: &'static str, max: usize) -> Result<&'a [u8], FrameError> {
        let length = self.length(what, max)?;
        self.slice(length)
    }

    fn text(&mut self, what: &'static str, max: usize) -> Result<String, FrameError> {
        let length = self.length(what, max)?;
        self.utf8(what, length)
    }

    fn list<T>(
        &mut self,
        what: &'static str,
        item_bytes_min: usize,
        take: fn(&mut Self) -> Result<T, FrameError>,
    ) -> Result<Vec<T>, FrameError> {
        self.list_up_to(what, BATCH_MAX, item_bytes_min, take)
    }

    /// A list whose count is not believed before that many of the shortest items could be there.
    fn list_up_to<T>(
        &mut self,
        what: &'static str,
        max: usize,
        item_bytes_min: usize,
        take: fn(&mut Self) -> Result<T, FrameError>,
    ) -> Result<Vec<T>, FrameError> {
        let count = self.length(what, max)?;
        if count * item_bytes_min > self.0.len() {
            return Err(FrameError::Torn);
        }
        (0..count).map(|_| take(self)).collect()
    }

    fn names(&mut self) -> Result<Vec<Name>, FrameError> {
        let count = self.length("names", BATCH_MAX)?;
        let (names, _) = self.slice(count * size_of::<Name>())?.as_chunks();
        Ok(names.to_vec())
    }

    fn place(&mut self) -> Result<Place, FrameError> {
        Ok((self.array()?, self.array()?))
    }

    fn tier(&mut self) -> Result<Tier, FrameError> {
        Tier::from_number(self.byte()?).ok_or(FrameError::Value("a tier"))
    }

    fn fault(&mut self) -> Result<Fault, FrameError> {
        Fault::from_number(self.byte()?).ok_or(FrameError::Value("a fault"))
    }

    fn result(&mut self) -> Result<Result<bool, Fault>, FrameError> {
        match self.byte()? {
            0 => Ok(Ok(false)),
            1 => Ok(Ok(true)),
            number => {
                Fault::from_number(number - 1).map(Err).ok_or(FrameError::Value("a block's result"))
            }
        }
    }

    fn got(&mut self) -> Result<Got, FrameError> {
        match self.byte()? {
            got::MISSING => Ok(Got::Missing),
            got::LEASED => {
                Ok(Got::Leased { lease: self.u64()?, offset: self.u64()?, len: self.u64()? })
            }
            got::FAILED => Ok(Got::Failed(self.fault()?)),
            _ => Err(FrameError::Value("what was got")),
        }
    }

    fn staged(&mut self) -> Result<Staged, FrameError> {
        Ok(Staged {
            name: self.array()?,
            parent: self.option(Fields::array)?,
            offset: self.u64()?,
            len: self.u64()?,
            label: self.bytes("a label", LABEL_BYTES_MAX)?.to_vec(),
        })
    }

    fn listed(&mut self) -> Result<Listed, FrameError> {
        Ok(Listed {
            place: self.place()?,
            tier: self.tier()?,
            pinned: self.flag()?,
            len: self.u64()?,
            label: self.bytes("a label", LABEL_BYTES_MAX)?.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests;
