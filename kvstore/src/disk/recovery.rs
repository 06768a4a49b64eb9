//! What is on the devices when the daemon starts: the index, and what the segments know beyond it.
//!
//! [`Merge`] decides and is pure; [`recover`] reads. Of several values of a key the latest stands, and
//! it must be whole before it may push an older one out: its writing may never have ended.

use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use foldhash::fast::RandomState;

use super::device::{Buffer, Device, Pages};
use super::index::{Change, Entry, Loaded};
use super::ledger::Ledger;
use super::open_segment::MARK_COMPLETE;
use super::place::{Place, Segment};
use super::record::{Body, PAGE_BYTES, Record, span_bytes};
use super::segment::Layout;
use super::{envelope, scan};
use crate::key::Key;

/// Segments read at once: enough to fill a device's queues.
const SCANS_MAX: usize = 32;

/// A block that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its key.
    pub key: Key,
    /// Where and what it is. Its bytes are verified when they are read.
    pub entry: Entry,
}

/// How a start went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Segments that hold something.
    pub segments: usize,
    /// Blocks that the index knew.
    pub indexed: usize,
    /// Records found in segments, behind the marks of the index.
    pub scanned: usize,
    /// Entries of the index whose place is in another use by now.
    pub stale: usize,
    /// Damaged pages that a record was found behind.
    pub gaps: u64,
    /// Values that were not whole, and that an older one was kept for.
    pub torn: usize,
    /// The index was damaged and has been built again.
    pub is_index_lost: bool,
}

/// The latest of each key.
#[derive(Debug, Default)]
pub struct Merge {
    best: HashMap<Key, Entry, RandomState>,
    killed: HashMap<Key, u64, RandomState>,
    version_max: u64,
}

impl Merge {
    /// What the index knew.
    pub fn add_entry(&mut self, key: Key, entry: Entry) {
        self.version_max = self.version_max.max(entry.place.version);
        self.best.insert(key, entry);
    }

    /// Values up to `version` are gone. The one that was known until now.
    pub fn add_tombstone(&mut self, key: Key, version: u64) -> Option<Entry> {
        self.version_max = self.version_max.max(version);
        let killed = self.killed.entry(key).or_default();
        *killed = version.max(*killed);
        let is_gone = self.best.get(&key).is_some_and(|entry| entry.place.version <= version);
        if is_gone { self.best.remove(&key) } else { None }
    }

    /// Whether a value of this version and segment's sequence would stand, and push another out.
    pub fn judge(&self, key: &Key, place: &Place) -> Judgement {
        if self.killed.get(key).is_some_and(|&killed| killed >= place.version) {
            return Judgement::Old;
        }
        match self.best.get(key).map(|entry| entry.place) {
            None => Judgement::Only,
            // A copy has the version of what it was made of; that lies in an older segment.
            Some(best) if (best.version, best.sequence) < (place.version, place.sequence) => {
                Judgement::Newer
            }
            Some(_) => Judgement::Old,
        }
    }
}

/// See [`Merge::judge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// A later one is known.
    Old,
    /// It is the only one.
    Only,
    /// It pushes another out.
    Newer,
}

/// Finds all blocks, fills the books, and says what the index must be told.
pub async fn recover<D: Device>(
    devices: &[D],
    layouts: &[Layout],
    ledger: &Ledger,
    loaded: Loaded,
) -> (Vec<Found>, Vec<Change>, Report) {
    let mut report = Report { is_index_lost: loaded.is_lost, ..Report::default() };
    let used = find_used(devices, layouts).await;
    report.segments = used.len();
    for (&sequence, &segment) in &used {
        ledger.restore_segment(segment, sequence);
    }
    let mut changes = Vec::new();
    // Tombstones before the marks are not read: a later value must have a higher version all the same.
    let version_max = loaded.marks.iter().map(|mark| mark.version).max().unwrap_or_default();
    // Nor may the index take another use of a segment for one that it knows.
    let sequence_max = loaded.marks.iter().map(|mark| mark.sequence).max().unwrap_or_default();
    ledger.restore_sequence(sequence_max);
    let mut merge = Merge { version_max, ..Merge::default() };
    for (key, entry) in loaded.entries {
        if fits(&entry.place, layouts)
            && used.get(&entry.place.sequence) == Some(&entry.place.segment)
        {
            merge.add_entry(key, entry);
        } else {
            report.stale += 1;
            changes.push(Change::Delete { key, place: entry.place });
        }
    }
    report.indexed = merge.best.len();
    let marks: HashMap<(Segment, u64), u32> =
        loaded.marks.iter().map(|mark| ((mark.segment, mark.sequence), mark.to)).collect();
    let behind = used.into_iter().filter_map(|(sequence, segment)| {
        let from = marks.get(&(segment, sequence)).copied().unwrap_or_default();
        (from != MARK_COMPLETE).then_some((segment, sequence, from))
    });
    let behind: Vec<(Segment, u64, u32)> = behind.collect();
    for some in behind.chunks(SCANS_MAX) {
        scan_some(devices, layouts, some, &mut merge, &mut changes, &mut report).await;
    }
    ledger.restore_version(merge.version_max);
    let mut found: Vec<Found> =
        merge.best.into_iter().map(|(key, entry)| Found { key, entry }).collect();
    found.sort_by_key(|found| (found.entry.place.segment, found.entry.place.page));
    for Found { key, entry } in &found {
        ledger.insert(*key, entry.place);
    }
    (found, changes, report)
}

