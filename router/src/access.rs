//! The line per request: one JSON object for each answered or refused request, where
//! `[router.access_log]` asks for it.
//!
//! * This file: the configuration, a line and its encoding. Pure.
//! * [`log`]: buffers of the cores, and the thread that writes to the disk.
//! * [`date`]: RFC 3339 from seconds.
//!
//! A line says who, what, where and how long. It never holds a prompt, an answer or a secret.

use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use crate::trace::context::TraceId;
use date::Rfc3339;

pub mod date;
pub mod log;

/// `[router.access_log]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessConfig {
    /// A file, `-` for standard output; empty: no lines.
    pub path: String,
    /// Share of the requests that get a line, 0.0 to 1.0; those of one trace all or none.
    pub sample_ratio: f64,
    /// The file is renamed to `<path>.1` at this size, over the one before: at most twice this
    /// much lies on the disk.
    pub bytes_max: u64,
}

impl Default for AccessConfig {
    fn default() -> Self {
        AccessConfig { path: String::new(), sample_ratio: 1.0, bytes_max: 256 << 20 }
    }
}

/// Below this size a file would be renamed every few hundred lines.
const BYTES_MAX_MIN: u64 = 64 << 10;

/// A value of `[router.access_log]` that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessConfigError {
    /// `sample_ratio`
    #[error("sample_ratio must lie between 0.0 and 1.0")]
    Ratio,
    /// `bytes_max`
    #[error("bytes_max must be {BYTES_MAX_MIN} or more")]
    Bytes,
}

impl AccessConfigError {
    /// The key at fault, below `[router.access_log]`.
    pub fn key(self) -> &'static str {
        match self {
            AccessConfigError::Ratio => "sample_ratio",
            AccessConfigError::Bytes => "bytes_max",
        }
    }
}

impl AccessConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`AccessConfigError`].
    pub fn check(&self) -> Result<(), AccessConfigError> {
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            return Err(AccessConfigError::Ratio);
        }
        if self.bytes_max < BYTES_MAX_MIN {
            return Err(AccessConfigError::Bytes);
        }
        Ok(())
    }
}

/// A text chosen by a client is cut here, so a line has a bound.
pub const TEXT_BYTES_MAX: usize = 256;

/// One request. Fields without a value are left out of the line.
#[derive(Clone, Debug, Serialize)]
pub struct AccessLine<'a> {
    /// When the request had been read: milliseconds since 1970, written as RFC 3339.
    #[serde(serialize_with = "time")]
    pub ts: u64,
    /// The id in `x-request-id`.
    #[serde(serialize_with = "text")]
    pub request_id: &'a str,
    /// The trace, sampled or not.
    #[serde(serialize_with = "trace_id")]
    pub trace_id: TraceId,
    /// Whose limits it counts against.
    #[serde(serialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub tenant: Option<&'a str>,
    /// Who within the tenant: a key's name or a token's subject. Never the key.
    #[serde(serialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub subject: Option<&'a str>,
    /// The client's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<std::net::IpAddr>,
    /// As sent.
    #[serde(serialize_with = "text")]
    pub method: &'a str,
    /// Without its query, which may hold anything.
    #[serde(serialize_with = "text")]
    pub path: &'a str,
    /// As asked for.
    #[serde(serialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub model: Option<&'a str>,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// HTTP status sent; 0 where the client was gone before one could be.
    pub status: u16,
    /// The worker that answered.
    #[serde(serialize_with = "some_text", skip_serializing_if = "Option::is_none")]
    pub worker: Option<&'a str>,
    /// Workers asked.
    pub attempts: u32,
    /// Whether the stream went on after its engine died.
    pub resumed: bool,
    /// Time in the queue.
    #[serde(serialize_with = "some_ms", skip_serializing_if = "Option::is_none")]
    pub queue_ms: Option<Duration>,
    /// To the first byte of the answer's body.
    #[serde(serialize_with = "some_ms", skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<Duration>,
    /// From the request read to the last byte sent.
    #[serde(serialize_with = "ms")]
    pub duration_ms: Duration,
    /// As the engine counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    /// Of these, from the engine's cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_tokens: Option<u64>,
    /// As the engine counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<u64>,
    /// Tokens of the prefix that the worker was expected to hold.
    pub prefix_tokens: u64,
    /// Of the request, head and body.
    pub bytes_in: u64,
    /// Of the answer, head and body.
    pub bytes_out: u64,
    /// How it ended.
    pub end: End,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The answer was sent whole.
    Complete,
    /// The client hung up or stopped reading.
    ClientGone,
    /// The engine failed within the answer.
    EngineFailed,
    /// Refused, for this reason: [`crate::error::RequestError::reason`].
    Refused(&'static str),
}

impl End {
    /// The word in the line.
    pub fn as_str(self) -> &'static str {
        match self {
            End::Complete => "complete",
            End::ClientGone => "client_gone",
            End::EngineFailed => "engine_failed",
            End::Refused(reason) => reason,
        }
    }
}

impl Serialize for End {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl AccessLine<'_> {
    /// Appends the line, its newline included.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let before = out.len();
        if serde_json::to_writer(&mut *out, self).is_ok() {
            out.push(b'\n');
        } else {
            // A `Vec` takes every byte and every field is JSON; half a line would still be worse than none.
            out.truncate(before);
        }
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

fn text<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(cut(text))
}

fn some_text<S: Serializer>(text: &Option<&str>, serializer: S) -> Result<S::Ok, S::Error> {
    text.map(cut).serialize(serializer)
}

fn time<S: Serializer>(unix_ms: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&Rfc3339 { unix_ms: *unix_ms })
}

fn trace_id<S: Serializer>(id: &TraceId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

/// Milliseconds with three digits behind the point.
fn ms<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_micros() as f64 / 1_000.0)
}

fn some_ms<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => ms(time, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests;
