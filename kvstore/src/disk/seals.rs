//! How the pages of one device are closed: with a keyed checksum, and encrypted where there is a key.
//!
//! A record's page stays as `record` makes it where there is none. Else all but its first ten bytes and
//! its end is encrypted, and it says so by its format: a page in clear is none on such a device, for
//! whoever can write to the device could have made it.

use super::cipher::{Cipher, DiskKey, PAGE_PART, PartTag, TAG_BYTES};
use super::envelope::{Envelope, PARTS_MAX, parts};
use super::record::{
    Body, FIELDS_END, FORMAT, FORMAT_ENCRYPTED, PAGE_BYTES, Record, RecordError, SEAL_AT, Secret,
    is_sealed, seal,
};

/// The first byte that is encrypted: what is before tells what the page is.
const CLOSED_AT: usize = 10;
const TAGS_AT: usize = 1536;
const SALT_AT: usize = 4016;
const PAGE_TAG_AT: usize = SALT_AT + 32;

const _: () = assert!(FIELDS_END <= TAGS_AT && TAGS_AT + PARTS_MAX * TAG_BYTES <= SALT_AT);
const _: () = assert!(PAGE_TAG_AT + TAG_BYTES == SEAL_AT);

/// See the head of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seals {
    /// Keys the checksums.
    pub secret: Secret,
    /// Encrypts records.
    pub cipher: Option<Cipher>,
}

impl Seals {
    /// Those of a device with this secret.
    pub fn new(secret: Secret, key: Option<&DiskKey>) -> Seals {
        match key {
            None => Seals { secret, cipher: None },
            Some(key) => Seals { secret: key.page_secret(&secret), cipher: Some(key.records()) },
        }
    }

    /// Writes a record's page. `envelope` is that of its value; of none, it has a salt alone.
    ///
    /// # Errors
    /// [`RecordError::TooLong`].
    pub fn close(
        &self,
        record: &Record,
        envelope: &Envelope,
        page: &mut [u8; PAGE_BYTES],
    ) -> Result<(), RecordError> {
        record.put(page)?;
        if let Some(cipher) = &self.cipher {
            let room = page[TAGS_AT..SALT_AT].as_chunks_mut::<TAG_BYTES>().0;
            for (room, tag) in room.iter_mut().zip(&envelope.tags) {
                *room = *tag;
            }
            page[8..10].copy_from_slice(&FORMAT_ENCRYPTED.to_le_bytes());
            let (clear, rest) = page.split_at_mut(CLOSED_AT);
            let (closed, rest) = rest.split_at_mut(SALT_AT - CLOSED_AT);
            let key = cipher.with(&envelope.salt);
            let tag = key.close(PAGE_PART, clear, closed).ok_or(RecordError::TooLong)?;
            rest[..32].copy_from_slice(&envelope.salt);
            rest[32..32 + TAG_BYTES].copy_from_slice(&tag);
        }
        seal(&self.secret, page);
        Ok(())
    }

    /// Reads a record's page.
    ///
    /// # Errors
    /// All but [`RecordError::TooLong`].
    pub fn open(&self, page: &[u8; PAGE_BYTES]) -> Result<(Record, Envelope), RecordError> {
        if !is_sealed(&self.secret, page) {
            return Err(RecordError::NotSealed);
        }
        let Some(cipher) = &self.cipher else {
            return Ok((Record::get(page)?, Envelope::default()));
        };
        let format = u16::from_le_bytes([page[8], page[9]]);
        if format != FORMAT_ENCRYPTED {
            return Err(RecordError::Version(format));
        }
        let mut page = *page;
        let salt = page[SALT_AT..PAGE_TAG_AT].try_into().unwrap_or_default();
        let tag: PartTag = page[PAGE_TAG_AT..SEAL_AT].try_into().unwrap_or_default();
        let (clear, rest) = page.split_at_mut(CLOSED_AT);
        let closed = &mut rest[..SALT_AT - CLOSED_AT];
        let opened = cipher.with(&salt).open(PAGE_PART, clear, closed, &tag);
        opened.ok_or(RecordError::NotSealed)?;
        page[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        let record = Record::get(&page)?;
        let count = match &record.body {
            Body::Tombstone => 0,
            // A length that no value has takes more tags than there is room for, or fewer than it needs.
            Body::Value(about) => {
                parts(about.len.div_ceil(PAGE_BYTES as u64).saturating_mul(PAGE_BYTES as u64)
                    as usize)
            }
        };
        let tags = page[TAGS_AT..SALT_AT].as_chunks::<TAG_BYTES>().0;
        let tags = tags.get(..count).ok_or(RecordError::Malformed)?.to_vec();
        Ok((record, Envelope { salt, tags }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::record::About;
    use crate::key::{Key, Name, NamespaceId};

    const SECRET: Secret = [7; 32];

    fn record(len: u64) -> Record {
        let key = Key::new(NamespaceId([1; 16]), Name([2; 32]));
        let about = About {
            len,
            hash: [3; 32],
            parent: None,
            namespace: "a name of a namespace".into(),
            label: (*b"a label of a block").into(),
        };
        Record { sequence: 5, version: 6, key, body: Body::Value(about) }
    }

    fn with(key: u8) -> Seals {
        Seals::new(SECRET, DiskKey::parse(&format!("{key:02x}").repeat(32)).as_ref())
    }

    #[test]
    fn an_encrypted_page_shows_nothing_and_opens_with_its_key_only() {
        let envelope = Envelope { salt: [8; 32], tags: vec![[9; 16]; 8] };
        let (record, mut page) = (record(2 << 20), [0; PAGE_BYTES]);
        with(1).close(&record, &envelope, &mut page).unwrap();
        for shown in [&b"a name of"[..], b"a label of", &[2; 32], &[3; 32], &[9; 16]] {
            assert!(!page.windows(shown.len()).any(|window| window == shown));
        }
        assert_eq!(with(1).open(&page), Ok((record, envelope)));
        assert_eq!(with(2).open(&page), Err(RecordError::NotSealed));
        assert_eq!(Seals::new(SECRET, None).open(&page), Err(RecordError::NotSealed));
        for bit in 0..PAGE_BYTES * 8 {
            page[bit / 8] ^= 1 << (bit % 8);
            // The checksum as of one who knows the key: then it is the cipher that says no.
            assert!(with(1).open(&page).is_err());
            let mut forged = page;
            seal(&with(1).secret, &mut forged);
            assert_eq!(with(1).open(&forged).is_ok(), bit >= SEAL_AT * 8, "{bit}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_page_in_clear_is_none_where_there_is_a_key() {
        let mut page = [0; PAGE_BYTES];
        let seals = Seals::new(SECRET, None);
        seals.close(&record(5), &Envelope::default(), &mut page).unwrap();
        assert_eq!(seals.open(&page), Ok((record(5), Envelope::default())));
        seal(&with(1).secret, &mut page);
        assert_eq!(with(1).open(&page), Err(RecordError::Version(FORMAT)));
    }

    #[test]
    fn a_length_that_no_value_has_opens_with_tags_that_fit() {
        for len in [0, 1, u64::MAX, u64::MAX / 2] {
            let mut page = [0; PAGE_BYTES];
            with(1).close(&record(len), &Envelope::default(), &mut page).unwrap();
            assert!(with(1).open(&page).unwrap().1.tags.len() <= PARTS_MAX);
        }
    }
}
