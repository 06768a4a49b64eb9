//! A value that is encrypted: in parts, so that the core is not kept for long, and each with a tag in the
//! record's page.

use futures_lite::future;

use super::cipher::{Cipher, PartTag, Salt};
use super::device::Pages;
use super::writer::HASH_PART_BYTES;

/// Parts of one value: their tags must fit the record's page. Above, parts are larger.
pub const PARTS_MAX: usize = 128;

/// What a value is opened with, beside the key. Without a key it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// Of the record, its page and value.
    pub salt: Salt,
    /// One for each part of the value.
    pub tags: Vec<PartTag>,
}

/// Bytes of the parts of a value that fills so many bytes of pages.
fn part_bytes(bytes: usize) -> usize {
    HASH_PART_BYTES * bytes.div_ceil(HASH_PART_BYTES * PARTS_MAX).max(1)
}

/// Number of tags of a value that fills so many bytes of pages.
pub fn parts(bytes: usize) -> usize {
    bytes.div_ceil(part_bytes(bytes))
}

/// An encrypted copy of whole pages: the value itself may be leased by others, who look at it.
pub async fn close(cipher: &Cipher, salt: Salt, value: &[u8]) -> Option<(Pages, Envelope)> {
    let (key, mut pages) = (cipher.with(&salt), Pages::with_room(value.len()));
    let mut tags = Vec::with_capacity(parts(value.len()));
    for (number, part) in (0..).zip(value.chunks(part_bytes(value.len()))) {
        tags.push(key.close(number, &[], pages.append(part))?);
        future::yield_now().await;
    }
    Some((pages, Envelope { salt, tags }))
}

/// Decrypts the pages of a value of `len` bytes where they lie; its BLAKE3. None if they are not what was
/// closed.
pub async fn open(
    cipher: &Cipher,
    envelope: &Envelope,
    pages: &mut [u8],
    len: usize,
) -> Option<[u8; 32]> {
    if envelope.tags.len() != parts(pages.len()) {
        return None;
    }
    let (key, mut hasher, mut left) = (cipher.with(&envelope.salt), blake3::Hasher::new(), len);
    let size = part_bytes(pages.len());
    for ((number, part), tag) in (0..).zip(pages.chunks_mut(size)).zip(&envelope.tags) {
        key.open(number, &[], part, tag)?;
        let value = &part[..part.len().min(left)];
        left -= value.len();
        hasher.update(value);
        future::yield_now().await;
    }
    Some(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;
    use crate::disk::cipher::DiskKey;

    #[test]
    fn tags_of_any_value_fit_the_page() {
        for bytes in [0, 4096, HASH_PART_BYTES, 80 << 20, 512 << 20, 2 << 30] {
            assert!(parts(bytes) <= PARTS_MAX && parts(bytes) * part_bytes(bytes) >= bytes);
        }
        assert_eq!((parts(0), parts(4096), parts(2 << 20)), (0, 1, 8));
    }

    #[test]
    fn a_value_comes_back_and_any_other_does_not() {
        let cipher = DiskKey::parse(&"5c".repeat(32)).unwrap().records();
        let value: Vec<u8> = (0..600 << 10).map(|at: u32| (at >> 3) as u8 ^ at as u8).collect();
        let len = value.len() - 100;
        let (pages, envelope) = block_on(close(&cipher, [9; 32], &value)).unwrap();
        assert!(pages.bytes().len() == value.len() && envelope.tags.len() == 3);
        assert!(pages.bytes().as_ptr().align_offset(4096) == 0);
        assert!(pages.bytes()[..4096] != value[..4096]);
        let mut opened = pages.bytes().to_vec();
        let hash = block_on(open(&cipher, &envelope, &mut opened, len)).unwrap();
        assert!(opened == value && blake3::hash(&value[..len]) == blake3::Hash::from_bytes(hash));
        for at in [0, 300 << 10, value.len() - 1] {
            let mut other = pages.bytes().to_vec();
            other[at] ^= 1;
            assert_eq!(block_on(open(&cipher, &envelope, &mut other, len)), None);
        }
        let mut short = pages.bytes()[..512 << 10].to_vec();
        assert_eq!(block_on(open(&cipher, &envelope, &mut short, 512 << 10)), None);
    }
}
