//! A shard's worth of disk over fault devices, with an index as the shard's own.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use kvstore::disk::cipher::DiskKey;
use kvstore::disk::device::{Buffer, Pages};
use kvstore::disk::place::Place;
use kvstore::disk::record::{About, PAGE_BYTES};
use kvstore::disk::recovery::Report;
use kvstore::disk::start::start;
use kvstore::disk::tier::Tier;
use kvstore::disk::{Disk, DiskError, Event, Limits, index::IndexThread};
use kvstore::key::{Key, Name, NamespaceId};

use crate::fault_device::FaultDevice;

pub const SEGMENT_BYTES: u64 = 64 << 10;
pub const FIRST_SEGMENT: usize = 1 << 20;

/// Another for each device that is formatted.
fn secret() -> [u8; 32] {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    [NEXT.fetch_add(1, Relaxed); 32]
}

pub fn device(segments: usize, seed: u64) -> FaultDevice {
    FaultDevice::new(FIRST_SEGMENT + segments * SEGMENT_BYTES as usize, seed)
}

/// One of some keys of disks; none: in clear.
pub fn key_of(number: Option<u8>) -> Option<DiskKey> {
    DiskKey::parse(&format!("{:02x}", number?).repeat(32))
}

pub fn key(number: u8) -> Key {
    Key::new(NamespaceId::of("model"), Name([number; 32]))
}

/// The value of a key: its length and bytes follow from `seed`.
pub fn value(seed: u32) -> Vec<u8> {
    let len = (seed as usize).wrapping_mul(7919) % 20_000;
    (0..len).map(|at| (at as u32).wrapping_mul(31).wrapping_add(seed) as u8).collect()
}

pub fn about(value: &[u8]) -> About {
    let (len, label) = (value.len() as u64, (*b"label").into());
    About { len, hash: [0; 32], parent: Some(key(255)), namespace: "model".into(), label }
}

pub fn pages(value: &[u8]) -> Buffer {
    let mut pages = Pages::new(value.len().div_ceil(PAGE_BYTES));
    pages.bytes_mut()[..value.len()].copy_from_slice(value);
    Buffer::Pages(pages)
}

/// The shard's own index, and what it gave up.
#[derive(Default)]
pub struct Known {
    pub places: HashMap<Key, Place>,
    /// Given up to make room, or for an error: they may be gone.
    pub dropped: Vec<Key>,
    moves_refused: Vec<(Key, Place)>,
}

pub struct Shelf {
    pub disk: Disk<FaultDevice>,
    pub known: Rc<RefCell<Known>>,
    pub report: Report,
    pub tier: Arc<Tier>,
    index: IndexThread,
}

impl Shelf {
    /// One that keeps no segment free: a writer that finds none gives up the oldest as it is.
    pub async fn start(
        devices: &[FaultDevice],
        index_dir: &Path,
        disk_key: Option<DiskKey>,
    ) -> Shelf {
        Shelf::keeping_free(0, devices, index_dir, disk_key).await
    }

    /// One that cleans until so many segments are free.
    pub async fn keeping_free(
        free_segments_min: usize,
        devices: &[FaultDevice],
        index_dir: &Path,
        disk_key: Option<DiskKey>,
    ) -> Shelf {
        let disk_key = disk_key.as_ref();
        let started = start(devices, index_dir, SEGMENT_BYTES, disk_key, secret).await.unwrap();
        let known = Rc::new(RefCell::new(Known::default()));
        known.borrow_mut().places =
            started.found.iter().map(|found| (found.key, found.entry.place)).collect();
        let heard = known.clone();
        let events = move |event| {
            let known = &mut *heard.borrow_mut();
            match event {
                Event::Dropped { key, place } => {
                    if known.places.get(&key) == Some(&place) {
                        known.places.remove(&key);
                        known.dropped.push(key);
                    }
                }
                Event::Moved { key, from, to } => {
                    if known.places.get(&key) == Some(&from) {
                        known.places.insert(key, to);
                    } else {
                        known.moves_refused.push((key, to));
                    }
                }
            }
        };
        let limits = Limits { shard: 0, shards: 1, free_segments_min, write_bytes_per_s: None };
        let tier = started.tier.clone();
        let disk = Disk::new(started.tier, devices.to_vec(), limits, events);
        Shelf { disk, known, report: started.report, tier, index: started.index }
    }

    pub async fn put(&self, key: Key, value: &[u8]) -> Result<Place, DiskError> {
        let place = self.disk.write_buffer(key, about(value), &|| pages(value)).await?;
        let old = self.known.borrow_mut().places.insert(key, place);
        if let Some(old) = old {
            self.disk.forget(key, &old);
        }
        self.refuse_moves();
        Ok(place)
    }

    fn refuse_moves(&self) {
        let refused = std::mem::take(&mut self.known.borrow_mut().moves_refused);
        for (key, place) in refused {
            self.disk.forget(key, &place);
        }
    }

    pub async fn remove(&self, key: Key) -> Result<(), DiskError> {
        let place = self.known.borrow_mut().places.remove(&key);
        match place {
            Some(place) => self.disk.remove(key, &place).await,
            None => Ok(()),
        }
    }

    /// The value of a key; none if it is not there, or was lost.
    pub async fn get(&self, key: Key) -> Option<Vec<u8>> {
        for _ in 0..8 {
            let place = *self.known.borrow().places.get(&key)?;
            let pages = Pages::new(place.len.div_ceil(PAGE_BYTES as u64) as usize);
            match self.disk.read_buffer(key, &place, Buffer::Pages(pages)).await {
                Ok((about, buffer)) => {
                    assert_eq!(&*about.namespace, "model");
                    return Some(buffer.bytes()[..place.len as usize].to_vec());
                }
                // Moved or given up meanwhile: look again.
                Err(DiskError::Gone) if self.known.borrow().places.get(&key) != Some(&place) => {}
                Err(_) => {
                    let known = &mut *self.known.borrow_mut();
                    known.places.remove(&key);
                    known.dropped.push(key);
                    return None;
                }
            }
        }
        panic!("a block runs away for ever");
    }

    /// Ends as a process does that was told to.
    pub fn stop(self) {
        self.disk.close();
        self.end();
    }

    /// Ends as a process does that was not; the index has what it was sent.
    pub fn end(self) {
        let Shelf { disk, tier, index, .. } = self;
        drop((disk, tier));
        index.join();
    }
}
