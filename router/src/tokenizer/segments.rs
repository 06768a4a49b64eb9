//! The cache of tokenized prefixes: what lies between two safe cuts, under the name of everything
//! before it.
//!
//! A segment's key is chained: `key[i] = BLAKE3(key[i-1] ‖ BLAKE3(text[i]))`, from a start that names the tokenizer
//! and the digests' seed. So a key names a whole prefix, a conversation that goes on finds all of its
//! segments again, and what two conversations share is kept once. The cache is shared by all cores, since
//! the next turn of a conversation comes in on whichever core its connection lies; a lock is held for
//! one look into a map.
//!
//! Bounded by bytes; what was used longest ago goes first, and of one prefix the end before its beginning.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use dataplane::digest::{Digest, chain};

/// Independent parts, so that cores seldom meet.
const PARTS: usize = 16;
/// What an entry costs besides tokens and digests: map, links, the segment's own fields, the allocator's.
const ENTRY_BYTES: usize = 256;
const NONE: usize = usize::MAX;

/// Names everything up to a cut.
pub type Key = [u8; 32];

/// The key behind `text`, whose beginning has `key`. The text is hashed from its own start, where BLAKE3 is at
/// its widest.
pub fn next_key(key: &Key, text: &str) -> Key {
    chain(&Digest(*key), blake3::hash(text.as_bytes()).as_bytes()).0
}

/// Where the digests of a prefix stand: behind its last whole block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainState {
    /// Of the last whole block, or the seed.
    pub digest: Digest,
    /// The tokens of the block begun.
    pub open: Vec<u32>,
}

impl ChainState {
    /// Nothing yet.
    pub fn new(seed: Digest) -> Self {
        ChainState { digest: seed, open: Vec::new() }
    }

    /// The digests of the blocks that `tokens` complete. As `dataplane::digest::of_tokens` over all tokens.
    pub fn extend(&mut self, tokens: &[u32], block_tokens: usize) -> Vec<Digest> {
        let mut digests =
            Vec::with_capacity((self.open.len() + tokens.len()) / block_tokens.max(1));
        let mut bytes = Vec::with_capacity(block_tokens * 4);
        let mut rest = tokens;
        while block_tokens > 0 && self.open.len() + rest.len() >= block_tokens {
            let (now, later) = rest.split_at(block_tokens - self.open.len());
            bytes.clear();
            bytes.extend(self.open.iter().chain(now).flat_map(|token| token.to_le_bytes()));
            self.digest = chain(&self.digest, &bytes);
            digests.push(self.digest);
            self.open.clear();
            rest = later;
        }
        self.open.extend_from_slice(rest);
        digests
    }
}

/// The tokens between two cuts.
#[derive(Debug)]
pub struct Segment {
    /// Their ids.
    pub tokens: Box<[u32]>,
    /// Of the blocks that end here.
    pub digests: Box<[Digest]>,
    /// Where the chain stands behind them.
    pub end: ChainState,
}

impl Segment {
    fn bytes(&self) -> usize {
        (self.tokens.len() + self.end.open.len()) * 4 + self.digests.len() * 32 + ENTRY_BYTES
    }
}

/// All segments kept.
#[derive(Debug)]
pub struct SegmentCache {
    parts: Vec<Mutex<Part>>,
    part_bytes_max: usize,
    bytes: AtomicUsize,
}

impl SegmentCache {
    /// A cache of at most `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        SegmentCache::in_parts(bytes_max, PARTS)
    }

    fn in_parts(bytes_max: usize, parts: usize) -> Self {
        SegmentCache {
            parts: (0..parts).map(|_| Mutex::default()).collect(),
            part_bytes_max: bytes_max / parts,
            bytes: AtomicUsize::new(0),
        }
    }

    fn part(&self, key: &Key) -> (u128, MutexGuard<'_, Part>) {
        let short = Digest(*key).short();
        let at = usize::from(key[31]) % self.parts.len();
        // What a thread that panicked left behind is whole: nothing below panics half way.
        (short, self.parts[at].lock().unwrap_or_else(|poison| poison.into_inner()))
    }

    /// The segment that ends where `key` says. Does not count as use: see [`SegmentCache::touch`].
    pub fn find(&self, key: &Key) -> Option<Arc<Segment>> {
        let (short, part) = self.part(key);
        part.at.get(&short).map(|&at| Arc::clone(&part.entries[at].segment))
    }

    /// Notes a use of the whole prefix: its beginning last, so that it outlives its end.
    pub fn touch(&self, keys: &[Key]) {
        for key in keys.iter().rev() {
            let (short, mut part) = self.part(key);
            if let Some(&at) = part.at.get(&short) {
                part.unlink(at);
                part.link_front(at);
            }
        }
    }

    /// Keeps the segments of a prefix, its beginning as the youngest.
    pub fn keep(&self, segments: &[(Key, Arc<Segment>)]) {
        for (key, segment) in segments.iter().rev() {
            let (short, mut part) = self.part(key);
            let before = part.bytes;
            part.insert(short, Arc::clone(segment), self.part_bytes_max);
            // Wraps where the part got smaller; the sum is right.
            self.bytes.fetch_add(part.bytes.wrapping_sub(before), Relaxed);
        }
    }

    /// Bytes of all segments kept.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }
}

#[derive(Debug)]
struct Entry {
    key: u128,
    segment: Arc<Segment>,
    younger: usize,
    older: usize,
}

/// A map whose entries are also a list, the youngest first.
#[derive(Debug)]
struct Part {
    at: HashMap<u128, usize>,
    entries: Vec<Entry>,
    youngest: usize,
    oldest: usize,
    bytes: usize,
}

