//! A JSON object as bytes: fields are found and exchanged, everything else stays as it was sent.
//!
//! A body that is decoded and written again changes: numbers are rounded, equal keys melt, the order
//! moves. Here only the fields named are touched, and only at the top level.

use std::borrow::Cow;
use std::ops::Range;

use crate::parse::nests_deeper;

/// Deeper JSON is not read: a parser that follows each level with a call of its own would run out of
/// stack. No request or event that can be resumed is as deep.
const NESTING_MAX: usize = 64;

/// One JSON object, its entries in order.
#[derive(Debug)]
pub struct Object<'a> {
    text: &'a str,
    entries: Vec<Entry<'a>>,
}

#[derive(Debug)]
struct Entry<'a> {
    key: Cow<'a, str>,
    /// Key and value, without the comma.
    whole: Range<usize>,
    value: Range<usize>,
}

impl<'a> Object<'a> {
    /// Reads the top level of `bytes`. `None` if they are not one JSON object.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?.trim_ascii();
        if !text.starts_with('{')
            || !text.ends_with('}')
            || nests_deeper(text.as_bytes(), NESTING_MAX)
        {
            return None;
        }
        let mut entries = Vec::new();
        let mut at = 1;
        for entry in sonic_rs::to_object_iter(text) {
            let (key, value) = entry.ok()?;
            let value = range_in(text, value.as_raw_str());
            let before = &text[at..value.start];
            let start =
                at + before.len() - before.trim_start_matches([',', ' ', '\t', '\n', '\r']).len();
            at = value.end;
            entries.push(Entry { key, whole: start..value.end, value });
        }
        (text[at..].trim_ascii() == "}").then_some(Object { text, entries })
    }

    /// The raw value of `key`. As in every JSON parser of the engines, the last of equal keys wins.
    pub fn get(&self, key: &str) -> Option<&'a str> {
        let entry = self.entries.iter().rfind(|entry| entry.key == key)?;
        Some(&self.text[entry.value.clone()])
    }

    /// The raw value of `key` unless it is `null`.
    pub fn given(&self, key: &str) -> Option<&'a str> {
        self.get(key).filter(|raw| *raw != "null")
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.key.as_ref())
    }

    /// The object with `changes` made: a key takes a raw JSON value, or is left out. A key that was
    /// there keeps its place; a new one comes last.
    pub fn with(&self, changes: &[(&str, Option<&str>)]) -> String {
        let mut out = String::with_capacity(
            self.text.len()
                + changes.iter().map(|(k, v)| k.len() + v.map_or(0, str::len) + 8).sum::<usize>(),
        );
        let mut put = |parts: &[&str]| {
            out.push(if out.is_empty() { '{' } else { ',' });
            parts.iter().for_each(|part| out.push_str(part));
        };
        for (index, entry) in self.entries.iter().enumerate() {
            match changes.iter().find(|(key, _)| entry.key == *key) {
                None => put(&[&self.text[entry.whole.clone()]]),
                Some((key, Some(value))) if self.is_last_of(index, key) => {
                    let name = &self.text[entry.whole.start..entry.value.start];
                    put(&[name, value]);
                }
                Some(_) => {}
            }
        }
        for (key, value) in changes {
            if let Some(value) = value
                && self.get(key).is_none()
            {
                put(&[&string(key), ":", value]);
            }
        }
        if out.is_empty() {
            out.push('{');
        }
        out.push('}');
        out
    }

    fn is_last_of(&self, index: usize, key: &str) -> bool {
        !self.entries[index + 1..].iter().any(|entry| entry.key == key)
    }
}

/// `text` as a JSON string, with its quotes.
pub fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The raw elements of the JSON array `raw`. `None` if it is none.
pub fn elements(raw: &str) -> Option<Vec<&str>> {
    if !raw.starts_with('[') {
        return None;
    }
    sonic_rs::to_array_iter(raw)
        .map(|element| element.ok().map(|value| &raw[range_in(raw, value.as_raw_str())]))
        .collect()
}

/// The JSON array `raw` with `last`, raw JSON, behind its elements. `None` if it is no array.
pub fn appended(raw: &str, last: &str) -> Option<String> {
    let open = raw.strip_prefix('[')?.strip_suffix(']')?;
    let comma = if open.trim_ascii().is_empty() { "" } else { "," };
    Some(format!("[{open}{comma}{last}]"))
}

