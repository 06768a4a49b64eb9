//! Reads from a GGUF file's header what one token costs in a KV cache.
//!
//! Format: llama.cpp's `docs/gguf.md`, versions 2 and 3, little-endian. Only the metadata before the
//! tensors is read, and no more than [`HEADER_BYTES_MAX`] of it. The file is outside bytes: whatever
//! does not fit gives `None`, never a panic.
//!
//! The formula is that of full attention: `2 bytes × Σ over layers of kv_heads × (key_length +
//! value_length)`. Models that keep less than that (sliding windows, latent attention) hold more
//! tokens than it says.

use std::collections::BTreeMap;
use std::io::{Read, Result};

/// First four bytes of each file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The largest vocabularies take some 16 MiB.
pub const HEADER_BYTES_MAX: u64 = 128 << 20;
/// Most metadata keys.
const KEYS_MAX: u64 = 4096;
/// Longest key; the format says so.
const KEY_BYTES_MAX: u64 = 65_535;
/// Longest array that is read rather than skipped: one number for each layer.
const LAYERS_MAX: u64 = 1024;
/// Bytes of a 16-bit float.
const ELEMENT_BYTES: u64 = 2;

/// Bytes one token takes in a KV cache of 16-bit floats.
pub fn kv_bytes_per_token(file: impl Read) -> Option<u64> {
    let numbers = read_numbers(&mut Bounded(file.take(HEADER_BYTES_MAX))).ok()?;
    // Keys are `<architecture>.<name>`; the architecture differs, the names do not.
    let number = |name: &str| {
        numbers
            .iter()
            .find(|(key, _)| key.split_once('.').is_some_and(|(_, rest)| rest == name))
            .map(|(_, values)| values.as_slice())
    };
    let one = |name: &str| number(name).and_then(|values| values.first().copied());
    let layers = one("block_count")?;
    let heads = number("attention.head_count")?.iter().copied().max()?;
    let kv_heads = number("attention.head_count_kv").or_else(|| number("attention.head_count"))?;
    let kv_heads_all = match kv_heads {
        [same] => same.checked_mul(layers)?,
        each => each.iter().try_fold(0u64, |sum, heads| sum.checked_add(*heads))?,
    };
    let head = one("embedding_length")?.checked_div(heads)?;
    let key = one("attention.key_length").unwrap_or(head);
    let value = one("attention.value_length").unwrap_or(head);
    kv_heads_all.checked_mul(key.checked_add(value)?)?.checked_mul(ELEMENT_BYTES)
}

/// All metadata that are whole numbers or short arrays of them.
fn read_numbers(file: &mut Bounded<impl Read>) -> Result<BTreeMap<String, Vec<u64>>> {
    if file.bytes::<4>()? != MAGIC {
        return Err(invalid("magic"));
    }
    let _version = file.u32()?;
    let _tensors = file.u64()?;
    let keys = file.u64()?;
    if keys > KEYS_MAX {
        return Err(invalid("too many keys"));
    }
    let mut numbers = BTreeMap::new();
    for _ in 0..keys {
        let key = file.string()?;
        let kind = file.u32()?;
        if let Some(values) = read_value(file, kind)? {
            numbers.insert(key, values);
        }
    }
    Ok(numbers)
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;

fn read_value(file: &mut Bounded<impl Read>, kind: u32) -> Result<Option<Vec<u64>>> {
    match kind {
        STRING => {
            let length = file.u64()?;
            file.skip(length)?;
            Ok(None)
        }
        ARRAY => read_array(file),
        _ => Ok(read_number(file, kind)?.map(|number| vec![number])),
    }
}

fn read_array(file: &mut Bounded<impl Read>) -> Result<Option<Vec<u64>>> {
    let kind = file.u32()?;
    let length = file.u64()?;
    if kind == STRING {
        for _ in 0..length {
            let bytes = file.u64()?;
            file.skip(bytes)?;
        }
        return Ok(None);
    }
    if length > LAYERS_MAX {
        file.skip(width(kind)?.checked_mul(length).ok_or_else(|| invalid("array"))?)?;
        return Ok(None);
    }
    let mut values = Vec::new();
    for _ in 0..length {
        values.extend(read_number(file, kind)?);
    }
    Ok(Some(values))
}

/// None for floats, booleans and negative numbers.
fn read_number(file: &mut Bounded<impl Read>, kind: u32) -> Result<Option<u64>> {
    let mut bytes = [0u8; 8];
    let width = width(kind)?;
    for byte in bytes.iter_mut().take(usize::try_from(width).unwrap_or(0)) {
        [*byte] = file.bytes::<1>()?;
    }
    let unsigned = u64::from_le_bytes(bytes);
    let sign_bit = 1u64 << (8 * width - 1);
    Ok(match kind {
        0 | 2 | 4 | 10 => Some(unsigned),
        1 | 3 | 5 | 11 if unsigned & sign_bit == 0 => Some(unsigned),
        _ => None,
    })
}

/// Bytes of one scalar.
fn width(kind: u32) -> Result<u64> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        _ => Err(invalid("value type")),
    }
}

