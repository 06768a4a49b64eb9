//! Traces: one server span per request with its steps as children, sent to a collector.
//!
//! The OpenTelemetry SDK wants tokio or threads of its own and would sit on the path, so the small
//! part that is needed is written here:
//!
//! * [`context`]: W3C Trace Context in and out, ids, the decision to sample;
//! * [`span`]: a finished span as plain data; [`request_trace`]: the spans of one request;
//! * [`otlp`]: a batch of spans as OTLP/HTTP JSON; [`outbox`]: what waits to be sent;
//! * [`delivery`]: when to send, send again or give up.
//!
//! Nothing here does I/O or reads a clock. Requests that are not sampled touch none of it but their
//! [`context::TraceContext`].

use serde::{Deserialize, Serialize};

pub mod context;
pub mod delivery;
pub mod otlp;
pub mod outbox;
pub mod request_trace;
pub mod span;

/// `[router.trace]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TraceConfig {
    /// The collector's OTLP/HTTP address, `http://host:4318/v1/traces`. Without it nothing is
    /// recorded; the context of a client is passed on all the same.
    pub otlp_url: Option<String>,
    /// Share of the requests without a `traceparent` of their own that are sampled, 0.0 to 1.0.
    pub sample_ratio: f64,
    /// Spans that may wait to be sent; a request that would go over is not recorded. About 2 KB each.
    pub queue_spans_max: usize,
    /// Spans in one POST.
    pub batch_spans_max: usize,
    /// A batch that is not full leaves after this time.
    pub interval_ms: u64,
    /// The collector must answer within this time.
    pub timeout_ms: u64,
}

impl Default for TraceConfig {
    fn default() -> Self {
        TraceConfig {
            otlp_url: None,
            sample_ratio: 0.01,
            queue_spans_max: 8_192,
            batch_spans_max: 512,
            interval_ms: 5_000,
            timeout_ms: 10_000,
        }
    }
}

/// Where a collector listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    /// `host:port`, also the `host` field of the POST.
    pub authority: String,
    /// Where to POST, beginning with `/`.
    pub path: String,
}

/// A value of `[router.trace]` that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceConfigError {
    /// `otlp_url`
    #[error("otlp_url must be http://host:port/v1/traces (TLS to a collector is not offered)")]
    Url,
    /// `sample_ratio`
    #[error("sample_ratio must lie between 0.0 and 1.0")]
    Ratio,
    /// `batch_spans_max`
    #[error("batch_spans_max must be 1 or more and at most queue_spans_max")]
    Batch,
    /// `interval_ms`, `timeout_ms`
    #[error("interval_ms and timeout_ms must be 1 or more")]
    Time,
}

impl TraceConfigError {
    /// The key at fault, below `[router.trace]`.
    pub fn key(self) -> &'static str {
        match self {
            TraceConfigError::Url => "otlp_url",
            TraceConfigError::Ratio => "sample_ratio",
            TraceConfigError::Batch => "batch_spans_max",
            TraceConfigError::Time => "interval_ms",
        }
    }
}

impl TraceConfig {
    /// Checks every value; gives the collector where one is set.
    ///
    /// # Errors
    /// [`TraceConfigError`].
    pub fn collector(&self) -> Result<Option<Collector>, TraceConfigError> {
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            return Err(TraceConfigError::Ratio);
        }
        if self.batch_spans_max == 0 || self.batch_spans_max > self.queue_spans_max {
            return Err(TraceConfigError::Batch);
        }
        if self.interval_ms == 0 || self.timeout_ms == 0 {
            return Err(TraceConfigError::Time);
        }
        self.otlp_url.as_deref().map(collector).transpose()
    }
}

fn collector(url: &str) -> Result<Collector, TraceConfigError> {
    let rest = url.strip_prefix("http://").ok_or(TraceConfigError::Url)?;
    let slash = rest.find('/').ok_or(TraceConfigError::Url)?;
    let (authority, path) = rest.split_at(slash);
    let (host, port) = authority.rsplit_once(':').ok_or(TraceConfigError::Url)?;
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() && !b"@?#\\".contains(&b));
    if host.is_empty() || port.parse::<u16>().is_err() || !plain(rest) {
        return Err(TraceConfigError::Url);
    }
    Ok(Collector { authority: authority.to_owned(), path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_url(url: &str) -> Result<Option<Collector>, TraceConfigError> {
        TraceConfig { otlp_url: Some(url.into()), ..TraceConfig::default() }.collector()
    }

    #[test]
    fn the_defaults_are_valid_and_send_nothing() {
        assert_eq!(TraceConfig::default().collector(), Ok(None));
    }

    #[test]
    fn a_collectors_url_is_taken_apart() {
        let found = with_url("http://127.0.0.1:4318/v1/traces").unwrap().unwrap();
        assert_eq!(
            (found.authority.as_str(), found.path.as_str()),
            ("127.0.0.1:4318", "/v1/traces")
        );
        assert_eq!(with_url("http://[::1]:4318/x").unwrap().unwrap().authority, "[::1]:4318");
        for bad in [
            "https://host:4318/v1/traces",
            "http://host/v1/traces",
            "http://host:4318",
            "http://:4318/",
            "http://host:99999/",
            "http://host:4318/a b",
            "http://host:4318/\r\nx: y",
            "http://user@host:4318/",
            "",
        ] {
            assert_eq!(with_url(bad), Err(TraceConfigError::Url), "{bad}");
        }
    }

    #[test]
    fn values_out_of_range_name_their_key() {
        let base = TraceConfig::default;
        let error = |config: TraceConfig| config.collector().unwrap_err().key();
        for sample_ratio in [-0.1, 1.1, f64::NAN] {
            assert_eq!(error(TraceConfig { sample_ratio, ..base() }), "sample_ratio");
        }
        assert_eq!(error(TraceConfig { batch_spans_max: 0, ..base() }), "batch_spans_max");
        assert_eq!(error(TraceConfig { queue_spans_max: 1, ..base() }), "batch_spans_max");
        assert_eq!(error(TraceConfig { timeout_ms: 0, ..base() }), "interval_ms");
    }
}
