//! Storage of the sets: words of atomics that readers read without a lock and one writer fills.
//!
//! A set lies in a power of two of words and its storage is used again only for sets of that size, so
//! the header of a place stays the header of that place and its sequence tells a reader that the set it
//! read was replaced. The storage grows by chunks up to a limit and never shrinks.

use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, fence};

use super::sets::Member;

/// Words before the members: sequence and length; uses; hash; hint.
pub(super) const HEADER_WORDS: usize = 4;
const HINT: usize = 3;
/// Places are counted in so many words, the smallest set's: a cache line.
const GRAIN_WORDS: usize = 8;
/// What the storage grows by: half a megabyte. The largest set must fit in one.
pub(super) const CHUNK_WORDS: usize = 1 << 16;
/// Sizes of storage: 8 words to a whole chunk.
const CLASSES: usize = 14;

/// What readers see of the storage.
pub(super) struct Words {
    chunks: Box<[OnceLock<Box<[AtomicU64]>>]>,
}

/// What the writer knows of it.
pub(super) struct Grains {
    free: [Vec<u32>; CLASSES],
    next: usize,
}

/// The writer's view of both.
pub(super) struct Arena<'a> {
    pub(super) words: &'a Words,
    pub(super) grains: &'a mut Grains,
}

fn words_of(members: usize) -> usize {
    HEADER_WORDS + members.div_ceil(2)
}

fn class_of(words: usize) -> usize {
    (words.next_power_of_two().max(GRAIN_WORDS) / GRAIN_WORDS).trailing_zeros() as usize
}

impl Words {
    /// Storage of at most `words_max` words, rounded up to chunks.
    pub(super) fn new(words_max: usize) -> Self {
        let chunks = words_max.div_ceil(CHUNK_WORDS).max(1);
        Words { chunks: (0..chunks).map(|_| OnceLock::new()).collect() }
    }

    pub(super) fn bytes(&self) -> usize {
        let used = self.chunks.iter().filter(|chunk| chunk.get().is_some()).count();
        used * CHUNK_WORDS * size_of::<AtomicU64>()
    }

    /// The words from a place to the end of its chunk. Empty for a place that never was.
    fn at(&self, place: u32) -> &[AtomicU64] {
        let word = place as usize * GRAIN_WORDS;
        let chunk = self.chunks.get(word / CHUNK_WORDS).and_then(OnceLock::get);
        chunk.and_then(|chunk| chunk.get(word % CHUNK_WORDS..)).unwrap_or_default()
    }

    /// Where a prompt's run of blocks with this set last ended; 0 if nobody knows.
    pub(super) fn hint(&self, place: u32) -> u32 {
        self.at(place).get(HINT).map_or(0, |word| word.load(Relaxed) as u32)
    }

    /// Readers leave hints for each other. A wrong one costs two probes.
    pub(super) fn set_hint(&self, place: u32, end: u32) {
        if let Some(word) = self.at(place).get(HINT)
            && word.load(Relaxed) != u64::from(end)
        {
            word.store(u64::from(end), Relaxed);
        }
    }

    /// Reads a set for a reader: `false` when it was replaced meanwhile or when `is_in_use`, asked while
    /// the set was certainly one and the same, says that the blocks no longer have it.
    pub(super) fn read(
        &self,
        place: u32,
        members: &mut Vec<Member>,
        is_in_use: impl FnOnce() -> bool,
    ) -> bool {
        let words = self.at(place);
        let Some(header) = words.first() else { return false };
        let before = header.load(Acquire);
        if before & 1 == 0 {
            return false;
        }
        members.clear();
        copy(words, (before >> 32) as usize, members);
        fence(Acquire);
        let is_in_use = is_in_use();
        fence(Acquire);
        is_in_use && header.load(Relaxed) == before
    }
}

fn copy(words: &[AtomicU64], count: usize, members: &mut Vec<Member>) {
    let packed = words.iter().skip(HEADER_WORDS).take(count / 2);
    members.reserve(count);
    for word in packed {
        let word = word.load(Relaxed);
        members.extend([word as Member, (word >> 32) as Member]);
    }
    if count % 2 == 1
        && let Some(last) = words.get(HEADER_WORDS + count / 2)
    {
        members.push(last.load(Relaxed) as Member);
    }
}