fn invalid(what: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned())
}

struct Bounded<R>(std::io::Take<R>);

impl<R: Read> Bounded<R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn string(&mut self) -> Result<String> {
        let length = self.u64()?;
        if length > KEY_BYTES_MAX {
            return Err(invalid("key length"));
        }
        let mut bytes = Vec::new();
        (&mut self.0).take(length).read_to_end(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| invalid("key"))
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        let skipped = std::io::copy(&mut (&mut self.0).take(bytes), &mut std::io::sink())?;
        if skipped == bytes { Ok(()) } else { Err(invalid("truncated")) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    fn number(key: &str, value: u32) -> Vec<u8> {
        [text(key), 4u32.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat()
    }

    fn array(key: &str, kind: u32, items: &[Vec<u8>]) -> Vec<u8> {
        let head = [ARRAY.to_le_bytes(), kind.to_le_bytes()].concat();
        [text(key), head, (items.len() as u64).to_le_bytes().to_vec(), items.concat()].concat()
    }

    fn file(entries: &[Vec<u8>]) -> Vec<u8> {
        let head = [&MAGIC[..], &3u32.to_le_bytes(), &7u64.to_le_bytes()].concat();
        [head, (entries.len() as u64).to_le_bytes().to_vec(), entries.concat()].concat()
    }

    fn smollm2() -> Vec<Vec<u8>> {
        vec![
            [text("general.architecture"), STRING.to_le_bytes().to_vec(), text("llama")].concat(),
            array("tokenizer.ggml.tokens", STRING, &[text("a"), text("bc")]),
            number("llama.block_count", 30),
            number("llama.embedding_length", 576),
            number("llama.attention.head_count", 9),
            number("llama.attention.head_count_kv", 3),
        ]
    }

    #[test]
    fn smollm2_takes_22_and_a_half_kib_a_token() {
        assert_eq!(kv_bytes_per_token(file(&smollm2()).as_slice()), Some(23_040));
    }

    #[test]
    fn heads_may_be_given_for_each_layer() {
        let mut entries = smollm2();
        let each: Vec<Vec<u8>> =
            (0..30u32).map(|layer| (layer % 2).to_le_bytes().to_vec()).collect();
        entries[5] = array("llama.attention.head_count_kv", 4, &each);
        assert_eq!(kv_bytes_per_token(file(&entries).as_slice()), Some(15 * 128 * 2));
    }

    #[test]
    fn a_shape_that_is_not_stated_is_not_guessed() {
        assert_eq!(kv_bytes_per_token(file(&smollm2()[..4]).as_slice()), None);
        assert_eq!(kv_bytes_per_token(&b"GGML"[..]), None);
    }

    proptest! {
        #[test]
        fn any_cut_and_any_flipped_byte_is_survived(cut in 0usize..400, at in 0usize..400, byte in any::<u8>()) {
            let mut bytes = file(&smollm2());
            bytes.truncate(cut.max(1));
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = kv_bytes_per_token(bytes.as_slice());
        }
    }
}
