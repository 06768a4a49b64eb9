//! Metrics as OpenMetrics 1.0 text, with exemplars: the trace of one request beside the bucket it fell in.
//!
//! Input are the families that the registry gathers and the table of exemplars; output is text. It
//! counts nothing, and the classical form stays the `prometheus` crate's. Numbers are written as
//! Go writes them, so that a bucket has the same name whoever renders it.

use std::fmt::Write as _;

use prometheus::proto::{Metric, MetricFamily, MetricType};

use exemplars::{Exemplar, Exemplars};

pub mod exemplars;

/// `Content-Type` of this form.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Last parts of names that are units.
const UNITS: [&str; 8] =
    ["seconds", "bytes", "tokens", "blocks", "ratio", "watts", "joules", "celsius"];

/// Whether a scraper's `Accept` asks for this form rather than for the classical one.
pub fn wants_openmetrics(accept: &[u8]) -> bool {
    let Ok(accept) = std::str::from_utf8(accept) else { return false };
    let (mut ours, mut classical) = (0, 0);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let wish = parts.find_map(quality).unwrap_or(1_000);
        if kind.eq_ignore_ascii_case("application/openmetrics-text") {
            ours = wish.max(ours);
        } else if kind.eq_ignore_ascii_case("text/plain") {
            classical = wish.max(classical);
        }
    }
    ours > 0 && ours >= classical
}

/// Thousandths of a `q=` parameter. One that cannot be read is no wish.
fn quality(parameter: &str) -> Option<u32> {
    let (name, value) = parameter.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("q") {
        return None;
    }
    let share = value.trim().parse().unwrap_or(0.0_f64);
    // A cast of a float saturates, and NaN is 0.
    Some((share.clamp(0.0, 1.0) * 1_000.0) as u32)
}

/// The text of all `families`, which must be sorted by name as the registry gives them.
pub fn render(families: &[MetricFamily], exemplars: &Exemplars) -> String {
    let mut out = String::with_capacity(16 << 10);
    for family in families {
        let kind = family.get_field_type();
        let full = family.name();
        let name = match kind {
            MetricType::COUNTER => full.strip_suffix("_total").unwrap_or(full),
            _ => full,
        };
        describe(&mut out, name, kind, family.help());
        for metric in family.get_metric() {
            let sample = Sample { name, metric };
            match kind {
                MetricType::COUNTER => {
                    sample.write(
                        &mut out,
                        "_total",
                        None,
                        &number(metric.get_counter().get_value()),
                    );
                }
                MetricType::GAUGE => {
                    sample.write(&mut out, "", None, &number(metric.get_gauge().get_value()));
                }
                MetricType::HISTOGRAM => sample.write_histogram(&mut out, exemplars),
                MetricType::SUMMARY => sample.write_summary(&mut out),
                // The crate has no values of this kind either.
                MetricType::UNTYPED => {}
            }
        }
    }
    out.push_str("# EOF\n");
    out
}

/// `TYPE`, `UNIT` and `HELP` of a family.
fn describe(out: &mut String, name: &str, kind: MetricType, help: &str) {
    let kind = match kind {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::HISTOGRAM => "histogram",
        MetricType::SUMMARY => "summary",
        MetricType::UNTYPED => "unknown",
    };
    put(out, format_args!("# TYPE {name} {kind}\n"));
    let unit = name.rsplit_once('_').map(|(_, unit)| unit).filter(|unit| UNITS.contains(unit));
    if let Some(unit) = unit {
        put(out, format_args!("# UNIT {name} {unit}\n"));
    }
    if !help.is_empty() {
        put(out, format_args!("# HELP {name} "));
        escape(out, help);
        out.push('\n');
    }
}

/// One metric of a family.
struct Sample<'a> {
    name: &'a str,
    metric: &'a Metric,
}

impl Sample<'_> {
    /// `name suffix {labels} value`, the end of the line left open.
    fn begin(&self, out: &mut String, suffix: &str, more: Option<(&str, &str)>, value: &str) {
        out.push_str(self.name);
        out.push_str(suffix);
        let labels = self.metric.get_label().iter().map(|label| (label.name(), label.value()));
        let mut before = '{';
        for (name, value) in labels.chain(more) {
            out.push(before);
            out.push_str(name);
            out.push_str("=\"");
            escape(out, value);
            out.push('"');
            before = ',';
        }
        if before == ',' {
            out.push('}');
        }
        out.push(' ');
        out.push_str(value);
    }

    fn write(&self, out: &mut String, suffix: &str, more: Option<(&str, &str)>, value: &str) {
        self.begin(out, suffix, more, value);
        out.push('\n');
    }

    fn write_histogram(&self, out: &mut String, exemplars: &Exemplars) {
        let histogram = self.metric.get_histogram();
        let labels = self.metric.get_label().iter().map(|label| (label.name(), label.value()));
        let seen = exemplars.of(self.name, labels);
        let count = histogram.get_sample_count();
        let finite = histogram.get_bucket().iter();
        let finite = finite.map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
        let finite = finite.filter(|(bound, _)| bound.is_finite());
        for (at, (bound, below)) in finite.chain([(f64::INFINITY, count)]).enumerate() {
            let le = number(bound);
            self.begin(out, "_bucket", Some(("le", &le)), &below.to_string());
            let exemplar = seen.get(at).copied().flatten();
            // A bucket without a count has no exemplar: the count may lag behind by a request.
            if let Some(exemplar) = exemplar.filter(|_| below > 0) {
                write_exemplar(out, &exemplar);
            }
            out.push('\n');
        }
        self.write(out, "_count", None, &count.to_string());
        self.write(out, "_sum", None, &number(histogram.get_sample_sum()));
    }

    fn write_summary(&self, out: &mut String) {
        let summary = self.metric.get_summary();
        for quantile in summary.get_quantile() {
            let of = number(quantile.quantile());
            self.write(out, "", Some(("quantile", &of)), &number(quantile.value()));
        }
        self.write(out, "_count", None, &summary.sample_count().to_string());
        self.write(out, "_sum", None, &number(summary.sample_sum()));
    }
}

/// ` # {trace_id="...",span_id="..."} value seconds`. Ids are hex and need no escape.
fn write_exemplar(out: &mut String, exemplar: &Exemplar) {
    let Exemplar { trace_id, span_id, value, unix_ms } = exemplar;
    let (s, ms) = (unix_ms / 1_000, unix_ms % 1_000);
    let value = number(*value);
    put(
        out,
        format_args!(" # {{trace_id=\"{trace_id}\",span_id=\"{span_id}\"}} {value} {s}.{ms:03}"),
    );
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    // A `String` takes everything.
    let _ = out.write_fmt(text);
}

/// Backslash, quote and newline; in help as in values of labels.
fn escape(out: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

/// A number as Go's shortest `%g` with a point or an exponent: `1.0`, `0.001`, `1e+06`, `+Inf`. These are
/// the canonical numbers of the specification.
fn number(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.unsigned_abs());
    }
    let plain = value.to_string();
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

#[cfg(test)]
mod tests;
