//! A record: the page that stands before each value in a segment, and says what the value is.
//!
//! Bytes in, fields out; `docs/disk.md` draws them. The page is sealed with the device's secret, so
//! that a value which looks like a record is not taken for one, nor a page of another device.

use crate::block::LABEL_BYTES_MAX;
use crate::key::{Key, Name, NamespaceId};
use crate::namespace::NAME_BYTES_MAX;

/// Bytes of a page: records begin at one, values fill whole ones. `O_DIRECT` asks for no more.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of the checksum at the end of each page of ours.
const SEAL_BYTES: usize = 32;
/// Where that checksum is.
pub const SEAL_AT: usize = PAGE_BYTES - SEAL_BYTES;
const MAGIC: [u8; 8] = *b"CGNKVREC";
/// Format of a page in clear.
pub const FORMAT: u16 = 1;
/// Format of a page that is encrypted.
pub const FORMAT_ENCRYPTED: u16 = 2;
const VALUE: u8 = 1;
const TOMBSTONE: u8 = 2;
/// Bit 0: there is a parent. The other bits mean nothing, and are refused.
const HAS_PARENT: u8 = 1;
const LABEL_AT: usize = 184;
/// No field lies behind this one.
pub const FIELDS_END: usize = LABEL_AT + LABEL_BYTES_MAX + NAME_BYTES_MAX;

const _: () = assert!(FIELDS_END <= SEAL_AT);

/// Proof that this device wrote a page: the key of the checksum.
pub type Secret = [u8; 32];

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Sequence of the segment it was written to: what an older use of the place left is told by it.
    pub sequence: u64,
    /// Which of several values of the same key is the last. A copy keeps the number of what it was made of.
    pub version: u64,
    /// The block's name.
    pub key: Key,
    /// What it is.
    pub body: Body,
}

/// What a record holds for its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// No value: those up to the record's version are gone.
    Tombstone,
    /// A value, in the pages after this one.
    Value(About),
}

/// What is known of a value without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Bytes of the value.
    pub len: u64,
    /// BLAKE3 of the value.
    pub hash: [u8; 32],
    /// The block before it in its prefix.
    pub parent: Option<Key>,
    /// Name of its namespace.
    pub namespace: Box<str>,
    /// What the client calls it.
    pub label: Box<[u8]>,
}

/// Why a page is not a record of this segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The page is something else, or damaged.
    #[error("the page is no sealed record")]
    NotSealed,
    /// It was sealed by a daemon that writes another format.
    #[error("the record has format {0}")]
    Version(u16),
    /// It is sealed and makes no sense.
    #[error("the record's fields contradict each other")]
    Malformed,
    /// A label or a namespace's name is longer than a record takes.
    #[error("the label or the name of the namespace is too long for a record")]
    TooLong,
}

impl Record {
    /// Bytes it takes on disk, its value's pages included.
    pub fn span_bytes(&self) -> u64 {
        match &self.body {
            Body::Tombstone => PAGE_BYTES as u64,
            Body::Value(about) => span_bytes(about.len),
        }
    }

    /// Writes the record's page, with its checksum.
    ///
    /// # Errors
    /// [`RecordError::TooLong`].
    pub fn encode(&self, secret: &Secret, page: &mut [u8; PAGE_BYTES]) -> Result<(), RecordError> {
        self.put(page)?;
        seal(secret, page);
        Ok(())
    }

    /// Writes the fields of the record's page.
    ///
    /// # Errors
    /// [`RecordError::TooLong`].
    pub fn put(&self, page: &mut [u8; PAGE_BYTES]) -> Result<(), RecordError> {
        page.fill(0);
        page[..8].copy_from_slice(&MAGIC);
        page[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        page[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        page[24..32].copy_from_slice(&self.version.to_le_bytes());
        put_key(&mut page[32..80], &self.key);
        page[10] = TOMBSTONE;
        if let Body::Value(about) = &self.body {
            let (label, name) = (about.label.len(), about.namespace.len());
            if label > LABEL_BYTES_MAX || name > NAME_BYTES_MAX {
                return Err(RecordError::TooLong);
            }
            page[10] = VALUE;
            page[12..14].copy_from_slice(&(label as u16).to_le_bytes());
            page[14..16].copy_from_slice(&(name as u16).to_le_bytes());
            if let Some(parent) = &about.parent {
                page[11] = HAS_PARENT;
                put_key(&mut page[80..128], parent);
            }
            page[128..136].copy_from_slice(&about.len.to_le_bytes());
            page[136..168].copy_from_slice(&about.hash);
            page[LABEL_AT..LABEL_AT + label].copy_from_slice(&about.label);
            page[LABEL_AT + label..LABEL_AT + label + name]
                .copy_from_slice(about.namespace.as_bytes());
        }
        Ok(())
    }

    /// Reads a record's page, whose checksum must be right.
    ///
    /// # Errors
    /// All but [`RecordError::TooLong`].
    pub fn parse(secret: &Secret, page: &[u8; PAGE_BYTES]) -> Result<Record, RecordError> {
        if !is_sealed(secret, page) {
            return Err(RecordError::NotSealed);
        }
        Record::get(page)
    }

    /// Reads the fields of a record's page, which somebody else has found to be as it was.
    ///
    /// # Errors
    /// All but [`RecordError::TooLong`].
    pub fn get(page: &[u8; PAGE_BYTES]) -> Result<Record, RecordError> {
        if page[..8] != MAGIC {
            return Err(RecordError::NotSealed);
        }
        let format = u16::from_le_bytes([page[8], page[9]]);
        if format != FORMAT {
            return Err(RecordError::Version(format));
        }
        let body = match page[10] {
            TOMBSTONE => Body::Tombstone,
            VALUE => Body::Value(parse_about(page).ok_or(RecordError::Malformed)?),
            _ => return Err(RecordError::Malformed),
        };
        Ok(Record {
            sequence: word(&page[16..24]),
            version: word(&page[24..32]),
            key: key(&page[32..80]),
            body,
        })
    }
}

/// Bytes a value of `len` bytes takes on disk, with its record. More than any device has when `len` is
/// more than any value's.
pub fn span_bytes(len: u64) -> u64 {
    let page = PAGE_BYTES as u64;
    len.div_ceil(page).saturating_add(1).saturating_mul(page)
}

/// Ends a page of ours with its checksum.
pub fn seal(secret: &Secret, page: &mut [u8; PAGE_BYTES]) {
    let seal = blake3::keyed_hash(secret, &page[..SEAL_AT]);
    page[SEAL_AT..].copy_from_slice(seal.as_bytes());
}

/// Whether the page was sealed with `secret` and is as it was.
pub fn is_sealed(secret: &Secret, page: &[u8; PAGE_BYTES]) -> bool {
    // The comparison of two hashes takes the same time for all.
    let found: [u8; SEAL_BYTES] = page[SEAL_AT..].try_into().unwrap_or([0; SEAL_BYTES]);
    blake3::keyed_hash(secret, &page[..SEAL_AT]) == blake3::Hash::from_bytes(found)
}

/// Eight bytes as a number.
pub fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().unwrap_or_default())
}