async fn find_used<D: Device>(devices: &[D], layouts: &[Layout]) -> BTreeMap<u64, Segment> {
    let mut used = BTreeMap::new();
    for (number, (device, layout)) in devices.iter().zip(layouts).enumerate() {
        let segments = (0..layout.segments(device.bytes()))
            .map(|segment| Segment { device: number as u16, number: segment });
        let segments: Vec<Segment> = segments.collect();
        for some in segments.chunks(SCANS_MAX) {
            let heads = some.iter().map(|&segment| scan::sequence(device, layout, segment));
            for (sequence, &segment) in all(heads).await.into_iter().zip(some) {
                if let Some(sequence) = sequence {
                    // A sequence is given once; a segment that claims another's is not ours.
                    used.entry(sequence).or_insert(segment);
                }
            }
        }
    }
    used
}

async fn scan_some<D: Device>(
    devices: &[D],
    layouts: &[Layout],
    segments: &[(Segment, u64, u32)],
    merge: &mut Merge,
    changes: &mut Vec<Change>,
    report: &mut Report,
) {
    let scans = segments.iter().map(|&(segment, sequence, from)| {
        let device = usize::from(segment.device);
        scan::records(&devices[device], &layouts[device], segment, sequence, from)
    });
    // Older segments first, so that who is pushed out was there before.
    for (scan, &(segment, sequence, _)) in all(scans).await.into_iter().zip(segments) {
        report.scanned += scan.records.len();
        report.gaps += scan.gaps;
        let device = usize::from(segment.device);
        for (page, record) in scan.records {
            let place = Place { segment, sequence, page, version: record.version, len: 0 };
            let found =
                Scanned { device: &devices[device], layout: &layouts[device], place, record };
            found.merge(merge, changes, report).await;
        }
        let version = merge.version_max;
        changes.push(Change::Mark { segment, sequence, to: MARK_COMPLETE, version });
    }
}

struct Scanned<'a, D> {
    device: &'a D,
    layout: &'a Layout,
    place: Place,
    record: Record,
}

impl<D: Device> Scanned<'_, D> {
    async fn merge(mut self, merge: &mut Merge, changes: &mut Vec<Change>, report: &mut Report) {
        let key = self.record.key;
        merge.version_max = merge.version_max.max(self.record.version);
        let about = match self.record.body {
            Body::Tombstone => {
                if let Some(entry) = merge.add_tombstone(key, self.record.version) {
                    changes.push(Change::Delete { key, place: entry.place });
                }
                return;
            }
            Body::Value(about) => about,
        };
        self.place.len = about.len;
        match merge.judge(&key, &self.place) {
            Judgement::Old => return,
            Judgement::Newer
                if !is_whole(self.device, self.layout, &self.place, &about.hash).await =>
            {
                report.torn += 1;
                return;
            }
            Judgement::Newer | Judgement::Only => {}
        }
        let entry = Entry { place: self.place, about };
        changes.push(Change::Put { key, entry: entry.clone(), is_copy: false });
        merge.add_entry(key, entry);
    }
}

async fn is_whole<D: Device>(device: &D, layout: &Layout, place: &Place, hash: &[u8; 32]) -> bool {
    let pages = place.len.div_ceil(PAGE_BYTES as u64) as usize;
    let offset = layout.start(place.segment.number) + u64::from(place.page) * PAGE_BYTES as u64;
    let into = Buffer::Pages(Pages::new(1 + pages));
    let (result, mut buffer) = device.read_at(offset, into, |_| {}).await;
    let found = buffer.bytes_mut().and_then(|bytes| bytes.split_first_chunk_mut::<PAGE_BYTES>());
    let (Ok(()), Some((page, value))) = (result, found) else { return false };
    let found = match &layout.seals.cipher {
        None => value.get(..place.len as usize).map(|value| *blake3::hash(value).as_bytes()),
        Some(cipher) => {
            let Ok((_, envelope)) = layout.seals.open(page) else { return false };
            envelope::open(cipher, &envelope, value, place.len as usize).await
        }
    };
    found.is_some_and(|found| blake3::Hash::from_bytes(found) == blake3::Hash::from_bytes(*hash))
}

/// Whether a place that the index names lies within its segment.
fn fits(place: &Place, layouts: &[Layout]) -> bool {
    let layout = layouts.get(usize::from(place.segment.device));
    layout.is_some_and(|layout| {
        let start = u64::from(place.page) * PAGE_BYTES as u64;
        place.page > 0 && start.saturating_add(span_bytes(place.len)) <= layout.segment_bytes
    })
}

/// Runs futures side by side; their results in order.
async fn all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<Pin<Box<F>>> = futures.map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    poll_fn(|context| {
        for (future, done) in running.iter_mut().zip(&mut done).filter(|(_, done)| done.is_none()) {
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                *done = Some(output);
            }
        }
        if done.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}
