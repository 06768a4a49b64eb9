//! Three views of the router's metrics: what `docs/METRICS.md` says, what the source declares, what a
//! running router exposes.

use std::collections::{BTreeMap, BTreeSet};

use super::source;

/// The prefix of all names.
pub const PREFIX: &str = "cgn_router_";

/// One metric. `kind` is `None` where a view does not tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    pub kind: Option<String>,
    pub labels: Option<BTreeSet<String>>,
}

pub type Metrics = BTreeMap<String, Metric>;

/// The rows of the tables.
pub fn documented() -> Metrics {
    let page = source::read("docs/METRICS.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `cgn_router_"));
    let mut metrics = Metrics::new();
    for row in rows {
        let cells: Vec<&str> = row.split(" |").map(str::trim).collect();
        let [name, kind, unit, labels, meaning, ..] = cells[..] else {
            panic!("a row with too few cells: {row}")
        };
        assert!(!unit.is_empty() && meaning.trim_start_matches('|').len() > 10, "{row}");
        let name = format!("{PREFIX}{}", name.trim_end_matches('`'));
        let kind = kind.trim_start_matches(['|', ' ']).to_owned();
        let labels = labels.trim_start_matches(['|', ' ']).split(", ");
        let labels = labels.filter(|l| !l.is_empty()).map(str::to_owned).collect();
        let metric = Metric { kind: Some(kind), labels: Some(labels) };
        assert!(metrics.insert(name.clone(), metric).is_none(), "{name} has two rows");
    }
    metrics
}

/// Calls of the form `declare.KIND("name"` and `opts("name"` anywhere in the source.
pub fn declared() -> Metrics {
    let mut metrics = Metrics::new();
    for (_, text) in source::router() {
        for (method, call) in calls(&text) {
            let Some((name, rest)) = leading_string(call) else { continue };
            let name = format!("{PREFIX}{}", name.trim_start_matches(PREFIX));
            let kinds = ["counter", "gauge", "histogram"];
            let kind = kinds.into_iter().find(|kind| method.contains(kind));
            let labels = kind.map(|_| labels(rest, method.ends_with('s')));
            let metric = Metric { kind: kind.map(str::to_owned), labels };
            metrics.insert(name, metric);
        }
    }
    metrics
}

/// The method and what follows its opening parenthesis.
fn calls(text: &str) -> Vec<(&str, &str)> {
    let after = |mark: &'static str| {
        text.match_indices(mark).map(move |(at, found)| &text[at + found.len()..])
    };
    let methods = after("declare").filter_map(|rest| {
        // rustfmt puts the method on the next line where the call is long.
        rest.trim_start().strip_prefix('.')?.split_once('(')
    });
    let bare = after("opts(").map(|rest| ("opts", rest));
    methods.chain(bare).collect()
}

fn leading_string(call: &str) -> Option<(&str, &str)> {
    call.trim_start().strip_prefix('"')?.split_once('"')
}

/// The strings of the slice among the arguments: labels come in a slice, buckets in a constant.
fn labels(rest: &str, has_labels: bool) -> BTreeSet<String> {
    let Some((_, slice)) = rest.split_once("&[").filter(|_| has_labels) else {
        return BTreeSet::new();
    };
    let slice = slice.split_once(']').map_or("", |(slice, _)| slice);
    slice.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// What a scrape shows. `le` belongs to the format, not to the metric.
pub fn exposed(text: &str) -> Metrics {
    let mut metrics = Metrics::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let metric = Metric { kind: Some(kind.to_owned()), labels: Some(BTreeSet::new()) };
            metrics.insert(name.to_owned(), metric);
        } else if let Some((series, pairs)) =
            line.split_once('{').filter(|_| !line.starts_with('#'))
        {
            let base = base(series, &metrics);
            let names = pairs.split("=\"").map(|part| part.rsplit(['"', ',', '{']).next().unwrap());
            let metric = metrics.get_mut(&base).unwrap_or_else(|| panic!("no TYPE of {series}"));
            let mut names: BTreeSet<String> = names.map(str::to_owned).collect();
            names.retain(|name| {
                name != "le"
                    && !name.is_empty()
                    && name.chars().all(|c| c == '_' || c.is_ascii_lowercase())
            });
            metric.labels.get_or_insert_default().extend(names);
        }
    }
    metrics
}

/// The metric a series belongs to: a histogram's series have endings of their own.
pub fn base(series: &str, metrics: &Metrics) -> String {
    let endings = ["_bucket", "_sum", "_count"];
    let stripped = endings.into_iter().find_map(|ending| series.strip_suffix(ending));
    stripped.filter(|base| metrics.contains_key(*base)).unwrap_or(series).to_owned()
}

/// The metric names in an expression or any other text.
pub fn used(text: &str) -> BTreeSet<&str> {
    text.match_indices(PREFIX)
        .map(|(at, _)| {
            let rest = &text[at..];
            let end = rest.find(|c: char| c != '_' && !c.is_ascii_alphanumeric());
            &rest[..end.unwrap_or(rest.len())]
        })
        .collect()
}