/// A key as 48 bytes.
pub fn put_key(bytes: &mut [u8], key: &Key) {
    bytes[..16].copy_from_slice(&key.namespace.0);
    bytes[16..48].copy_from_slice(&key.name.0);
}

/// A key from 48 bytes.
pub fn key(bytes: &[u8]) -> Key {
    let (namespace, name) = bytes.split_at(16);
    Key::new(
        NamespaceId(namespace.try_into().unwrap_or_default()),
        Name(name.try_into().unwrap_or_default()),
    )
}

fn parse_about(page: &[u8; PAGE_BYTES]) -> Option<About> {
    let label = u16::from_le_bytes([page[12], page[13]]) as usize;
    let name = u16::from_le_bytes([page[14], page[15]]) as usize;
    if label > LABEL_BYTES_MAX || name > NAME_BYTES_MAX || page[11] & !HAS_PARENT != 0 {
        return None;
    }
    let text = &page[LABEL_AT..LABEL_AT + label + name];
    Some(About {
        len: word(&page[128..136]),
        hash: page[136..168].try_into().ok()?,
        parent: (page[11] == HAS_PARENT).then(|| key(&page[80..128])),
        namespace: std::str::from_utf8(&text[label..]).ok()?.into(),
        label: text[..label].into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: Secret = [7; 32];

    fn keys() -> impl Strategy<Value = Key> {
        any::<([u8; 16], [u8; 32])>().prop_map(|(id, name)| Key::new(NamespaceId(id), Name(name)))
    }

    fn records() -> impl Strategy<Value = Record> {
        let about = (
            any::<u64>(),
            any::<[u8; 32]>(),
            proptest::option::of(keys()),
            "[a-zü]{0,64}",
            proptest::collection::vec(any::<u8>(), 0..=LABEL_BYTES_MAX),
        )
            .prop_map(|(len, hash, parent, namespace, label)| About {
                len,
                hash,
                parent,
                namespace: namespace.into(),
                label: label.into(),
            });
        let body = prop_oneof![Just(Body::Tombstone), about.prop_map(Body::Value)];
        (any::<u64>(), any::<u64>(), keys(), body)
            .prop_map(|(sequence, version, key, body)| Record { sequence, version, key, body })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_a_flipped_bit_is_seen(
            record in records(), bit in 0..PAGE_BYTES * 8,
        ) {
            let mut page = [0; PAGE_BYTES];
            record.encode(&SECRET, &mut page).unwrap();
            prop_assert_eq!(Record::parse(&SECRET, &page), Ok(record));
            page[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Record::parse(&SECRET, &page), Err(RecordError::NotSealed));
        }

        #[test]
        fn sealed_nonsense_is_an_error_or_can_be_written_again(
            head in proptest::collection::vec(any::<u8>(), 176),
        ) {
            let mut page = [0; PAGE_BYTES];
            page[..8].copy_from_slice(&MAGIC);
            page[8..10].copy_from_slice(&FORMAT.to_le_bytes());
            page[10..12].copy_from_slice(&[head[0] % 4, head[1] % 4]);
            page[12..176].copy_from_slice(&head[12..]);
            seal(&SECRET, &mut page);
            if let Ok(record) = Record::parse(&SECRET, &page) {
                prop_assert!(record.encode(&SECRET, &mut page).is_ok());
            }
        }
    }

    #[test]
    fn a_page_of_another_device_is_no_record() {
        let key = Key::new(NamespaceId([1; 16]), Name([2; 32]));
        let record = Record { sequence: 1, version: 1, key, body: Body::Tombstone };
        let mut page = [0; PAGE_BYTES];
        record.encode(&SECRET, &mut page).unwrap();
        assert_eq!(Record::parse(&[8; 32], &page), Err(RecordError::NotSealed));
    }

    #[test]
    fn a_span_does_not_overflow() {
        assert_eq!(span_bytes(0), 4096);
        assert_eq!(span_bytes(4097), 3 * 4096);
        assert!(span_bytes(u64::MAX) > 1 << 60);
    }
}
