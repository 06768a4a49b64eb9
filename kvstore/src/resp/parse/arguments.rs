//! The arguments of one command, end to end in one buffer.
//!
//! The buffer stays from command to command, so that a connection allocates once; one long command does
//! not keep its memory for ever. It knows which arguments are values, nothing else of the commands.

use std::ops::Range;

/// The buffer a connection keeps between commands.
const KEPT_BYTES_MAX: usize = 4 << 10;
/// The ends a connection keeps between commands.
const KEPT_ENDS_MAX: usize = 64;

/// Arguments, the command's name first. A value that the caller took off the wire is an empty one here.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Arguments {
    bytes: Vec<u8>,
    /// Where each argument ends in `bytes`.
    ends: Vec<usize>,
}

impl Arguments {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The argument at `index`; 0 is the command's name.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        Some(&self.bytes[self.range(index)?])
    }

    /// All of them in order, from the one at `first`.
    pub fn from(&self, first: usize) -> impl Iterator<Item = &[u8]> {
        (first..self.len()).filter_map(|index| self.get(index))
    }

    /// Whether the argument at `index` is the word `word`, in letters of any size.
    pub fn is(&self, index: usize, word: &str) -> bool {
        self.get(index).is_some_and(|bytes| bytes.eq_ignore_ascii_case(word.as_bytes()))
    }

    /// Whether the next argument is a value: the third of a SET, every second one of an MSET.
    pub(super) fn is_value_next(&self) -> bool {
        let index = self.len();
        match index {
            0 | 1 => false,
            2 => self.is(0, "SET") || self.is(0, "SETNX") || self.is(0, "MSET"),
            _ => index.is_multiple_of(2) && self.is(0, "MSET"),
        }
    }

    pub(super) fn bytes_len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.bytes.shrink_to(KEPT_BYTES_MAX);
        self.ends.shrink_to(KEPT_ENDS_MAX);
    }

    /// Begins a new, empty argument.
    pub(super) fn push(&mut self) {
        self.ends.push(self.bytes.len());
    }

    /// Lengthens the last argument.
    pub(super) fn extend(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
        if let Some(end) = self.ends.last_mut() {
            *end = self.bytes.len();
        }
    }

    fn range(&self, index: usize) -> Option<Range<usize>> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(start..end)
    }
}
