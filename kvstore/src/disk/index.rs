//! The durable index: RocksDB, written by one plain thread, in batches, behind the data.
//!
//! Data is durable before the index says so: changes are sent when the device has kept the record.
//! With each record goes a mark, in the same batch: up to where its segment is in the index. So it does
//! not matter how far the index is behind, nor that its log is not synced: a start looks for records
//! behind the marks. What the thread cannot take in time is left to that, too: nobody waits for it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use rocksdb::{ColumnFamilyDescriptor, DB, Options, WriteBatch};

use super::cipher::{Cipher, DiskKey};
use super::place::{Place, Segment};
use super::record::{About, key as parse_key, put_key, word};
use crate::block::LABEL_BYTES_MAX;
use crate::key::Key;
use crate::namespace::NAME_BYTES_MAX;

/// Changes that wait for the thread: 16 MiB at most, and seconds of writing at full speed.
const CHANGES_WAITING_MAX: usize = 16 << 10;
/// Changes of a batch: a few hundred KiB.
const BATCH_MAX: usize = 1024;
/// How long the thread gathers a batch. A start after a crash looks for so much more in the segments.
const GATHER: Duration = Duration::from_millis(20);
const BLOCKS: &str = "blocks";
const MARKS: &str = "marks";
const FORMAT: u8 = 1;
const KEY_BYTES: usize = 48;
const ENTRY_BYTES: usize = 120;
const MARK_BYTES: usize = 20;

/// What the index knows of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it lies.
    pub place: Place,
    /// What it is.
    pub about: About,
}

/// Up to where a segment is in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The segment.
    pub segment: Segment,
    /// Which use of it.
    pub sequence: u64,
    /// The first page that is not.
    pub to: u32,
    /// No record up to there has a higher version, a tombstone neither.
    pub version: u64,
}

/// A change to the index.
#[derive(Debug)]
pub enum Change {
    /// The block at `place` is gone; not if the key is elsewhere by now.
    Delete {
        /// Its key.
        key: Key,
        /// Where it was.
        place: Place,
    },
    /// See [`Mark`].
    Mark {
        /// The segment.
        segment: Segment,
        /// Which use of it.
        sequence: u64,
        /// The first page that is not in the index.
        to: u32,
        /// No record up to there has a higher version.
        version: u64,
    },
    /// A block is there.
    Put {
        /// Its key.
        key: Key,
        /// Where and what it is.
        entry: Entry,
        /// It was there before: a later value of the key stands.
        is_copy: bool,
    },
}

/// Why the index cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// RocksDB says no.
    #[error("the index in {path} cannot be used: {source}; it may be deleted, and is built again")]
    Rocks {
        /// Where it is.
        path: PathBuf,
        /// What RocksDB says.
        source: rocksdb::Error,
    },
    /// Another file than RocksDB's lies where the index should.
    #[error("cannot make the index directory {path}: {source}")]
    Directory {
        /// Where it should be.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// No thread could be started for it.
    #[error("cannot start the index's thread: {0}")]
    Thread(std::io::Error),
}

/// What an index held.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Blocks.
    pub entries: Vec<(Key, Entry)>,
    /// Marks.
    pub marks: Vec<Mark>,
    /// It was damaged, so nothing of it was used.
    pub is_lost: bool,
}

/// The index on disk.
#[derive(Debug)]
pub struct Index {
    db: DB,
    rows: Rows,
}

fn open(path: &Path) -> Result<DB, rocksdb::Error> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // Small: the shards' own index in RAM is what is read.
    options.set_write_buffer_size(16 << 20);
    options.set_max_open_files(64);
    options.set_keep_log_file_num(4);
    options.set_max_background_jobs(2);
    let families = [BLOCKS, MARKS].map(|name| ColumnFamilyDescriptor::new(name, options.clone()));
    DB::open_cf_descriptors(&options, path, families)
}

