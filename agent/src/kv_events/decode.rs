//! vLLM's and SGLang's event batches, in both encodings: `[ts, events, rank]` in msgpack, an event being
//! a map with a `type` or a tagged array.
//!
//! Fields that are missing have their default, fields that are not known are passed over, and an event
//! that cannot be read costs itself, not its batch. What a field means over the years of both engines
//! is decided here; what an event means for what is held is not.

use super::event::{Attention, Batch, EngineHash, Event, Extra, Medium, Stored, medium};
use super::msgpack::{MsgpackError, Reader, Value};

/// Largest payload that is read. A step of an engine that stores 100,000 blocks of 16 tokens takes 8 MiB.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;
/// Most events in a batch.
pub const EVENTS_MAX: usize = 1 << 16;
/// Most blocks in an event.
pub const HASHES_MAX: usize = 1 << 16;
/// Most tokens in an event.
pub const TOKENS_MAX: usize = 1 << 21;
/// Most keys of one block beside its tokens; each image of a prompt takes one.
const EXTRA_KEYS_MAX: usize = 1024;
/// Longest name of an adapter, and longest salt.
const TEXT_BYTES_MAX: usize = 1024;

/// One payload.
///
/// # Errors
/// When the batch around the events cannot be read; all that it said is lost.
pub fn batch(payload: &[u8]) -> Result<Batch, MsgpackError> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(MsgpackError::Limit);
    }
    let mut reader = Reader::new(payload);
    let fields = reader.array_head()?;
    if fields < 2 {
        return Err(MsgpackError::Type);
    }
    reader.skip()?;
    let events = reader.array_head()?;
    if events > EVENTS_MAX {
        return Err(MsgpackError::Limit);
    }
    let mut batch = Batch { events: Vec::with_capacity(events), ..Batch::default() };
    for _ in 0..events {
        let begin = reader;
        match event(&mut reader) {
            Ok(Read::Event(event)) => batch.events.push(event),
            Ok(Read::Nothing) => {}
            Ok(Read::Unknown) => batch.unknown += 1,
            Err(_) => {
                batch.malformed += 1;
                reader = begin;
                reader.skip()?;
            }
        }
    }
    if fields > 2 {
        match reader.value()? {
            Value::Unsigned(rank) => batch.rank = u32::try_from(rank).ok(),
            other => reader.skip_inside(other)?,
        }
    }
    Ok(batch)
}

enum Read {
    Event(Event),
    /// It names no block.
    Nothing,
    Unknown,
}