impl Grains {
    pub(super) fn new() -> Self {
        Grains { free: Default::default(), next: 0 }
    }

    /// Bytes of the lists of free places.
    pub(super) fn bytes(&self) -> usize {
        self.free.iter().map(|list| list.capacity() * size_of::<u32>()).sum()
    }
}

// A header's first word is `length << 32 | sequence`; the sequence is odd while the place holds a set, so
// that storage never used yet, all zeros, reads as free.
impl Arena<'_> {
    fn word(&self, place: u32, at: usize) -> u64 {
        self.words.at(place).get(at).map_or(0, |word| word.load(Relaxed))
    }

    fn set_word(&self, place: u32, at: usize, value: u64) {
        if let Some(word) = self.words.at(place).get(at) {
            word.store(value, Release);
        }
    }

    pub(super) fn sequence(&self, place: u32) -> u32 {
        self.word(place, 0) as u32
    }

    fn len(&self, place: u32) -> usize {
        (self.word(place, 0) >> 32) as usize
    }

    pub(super) fn uses(&self, place: u32) -> u64 {
        self.word(place, 1)
    }

    pub(super) fn set_uses(&self, place: u32, uses: u64) {
        self.set_word(place, 1, uses);
    }

    pub(super) fn hash(&self, place: u32) -> u64 {
        self.word(place, 2)
    }

    pub(super) fn members(&self, place: u32, members: &mut Vec<Member>) {
        copy(self.words.at(place), self.len(place), members);
    }

    pub(super) fn is_equal(&self, place: u32, members: &[Member]) -> bool {
        let pairs = members.chunks(2).map(pack);
        self.len(place) == members.len()
            && pairs.zip(HEADER_WORDS..).all(|(pair, at)| self.word(place, at) == pair)
    }

    /// Stores a set that no block has yet. `None` when the storage is full.
    pub(super) fn store(&mut self, members: &[Member], hash: u64) -> Option<u32> {
        let class = class_of(words_of(members.len()));
        let place = match self.grains.free.get_mut(class)?.pop() {
            Some(place) => place,
            None => self.carve(class)?,
        };
        self.set_uses(place, 0);
        self.set_word(place, 2, hash);
        self.set_word(place, HINT, 0);
        for (pair, at) in members.chunks(2).zip(HEADER_WORDS..) {
            self.set_word(place, at, pack(pair));
        }
        let sequence = u64::from(self.sequence(place).wrapping_add(1));
        self.set_word(place, 0, (members.len() as u64) << 32 | sequence);
        Some(place)
    }

    /// New storage from the end, in one chunk; what is left of a chunk goes to the free lists.
    fn carve(&mut self, class: usize) -> Option<u32> {
        let grains = 1usize << class;
        let chunk_grains = CHUNK_WORDS / GRAIN_WORDS;
        while self.grains.next % chunk_grains + grains > chunk_grains {
            let rest = chunk_grains - self.grains.next % chunk_grains;
            let rest_class = rest.ilog2() as usize;
            self.grains.free.get_mut(rest_class)?.push(self.grains.next as u32);
            self.grains.next += 1 << rest_class;
        }
        let chunk = self.words.chunks.get(self.grains.next / chunk_grains)?;
        chunk.get_or_init(|| (0..CHUNK_WORDS).map(|_| AtomicU64::new(0)).collect());
        let place = self.grains.next as u32;
        self.grains.next += grains;
        Some(place)
    }

    pub(super) fn free(&mut self, place: u32) {
        let len = self.len(place);
        let sequence = u64::from(self.sequence(place).wrapping_add(1));
        self.set_word(place, 0, sequence);
        // A reader that saw the set may not see it overwritten under the old sequence.
        fence(Release);
        if let Some(free) = self.grains.free.get_mut(class_of(words_of(len))) {
            free.push(place);
        }
    }
}

fn pack(pair: &[Member]) -> u64 {
    let half = |at: usize| pair.get(at).copied().map_or(0, u64::from);
    half(0) | half(1) << 32
}
