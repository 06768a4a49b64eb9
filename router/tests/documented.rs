//! The documents say what is there: every metric and header, both ways, and every alert has its entry.
//! Configuration keys are held to their page by a test beside the configuration.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "the contract tests use the rest")]
#[path = "contract/client.rs"]
mod client;
#[expect(dead_code, reason = "the contract tests use the rest")]
#[path = "contract/engine.rs"]
mod engine;
#[path = "documented/headers.rs"]
mod headers;
#[path = "documented/metrics.rs"]
mod metrics;
#[path = "documented/operations.rs"]
mod operations;
#[expect(dead_code, reason = "the contract tests use the rest")]
#[path = "contract/process.rs"]
mod process;
#[path = "documented/source.rs"]
mod source;

use std::collections::BTreeSet;

use engine::Engine;
use process::Router;

/// What a router shows after an answer, a refusal and a failed engine: most vectors have a child.
fn scrape() -> String {
    let good = Engine::ok();
    let bad = Engine::start(|_, _| false);
    let workers = process::worker(&good, 4) + &process::worker(&bad, 4);
    let router = Router::start("", &workers);
    for _ in 0..4 {
        router.client().post("/v1/chat/completions", "", &client::chat("hello"));
    }
    router.client().post("/v1/chat/completions", "", r#"{"model":"nobody","messages":[]}"#);
    client::Client::connect(router.admin).get("/metrics").text().to_owned()
}

#[test]
fn each_documented_metric_is_declared_and_each_declared_one_documented() {
    let (documented, declared) = (metrics::documented(), metrics::declared());
    for (name, said) in &documented {
        let Some(found) = declared.get(name) else {
            panic!("docs/METRICS.md: the router has no {name}");
        };
        assert!(found.kind.is_none() || found.kind == said.kind, "{name}: {found:?}");
        assert!(found.labels.is_none() || found.labels == said.labels, "{name}: {found:?}");
    }
    for name in declared.keys() {
        assert!(documented.contains_key(name), "docs/METRICS.md has no row for {name}");
    }
}

#[test]
fn what_a_running_router_exposes_is_documented_with_type_and_labels() {
    let exposed = metrics::exposed(&scrape());
    let (documented, declared) = (metrics::documented(), metrics::declared());
    assert!(exposed.len() > 20, "{exposed:?}");
    for (name, found) in &exposed {
        let said = documented.get(name);
        assert_eq!(said, Some(found), "{name}: said and found differ");
        assert!(
            declared.contains_key(name),
            "{name}: metrics::declared no longer reads the source"
        );
    }
    // A metric without labels is there from the start.
    for (name, said) in &documented {
        let is_plain = said.labels.as_ref().is_some_and(BTreeSet::is_empty);
        let is_there = exposed.contains_key(name);
        assert!(!is_plain || is_there, "{name} is documented and not exposed");
    }
}

#[test]
fn each_documented_header_is_in_the_source_and_each_of_ours_documented() {
    let (documented, ours) = (headers::documented(), headers::ours());
    assert!(ours.contains("x-cgn-worker"), "headers::ours no longer reads the source: {ours:?}");
    for name in &documented {
        let is_there = headers::is_in_source(name, &ours);
        assert!(is_there, "docs/HEADERS.md: the router knows no {name}");
    }
    for pattern in &ours {
        let is_said = documented.iter().any(|name| headers::matches(pattern, name));
        assert!(is_said, "docs/HEADERS.md has no row for {pattern}");
    }
}

#[test]
fn the_headers_of_an_answer_and_of_a_refusal_are_documented() {
    let engine = Engine::ok();
    let router = Router::start("", &process::worker(&engine, 4));
    let documented = headers::documented();
    for body in [client::chat("hello"), "{".to_owned()] {
        let answer = router.client().post("/v1/chat/completions", "", &body);
        for line in answer.head.lines().skip(1).filter(|line| !line.is_empty()) {
            let name = line.split(':').next().unwrap().to_ascii_lowercase();
            assert!(documented.contains(&name), "docs/HEADERS.md has no row for {name}");
        }
    }
}

#[test]
fn rules_and_dashboard_use_metrics_that_are_documented() {
    let documented = metrics::documented();
    let mut seen = BTreeSet::new();
    let queries = operations::dashboard().into_iter();
    let rules = [operations::RULES, operations::RULES_TEST]
        .map(|name| (name.to_owned(), source::read(name)));
    for (place, text) in queries.chain(rules) {
        for series in metrics::used(&text) {
            let name = metrics::base(series, &documented);
            assert!(documented.contains_key(&name), "{place}: no metric {series}");
            seen.insert(name);
        }
    }
    let unseen: Vec<_> = documented.keys().filter(|name| !seen.contains(*name)).collect();
    assert!(unseen.is_empty(), "on no panel and in no rule: {unseen:?}");
}

#[test]
fn each_alert_has_an_entry_and_a_test_and_each_entry_an_alert() {
    let alerts = operations::rules("- alert:");
    let page = source::read(operations::ALERTS);
    let entries: BTreeSet<String> =
        page.lines().filter_map(|line| line.strip_prefix("## ")).map(str::to_owned).collect();
    assert!(alerts.len() > 10);
    assert_eq!(alerts, entries);
    let (rules, tests) = (source::read(operations::RULES), source::read(operations::RULES_TEST));
    for alert in &alerts {
        let link = format!("{}#{}\n", operations::ALERTS, alert.to_lowercase());
        assert!(rules.contains(&link), "no runbook link of {alert}");
        let (_, fires) = tests
            .split_once(&format!("runbook: \"{}", link.trim_end()))
            .unwrap_or_else(|| panic!("{}: {alert} never fires", operations::RULES_TEST));
        assert!(fires.starts_with('"'));
    }
    for part in page.split("\n## ").skip(1) {
        for word in ["**Means.**", "**By itself.**", "**Look.**", "**Do.**"] {
            assert!(part.contains(word), "{}: no {word}", part.lines().next().unwrap());
        }
    }
}

#[test]
fn recorded_names_that_are_used_are_recorded() {
    let recorded = operations::rules("- record:");
    let mut texts = vec![source::read(operations::RULES), source::read(operations::ALERTS)];
    texts.extend(operations::dashboard().into_iter().map(|(_, expression)| expression));
    for text in texts {
        for (at, _) in text.match_indices("cgn_router:") {
            let rest = &text[at..];
            let end = rest.find(|c: char| c != '_' && c != ':' && !c.is_ascii_alphanumeric());
            let name = &rest[..end.unwrap_or(rest.len())];
            assert!(recorded.contains(name), "{name} is not recorded");
        }
    }
}
