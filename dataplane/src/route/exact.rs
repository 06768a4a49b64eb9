//! Floats in JSON that come back bit for bit, for records that are decided on again.
//!
//! A finite number is written as the shortest decimal that means it alone, and read by the standard library,
//! which rounds correctly; `serde_json` reads faster and may be off by the last bit. What JSON has no
//! number for (infinities, not-a-numbers) is a string of its bits in hex: `"0x7ff0000000000000"`.
//! Works with `serde_json` only, and not below `flatten` or in an untagged enum: the digits must come
//! as they were written.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};
use serde_json::value::RawValue;

/// Writes `value`.
///
/// # Errors
/// The serializer's own.
pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    match value.is_finite() {
        true => serializer.serialize_f64(*value),
        false => serializer.collect_str(&format_args!("0x{:016x}", value.to_bits())),
    }
}

/// Reads what [`serialize`] wrote.
///
/// # Errors
/// Neither a number within the range nor 16 hex digits of one that is not finite.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let raw = Box::<RawValue>::deserialize(deserializer)?;
    let bits = hex(raw.get(), 16).map(f64::from_bits).filter(|value| !value.is_finite());
    let number = || raw.get().parse().ok().filter(|value: &f64| value.is_finite());
    bits.or_else(number).ok_or_else(|| D::Error::custom("expected a number"))
}

/// The bits in `"0x…"` of so many digits; case and length are fixed, so that each value has one form.
fn hex(raw: &str, digits: usize) -> Option<u64> {
    let text = raw.strip_prefix("\"0x")?.strip_suffix('"')?;
    let is_plain = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    if is_plain { u64::from_str_radix(text, 16).ok() } else { None }
}

/// The same for an optional `f32`; `null` is none.
pub mod optional_f32 {
    use super::{Deserialize as _, Deserializer, RawValue, Serializer, hex};
    use serde::de::Error as _;

    /// Writes `value`.
    ///
    /// # Errors
    /// The serializer's own.
    pub fn serialize<S: Serializer>(value: &Option<f32>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            None => serializer.serialize_none(),
            Some(value) if value.is_finite() => serializer.serialize_f32(*value),
            Some(value) => serializer.collect_str(&format_args!("0x{:08x}", value.to_bits())),
        }
    }

    /// Reads what [`serialize`] wrote.
    ///
    /// # Errors
    /// As of the `f64`.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<f32>, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        if raw.get() == "null" {
            return Ok(None);
        }
        let bits = hex(raw.get(), 8).and_then(|bits| u32::try_from(bits).ok());
        let bits = bits.map(f32::from_bits).filter(|value| !value.is_finite());
        let number = || raw.get().parse().ok().filter(|value: &f32| value.is_finite());
        bits.or_else(number).map(Some).ok_or_else(|| D::Error::custom("expected a number or null"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Serialize;

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Both {
        #[serde(with = "super")]
        wide: f64,
        #[serde(with = "super::optional_f32")]
        narrow: Option<f32>,
    }

    fn there_and_back(wide: f64, narrow: Option<f32>) -> (u64, Option<u32>) {
        let text = serde_json::to_string(&Both { wide, narrow }).unwrap();
        let both: Both = serde_json::from_str(&text).unwrap();
        (both.wide.to_bits(), both.narrow.map(f32::to_bits))
    }

    proptest! {
        #[test]
        fn every_bit_comes_back(wide: u64, narrow: Option<u32>) {
            let got = there_and_back(f64::from_bits(wide), narrow.map(f32::from_bits));
            prop_assert_eq!(got, (wide, narrow));
        }
    }

    #[test]
    fn the_odd_ones_come_back() {
        let odd =
            [0.0, -0.0, f64::MIN_POSITIVE, 5e-324, -5e-324, f64::MAX, f64::NAN, f64::INFINITY];
        for wide in odd {
            let narrow = wide as f32;
            let got = there_and_back(wide, Some(narrow));
            assert_eq!(got, (wide.to_bits(), Some(narrow.to_bits())), "{wide}");
        }
    }

    #[test]
    fn other_things_are_refused() {
        for wide in
            ["1e999", "\"1.0\"", "null", "\"0x3ff0000000000000\"", "\"0x7ff\"", "[1]", "true"]
        {
            let text = format!("{{\"wide\":{wide},\"narrow\":null}}");
            assert!(serde_json::from_str::<Both>(&text).is_err(), "{wide}");
        }
        for narrow in ["1e40", "\"0x3f800000\"", "\"inf\""] {
            let text = format!("{{\"wide\":1,\"narrow\":{narrow}}}");
            assert!(serde_json::from_str::<Both>(&text).is_err(), "{narrow}");
        }
    }
}
