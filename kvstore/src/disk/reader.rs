//! Reading a block: straight into its memory, and verified before anybody gets it.
//!
//! The record's page is read beside the value, both at once: the page proves that the bytes are those
//! of the key, the page's BLAKE3 of the value that they are as they were written.

use std::cell::RefCell;

use futures_lite::future;

use super::device::{Buffer, Device, Pages};
use super::place::Place;
use super::record::{About, Body, PAGE_BYTES, Record};
use super::tier::count;
use super::writer::Shelf;
use super::{DiskError, envelope};
use crate::key::Key;

/// What one read came to.
struct Read {
    buffer: Buffer,
    record: Option<Record>,
    hash: [u8; 32],
}

/// Reads the value at `place` into `into`, which has room for its pages and no more. What fails is
/// forgotten: it is not asked for twice.
///
/// # Errors
/// [`DiskError::Gone`] when the segment is in another use by now, [`DiskError::Corrupt`] when the bytes
/// are not those of the key, [`DiskError::Io`].
pub async fn read<D: Device>(
    shelf: &Shelf<D>,
    key: Key,
    place: &Place,
    into: Buffer,
) -> Result<(About, Buffer), DiskError> {
    let read = fetch(shelf, place, into).await;
    let counters = &shelf.tier.counters;
    let read = match read {
        Ok(read) => read,
        Err(error) => {
            if matches!(error, DiskError::Io(_)) {
                count(&counters.read_errors, 1);
                shelf.tier.forget(key, place);
            }
            return Err(error);
        }
    };
    match verified(&read, key, place) {
        Some(about) => {
            shelf.tier.ledger.touch(place);
            count(&counters.reads, 1);
            count(&counters.read_bytes, place.len);
            Ok((about, read.buffer))
        }
        // It was overwritten while it was read: no fault of the device's.
        None if !shelf.tier.ledger.is_there(place) => Err(DiskError::Gone),
        None => {
            count(&counters.corruptions, 1);
            tracing::warn!(%key, ?place, "a block on disk is not what was written; it is dropped");
            shelf.tier.forget(key, place);
            Err(DiskError::Corrupt)
        }
    }
}

async fn fetch<D: Device>(
    shelf: &Shelf<D>,
    place: &Place,
    into: Buffer,
) -> Result<Read, DiskError> {
    if !shelf.tier.ledger.is_there(place) {
        return Err(DiskError::Gone);
    }
    let (device, offset) = shelf.locate(place).ok_or(DiskError::Gone)?;
    let layout = shelf.tier.layouts.get(usize::from(place.segment.device));
    let seals = layout.ok_or(DiskError::Gone)?.seals;
    let hasher = RefCell::new((blake3::Hasher::new(), place.len as usize));
    let head = device.read_at(offset, Buffer::Pages(Pages::new(1)), |_| {});
    let value = async {
        if place.len == 0 {
            return (Ok(()), into);
        }
        let hash_part = |part: &[u8]| {
            if seals.cipher.is_some() {
                // It is known what it is when its page has come, too.
                return;
            }
            // The rest of the last page is not the value's.
            let (hasher, left) = &mut *hasher.borrow_mut();
            let part = &part[..part.len().min(*left)];
            *left -= part.len();
            hasher.update(part);
        };
        device.read_at(offset + PAGE_BYTES as u64, into, hash_part).await
    };
    let ((head, page), (value, mut buffer)) = future::zip(head, value).await;
    head.and(value)?;
    let opened = page.bytes().first_chunk().and_then(|page| seals.open(page).ok());
    if let Some(cipher) = &seals.cipher {
        // Where it lies: nobody else has this memory yet.
        let len = place.len as usize;
        let bytes = buffer.bytes_mut().filter(|_| len > 0).unwrap_or_default();
        let (record, hash) = match opened {
            None => (None, None),
            Some((record, envelope)) => {
                (Some(record), envelope::open(cipher, &envelope, bytes, len).await)
            }
        };
        let record = record.filter(|_| hash.is_some());
        return Ok(Read { buffer, record, hash: hash.unwrap_or_default() });
    }
    let (hasher, left) = hasher.into_inner();
    // Bytes that never came leave no hash that could be right.
    let record = opened.map(|(record, _)| record).filter(|_| left == 0);
    Ok(Read { buffer, record, hash: *hasher.finalize().as_bytes() })
}

fn verified(read: &Read, key: Key, place: &Place) -> Option<About> {
    let record = read.record.as_ref()?;
    let Body::Value(about) = &record.body else { return None };
    let is_right = record.key == key
        && record.sequence == place.sequence
        && record.version == place.version
        && about.len == place.len
        && blake3::Hash::from_bytes(about.hash) == blake3::Hash::from_bytes(read.hash);
    is_right.then(|| about.clone())
}
