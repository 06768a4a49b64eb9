//! As much msgpack as KV events need, read from a slice without copying.
//!
//! Every length is checked against what is left before it is believed; nesting is bounded; nothing
//! panics. A derive would build every event as a tree first, which costs more than all the rest.

/// Deepest nesting that is skipped over; events have four levels.
const DEPTH_MAX: usize = 16;

/// Why bytes are not msgpack, or not the msgpack expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MsgpackError {
    /// The bytes ended within a value.
    #[error("the payload is torn")]
    Torn,
    /// Another type stands there.
    #[error("a value has another type than expected")]
    Type,
    /// An integer that does not fit.
    #[error("an integer is out of its range")]
    Range,
    /// Too deep or too long.
    #[error("the payload is over a limit")]
    Limit,
}

use MsgpackError::{Limit, Range, Torn, Type};

/// One value; of an array or map only its head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// nil
    Nil,
    /// true or false
    Flag(bool),
    /// A number from 0 up.
    Unsigned(u64),
    /// A number below 0.
    Negative(i64),
    /// float 32 or 64
    Float(f64),
    /// str, which may not be UTF-8.
    Text(&'a [u8]),
    /// bin
    Bytes(&'a [u8]),
    /// So many values follow.
    Array(usize),
    /// So many pairs follow.
    Map(usize),
    /// ext, whatever is in it.
    Extension,
}

/// Reads values one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Begins at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// Bytes not read yet. No list can be longer.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next value.
    ///
    /// # Errors
    /// [`MsgpackError::Torn`]; [`MsgpackError::Type`] for the byte that msgpack never uses.
    pub fn value(&mut self) -> Result<Value<'a>, MsgpackError> {
        let tag = self.byte()?;
        Ok(match tag {
            0x00..=0x7f => Value::Unsigned(u64::from(tag)),
            0x80..=0x8f => self.map(usize::from(tag & 0x0f))?,
            0x90..=0x9f => self.array(usize::from(tag & 0x0f))?,
            0xa0..=0xbf => Value::Text(self.bytes(usize::from(tag & 0x1f))?),
            0xc0 => Value::Nil,
            0xc1 => return Err(Type),
            0xc2 | 0xc3 => Value::Flag(tag == 0xc3),
            0xc4..=0xc6 => {
                let length = self.length(tag - 0xc4)?;
                Value::Bytes(self.bytes(length)?)
            }
            0xc7..=0xc9 => {
                let length = self.length(tag - 0xc7)?;
                self.bytes(length)?;
                self.byte()?;
                Value::Extension
            }
            0xca => Value::Float(f64::from(f32::from_be_bytes(self.fixed()?))),
            0xcb => Value::Float(f64::from_be_bytes(self.fixed()?)),
            0xcc => Value::Unsigned(u64::from(self.byte()?)),
            0xcd => Value::Unsigned(u64::from(u16::from_be_bytes(self.fixed()?))),
            0xce => Value::Unsigned(u64::from(u32::from_be_bytes(self.fixed()?))),
            0xcf => Value::Unsigned(u64::from_be_bytes(self.fixed()?)),
            0xd0 => signed(i64::from(i8::from_be_bytes(self.fixed()?))),
            0xd1 => signed(i64::from(i16::from_be_bytes(self.fixed()?))),
            0xd2 => signed(i64::from(i32::from_be_bytes(self.fixed()?))),
            0xd3 => signed(i64::from_be_bytes(self.fixed()?)),
            0xd4..=0xd8 => {
                self.bytes(1 + (1 << (tag - 0xd4)))?;
                Value::Extension
            }
            0xd9..=0xdb => {
                let length = self.length(tag - 0xd9)?;
                Value::Text(self.bytes(length)?)
            }
            0xdc | 0xdd => {
                let length = self.length(tag - 0xdc + 1)?;
                self.array(length)?
            }
            0xde | 0xdf => {
                let length = self.length(tag - 0xde + 1)?;
                self.map(length)?
            }
            0xe0..=0xff => Value::Negative(i64::from(tag.cast_signed())),
        })
    }

    /// The next value, which must be an array: its length.
    ///
    /// # Errors
    /// Any [`MsgpackError`]
    pub fn array_head(&mut self) -> Result<usize, MsgpackError> {
        match self.value()? {
            Value::Array(length) => Ok(length),
            _ => Err(Type),
        }
    }

    /// The next value, which must be a number from 0 up that fits.
    ///
    /// # Errors
    /// Any [`MsgpackError`]
    pub fn unsigned_32(&mut self) -> Result<u32, MsgpackError> {
        // Most token ids are below 128 or in one of two forms; the rest goes the long way.
        match self.rest {
            [tag @ 0x00..=0x7f, rest @ ..] => {
                self.rest = rest;
                Ok(u32::from(*tag))
            }
            [0xcd, a, b, rest @ ..] => {
                self.rest = rest;
                Ok(u32::from(u16::from_be_bytes([*a, *b])))
            }
            [0xce, a, b, c, d, rest @ ..] => {
                self.rest = rest;
                Ok(u32::from_be_bytes([*a, *b, *c, *d]))
            }
            _ => match self.value()? {
                Value::Unsigned(number) => u32::try_from(number).map_err(|_| Range),
                Value::Negative(_) => Err(Range),
                _ => Err(Type),
            },
        }
    }

    /// Passes over the next value with all that is in it.
    ///
    /// # Errors
    /// Any [`MsgpackError`]
    pub fn skip(&mut self) -> Result<(), MsgpackError> {
        let value = self.value()?;
        self.skip_inside(value)
    }

    /// Passes over what is in `value`, whose head was just read.
    ///
    /// # Errors
    /// Any [`MsgpackError`]
    pub fn skip_inside(&mut self, value: Value<'_>) -> Result<(), MsgpackError> {
        let mut open = [0usize; DEPTH_MAX];
        let mut depth = 0;
        let mut value = value;
        loop {
            let inside = match value {
                Value::Array(length) => length,
                Value::Map(pairs) => pairs.checked_mul(2).ok_or(Limit)?,
                _ => 0,
            };
            if inside > 0 {
                *open.get_mut(depth).ok_or(Limit)? = inside;
                depth += 1;
            }
            loop {
                let Some(left) = depth.checked_sub(1).and_then(|top| open.get_mut(top)) else {
                    return Ok(());
                };
                if *left > 0 {
                    *left -= 1;
                    break;
                }
                depth -= 1;
            }
            value = self.value()?;
        }
    }

    fn byte(&mut self) -> Result<u8, MsgpackError> {
        let (&byte, rest) = self.rest.split_first().ok_or(Torn)?;
        self.rest = rest;
        Ok(byte)
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], MsgpackError> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(Torn)?;
        self.rest = rest;
        Ok(head)
    }

    fn fixed<const COUNT: usize>(&mut self) -> Result<[u8; COUNT], MsgpackError> {
        let (head, rest) = self.rest.split_first_chunk::<COUNT>().ok_or(Torn)?;
        self.rest = rest;
        Ok(*head)
    }

    /// A length of 1, 2 or 4 bytes, for 0, 1 and 2.
    fn length(&mut self, form: u8) -> Result<usize, MsgpackError> {
        Ok(match form {
            0 => usize::from(self.byte()?),
            1 => usize::from(u16::from_be_bytes(self.fixed()?)),
            _ => u32::from_be_bytes(self.fixed()?) as usize,
        })
    }

    /// Each value takes a byte at least, so a longer list is torn.
    fn array(&self, length: usize) -> Result<Value<'a>, MsgpackError> {
        if length > self.rest.len() { Err(Torn) } else { Ok(Value::Array(length)) }
    }

    fn map(&self, pairs: usize) -> Result<Value<'a>, MsgpackError> {
        if pairs > self.rest.len() / 2 { Err(Torn) } else { Ok(Value::Map(pairs)) }
    }
}

