//! The main table: medians over rounds, each beside nginx's in the same run, and the bars.

use std::fmt::Write;

use crate::{streams, wrk};

/// One case of answers in one piece, and what each proxy gave in each round.
pub struct Answers {
    /// For the table.
    pub case: &'static str,
    /// By the proxy's name, in the order of a round.
    pub rows: Vec<(String, Vec<wrk::Measured>)>,
}

/// The same for streams.
pub struct Streams {
    /// For the table.
    pub case: &'static str,
    /// By the proxy's name, in the order of a round.
    pub rows: Vec<(String, Vec<streams::Measured>)>,
}

const NGINX: &str = "nginx";
const DIRECT: &str = "direct";

/// Markdown, ready for `docs/BENCHMARKS.md`.
pub fn answers(cases: &[Answers]) -> String {
    let mut text = String::from(
        "\n| not streamed | proxy | CPU µs/request | × nginx | requests/s | p50 µs | p99 µs | added p50 µs |\n|---|---|--:|--:|--:|--:|--:|--:|\n",
    );
    for Answers { case, rows } in cases {
        let direct_p50 = of(rows, DIRECT, |m| m.p50_us);
        let nginx_cpu = of(rows, NGINX, |m| m.cpu_us);
        for (name, runs) in rows {
            let cpu = median_of(runs, |m| m.cpu_us);
            let p50 = median_of(runs, |m| m.p50_us);
            let _ = writeln!(
                text,
                "| {case} | {name} | {} | {} | {:.0} | {p50:.0} | {:.0} | {} |",
                or_dash(name, format!("{cpu:.1}")),
                or_dash(name, format!("{:.2}", cpu / nginx_cpu)),
                median_of(runs, |m| m.per_second),
                median_of(runs, |m| m.p99_us),
                or_dash(name, format!("{:.0}", p50 - direct_p50)),
            );
        }
    }
    text
}

/// Markdown, ready for `docs/BENCHMARKS.md`.
pub fn streams(cases: &[Streams]) -> String {
    let mut text = String::from(
        "\n| streams | proxy | CPU µs/token | × nginx | tokens/s | first token p50 µs | × nginx | token delay p50 µs | p99 µs | added p99 µs | gap p99 µs |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for Streams { case, rows } in cases {
        let direct_p99 = of(rows, DIRECT, |m| m.delay_p99_us);
        let nginx_cpu = of(rows, NGINX, |m| m.cpu_us);
        let nginx_first = of(rows, NGINX, |m| m.first_p50_us);
        for (name, runs) in rows {
            let cpu = median_of(runs, |m| m.cpu_us);
            let first = median_of(runs, |m| m.first_p50_us);
            let p99 = median_of(runs, |m| m.delay_p99_us);
            let _ = writeln!(
                text,
                "| {case} | {name} | {} | {} | {:.0} | {} | {} | {} | {} | {} | {:.0} |",
                or_dash(name, format!("{cpu:.2}")),
                or_dash(name, format!("{:.2}", cpu / nginx_cpu)),
                median_of(runs, |m| m.per_second),
                or_none(first, 0),
                or_dash(name, or_none(first / nginx_first, 2)),
                or_none(median_of(runs, |m| m.delay_p50_us), 0),
                or_none(p99, 0),
                or_dash(name, or_none(p99 - direct_p99, 0)),
                median_of(runs, |m| m.gap_p99_us),
            );
        }
    }
    text
}

/// A ratio that was promised.
pub struct Bar {
    /// What.
    pub what: String,
    /// As measured.
    pub ratio: f64,
    /// At most.
    pub ratio_max: f64,
}

/// Markdown: what holds and what does not.
pub fn bars(bars: &[Bar]) -> String {
    let mut text = String::from("\n| bar | measured | at most | |\n|---|--:|--:|---|\n");
    for Bar { what, ratio, ratio_max } in bars {
        let verdict = if ratio <= ratio_max { "holds" } else { "**missed**" };
        let digits = if *ratio_max < 0.1 { 4 } else { 2 };
        let _ = writeln!(text, "| {what} | {ratio:.digits$} | {ratio_max} | {verdict} |");
    }
    text
}

/// Median over rounds of one proxy's figure; NaN when it was not measured.
pub fn of<T>(rows: &[(String, Vec<T>)], name: &str, figure: fn(&T) -> f64) -> f64 {
    rows.iter().find(|(n, _)| n == name).map_or(f64::NAN, |(_, runs)| median_of(runs, figure))
}

/// Median over rounds.
pub fn median_of<T>(runs: &[T], figure: fn(&T) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(figure).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn or_dash(name: &str, value: String) -> String {
    if name == DIRECT { "–".to_owned() } else { value }
}

fn or_none(value: f64, digits: usize) -> String {
    // A stream that outlasts the run has no first token in it; a peer may drop the stamps.
    if value.is_finite() { format!("{value:.digits$}") } else { "–".to_owned() }
}
