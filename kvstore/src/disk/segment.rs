//! How a device is laid out: two copies of a first page, then segments of equal size.
//!
//! It holds the geometry and the bytes of both kinds of page; `docs/disk.md` draws them. It reads and
//! writes no device.

use super::record::{PAGE_BYTES, Secret, is_sealed, seal, word};
use super::seals::Seals;

const DEVICE_MAGIC: [u8; 8] = *b"CGNKVDEV";
const SEGMENT_MAGIC: [u8; 8] = *b"CGNKVSEG";
const VERSION: u64 = 1;
/// Version of a first page that has a check of a key.
const VERSION_ENCRYPTED: u64 = 2;
/// Key of the first page's checksum: the page holds the secret, so it cannot be sealed with it.
const PUBLIC: Secret = *b"cognitora kv device, first page.";
/// Where the first segment begins: the pages before it are the device's own. A whole MiB, so that
/// segments lie on the boundaries that devices erase by.
pub const FIRST_SEGMENT_BYTES: u64 = 1 << 20;
/// Smallest segment: a test's.
pub const SEGMENT_BYTES_MIN: u64 = 16 * PAGE_BYTES as u64;
/// Segments of a device: 256 TiB of the default size.
pub const SEGMENTS_MAX: u64 = 1 << 20;

/// How a device is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of a segment, its first page included.
    pub segment_bytes: u64,
    /// Close every page but the first.
    pub seals: Seals,
}

/// What the first page of a device says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstFields {
    /// Bytes of a segment, its first page included.
    pub segment_bytes: u64,
    /// What keys of the device are made of.
    pub secret: Secret,
    /// What the key of an encrypted device makes of the secret.
    pub check: Option<[u8; 32]>,
}

/// What a first page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstPage {
    /// Nothing but zeros.
    Blank,
    /// Ours.
    Ours(FirstFields),
    /// Ours, damaged or of another version of the format.
    Damaged,
    /// Somebody else's.
    Foreign,
}

impl Layout {
    /// Number of segments on a device of `bytes` bytes.
    pub fn segments(&self, bytes: u64) -> u32 {
        let count = bytes.saturating_sub(FIRST_SEGMENT_BYTES) / self.segment_bytes.max(1);
        count.min(SEGMENTS_MAX) as u32
    }

    /// Where a segment begins.
    pub fn start(&self, segment: u32) -> u64 {
        FIRST_SEGMENT_BYTES + u64::from(segment) * self.segment_bytes
    }
}

impl FirstFields {
    /// The device's first page.
    pub fn encode(&self) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        page[..8].copy_from_slice(&DEVICE_MAGIC);
        let version = if self.check.is_some() { VERSION_ENCRYPTED } else { VERSION };
        page[8..16].copy_from_slice(&version.to_le_bytes());
        page[16..24].copy_from_slice(&self.segment_bytes.to_le_bytes());
        page[24..56].copy_from_slice(&self.secret);
        page[56..88].copy_from_slice(&self.check.unwrap_or_default());
        seal(&PUBLIC, &mut page);
        page
    }
}

/// Reads a device's first page.
pub fn parse_first(page: &[u8; PAGE_BYTES]) -> FirstPage {
    if page.iter().all(|&byte| byte == 0) {
        return FirstPage::Blank;
    }
    if page[..8] != DEVICE_MAGIC {
        return FirstPage::Foreign;
    }
    let (version, segment_bytes) = (word(&page[8..16]), word(&page[16..24]));
    let is_sound = is_sealed(&PUBLIC, page)
        && (version == VERSION || version == VERSION_ENCRYPTED)
        && segment_bytes >= SEGMENT_BYTES_MIN
        && segment_bytes.is_multiple_of(PAGE_BYTES as u64);
    if !is_sound {
        return FirstPage::Damaged;
    }
    let bytes = |at: usize| page[at..at + 32].try_into().unwrap_or_default();
    let check = (version == VERSION_ENCRYPTED).then(|| bytes(56));
    FirstPage::Ours(FirstFields { segment_bytes, secret: bytes(24), check })
}

/// The first page of a segment: which use of it this is.
pub fn encode_head(secret: &Secret, segment: u32, sequence: u64) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    page[..8].copy_from_slice(&SEGMENT_MAGIC);
    page[8..16].copy_from_slice(&VERSION.to_le_bytes());
    page[16..24].copy_from_slice(&u64::from(segment).to_le_bytes());
    page[24..32].copy_from_slice(&sequence.to_le_bytes());
    seal(secret, &mut page);
    page
}

/// The sequence in the first page of `segment`; none where the segment holds nothing of ours.
pub fn parse_head(secret: &Secret, segment: u32, page: &[u8; PAGE_BYTES]) -> Option<u64> {
    let is_ours = page[..8] == SEGMENT_MAGIC
        && is_sealed(secret, page)
        && word(&page[8..16]) == VERSION
        && word(&page[16..24]) == u64::from(segment);
    is_ours.then(|| word(&page[24..32]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout =
        Layout { segment_bytes: 1 << 20, seals: Seals { secret: [9; 32], cipher: None } };
    const FIRST: FirstFields = FirstFields { segment_bytes: 1 << 20, secret: [9; 32], check: None };

    #[test]
    fn segments_lie_within_the_device_and_beside_each_other() {
        for bytes in [0, 1, 1 << 20, (3 << 20) - 1, 3 << 20, 1 << 40] {
            let count = LAYOUT.segments(bytes);
            assert!(count == 0 || LAYOUT.start(count - 1) + LAYOUT.segment_bytes <= bytes);
            assert!(LAYOUT.start(count) + LAYOUT.segment_bytes > bytes);
        }
    }

    #[test]
    fn first_pages_are_told_apart() {
        let page = FIRST.encode();
        assert_eq!(parse_first(&page), FirstPage::Ours(FIRST));
        let closed = FirstFields { check: Some([3; 32]), ..FIRST };
        assert_eq!(parse_first(&closed.encode()), FirstPage::Ours(closed));
        assert_eq!(parse_first(&[0; PAGE_BYTES]), FirstPage::Blank);
        assert_eq!(parse_first(&[1; PAGE_BYTES]), FirstPage::Foreign);
        let mut flipped = page;
        flipped[30] ^= 1;
        assert_eq!(parse_first(&flipped), FirstPage::Damaged);
        let small = FirstFields { segment_bytes: 4096, ..FIRST };
        assert_eq!(parse_first(&small.encode()), FirstPage::Damaged);
    }

    #[test]
    fn a_head_is_of_its_segment_and_device() {
        let page = encode_head(&[1; 32], 4, 77);
        assert_eq!(parse_head(&[1; 32], 4, &page), Some(77));
        assert_eq!(parse_head(&[1; 32], 5, &page), None);
        assert_eq!(parse_head(&[2; 32], 4, &page), None);
    }
}
