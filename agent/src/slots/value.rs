//! What stands in the daemon of a slot's state: a value of ours under each block of its prefix.
//!
//! The last whole block names a [`Manifest`]: how long the state is and under which names its parts lie.
//! A part is named by its own bytes, so parts of two states never mix, whoever writes in between. Each
//! block before it names a [`Pointer`] to the last one, so that a prompt with only the beginning in common
//! finds a state too. Each value has the block before it as its parent, the first part the manifest, and
//! each other part the one before it: the daemon gives a state up from its end.
//!
//! ```text
//!  "CGSL" | version 1 | kind 0 | state 32 | tokens u32                              a pointer
//!  "CGSL" | version 1 | kind 1 | tokens u32 | count u32 | count × (name 32, len u64)  a manifest
//! ```
//!
//! Numbers are little-endian. Other agents wrote these bytes, perhaps of another release: they are parsed,
//! and what is not understood is as good as not there.

use dataplane::kv::{NAME_BYTES, Name};

const MAGIC: [u8; 4] = *b"CGSL";
const VERSION: u8 = 1;
const POINTER: u8 = 0;
const MANIFEST: u8 = 1;
const HEAD_BYTES: usize = 6;
/// Bytes of a part in a manifest.
const PART_BYTES: usize = NAME_BYTES + 8;

/// Most parts of one state.
pub const PARTS_MAX: usize = 1_024;

/// A value under a block's digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Of a block within a prefix.
    Pointer(Pointer),
    /// Of the last whole block of a state.
    Manifest(Manifest),
}

/// Where a state is that begins with this block and those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// The last whole block of that state.
    pub state: Name,
    /// Its tokens.
    pub tokens: u32,
}

/// A state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its tokens, those beyond the last whole block included.
    pub tokens: u32,
    /// The file, cut into pieces: at least one, at most [`PARTS_MAX`].
    pub parts: Vec<Part>,
}

/// A piece of a slot file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// BLAKE3 of its bytes.
    pub name: Name,
    /// How many they are, at least one.
    pub len: u64,
}

impl Manifest {
    /// Bytes of the whole file.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().fold(0, |sum: u64, part| sum.saturating_add(part.len))
    }
}

impl Value {
    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.push(VERSION);
        match self {
            Value::Pointer(Pointer { state, tokens }) => {
                bytes.push(POINTER);
                bytes.extend_from_slice(state);
                bytes.extend_from_slice(&tokens.to_le_bytes());
            }
            Value::Manifest(Manifest { tokens, parts }) => {
                bytes.push(MANIFEST);
                bytes.extend_from_slice(&tokens.to_le_bytes());
                // At most PARTS_MAX: what has more is not made here, and not read there.
                bytes.extend_from_slice(&(parts.len() as u32).to_le_bytes());
                for part in parts {
                    bytes.extend_from_slice(&part.name);
                    bytes.extend_from_slice(&part.len.to_le_bytes());
                }
            }
        }
        bytes
    }

    /// What `bytes` say; none where they are not a value of this version.
    pub fn decode(bytes: &[u8]) -> Option<Value> {
        let (head, fields) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        if head[..4] != MAGIC || head[4] != VERSION {
            return None;
        }
        match head[5] {
            POINTER => {
                let (state, rest) = fields.split_first_chunk::<NAME_BYTES>()?;
                let tokens = u32::from_le_bytes(rest.try_into().ok()?);
                Some(Value::Pointer(Pointer { state: *state, tokens }))
            }
            MANIFEST => {
                let (tokens, rest) = fields.split_first_chunk::<4>()?;
                let (count, rest) = rest.split_first_chunk::<4>()?;
                let count = u32::from_le_bytes(*count) as usize;
                if count == 0 || count > PARTS_MAX || rest.len() != count * PART_BYTES {
                    return None;
                }
                let parts = rest.as_chunks::<PART_BYTES>().0.iter().map(part);
                let parts = parts.collect::<Option<Vec<Part>>>()?;
                Some(Value::Manifest(Manifest { tokens: u32::from_le_bytes(*tokens), parts }))
            }
            _ => None,
        }
    }
}

fn part(bytes: &[u8; PART_BYTES]) -> Option<Part> {
    let (name, len) = bytes.split_first_chunk::<NAME_BYTES>()?;
    let len = u64::from_le_bytes(len.try_into().ok()?);
    (len > 0).then_some(Part { name: *name, len })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = Value> {
        let part = (any::<Name>(), 1u64..).prop_map(|(name, len)| Part { name, len });
        let parts = prop::collection::vec(part, 1..5);
        prop_oneof![
            (any::<Name>(), any::<u32>())
                .prop_map(|(state, tokens)| Value::Pointer(Pointer { state, tokens })),
            (any::<u32>(), parts)
                .prop_map(|(tokens, parts)| Value::Manifest(Manifest { tokens, parts })),
        ]
    }

    proptest! {
        #[test]
        fn a_value_comes_back_and_a_torn_one_does_not(
            value in value(), cut in any::<prop::sample::Index>(),
        ) {
            let bytes = value.encode();
            prop_assert_eq!(Value::decode(&bytes[..cut.index(bytes.len())]), None);
            prop_assert_eq!(Value::decode(&bytes), Some(value));
            prop_assert_eq!(Value::decode(&[bytes, vec![0]].concat()), None);
        }

        #[test]
        fn what_is_understood_has_one_encoding(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            for kind in [POINTER, MANIFEST] {
                let bytes = [&MAGIC[..], &[VERSION, kind], &bytes].concat();
                if let Some(value) = Value::decode(&bytes) {
                    prop_assert_eq!(value.encode(), bytes);
                }
            }
        }
    }

    #[test]
    fn a_state_has_parts_of_some_bytes_and_not_too_many() {
        let part = Part { name: [1; 32], len: 5 };
        let of = |parts| Value::Manifest(Manifest { tokens: 1, parts });
        assert_eq!(Value::decode(&of(vec![]).encode()), None);
        assert_eq!(Value::decode(&of(vec![Part { len: 0, ..part }]).encode()), None);
        assert_eq!(Value::decode(&of(vec![part; PARTS_MAX + 1]).encode()), None);
        let whole = of(vec![part; PARTS_MAX]);
        assert_eq!(Value::decode(&whole.encode()), Some(whole));
        let huge = Manifest { tokens: 1, parts: vec![Part { len: u64::MAX, ..part }; 2] };
        assert_eq!(huge.bytes(), u64::MAX);
    }
}