impl Index {
    /// Opens the index in `path` and reads all of it. A damaged one, and one that another key or none was
    /// used for, is destroyed and made anew.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn load(path: &Path, key: Option<&DiskKey>) -> Result<(Index, Loaded), IndexError> {
        let rows = Rows { cipher: key.map(DiskKey::rows) };
        let directory = |source| IndexError::Directory { path: path.to_owned(), source };
        std::fs::create_dir_all(path).map_err(directory)?;
        let rocks = |source| IndexError::Rocks { path: path.to_owned(), source };
        match open(path).and_then(|db| read_all(&db, &rows).map(|loaded| (db, loaded))) {
            Ok((db, Some(loaded))) => return Ok((Index { db, rows }, loaded)),
            Ok((db, None)) => {
                tracing::warn!(
                    "the index holds what this version and key do not write; it is built again"
                );
                drop(db);
            }
            Err(error) => tracing::warn!(%error, "the index is damaged; it is built again"),
        }
        DB::destroy(&Options::default(), path).map_err(rocks)?;
        let db = open(path).map_err(rocks)?;
        Ok((Index { db, rows }, Loaded { is_lost: true, ..Loaded::default() }))
    }

    /// Applies changes in order.
    ///
    /// # Errors
    /// RocksDB's.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) -> Result<(), rocksdb::Error> {
        let (Some(blocks), Some(marks)) = (self.db.cf_handle(BLOCKS), self.db.cf_handle(MARKS))
        else {
            return Ok(());
        };
        let mut batch = WriteBatch::default();
        // Where the keys of this batch are, as far as it has come.
        let mut ahead: HashMap<Key, Option<Place>, foldhash::fast::RandomState> =
            HashMap::default();
        let found = |key: &Key, ahead: &HashMap<Key, Option<Place>, _>| match ahead.get(key) {
            Some(place) => Ok(*place),
            None => {
                let value = self.db.get_pinned_cf(blocks, self.rows.name(key))?;
                let row = value.and_then(|value| self.rows.open(&self.rows.name(key), &value));
                Ok(row.map(|(_, entry)| entry.place))
            }
        };
        for change in changes {
            match change {
                Change::Delete { key, place } => {
                    if found(&key, &ahead)? == Some(place) {
                        batch.delete_cf(blocks, self.rows.name(&key));
                        ahead.insert(key, None);
                    }
                }
                Change::Mark { segment, sequence, to, version } => {
                    let mut value = [0; MARK_BYTES];
                    value[..8].copy_from_slice(&sequence.to_le_bytes());
                    value[8..16].copy_from_slice(&version.to_le_bytes());
                    value[16..].copy_from_slice(&to.to_le_bytes());
                    batch.put_cf(marks, segment_bytes(segment), value);
                }
                Change::Put { key, entry, is_copy } => {
                    let is_old = is_copy
                        && found(&key, &ahead)?.is_some_and(|at| at.version > entry.place.version);
                    if !is_old {
                        if let Some(row) = self.rows.close(&key, &entry) {
                            batch.put_cf(blocks, self.rows.name(&key), row);
                        }
                        ahead.insert(key, Some(entry.place));
                    }
                }
            }
        }
        self.db.write(batch)
    }

    /// Starts the thread that applies what is sent.
    ///
    /// # Errors
    /// [`IndexError::Thread`].
    pub fn start(self) -> Result<(IndexSender, IndexThread), IndexError> {
        let (sender, changes) = bounded(CHANGES_WAITING_MAX);
        let thread = std::thread::Builder::new().name("cgn-kv-index".to_owned());
        let thread = thread.spawn(move || self.run(&changes)).map_err(IndexError::Thread)?;
        Ok((IndexSender { sender }, IndexThread { thread }))
    }

    fn run(self, changes: &Receiver<Change>) {
        let mut is_broken = false;
        while let Ok(first) = changes.recv() {
            if changes.is_empty() {
                std::thread::sleep(GATHER);
            }
            let rest = changes.try_iter().take(BATCH_MAX - 1);
            let batch = std::iter::once(first).chain(rest);
            if is_broken {
                // Nothing after a lost batch may be marked as known.
                batch.for_each(drop);
            } else if let Err(error) = self.apply(batch) {
                tracing::error!(%error, "the index takes no more; the next start reads the segments");
                is_broken = true;
            }
        }
        if let Err(error) = self.db.flush_wal(true) {
            tracing::warn!(%error, "the index was not synced");
        }
    }
}

/// The index's thread. It ends when all senders are gone.
#[derive(Debug)]
pub struct IndexThread {
    thread: JoinHandle<()>,
}

impl IndexThread {
    /// Waits until all that was sent is applied. Drop all senders first.
    pub fn join(self) {
        // A panic ends the process, so the thread has not panicked.
        let _ = self.thread.join();
    }
}

/// Sends changes to the index's thread.
#[derive(Clone, Debug)]
pub struct IndexSender {
    sender: Sender<Change>,
}

impl IndexSender {
    /// Whether there was room for the change.
    pub fn send(&self, change: Change) -> bool {
        self.sender.try_send(change).is_ok()
    }
}

fn read_all(db: &DB, rows: &Rows) -> Result<Option<Loaded>, rocksdb::Error> {
    let mut loaded = Loaded::default();
    let (Some(blocks), Some(marks)) = (db.cf_handle(BLOCKS), db.cf_handle(MARKS)) else {
        return Ok(None);
    };
    for item in db.iterator_cf(marks, rocksdb::IteratorMode::Start) {
        let (key, value) = item?;
        let Some(mark) = parse_mark(&key, &value) else { return Ok(None) };
        loaded.marks.push(mark);
    }
    for item in db.iterator_cf(blocks, rocksdb::IteratorMode::Start) {
        let (key, value) = item?;
        let Some(row) = rows.open(&key, &value) else { return Ok(None) };
        loaded.entries.push(row);
    }
    Ok(Some(loaded))
}

