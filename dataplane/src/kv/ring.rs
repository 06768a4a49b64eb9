//! The ring of a client that polls: a memfd that the daemon makes, with one queue of submissions and one
//! of completions, each with one writer and one reader. Here is where things lie in it and what the
//! entries say; who maps it, and with which fences, is not decided here.
//!
//! ```text
//!      0   submissions written, u32        by the client
//!     64   submissions read, u32           by the daemon
//!    128   completions written, u32        by the daemon
//!    192   completions read, u32           by the client
//!    256   1 when the daemon sleeps, u32   by the daemon
//!   4096   256 submissions of 64 bytes
//!  20480   256 completions of 32 bytes
//! ```
//!
//! The counters only rise, and wrap; an entry lies at its number modulo [`ENTRIES`]. Each counter has a cache
//! line of its own. A client has at most [`ENTRIES`] submissions unanswered, so that each answer has a
//! place. After it wrote one it looks whether the daemon sleeps, and if so says [`super::Request::Wake`].
//! Each side copies an entry whole before it believes anything in it.

use super::{Fault, Got, NAME_BYTES, Name};

/// Entries of each queue: more than a polling client has under way at once.
pub const ENTRIES: u32 = 256;
/// Length of the memfd in bytes.
pub const RING_BYTES: usize = 28_672;
/// Where the counters lie, in bytes.
pub const SUBMISSIONS_WRITTEN_AT: usize = 0;
/// See above.
pub const SUBMISSIONS_READ_AT: usize = 64;
/// See above.
pub const COMPLETIONS_WRITTEN_AT: usize = 128;
/// See above.
pub const COMPLETIONS_READ_AT: usize = 192;
/// See above.
pub const SLEEPS_AT: usize = 256;
/// Where the submissions begin, in bytes.
pub const SUBMISSIONS_AT: usize = 4096;
/// Where the completions begin, in bytes.
pub const COMPLETIONS_AT: usize = 20_480;

/// Words of a submission.
pub type SubmissionWords = [u64; 8];
/// Words of a completion.
pub type CompletionWords = [u64; 4];

const _: () =
    assert!(SUBMISSIONS_AT + ENTRIES as usize * size_of::<SubmissionWords>() == COMPLETIONS_AT);
const _: () =
    assert!(COMPLETIONS_AT + ENTRIES as usize * size_of::<CompletionWords>() == RING_BYTES);

/// Where submission or completion `number` lies, in bytes.
pub fn submission_at(number: u32) -> usize {
    SUBMISSIONS_AT + (number % ENTRIES) as usize * size_of::<SubmissionWords>()
}

/// See [`submission_at`].
pub fn completion_at(number: u32) -> usize {
    COMPLETIONS_AT + (number % ENTRIES) as usize * size_of::<CompletionWords>()
}

mod operation {
    pub(super) const GET: u64 = 1;
    pub(super) const LOOKUP: u64 = 2;
    pub(super) const RELEASE: u64 = 3;
}

/// What a polling client asks. Release has no completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submission {
    /// A lease on a block in memory; one that is on disk only is fetched first.
    Get {
        /// Echoed in the completion.
        id: u32,
        /// Which.
        name: Name,
    },
    /// Whether a block is on the node.
    Lookup {
        /// Echoed in the completion.
        id: u32,
        /// Which.
        name: Name,
    },
    /// Gives a lease back.
    Release {
        /// Out of a completion or of a frame.
        lease: u64,
    },
}

impl Submission {
    /// As it lies in the ring.
    pub fn to_words(self) -> SubmissionWords {
        let (operation, id, name) = match self {
            Submission::Get { id, name } => (operation::GET, id, name),
            Submission::Lookup { id, name } => (operation::LOOKUP, id, name),
            Submission::Release { lease } => return [operation::RELEASE, lease, 0, 0, 0, 0, 0, 0],
        };
        let mut words = [operation, u64::from(id), 0, 0, 0, 0, 0, 0];
        let (chunks, _) = name.as_chunks::<8>();
        for (word, chunk) in words[2..].iter_mut().zip(chunks) {
            *word = u64::from_le_bytes(*chunk);
        }
        words
    }

    /// What a client wrote, or nothing when it is none of these.
    pub fn from_words(words: SubmissionWords) -> Option<Submission> {
        let [operation, second, rest @ ..] = words;
        if operation == operation::RELEASE {
            return (rest == [0; 6]).then_some(Submission::Release { lease: second });
        }
        let id = u32::try_from(second).ok()?;
        let mut name = [0; NAME_BYTES];
        let (chunks, _) = name.as_chunks_mut::<8>();
        for (chunk, word) in chunks.iter_mut().zip(rest) {
            *chunk = word.to_le_bytes();
        }
        match (operation, rest[4..] == [0; 2]) {
            (operation::GET, true) => Some(Submission::Get { id, name }),
            (operation::LOOKUP, true) => Some(Submission::Lookup { id, name }),
            _ => None,
        }
    }
}

/// What the daemon answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Of the submission.
    pub id: u32,
    /// To Lookup, a lease of 0 bytes with the tier's number as its id.
    pub got: Got,
}

impl Completion {
    /// As it lies in the ring.
    pub fn to_words(self) -> CompletionWords {
        let id = u64::from(self.id) << 32;
        match self.got {
            Got::Missing => [id, 0, 0, 0],
            Got::Leased { lease, offset, len } => [id | 0x100, lease, offset, len],
            Got::Failed(fault) => [id | u64::from(fault.number()), 0, 0, 0],
        }
    }

    /// What a daemon wrote, or nothing when it is none.
    pub fn from_words(words: CompletionWords) -> Option<Completion> {
        let [head, lease, offset, len] = words;
        let id = u32::try_from(head >> 32).ok()?;
        let got = match head & 0xffff_ffff {
            0 => Got::Missing,
            0x100 => Got::Leased { lease, offset, len },
            number => Got::Failed(Fault::from_number(u8::try_from(number).ok()?)?),
        };
        let is_whole = matches!(got, Got::Leased { .. }) || [lease, offset, len] == [0; 3];
        is_whole.then_some(Completion { id, got })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn submissions_are_read_as_written(id: u32, name: [u8; 32], lease: u64) {
            for submission in [
                Submission::Get { id, name },
                Submission::Lookup { id, name },
                Submission::Release { lease },
            ] {
                prop_assert_eq!(Submission::from_words(submission.to_words()), Some(submission));
            }
        }

        #[test]
        fn completions_are_read_as_written(id: u32, words: [u64; 3], fault in 1u8..=19) {
            let [lease, offset, len] = words;
            for got in [
                Got::Missing,
                Got::Leased { lease, offset, len },
                Got::Failed(Fault::from_number(fault).unwrap()),
            ] {
                let completion = Completion { id, got };
                prop_assert_eq!(Completion::from_words(completion.to_words()), Some(completion));
            }
        }

        #[test]
        fn any_words_are_an_entry_or_none(operation in 0u64..5, rest: [u64; 7], small: bool) {
            let mut words = [operation, rest[0], rest[1], rest[2], rest[3], rest[4], 0, 0];
            if !small { words[6] = rest[5]; words[7] = rest[6]; }
            if let Some(submission) = Submission::from_words(words) {
                prop_assert_eq!(submission.to_words(), words);
            }
            let words = [rest[0], rest[1], rest[2], rest[3]];
            if let Some(completion) = Completion::from_words(words) {
                prop_assert_eq!(completion.to_words(), words);
            }
        }
    }
}
