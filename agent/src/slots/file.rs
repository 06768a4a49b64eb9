//! The head of a slot file, as `POST /slots/ID?action=save` writes it: which tokens the state is of.
//!
//! ```text
//!  u32 'ggsq' | u32 version 3 | u32 n | n × i32 | state, whose layout is the engine's own business
//! ```
//!
//! The `n` numbers are the tokens, or, since llama.cpp packs them: -1, version 1, count, the tokens, then
//! the places of images and the images themselves. A state with images is refused: its tokens do not name
//! it. All of it is little-endian, and none of it is trusted: the file may have been cut off, and the
//! engine may be of another year.

use std::io::{self, Read};

/// First four bytes: `LLAMA_STATE_SEQ_MAGIC`.
const MAGIC: u32 = 0x6767_7371;
/// `LLAMA_STATE_SEQ_VERSION`.
const VERSION: u32 = 3;
/// Instead of a first token: the tokens are packed.
const PACKED: u32 = u32::MAX;
/// `SERVER_TOKENS_STATE_VERSION`.
const PACKED_VERSION: u32 = 1;
/// Bytes before the numbers.
const HEAD_BYTES: u64 = 12;
/// Most numbers that are read: the longest context there may be, and what packing adds.
const NUMBERS_MAX: u32 = crate::engine::CONTEXT_LENGTH_TOKENS_MAX + 16;

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system's.
    #[error("the slot file cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is something else, or of another year.
    #[error("not a slot file of a known version (it begins with {magic:08x}, version {version})")]
    Unknown {
        /// First number.
        magic: u32,
        /// Second number.
        version: u32,
    },
    /// It says more than it has.
    #[error("the slot file is cut off")]
    Torn,
    /// A number cannot be a token.
    #[error("the slot file has tokens that cannot be")]
    Token,
    /// Images.
    #[error("the slot holds images, which its tokens do not name")]
    Media,
}

/// The tokens a slot file of `file_bytes` is of.
///
/// # Errors
/// Any [`FileError`].
pub fn tokens(mut from: impl Read, file_bytes: u64) -> Result<Vec<u32>, FileError> {
    let mut head = [0; HEAD_BYTES as usize];
    fill(&mut from, &mut head)?;
    let [magic, version, count] = words(&head);
    if magic != MAGIC || version != VERSION {
        return Err(FileError::Unknown { magic, version });
    }
    // The state itself takes bytes too.
    if count > NUMBERS_MAX || HEAD_BYTES + u64::from(count) * 4 >= file_bytes {
        return Err(FileError::Torn);
    }
    let mut bytes = vec![0; count as usize * 4];
    fill(&mut from, &mut bytes)?;
    let numbers = bytes.as_chunks::<4>().0.iter().map(|chunk| u32::from_le_bytes(*chunk)).collect();
    unpacked(numbers)
}

/// The tokens among the numbers.
fn unpacked(numbers: Vec<u32>) -> Result<Vec<u32>, FileError> {
    let tokens = match numbers.as_slice() {
        [PACKED, PACKED_VERSION, count, rest @ ..] => {
            match rest.split_at_checked(*count as usize) {
                Some((tokens, [0])) => tokens.to_vec(),
                Some((_, [_, ..])) => return Err(FileError::Media),
                _ => return Err(FileError::Torn),
            }
        }
        [PACKED, version, ..] => {
            return Err(FileError::Unknown { magic: PACKED, version: *version });
        }
        _ => numbers,
    };
    match tokens.iter().all(|token| i32::try_from(*token).is_ok()) {
        true => Ok(tokens),
        false => Err(FileError::Token),
    }
}

fn words(head: &[u8; HEAD_BYTES as usize]) -> [u32; 3] {
    let mut words = [0; 3];
    for (word, chunk) in words.iter_mut().zip(head.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*chunk);
    }
    words
}

fn fill(from: &mut impl Read, bytes: &mut [u8]) -> Result<(), FileError> {
    from.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => FileError::Torn,
        _ => FileError::Io(error),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(numbers: &[u32]) -> Vec<u8> {
        let count = u32::try_from(numbers.len()).unwrap();
        let head = [MAGIC, VERSION, count];
        let words = head.iter().chain(numbers).flat_map(|word| word.to_le_bytes());
        words.chain(*b"state").collect()
    }

    fn read(bytes: &[u8]) -> Result<Vec<u32>, String> {
        tokens(bytes, bytes.len() as u64).map_err(|error| error.to_string())
    }

    #[test]
    fn tokens_are_read_plain_and_packed() {
        assert_eq!(read(&file(&[7, 8, 9])), Ok(vec![7, 8, 9]));
        assert_eq!(read(&file(&[PACKED, 1, 3, 7, 8, 9, 0])), Ok(vec![7, 8, 9]));
        assert_eq!(read(&file(&[])), Ok(vec![]));
    }

    #[test]
    fn what_is_no_slot_file_of_text_is_refused() {
        for (numbers, why) in [
            (&[PACKED, 1, 2, 7, 8, 1, 0][..], "images"),
            (&[PACKED, 1, 3, 7, 8], "cut off"),
            (&[PACKED, 1, 2, 7, 8], "cut off"),
            (&[PACKED, 2, 0, 0], "version 2"),
            (&[7, PACKED], "cannot be"),
        ] {
            let said = read(&file(numbers)).unwrap_err();
            assert!(said.contains(why), "{numbers:?}: {said}");
        }
        assert!(read(b"GGUF\x03\0\0\0\0\0\0\0").unwrap_err().contains("not a slot file"));
        assert!(read(&[MAGIC, 2, 0].map(u32::to_le_bytes).concat()).is_err());
        let huge = [MAGIC, VERSION, u32::MAX].map(u32::to_le_bytes).concat();
        assert!(matches!(tokens(huge.as_slice(), u64::MAX), Err(FileError::Torn)));
    }

    proptest! {
        #[test]
        fn a_file_is_read_whole_or_refused_wherever_it_is_cut(
            wanted in prop::collection::vec(0u32..1 << 20, 0..40),
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = file(&wanted);
            prop_assert_eq!(read(&bytes), Ok(wanted.clone()));
            let head = bytes.len() - b"state".len();
            prop_assert!(read(&bytes[..cut.index(head + 1)]).is_err());
        }

        #[test]
        fn hostile_files_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = read(&bytes);
            let mut begun = file(&[]);
            begun.splice(8.., bytes);
            let _ = read(&begun);
        }
    }
}