/// How blocks are rows. With a key the name of a row is a keyed hash of the block's key, and the row, which
/// has that key itself, is encrypted: salt, row, tag.
#[derive(Debug)]
struct Rows {
    cipher: Option<Cipher>,
}

impl Rows {
    fn name(&self, key: &Key) -> [u8; KEY_BYTES] {
        let name = key_bytes(key);
        self.cipher.map_or(name, |cipher| cipher.name_of(&name))
    }

    /// None if it is too long for the cipher.
    fn close(&self, key: &Key, entry: &Entry) -> Option<Vec<u8>> {
        let entry = encode_entry(entry);
        let Some(cipher) = &self.cipher else { return Some(entry) };
        let mut row = [&key_bytes(key), &entry[..]].concat();
        let salt = cipher.salt_of(&row);
        let tag = cipher.with(&salt).close(0, &[], &mut row)?;
        Some([&salt, &row[..], &tag].concat())
    }

    fn open(&self, name: &[u8], row: &[u8]) -> Option<(Key, Entry)> {
        let Some(cipher) = &self.cipher else {
            return (name.len() == KEY_BYTES)
                .then_some(())
                .and_then(|()| Some((parse_key(name), parse_entry(row)?)));
        };
        let (salt, rest) = row.split_first_chunk()?;
        let (row, tag) = rest.split_last_chunk()?;
        let mut row = row.to_vec();
        cipher.with(salt).open(0, &[], &mut row, tag)?;
        let (key, entry) = row.split_first_chunk::<KEY_BYTES>()?;
        let key = parse_key(key);
        (self.name(&key) == name).then_some(())?;
        Some((key, parse_entry(entry)?))
    }
}

fn key_bytes(key: &Key) -> [u8; KEY_BYTES] {
    let mut bytes = [0; KEY_BYTES];
    put_key(&mut bytes, key);
    bytes
}

fn segment_bytes(segment: Segment) -> [u8; 6] {
    let mut bytes = [0; 6];
    bytes[..2].copy_from_slice(&segment.device.to_be_bytes());
    bytes[2..].copy_from_slice(&segment.number.to_be_bytes());
    bytes
}

fn parse_mark(key: &[u8], value: &[u8]) -> Option<Mark> {
    let (device, number) = (key.get(..2)?, key.get(2..)?);
    Some(Mark {
        segment: Segment {
            device: u16::from_be_bytes(device.try_into().ok()?),
            number: u32::from_be_bytes(number.try_into().ok()?),
        },
        sequence: u64::from_le_bytes(value.get(..8)?.try_into().ok()?),
        version: u64::from_le_bytes(value.get(8..16)?.try_into().ok()?),
        to: u32::from_le_bytes(value.get(16..)?.try_into().ok()?),
    })
}

fn encode_entry(entry: &Entry) -> Vec<u8> {
    let Entry { place, about } = entry;
    let mut bytes = vec![0; ENTRY_BYTES];
    bytes[0] = FORMAT;
    bytes[1] = u8::from(about.parent.is_some());
    bytes[2..4].copy_from_slice(&place.segment.device.to_le_bytes());
    bytes[4..8].copy_from_slice(&place.segment.number.to_le_bytes());
    bytes[8..12].copy_from_slice(&place.page.to_le_bytes());
    bytes[12..14].copy_from_slice(&(about.label.len() as u16).to_le_bytes());
    bytes[16..24].copy_from_slice(&place.sequence.to_le_bytes());
    bytes[24..32].copy_from_slice(&place.version.to_le_bytes());
    bytes[32..40].copy_from_slice(&place.len.to_le_bytes());
    bytes[40..72].copy_from_slice(&about.hash);
    if let Some(parent) = &about.parent {
        put_key(&mut bytes[72..120], parent);
    }
    bytes.extend_from_slice(&about.label);
    bytes.extend_from_slice(about.namespace.as_bytes());
    bytes
}

