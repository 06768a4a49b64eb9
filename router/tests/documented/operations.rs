//! The rules, the runbook and the dashboard of `docs/operations`, as far as the tests read them.

use std::collections::BTreeSet;

use super::source;

/// The rules' file.
pub const RULES: &str = "docs/operations/rules/cgn-router.rules.yml";
/// Their unit tests.
pub const RULES_TEST: &str = "docs/operations/rules/cgn-router.test.yml";
/// The dashboard.
pub const DASHBOARD: &str = "docs/operations/dashboards/cgn-router.json";
/// The runbook.
pub const ALERTS: &str = "docs/operations/alerts.md";

/// Values behind `mark` in the rules: `- alert: NAME`, `- record: NAME`.
pub fn rules(mark: &str) -> BTreeSet<String> {
    let text = source::read(RULES);
    let names = text.lines().filter_map(|line| line.trim().strip_prefix(mark));
    names.map(|name| name.trim().to_owned()).collect()
}

/// Title and expression of each query of the dashboard.
pub fn dashboard() -> Vec<(String, String)> {
    let json: serde_json::Value = serde_json::from_str(&source::read(DASHBOARD)).unwrap();
    let mut queries = Vec::new();
    for panel in json["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
            queries.push((text(&panel["title"]), text(&target["expr"])));
        }
    }
    assert!(queries.len() > 30, "the queries were not found");
    queries
}
