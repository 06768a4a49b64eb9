//! The report of a comparison as one HTML file: a table and three plots, drawn as SVG. It loads nothing
//! from elsewhere and runs no script.

use std::fmt::Write;

use super::compare::{Comparison, Row};

/// Of one plot, in SVG units.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 260.0;
/// Room for the numbers on the left and below.
const LEFT: f64 = 56.0;
const BELOW: f64 = 26.0;
/// One colour a policy, told apart by the colour-blind too (Okabe and Ito).
const COLOURS: [&str; 5] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"];

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}\
table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ccc}\
td:first-child,th:first-child{text-align:left}svg{width:100%;height:auto}svg text{font-size:11px;fill:#555}";

/// Writes the page.
pub fn html(comparison: &Comparison) -> String {
    let rows: Vec<(&str, &Row)> =
        comparison.policies.iter().map(|(name, row)| (*name, row)).collect();
    let mut page = String::with_capacity(64 << 10);
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Trace replay</title>\
         <style>{STYLE}</style><h1>Trace replay</h1><p>{} requests, {} unique blocks; {} workers with \
         {} blocks of cache each; load {:.0} %{}; seed {}.</p>",
        comparison.requests,
        comparison.unique_blocks,
        comparison.workers,
        comparison.cache_blocks,
        comparison.load * 100.0,
        if comparison.peer_fetch { ", blocks fetched from peers" } else { "" },
        comparison.seed,
    );
    table(&mut page, &rows);
    let title = |page: &mut String, text: &str| {
        let _ = write!(page, "<h2>{text}</h2>");
    };
    title(&mut page, "Time to the first token: share of requests that took longer");
    curves(&mut page, &rows.iter().map(|(_, row)| waited(row)).collect::<Vec<_>>(), "ms");
    title(&mut page, "Hit ratio over the time of the trace");
    curves(&mut page, &rows.iter().map(|(_, row)| hits(row)).collect::<Vec<_>>(), "");
    title(&mut page, "Load of each worker over the mean");
    bars(&mut page, &rows);
    page.push_str("</html>\n");
    page
}

fn table(page: &mut String, rows: &[(&str, &Row)]) {
    page.push_str(
        "<table><tr><th>Policy<th>Hit ratio<th>Pooled<th>Ideal<th>TTFT mean ms<th>p50 ms<th>p99 ms<th>Max/mean load",
    );
    for (at, (name, row)) in rows.iter().enumerate() {
        let outcome = &row.outcome;
        let _ = write!(
            page,
            "<tr><td><span style=\"color:{}\">&#9632;</span> {name}<td>{:.4}<td>{:.4}<td>{:.4}<td>{:.0}<td>{:.0}<td>{:.0}<td>{:.3}",
            colour(at),
            outcome.hit_ratio,
            row.pooled_lru_hit_ratio,
            row.ideal_hit_ratio,
            outcome.ttft_mean_ms,
            outcome.ttft_p50_ms,
            outcome.ttft_p99_ms,
            outcome.max_over_mean_load,
        );
    }
    page.push_str("</table>");
}

fn colour(at: usize) -> &'static str {
    COLOURS[at % COLOURS.len()]
}

/// Points of a curve, `x` and `y`; times on a logarithmic scale, so given by their logarithm.
struct Curve {
    points: Vec<(f64, f64)>,
    log_x: bool,
}

fn waited(row: &Row) -> Curve {
    let sorted = &row.outcome.curves.ttft_ms;
    let count = sorted.len().max(1);
    // 200 points are as many as can be seen.
    let step = count.div_ceil(200);
    let points = sorted.iter().enumerate().step_by(step).map(|(rank, ttft_ms)| {
        (ttft_ms.max(1.0).log10(), 1.0 - (rank as f64 + 0.5) / count as f64)
    });
    Curve { points: points.collect(), log_x: true }
}

fn hits(row: &Row) -> Curve {
    let slices = &row.outcome.curves.hit_ratio;
    let count = slices.len().max(1) as f64;
    let points = slices.iter().enumerate();
    let points = points.filter_map(|(at, ratio)| ratio.map(|ratio| (at as f64 / count, ratio)));
    Curve { points: points.collect(), log_x: false }
}

