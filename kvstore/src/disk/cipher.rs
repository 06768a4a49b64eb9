//! Encryption at rest: the key of the disk, what is derived from it, and how a few bytes are closed with
//! it. Bytes in, bytes out; `docs/disk.md` says what is closed with what.
//!
//! **No nonce is used twice with a key.** AES-256-GCM is lost when it is. So each record, and each row of
//! the index, has a key of its own: BLAKE3 of a salt of 32 bytes, keyed with a key of the disk. The salt
//! stands beside what it is for. A record's salt is random and is drawn anew each time that a record is
//! written, also when a copy or a second attempt has the same value; of 2^64 records two have the same
//! salt with a chance of 2^-129. Within a record the nonce is the number of the part: value parts count
//! from 0, the page has [`PAGE_PART`], and each is closed once. A row's salt is BLAKE3 of the row, keyed:
//! rows with the same salt are the same row, and closing that twice gives the same bytes.

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};

use super::record::Secret;

/// Bytes of a key, and of a salt.
const KEY_BYTES: usize = 32;
/// Bytes that prove that a part is as it was.
pub const TAG_BYTES: usize = 16;
/// The number of the part that is a record's page: no value has as many.
pub const PAGE_PART: u32 = u32::MAX;

/// What makes a record's key another than all others.
pub type Salt = [u8; KEY_BYTES];
/// Proof that a part is as it was.
pub type PartTag = [u8; TAG_BYTES];

/// The key of the disk, as `kv.disk_key_file` holds it.
#[derive(Clone, PartialEq, Eq)]
pub struct DiskKey([u8; KEY_BYTES]);

impl DiskKey {
    /// A key of 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<DiskKey> {
        let digits = text.trim_ascii().as_bytes();
        let (pairs, rest) = digits.as_chunks::<2>();
        if pairs.len() != KEY_BYTES || !rest.is_empty() {
            return None;
        }
        let mut key = [0; KEY_BYTES];
        for (byte, &[high, low]) in key.iter_mut().zip(pairs) {
            let digit = |digit: u8| char::from(digit).to_digit(16);
            *byte = (digit(high)? << 4 | digit(low)?) as u8;
        }
        Some(DiskKey(key))
    }

    fn derive(&self, context: &str, of: &[u8]) -> [u8; KEY_BYTES] {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(&self.0).update(of);
        *hasher.finalize().as_bytes()
    }

    /// What a device with this secret keeps, to tell the right key from a wrong one.
    pub fn check(&self, secret: &Secret) -> [u8; KEY_BYTES] {
        self.derive("cognitora kv disk, check of the key", secret)
    }

    /// What the checksums of a device with this secret are keyed with: who has the device alone cannot
    /// make one.
    pub fn page_secret(&self, secret: &Secret) -> Secret {
        self.derive("cognitora kv disk, checksums of pages", secret)
    }

    /// For records.
    pub fn records(&self) -> Cipher {
        Cipher { key: self.derive("cognitora kv disk, records", &[]) }
    }

    /// For rows of the index.
    pub fn rows(&self) -> Cipher {
        Cipher { key: self.derive("cognitora kv disk, rows of the index", &[]) }
    }
}

impl fmt::Debug for DiskKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("DiskKey")
    }
}

/// Gives a key for each salt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cipher {
    key: [u8; KEY_BYTES],
}

impl Cipher {
    /// The key of what has this salt.
    pub fn with(&self, salt: &Salt) -> PartKey {
        let key = blake3::keyed_hash(&self.key, salt);
        // 32 bytes are what the algorithm takes.
        PartKey { key: UnboundKey::new(&AES_256_GCM, key.as_bytes()).map(LessSafeKey::new).ok() }
    }

    /// A name for these 48 bytes that says nothing of them.
    pub fn name_of(&self, bytes: &[u8; 48]) -> [u8; 48] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(b"the name of a row of the index: ").update(bytes);
        let mut name = [0; 48];
        hasher.finalize_xof().fill(&mut name);
        name
    }

    /// A salt that only the same bytes have.
    pub fn salt_of(&self, bytes: &[u8]) -> Salt {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        // With words before it: no salt or name is the key of anything, and it says what it is.
        hasher.update(b"the salt of a row of the index, made of the row: ").update(bytes);
        *hasher.finalize().as_bytes()
    }
}

impl fmt::Debug for Cipher {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Cipher")
    }
}

/// The key of one record or row. Each part is closed with it once.
pub struct PartKey {
    key: Option<LessSafeKey>,
}

fn nonce(part: u32) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&part.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

impl PartKey {
    /// Encrypts a part where it lies. None if it is too long for the algorithm: 64 GiB.
    pub fn close(&self, part: u32, clear: &[u8], bytes: &mut [u8]) -> Option<PartTag> {
        let key = self.key.as_ref()?;
        let tag = key.seal_in_place_separate_tag(nonce(part), Aad::from(clear), bytes).ok()?;
        tag.as_ref().try_into().ok()
    }

    /// Decrypts a part where it lies, if it and what is `clear` beside it are as they were.
    pub fn open(&self, part: u32, clear: &[u8], bytes: &mut [u8], tag: &PartTag) -> Option<()> {
        let (key, clear) = (self.key.as_ref()?, Aad::from(clear));
        let tag = Tag::from(*tag);
        key.open_in_place_separate_tag(nonce(part), clear, tag, bytes, 0..).ok().map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";

    #[test]
    fn a_key_is_64_digits_and_shown_to_nobody() {
        let key = DiskKey::parse(&format!("{HEX}\n")).unwrap();
        assert_eq!(key.0, std::array::from_fn(|at| at as u8));
        assert_eq!(format!("{key:?} {:?}", key.records()), "DiskKey Cipher");
        for bad in
            ["", &HEX[1..], &format!("{HEX}00"), &HEX.replace('a', "g"), &HEX.replace("0a", "+a")]
        {
            assert_eq!(DiskKey::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_derived_differs_and_follows_from_the_key() {
        let (key, secret) = (DiskKey::parse(HEX).unwrap(), [7; 32]);
        let all = [key.check(&secret), key.page_secret(&secret), key.records().key, key.rows().key];
        assert!((1..4).all(|at| !all[..at].contains(&all[at])));
        assert_ne!(key.check(&[8; 32]), all[0]);
        assert_eq!(DiskKey::parse(HEX).unwrap().check(&secret), all[0]);
    }

    #[test]
    fn a_part_opens_in_its_place_with_its_key_only() {
        let cipher = DiskKey::parse(HEX).unwrap().records();
        let mut bytes = *b"a value of some bytes";
        let tag = cipher.with(&[1; 32]).close(3, b"clear", &mut bytes).unwrap();
        assert_ne!(&bytes, b"a value of some bytes");
        let opens = |salt: u8, part, clear: &[u8], tag: &PartTag| {
            let mut bytes = bytes;
            let is_open = cipher.with(&[salt; 32]).open(part, clear, &mut bytes, tag).is_some();
            assert_eq!(is_open, &bytes == b"a value of some bytes");
            is_open
        };
        assert!(opens(1, 3, b"clear", &tag));
        assert!(!opens(2, 3, b"clear", &tag) && !opens(1, 4, b"clear", &tag));
        assert!(!opens(1, 3, b"Clear", &tag) && !opens(1, 3, b"clear", &[0; 16]));
    }
}
