//! The table: medians over rounds, each beside nginx's in the same run.

use std::fmt::Write;

use crate::load::{Case, Measured};

/// One case, and what each proxy gave in each round.
pub struct Row {
    /// The case.
    pub case: Case,
    /// By the proxy's name, in the order of a round.
    pub proxies: Vec<(&'static str, Vec<Measured>)>,
}

/// Markdown, ready for `docs/BENCHMARKS.md`.
pub fn render(rows: &[Row], seconds: u32, rounds: usize) -> String {
    let mut text =
        format!("\nMedians of {rounds} rounds of {seconds} s; one core for the proxy.\n\n");
    text.push_str("| case | proxy | CPU µs/request | × nginx | requests/s | p50 µs | p99 µs | added p50 µs | × nginx |\n");
    text.push_str("|---|---|--:|--:|--:|--:|--:|--:|--:|\n");
    for Row { case, proxies } in rows {
        let median_of = |name: &str, of: fn(&Measured) -> f64| {
            proxies.iter().find(|(n, _)| *n == name).map_or(0.0, |(_, runs)| median(runs, of))
        };
        let direct_p50 = median_of("direct", |m| m.p50_us);
        let nginx_cpu = median_of("nginx", |m| m.cpu_us);
        let nginx_added = median_of("nginx", |m| m.p50_us) - direct_p50;
        for (name, runs) in proxies {
            let cpu = median(runs, |m| m.cpu_us);
            let p50 = median(runs, |m| m.p50_us);
            let added = p50 - direct_p50;
            let has_proxy = *name != "direct";
            let or_dash = |shown: bool, value: String| if shown { value } else { "–".to_owned() };
            let latency = has_proxy && *case == Case::Latency;
            let _ = writeln!(
                text,
                "| {} | {name} | {} | {} | {:.0} | {p50:.0} | {:.0} | {} | {} |",
                case.name(),
                or_dash(has_proxy, format!("{cpu:.1}")),
                or_dash(has_proxy, format!("{:.2}", cpu / nginx_cpu)),
                median(runs, |m| m.per_second),
                median(runs, |m| m.p99_us),
                or_dash(latency, format!("{added:.0}")),
                or_dash(latency, format!("{:.2}", added / nginx_added)),
            );
        }
    }
    text
}

fn median(runs: &[Measured], of: fn(&Measured) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
