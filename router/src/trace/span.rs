//! A finished span as plain data, in the words of OpenTelemetry. It decides nothing and knows no
//! encoding.

use std::sync::Arc;

use super::context::{SpanId, TraceId};

/// Text of an attribute or a name is cut here: some of it is chosen by clients.
pub const TEXT_BYTES_MAX: usize = 256;

/// One finished span.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The trace.
    pub trace_id: TraceId,
    /// This span.
    pub span_id: SpanId,
    /// What it is part of.
    pub parent: Option<SpanId>,
    /// Whether the parent is in another process.
    pub parent_is_remote: bool,
    /// The caller's `tracestate`, shared by the spans of a request.
    pub tracestate: Option<Arc<str>>,
    /// Of low cardinality, but for the model in it.
    pub name: String,
    /// Its side of an exchange.
    pub kind: Kind,
    /// Nanoseconds since 1970.
    pub start_unix_ns: u64,
    /// Nanoseconds since 1970, not before the start.
    pub end_unix_ns: u64,
    /// Facts about it.
    pub attributes: Vec<Attribute>,
    /// Moments within it.
    pub events: Vec<Event>,
    /// Whether it failed, with a short reason.
    pub failure: Option<String>,
}

/// A span's side of an exchange; the numbers are the protocol's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A step within the process.
    Internal = 1,
    /// Answers a request.
    Server = 2,
    /// Sends a request.
    Client = 3,
}

/// A fact about a span.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribute {
    /// A name of the semantic conventions, or one of ours beginning with `cgn.`.
    pub key: &'static str,
    /// What it is.
    pub value: Value,
}

/// What an attribute may be.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// At most [`TEXT_BYTES_MAX`].
    Text(String),
    /// One of our own words.
    Word(&'static str),
    /// A count.
    Int(i64),
    /// A measure.
    Double(f64),
    /// Yes or no.
    Bool(bool),
    /// Several texts.
    Texts(Vec<String>),
}

/// A moment within a span.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What happened.
    pub name: &'static str,
    /// Nanoseconds since 1970.
    pub unix_ns: u64,
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(cut(text).to_owned())
    }
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Value::Int(count.try_into().unwrap_or(i64::MAX))
    }
}

impl From<f64> for Value {
    fn from(measure: f64) -> Self {
        Value::Double(measure)
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Value::Bool(yes)
    }
}

/// As much of `text` as fits in [`TEXT_BYTES_MAX`], cut between characters.
pub fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        assert_eq!(cut(&"a".repeat(1000)).len(), TEXT_BYTES_MAX);
        let cut = cut(&"€".repeat(1000)).to_owned();
        assert_eq!(cut.len(), TEXT_BYTES_MAX / 3 * 3);
        assert!(cut.chars().all(|c| c == '€'));
    }

    #[test]
    fn a_count_over_the_range_saturates() {
        assert_eq!(Value::from(u64::MAX), Value::Int(i64::MAX));
    }
}