fn signed<'a>(number: i64) -> Value<'a> {
    u64::try_from(number).map_or(Value::Negative(number), Value::Unsigned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Value<'_>, MsgpackError> {
        let mut reader = Reader::new(bytes);
        let value = reader.value()?;
        assert_eq!(reader.left(), 0);
        Ok(value)
    }

    proptest! {
        /// Against the encoder that the simulated engine uses.
        #[test]
        fn numbers_of_every_size_come_back(number in any::<i64>(), shift in 0u32..64) {
            let number = number >> shift;
            let written = rmp_serde::to_vec(&number).unwrap();
            let expected =
                u64::try_from(number).map_or(Value::Negative(number), Value::Unsigned);
            prop_assert_eq!(read(&written), Ok(expected));
            if let Ok(small) = u32::try_from(number) {
                prop_assert_eq!(Reader::new(&written).unsigned_32(), Ok(small));
            } else {
                prop_assert_eq!(Reader::new(&written).unsigned_32(), Err(Range));
            }
            let unsigned = number.cast_unsigned();
            let written = rmp_serde::to_vec(&unsigned).unwrap();
            prop_assert_eq!(read(&written), Ok(Value::Unsigned(unsigned)));
        }

        #[test]
        fn texts_and_lists_of_every_length_come_back(length in 0usize..70_000) {
            let text = "x".repeat(length);
            let written = rmp_serde::to_vec(&text).unwrap();
            prop_assert_eq!(read(&written), Ok(Value::Text(text.as_bytes())));
            let list = vec![1u8; length];
            let written = rmp_serde::to_vec(&list).unwrap();
            let mut reader = Reader::new(&written);
            prop_assert_eq!(reader.array_head(), Ok(length));
            prop_assert_eq!(reader.left(), length);
            let mut reader = Reader::new(&written);
            prop_assert_eq!(reader.skip(), Ok(()));
            prop_assert_eq!(reader.left(), 0);
        }

        #[test]
        fn hostile_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = Reader::new(&bytes);
            while reader.skip().is_ok() {}
            prop_assert!(reader.left() <= bytes.len());
        }
    }

    #[test]
    fn what_is_too_deep_or_too_long_is_refused() {
        assert_eq!(Reader::new(&[0x91; 100]).skip(), Err(Limit));
        assert_eq!(Reader::new(&[0xdd, 0xff, 0xff, 0xff, 0xff]).skip(), Err(Torn));
        assert_eq!(Reader::new(&[0xc1]).skip(), Err(Type));
        assert_eq!(Reader::new(&[]).skip(), Err(Torn));
        // Within the depth: fifteen arrays of one around a map.
        let mut deep = vec![0x91; 15];
        deep.extend([0x81, 0xa1, b'k', 0xc0]);
        assert_eq!(Reader::new(&deep).skip(), Ok(()));
    }
}
