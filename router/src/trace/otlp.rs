//! A batch of spans as an OTLP `ExportTraceServiceRequest` in the JSON mapping of OTLP/HTTP
//! (opentelemetry-proto 1.x): ids in lower-case hex, 64-bit numbers as strings, enums as numbers.
//!
//! It also reads the answer. Pure: bytes in, bytes out.

use std::fmt::Display;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use super::span::{Attribute, Event, Span, Value};

/// `Content-Type` of the POST.
pub const CONTENT_TYPE: &str = "application/json";

/// Bits 8 and 9 of a span's flags: "whether the parent is remote is known", "it is".
const PARENT_IS_KNOWN: u32 = 0x100;
const PARENT_IS_REMOTE: u32 = 0x200;
/// The low 8 bits are W3C trace flags; what is sent was sampled.
const SAMPLED: u32 = 1;
/// `STATUS_CODE_ERROR`
const STATUS_ERROR: u8 = 2;

/// Who sends: the resource of every span of this process.
#[derive(Clone, Debug)]
pub struct Resource {
    /// `service.version`
    pub version: String,
    /// `service.instance.id`: distinct for each process.
    pub instance: String,
}

/// The body of the POST.
pub fn encode(resource: &Resource, spans: &[Span]) -> Vec<u8> {
    let text = |key, text: &str| Attribute { key, value: text.into() };
    let request = Request {
        resource_spans: [ResourceSpans {
            resource: WireResource {
                attributes: [
                    text("service.name", "cgn-router"),
                    text("service.version", &resource.version),
                    text("service.instance.id", &resource.instance),
                ],
            },
            scope_spans: [ScopeSpans {
                scope: Scope { name: "cgn-router", version: &resource.version },
                spans: spans.iter().map(WireSpan::of).collect(),
            }],
        }],
    };
    // Nothing in it can fail to be JSON: keys are strings and floats are finite or strings.
    serde_json::to_vec(&request).unwrap_or_default()
}

/// Spans the collector took and threw away, from the body of a 200. What is no answer says nothing.
pub fn rejected(body: &[u8]) -> u64 {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "partialSuccess")]
        partial_success: Option<Partial>,
    }
    #[derive(Deserialize)]
    struct Partial {
        #[serde(rename = "rejectedSpans")]
        rejected_spans: Option<serde_json::Value>,
    }
    let answer: Option<Answer> = serde_json::from_slice(body).ok();
    let count = answer.and_then(|a| a.partial_success).and_then(|p| p.rejected_spans);
    // The mapping writes a 64-bit number as a string and allows a number on reading.
    match count {
        Some(serde_json::Value::String(text)) => text.parse().unwrap_or(0),
        Some(serde_json::Value::Number(number)) => number.as_u64().unwrap_or(0),
        _ => 0,
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    resource_spans: [ResourceSpans<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpans<'a> {
    resource: WireResource,
    scope_spans: [ScopeSpans<'a>; 1],
}

#[derive(Serialize)]
struct WireResource {
    attributes: [Attribute; 3],
}

#[derive(Serialize)]
struct ScopeSpans<'a> {
    scope: Scope<'a>,
    spans: Vec<WireSpan<'a>>,
}

#[derive(Serialize)]
struct Scope<'a> {
    name: &'a str,
    version: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WireSpan<'a> {
    trace_id: Text,
    span_id: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_state: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_span_id: Option<Text>,
    flags: u32,
    name: &'a str,
    kind: u8,
    start_time_unix_nano: Text,
    end_time_unix_nano: Text,
    attributes: &'a [Attribute],
    #[serde(skip_serializing_if = "<[Event]>::is_empty")]
    events: &'a [Event],
    status: Status<'a>,
}

/// Empty where nothing failed: *unset*.
#[derive(Serialize)]
struct Status<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

/// A number in a string.
struct Text(String);

impl Text {
    fn of(number: impl Display) -> Self {
        Text(number.to_string())
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'a> WireSpan<'a> {
    fn of(span: &'a Span) -> Self {
        let remote = if span.parent_is_remote { PARENT_IS_REMOTE } else { 0 };
        let failure = span.failure.as_deref();
        WireSpan {
            trace_id: Text::of(span.trace_id),
            span_id: Text::of(span.span_id),
            trace_state: span.tracestate.as_deref(),
            parent_span_id: span.parent.map(Text::of),
            flags: SAMPLED | PARENT_IS_KNOWN | remote,
            name: &span.name,
            kind: span.kind as u8,
            start_time_unix_nano: Text::of(span.start_unix_ns),
            end_time_unix_nano: Text::of(span.end_unix_ns),
            attributes: &span.attributes,
            events: &span.events,
            status: Status { code: failure.map(|_| STATUS_ERROR), message: failure },
        }
    }
}

impl Serialize for Attribute {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("key", self.key)?;
        map.serialize_entry("value", &self.value)?;
        map.end()
    }
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("timeUnixNano", &Text::of(self.unix_ns))?;
        map.serialize_entry("name", self.name)?;
        map.end()
    }
}

/// `AnyValue`: one of its fields.
impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        enum One<'a> {
            StringValue(&'a str),
        }
        #[derive(Serialize)]
        struct Array<'a> {
            values: Vec<One<'a>>,
        }
        let mut map = serializer.serialize_map(Some(1))?;
        match self {
            Value::Text(text) => map.serialize_entry("stringValue", text)?,
            Value::Word(word) => map.serialize_entry("stringValue", word)?,
            Value::Int(number) => map.serialize_entry("intValue", &Text::of(number))?,
            Value::Double(number) if number.is_finite() => {
                map.serialize_entry("doubleValue", number)?;
            }
            Value::Double(number) => map.serialize_entry("doubleValue", unbounded(*number))?,
            Value::Bool(yes) => map.serialize_entry("boolValue", yes)?,
            Value::Texts(texts) => {
                let values = texts.iter().map(|text| One::StringValue(text)).collect();
                map.serialize_entry("arrayValue", &Array { values })?;
            }
        }
        map.end()
    }
}

/// How the JSON mapping of protobuf writes what JSON has no number for.
fn unbounded(number: f64) -> &'static str {
    if number.is_nan() {
        "NaN"
    } else if number > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
}

#[cfg(test)]
mod tests;