fn event(reader: &mut Reader<'_>) -> Result<Read, MsgpackError> {
    let mut fields = Fields::default();
    let kind = match reader.value()? {
        Value::Map(pairs) => fields.of_map(reader, pairs)?,
        Value::Array(length) => fields.of_array(reader, length)?,
        _ => return Err(MsgpackError::Type),
    };
    match kind {
        Kind::Unknown => Ok(Read::Unknown),
        Kind::Cleared => Ok(Read::Event(Event::Cleared)),
        Kind::Stored | Kind::Removed if fields.hashes.is_empty() => Ok(Read::Nothing),
        Kind::Stored => Ok(Read::Event(Event::Stored(fields.stored()))),
        Kind::Removed => Ok(Read::Event(Event::Removed {
            medium: fields.place(),
            hashes: fields.hashes,
            group: fields.group,
        })),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stored,
    Removed,
    Cleared,
    Unknown,
}

fn kind(tag: Value<'_>) -> Result<Kind, MsgpackError> {
    match tag {
        Value::Text(b"BlockStored") => Ok(Kind::Stored),
        Value::Text(b"BlockRemoved") => Ok(Kind::Removed),
        Value::Text(b"AllBlocksCleared") => Ok(Kind::Cleared),
        Value::Text(_) => Ok(Kind::Unknown),
        _ => Err(MsgpackError::Type),
    }
}

/// What an event's fields said, in either encoding.
#[derive(Default)]
struct Fields {
    hashes: Vec<EngineHash>,
    parent: Option<EngineHash>,
    tokens: Vec<u32>,
    /// Token ids are pairs or do not fit 32 bits: they name no block of ours.
    are_tokens_opaque: bool,
    block_tokens: u32,
    has_lora_id: bool,
    lora_name: String,
    medium: Option<Medium>,
    /// Neither on this node nor known to be elsewhere.
    locality: Option<Medium>,
    salt: String,
    extra: Vec<ExtraKeys>,
    group: Option<u32>,
    attention: Attention,
    has_window: bool,
}

/// The keys of one block, before it is known which of the texts is the adapter's name.
#[derive(Default)]
struct ExtraKeys {
    texts: Vec<String>,
    is_opaque: bool,
}

impl Fields {
    fn of_map(&mut self, reader: &mut Reader<'_>, pairs: usize) -> Result<Kind, MsgpackError> {
        let mut found = None;
        for _ in 0..pairs {
            let Value::Text(key) = reader.value()? else { return Err(MsgpackError::Type) };
            match key {
                b"type" => found = Some(kind(reader.value()?)?),
                b"block_hashes" => self.hashes = hashes(reader)?,
                b"parent_block_hash" => self.parent = optional_hash(reader)?,
                b"token_ids" => self.read_tokens(reader)?,
                b"block_size" => self.block_tokens = or_zero(reader)?,
                b"lora_id" => self.has_lora_id = or_zero(reader)? > 0,
                b"medium" => self.medium = optional_text(reader)?.map(|word| medium(Some(&word))),
                b"lora_name" => self.lora_name = optional_text(reader)?.unwrap_or_default(),
                b"extra_keys" => self.read_extra_keys(reader)?,
                b"block_mm_infos" => self.read_extra_keys(reader)?,
                b"group_idx" => self.group = optional_number(reader)?,
                b"kv_cache_spec_kind" => self.attention = attention(optional_text(reader)?),
                b"kv_cache_spec_sliding_window" => {
                    self.has_window = optional_number(reader)?.is_some();
                }
                b"locality" => self.locality = locality(optional_text(reader)?),
                b"cache_salt" => self.salt = optional_text(reader)?.unwrap_or_default(),
                _ => reader.skip()?,
            }
        }
        found.ok_or(MsgpackError::Type)
    }

    fn of_array(&mut self, reader: &mut Reader<'_>, length: usize) -> Result<Kind, MsgpackError> {
        if length == 0 {
            return Err(MsgpackError::Type);
        }
        let kind = kind(reader.value()?)?;
        // Fields of a tail that some writers put before the others' are counted out.
        let mut inserted = 0;
        for index in 1..length {
            match (kind, index) {
                (Kind::Stored | Kind::Removed, 1) => self.hashes = hashes(reader)?,
                (Kind::Stored, 2) => self.parent = optional_hash(reader)?,
                (Kind::Stored, 3) => self.read_tokens(reader)?,
                (Kind::Stored, 4) => self.block_tokens = or_zero(reader)?,
                (Kind::Stored, 5) => self.has_lora_id = or_zero(reader)? > 0,
                (Kind::Stored, 6) | (Kind::Removed, 2) => {
                    self.medium = optional_text(reader)?.map(|word| medium(Some(&word)));
                }
                (Kind::Stored, _) => self.read_tail(reader, index, &mut inserted)?,
                (Kind::Removed, 3) => self.group = optional_number(reader)?,
                _ => reader.skip()?,
            }
        }
        Ok(kind)
    }

    /// Beyond the sixth field writers differ, so the type has a say in what a field is.
    fn read_tail(
        &mut self,
        reader: &mut Reader<'_>,
        index: usize,
        inserted: &mut usize,
    ) -> Result<(), MsgpackError> {
        let begin = *reader;
        match (reader.value()?, index - *inserted) {
            (Value::Text(name), 7) => self.lora_name = text(name)?,
            (Value::Text(kind), 10) => self.attention = attention(Some(text(kind)?)),
            (Value::Unsigned(group), 9) => self.group = u32::try_from(group).ok(),
            (Value::Unsigned(_), 11) => self.has_window = true,
            (Value::Array(_), at) => {
                *inserted += usize::from(at != 8);
                *reader = begin;
                self.read_extra_keys(reader)?;
            }
            // SGLang's array form ends in a map of what came later.
            (Value::Map(pairs), _) => {
                for _ in 0..pairs {
                    match reader.value()? {
                        Value::Text(b"cache_salt") => {
                            self.salt = optional_text(reader)?.unwrap_or_default();
                        }
                        other => {
                            reader.skip_inside(other)?;
                            reader.skip()?;
                        }
                    }
                }
            }
            (other, _) => reader.skip_inside(other)?,
        }
        Ok(())
    }

    fn read_tokens(&mut self, reader: &mut Reader<'_>) -> Result<(), MsgpackError> {
        let length = match reader.value()? {
            Value::Array(length) if length <= TOKENS_MAX => length,
            Value::Nil => 0,
            Value::Array(_) => return Err(MsgpackError::Limit),
            _ => return Err(MsgpackError::Type),
        };
        self.tokens = Vec::with_capacity(length);
        for _ in 0..length {
            let begin = *reader;
            match reader.unsigned_32() {
                Ok(token) => self.tokens.push(token),
                Err(MsgpackError::Torn) => return Err(MsgpackError::Torn),
                Err(_) => {
                    self.are_tokens_opaque = true;
                    *reader = begin;
                    reader.skip()?;
                }
            }
        }
        Ok(())
    }

    /// An array with one entry for each block: nil, or an array of keys, or what describes images.
    fn read_extra_keys(&mut self, reader: &mut Reader<'_>) -> Result<(), MsgpackError> {
        let blocks = match reader.value()? {
            Value::Nil => return Ok(()),
            Value::Array(blocks) if blocks <= HASHES_MAX => blocks,
            _ => return Err(MsgpackError::Type),
        };
        for block in 0..blocks {
            let value = reader.value()?;
            if value == Value::Nil {
                continue;
            }
            if self.extra.len() <= block {
                self.extra.resize_with(block + 1, ExtraKeys::default);
            }
            let keys = &mut self.extra[block];
            let Value::Array(length) = value else {
                keys.is_opaque = true;
                reader.skip_inside(value)?;
                continue;
            };
            if length > EXTRA_KEYS_MAX {
                return Err(MsgpackError::Limit);
            }
            for _ in 0..length {
                match reader.value()? {
                    Value::Text(key) => keys.texts.push(text(key)?),
                    Value::Nil => {}
                    other => {
                        keys.is_opaque = true;
                        reader.skip_inside(other)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn place(&self) -> Medium {
        match self.locality {
            Some(elsewhere) => elsewhere,
            None => self.medium.unwrap_or(medium(None)),
        }
    }

    fn stored(self) -> Stored {
        let medium = self.place();
        let is_first = self.parent.is_none();
        let mut extra: Vec<Extra> = self
            .extra
            .into_iter()
            .enumerate()
            .map(|(block, keys)| keys.meaning(&self.lora_name, is_first && block == 0))
            .collect();
        if extra.is_empty() {
            extra.push(Extra::None);
        }
        if is_first && !self.salt.is_empty() && extra[0] == Extra::None {
            extra[0] = Extra::Salt(self.salt);
        }
        // An adapter without a name cannot be asked for by name.
        if self.are_tokens_opaque || (self.has_lora_id && self.lora_name.is_empty()) {
            extra[0] = Extra::Opaque;
        }
        let attention = match self.attention {
            Attention::Unsaid if self.has_window => Attention::Partial,
            said => said,
        };
        Stored {
            hashes: self.hashes,
            parent: self.parent,
            tokens: self.tokens,
            block_tokens: self.block_tokens,
            medium,
            adapter: self.lora_name,
            extra,
            group: self.group,
            attention,
        }
    }
}

impl ExtraKeys {
    /// Keys are not tagged: an adapter's name comes first, a salt stands in the first block only.
    fn meaning(self, lora_name: &str, is_first: bool) -> Extra {
        if self.is_opaque {
            return Extra::Opaque;
        }
        let mut texts = self.texts.into_iter().peekable();
        if !lora_name.is_empty() {
            texts.next_if(|text| text == lora_name);
        }
        match (texts.next(), texts.next()) {
            (None, _) => Extra::None,
            (Some(salt), None) if is_first => Extra::Salt(salt),
            _ => Extra::Opaque,
        }
    }
}

fn hashes(reader: &mut Reader<'_>) -> Result<Vec<EngineHash>, MsgpackError> {
    let length = reader.array_head()?;
    if length > HASHES_MAX {
        return Err(MsgpackError::Limit);
    }
    let mut hashes = Vec::with_capacity(length);
    for _ in 0..length {
        hashes.push(hash(reader.value()?)?);
    }
    Ok(hashes)
}

fn hash(value: Value<'_>) -> Result<EngineHash, MsgpackError> {
    match value {
        Value::Unsigned(hash) => Ok(EngineHash(hash.into())),
        Value::Negative(hash) => Ok(EngineHash(hash.cast_unsigned().into())),
        Value::Bytes(bytes) if !bytes.is_empty() => Ok(EngineHash::of_bytes(bytes)),
        _ => Err(MsgpackError::Type),
    }
}

fn optional_hash(reader: &mut Reader<'_>) -> Result<Option<EngineHash>, MsgpackError> {
    match reader.value()? {
        Value::Nil => Ok(None),
        value => hash(value).map(Some),
    }
}

fn optional_number(reader: &mut Reader<'_>) -> Result<Option<u32>, MsgpackError> {
    match reader.value()? {
        Value::Nil => Ok(None),
        Value::Unsigned(number) => u32::try_from(number).map(Some).map_err(|_| MsgpackError::Range),
        _ => Err(MsgpackError::Type),
    }
}

fn or_zero(reader: &mut Reader<'_>) -> Result<u32, MsgpackError> {
    Ok(optional_number(reader)?.unwrap_or(0))
}

fn optional_text(reader: &mut Reader<'_>) -> Result<Option<String>, MsgpackError> {
    match reader.value()? {
        Value::Nil => Ok(None),
        Value::Text(bytes) => text(bytes).map(Some),
        _ => Err(MsgpackError::Type),
    }
}

fn text(bytes: &[u8]) -> Result<String, MsgpackError> {
    if bytes.len() > TEXT_BYTES_MAX {
        return Err(MsgpackError::Limit);
    }
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| MsgpackError::Type)
}

fn attention(kind: Option<String>) -> Attention {
    let Some(kind) = kind.map(|kind| kind.to_ascii_lowercase()) else { return Attention::Unsaid };
    let is_cut = ["sliding", "chunk", "local"].iter().any(|word| kind.contains(word));
    let is_full = kind.contains("full") || kind.contains("mla");
    if is_full && !is_cut { Attention::Full } else { Attention::Partial }
}

fn locality(word: Option<String>) -> Option<Medium> {
    match word?.to_ascii_uppercase().as_str() {
        "LOCAL" => None,
        "REMOTE" => Some(Medium::Remote),
        _ => Some(Medium::Unknown),
    }
}

#[cfg(test)]
mod tests;