fn parse_entry(bytes: &[u8]) -> Option<Entry> {
    let (head, text) = bytes.split_at_checked(ENTRY_BYTES)?;
    let small = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let middle =
        |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (label, namespace) = text.split_at_checked(usize::from(small(12)))?;
    if head[0] != FORMAT
        || head[1] > 1
        || label.len() > LABEL_BYTES_MAX
        || namespace.len() > NAME_BYTES_MAX
    {
        return None;
    }
    let len = word(&head[32..40]);
    let place = Place {
        segment: Segment { device: small(2), number: middle(4) },
        sequence: word(&head[16..24]),
        page: middle(8),
        version: word(&head[24..32]),
        len,
    };
    let about = About {
        len,
        hash: head[40..72].try_into().ok()?,
        parent: (head[1] == 1).then(|| parse_key(&head[72..120])),
        namespace: std::str::from_utf8(namespace).ok()?.into(),
        label: label.into(),
    };
    Some(Entry { place, about })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key::{Name, NamespaceId};

    fn key(number: u8) -> Key {
        Key::new(NamespaceId([1; 16]), Name([number; 32]))
    }

    fn entry(page: u32, version: u64) -> Entry {
        let segment = Segment { device: 1, number: 2 };
        let about = About {
            len: 5,
            hash: [3; 32],
            parent: Some(key(9)),
            namespace: "model".into(),
            label: (*b"label").into(),
        };
        Entry { place: Place { segment, sequence: 7, page, version, len: 5 }, about }
    }

    fn put(number: u8, entry: &Entry, is_copy: bool) -> Change {
        Change::Put { key: key(number), entry: entry.clone(), is_copy }
    }

    #[test]
    fn what_was_sent_is_loaded_again() {
        for key in [None, DiskKey::parse(&"5c".repeat(32))] {
            loads_what_was_sent(key.as_ref());
        }
    }

    fn loads_what_was_sent(disk_key: Option<&DiskKey>) {
        let folder = tempfile::tempdir().unwrap();
        let (index, loaded) = Index::load(folder.path(), disk_key).unwrap();
        assert!(loaded.entries.is_empty() && !loaded.is_lost);
        let (sender, thread) = index.start().unwrap();
        let (first, second) = (entry(1, 1), entry(5, 2));
        let segment = first.place.segment;
        assert!(sender.send(put(1, &first, false)));
        assert!(sender.send(put(2, &first, false)));
        assert!(sender.send(put(2, &second, false)));
        assert!(sender.send(Change::Mark { segment, sequence: 7, to: 9, version: 2 }));
        // Neither the end of a place that was left nor a late copy undoes what stands.
        assert!(sender.send(Change::Delete { key: key(2), place: first.place }));
        assert!(sender.send(put(2, &entry(3, 1), true)));
        assert!(sender.send(put(3, &first, false)));
        assert!(sender.send(Change::Delete { key: key(3), place: first.place }));
        drop(sender);
        thread.join();
        let (_, loaded) = Index::load(folder.path(), disk_key).unwrap();
        let mut entries = loaded.entries;
        entries.sort_by_key(|(key, _)| key.name.0);
        assert_eq!(entries, [(key(1), first), (key(2), second)]);
        assert_eq!(loaded.marks, [Mark { segment, sequence: 7, to: 9, version: 2 }]);
    }

    #[test]
    fn a_damaged_index_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (index, _) = Index::load(folder.path(), None).unwrap();
        index.apply([put(1, &entry(1, 1), false)]).unwrap();
        drop(index);
        std::fs::write(folder.path().join("CURRENT"), b"nonsense").unwrap();
        let (index, loaded) = Index::load(folder.path(), None).unwrap();
        assert!(loaded.is_lost && loaded.entries.is_empty());
        index.apply([put(1, &entry(1, 1), false)]).unwrap();
    }

    #[test]
    fn an_encrypted_row_shows_nothing_and_opens_with_its_key_under_its_name_only() {
        let rows = |key: u8| Rows {
            cipher: DiskKey::parse(&format!("{key:02x}").repeat(32)).as_ref().map(DiskKey::rows),
        };
        let (name, row) = (rows(1).name(&key(1)), rows(1).close(&key(1), &entry(5, 6)).unwrap());
        assert!(!row.windows(5).any(|window| window == b"label" || window == b"model"));
        assert!(name != key_bytes(&key(1)) && row == rows(1).close(&key(1), &entry(5, 6)).unwrap());
        assert_eq!(rows(1).open(&name, &row), Some((key(1), entry(5, 6))));
        assert_eq!(rows(2).open(&name, &row), None);
        assert_eq!(rows(1).open(&rows(1).name(&key(2)), &row), None);
        assert_eq!(Rows { cipher: None }.open(&name, &row), None);
        for at in 0..row.len() {
            let mut row = row.clone();
            row[at] ^= 1;
            assert_eq!(rows(1).open(&name, &row), None, "{at}");
        }
        assert_eq!(rows(1).open(&name, &row[..60]), None);
    }

    proptest! {
        #[test]
        fn nonsense_is_no_entry_or_one_that_is_written_the_same(
            bytes in proptest::collection::vec(any::<u8>(), 0..300), flags in 0u8..3,
        ) {
            let mut bytes = bytes;
            if bytes.len() > 14 {
                (bytes[0], bytes[1], bytes[13]) = (FORMAT, flags, 0);
            }
            if let Some(entry) = parse_entry(&bytes) {
                prop_assert_eq!(parse_entry(&encode_entry(&entry)), Some(entry));
            }
        }
    }
}