/// The range of `part` in `whole`; `part` must be a subslice of it.
fn range_in(whole: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;

    fn with(text: &str, changes: &[(&str, Option<&str>)]) -> String {
        Object::read(text.as_bytes()).unwrap().with(changes)
    }

    #[test]
    fn only_what_is_named_changes() {
        let body = r#" { "t" : 0.30 ,"max_tokens":10, "x":{"max_tokens":1},"max_tokens": 12,"é":"\u00e9\"}" } "#;
        assert_eq!(
            with(body, &[("max_tokens", Some("7")), ("new", Some("[1]"))]),
            r#"{"t" : 0.30,"x":{"max_tokens":1},"max_tokens": 7,"é":"\u00e9\"}","new":[1]}"#
        );
        assert_eq!(
            with(body, &[("t", None), ("é", None), ("x", None), ("max_tokens", None)]),
            "{}"
        );
        assert_eq!(with("{}", &[("a", Some("1"))]), r#"{"a":1}"#);
        assert_eq!(with(" { } ", &[]), "{}");
        let object = Object::read(body.as_bytes()).unwrap();
        assert_eq!(object.get("max_tokens"), Some("12"));
        assert_eq!(object.get("nothing"), None);
    }

    #[test]
    fn what_is_no_object_is_not_read() {
        for bad in
            ["", "[]", "null", "{", "}", "{\"a\":}", "{\"a\":1}}", "{\"a\":1}{}", "{\"a\" 1}"]
        {
            assert!(Object::read(bad.as_bytes()).is_none(), "{bad}");
        }
        assert!(Object::read(b"{\"a\":\"\xff\"}").is_none());
    }

    #[test]
    fn what_is_too_deep_is_not_read() {
        let nested =
            |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        // An unoptimized build needs 60 KB of stack for each level, so not to the limit itself.
        assert!(Object::read(nested(20).as_bytes()).is_some());
        assert!(Object::read(nested(NESTING_MAX).as_bytes()).is_none());
        assert!(Object::read(nested(100_000).as_bytes()).is_none());
        let text = format!(r#"{{"a":"\"{}"}}"#, "[".repeat(1000));
        assert!(Object::read(text.as_bytes()).is_some());
    }

    #[test]
    fn arrays_grow() {
        assert_eq!(appended("[]", "1").unwrap(), "[1]");
        assert_eq!(appended("[ ]", "1").unwrap(), "[ 1]");
        assert_eq!(appended("[1 ]", "2").unwrap(), "[1 ,2]");
        assert!(appended("\"x\"", "2").is_none());
        assert_eq!(elements("[ {\"a\":[1]} , 2,\"]\"]").unwrap(), [r#"{"a":[1]}"#, "2", "\"]\""]);
        assert!(elements("[]").unwrap().is_empty());
        assert!(elements("{}").is_none());
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z\"\\\\{}\n é]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-d\"]{0,3}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_changes_as_a_map_does(
            before in prop::collection::btree_map("[a-d\"\n]{0,2}", json(), 0..6),
            changes in prop::collection::btree_map("[a-d\"\n]{0,2}", prop::option::of(json()), 0..4),
        ) {
            let before: Map<String, Value> = before.into_iter().collect();
            let raw: Vec<(String, Option<String>)> =
                changes.iter().map(|(k, v)| (k.clone(), v.as_ref().map(Value::to_string))).collect();
            let named: Vec<(&str, Option<&str>)> =
                raw.iter().map(|(k, v)| (k.as_str(), v.as_deref())).collect();
            for text in [Value::from(before.clone()).to_string(), serde_json::to_string_pretty(&before).unwrap()] {
                let once = with(&text, &named);
                let mut expected = before.clone();
                for (key, value) in &changes {
                    match value {
                        Some(value) => { expected.insert(key.clone(), value.clone()); }
                        None => { expected.remove(key); }
                    }
                }
                prop_assert_eq!(serde_json::from_str::<Value>(&once).unwrap(), Value::from(expected));
                prop_assert_eq!(&with(&once, &named), &once);
            }
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100), text in "[{}\\[\\]\",:a1 ]{0,24}") {
            let _ = Object::read(&bytes).map(|object| object.with(&[("a", Some("1")), ("b", None)]));
            if let Some(object) = Object::read(text.as_bytes()) {
                let edited = object.with(&[("a", Some("1"))]);
                let read: Result<Value, _> = serde_json::from_str(&edited);
                prop_assert!(read.is_ok(), "{} -> {}", text, edited);
            }
        }
    }
}