fn curves(page: &mut String, curves: &[Curve], unit: &str) {
    let x_max = curves.iter().flat_map(|c| &c.points).map(|point| point.0).fold(0.1, f64::max);
    let y_max = curves.iter().flat_map(|c| &c.points).map(|point| point.1).fold(0.01, f64::max);
    begin(page, y_max);
    for tenth in [0.25, 0.5, 0.75, 1.0] {
        let value = x_max * tenth;
        let label = match curves.first().is_some_and(|curve| curve.log_x) {
            true => format!("{:.0} {unit}", 10f64.powf(value)),
            false => format!("{:.0} %", value * 100.0),
        };
        let x = LEFT + tenth * (WIDTH - LEFT);
        let y = HEIGHT - 8.0;
        let _ = write!(page, "<text x=\"{x:.0}\" y=\"{y:.0}\" text-anchor=\"end\">{label}</text>");
    }
    for (at, curve) in curves.iter().enumerate() {
        let points = curve.points.iter().map(|(x, y)| {
            let x = LEFT + x / x_max * (WIDTH - LEFT);
            format!("{x:.1},{:.1}", height(*y, y_max))
        });
        let points: Vec<String> = points.collect();
        let _ = write!(
            page,
            "<polyline fill=\"none\" stroke-width=\"2\" stroke=\"{}\" points=\"{}\"/>",
            colour(at),
            points.join(" ")
        );
    }
    page.push_str("</svg>");
}

fn bars(page: &mut String, rows: &[(&str, &Row)]) {
    let shares: Vec<Vec<f64>> = rows
        .iter()
        .map(|(_, row)| {
            let busy_ms = &row.outcome.curves.busy_ms;
            let mean_ms = busy_ms.iter().sum::<f64>() / busy_ms.len().max(1) as f64;
            busy_ms.iter().map(|busy_ms| busy_ms / mean_ms.max(1e-9)).collect()
        })
        .collect();
    let y_max = shares.iter().flatten().copied().fold(1.0, f64::max);
    begin(page, y_max);
    let workers = shares.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let slot = (WIDTH - LEFT) / workers as f64;
    let width = slot * 0.8 / shares.len().max(1) as f64;
    for (policy, shares) in shares.iter().enumerate() {
        for (worker, share) in shares.iter().enumerate() {
            let (x, y) =
                (LEFT + slot * worker as f64 + width * policy as f64, height(*share, y_max));
            let tall = height(0.0, y_max) - y;
            let _ = write!(
                page,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{tall:.1}\" fill=\"{}\"/>",
                colour(policy)
            );
        }
    }
    page.push_str("</svg>");
}

fn height(value: f64, most: f64) -> f64 {
    (HEIGHT - BELOW) * (1.0 - value / most * 0.95)
}

fn begin(page: &mut String, y_max: f64) {
    let _ = write!(page, "<svg viewBox=\"0 0 {WIDTH:.0} {HEIGHT:.0}\" role=\"img\">");
    for part in [0.0, 0.5, 1.0] {
        let y = height(part * y_max, y_max);
        let _ = write!(
            page,
            "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{:.2}</text>",
            LEFT - 6.0,
            y + 4.0,
            part * y_max
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::compare;
    use crate::bench::engine::Model;
    use crate::bench::policy::Policy;
    use crate::bench::replay::Setup;
    use crate::bench::synth::{self, Kind};
    use crate::bench::trace::Trace;

    #[test]
    fn the_page_stands_alone_and_draws_each_policy() {
        let trace = Trace::of(synth::lines(Kind::Chats, 300, 64, 1), 64).unwrap();
        let setup = Setup {
            policy: Policy::Cognitora,
            workers: 3,
            cache_blocks: 500,
            load: 0.8,
            seed: 1,
            model: Model::default(),
            rules: dataplane::route::pick::Rules::default(),
            dynamo: crate::bench::dynamo::Settings::default(),
        };
        let page = html(&compare::run(&trace, &setup, &Policy::ALL, |_, _| {}).unwrap());
        for policy in Policy::ALL {
            assert!(page.contains(policy.as_str()));
        }
        assert_eq!(page.matches("<polyline").count(), 2 * Policy::ALL.len());
        assert_eq!(page.matches("<rect").count(), 3 * Policy::ALL.len());
        for outside in ["http:", "https:", "<script", "<link", "src=", "NaN"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