impl Default for Part {
    fn default() -> Self {
        Part { at: HashMap::new(), entries: Vec::new(), youngest: NONE, oldest: NONE, bytes: 0 }
    }
}

impl Part {
    fn insert(&mut self, key: u128, segment: Arc<Segment>, bytes_max: usize) {
        let bytes = segment.bytes();
        if bytes > bytes_max {
            return;
        }
        if let Some(&at) = self.at.get(&key) {
            // Two cores tokenized it at once; both got the same.
            self.unlink(at);
            self.link_front(at);
            return;
        }
        while self.bytes + bytes > bytes_max && self.oldest != NONE {
            self.remove(self.oldest);
        }
        let at = self.entries.len();
        self.entries.push(Entry { key, segment, younger: NONE, older: NONE });
        self.at.insert(key, at);
        self.link_front(at);
        self.bytes += bytes;
    }

    fn unlink(&mut self, at: usize) {
        let (younger, older) = (self.entries[at].younger, self.entries[at].older);
        match younger {
            NONE => self.youngest = older,
            younger => self.entries[younger].older = older,
        }
        match older {
            NONE => self.oldest = younger,
            older => self.entries[older].younger = younger,
        }
    }

    fn link_front(&mut self, at: usize) {
        let second = self.youngest;
        self.entries[at].younger = NONE;
        self.entries[at].older = second;
        self.youngest = at;
        match second {
            NONE => self.oldest = at,
            second => self.entries[second].younger = at,
        }
    }

    /// The last entry takes the place of the one removed.
    fn remove(&mut self, at: usize) {
        self.unlink(at);
        let gone = self.entries.swap_remove(at);
        self.at.remove(&gone.key);
        self.bytes -= gone.segment.bytes();
        let Some(moved) = self.entries.get(at) else { return };
        let (key, younger, older) = (moved.key, moved.younger, moved.older);
        self.at.insert(key, at);
        match younger {
            NONE => self.youngest = at,
            younger => self.entries[younger].older = at,
        }
        match older {
            NONE => self.oldest = at,
            older => self.entries[older].younger = at,
        }
    }
}

#[cfg(test)]
mod tests {
    use dataplane::digest::{Unit, of_tokens, seed};
    use proptest::prelude::*;

    use super::*;

    fn segment(tokens: usize) -> Arc<Segment> {
        let end = ChainState::new(seed(Unit::Tokens, "m", "", ""));
        Arc::new(Segment { tokens: vec![0; tokens].into(), digests: [].into(), end })
    }

    fn key(name: u8) -> Key {
        [name; 32]
    }

    #[test]
    fn a_beginning_outlives_its_end() {
        let cache = SegmentCache::in_parts(3 * ENTRY_BYTES, 1);
        cache.keep(&[(key(1), segment(0)), (key(2), segment(0)), (key(3), segment(0))]);
        cache.keep(&[(key(4), segment(0))]);
        assert!(cache.find(&key(3)).is_none());
        assert!(cache.find(&key(1)).is_some() && cache.find(&key(2)).is_some());
        cache.touch(&[key(1), key(2)]);
        cache.keep(&[(key(5), segment(0))]);
        assert!(cache.find(&key(4)).is_none(), "the oldest");
        cache.keep(&[(key(6), segment(0)), (key(7), segment(0))]);
        assert!(cache.find(&key(2)).is_none() && cache.find(&key(1)).is_none());
        assert_eq!(cache.bytes(), 3 * ENTRY_BYTES);
    }

    #[test]
    fn what_is_larger_than_the_cache_is_not_kept() {
        let cache = SegmentCache::in_parts(2 * ENTRY_BYTES, 1);
        cache.keep(&[(key(1), segment(0))]);
        cache.keep(&[(key(2), segment(ENTRY_BYTES))]);
        assert!(cache.find(&key(2)).is_none() && cache.find(&key(1)).is_some());
    }

    proptest! {
        /// Against a list that is searched from its young end.
        #[test]
        fn it_forgets_as_a_list_does(steps in prop::collection::vec((0u8..3, 0u8..12, 0usize..200), 0..200)) {
            let bytes_max = 6 * ENTRY_BYTES;
            let cache = SegmentCache::in_parts(bytes_max, 1);
            let mut list: Vec<(u8, usize)> = Vec::new();
            for (step, name, tokens) in steps {
                let at = list.iter().position(|(known, _)| *known == name);
                match (step, at) {
                    (0, None) => {
                        list.insert(0, (name, ENTRY_BYTES + tokens * 4));
                        while list.iter().map(|(_, bytes)| bytes).sum::<usize>() > bytes_max {
                            list.pop();
                        }
                        cache.keep(&[(key(name), segment(tokens))]);
                    }
                    (0 | 1, Some(at)) => {
                        let entry = list.remove(at);
                        list.insert(0, entry);
                        cache.touch(&[key(name)]);
                    }
                    _ => {}
                }
                for name in 0..12 {
                    let is_known = list.iter().any(|(known, _)| *known == name);
                    prop_assert_eq!(cache.find(&key(name)).is_some(), is_known);
                }
                prop_assert_eq!(cache.bytes(), list.iter().map(|(_, bytes)| bytes).sum::<usize>());
            }
        }

        #[test]
        fn digests_in_parts_are_the_digests_of_the_whole(
            parts in prop::collection::vec(prop::collection::vec(any::<u32>(), 0..40), 0..8),
            block in 0usize..20,
        ) {
            let seed = seed(Unit::Tokens, "m", "", "");
            let mut state = ChainState::new(seed);
            let found: Vec<Digest> =
                parts.iter().flat_map(|part| state.extend(part, block)).collect();
            prop_assert_eq!(found, of_tokens(&seed, &parts.concat(), block));
        }
    }
}
