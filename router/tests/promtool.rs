//! Prometheus's own checker over what the router exposes, over the rules and over the dashboard. Where
//! promtool is not installed each test says so and checks nothing; `cargo xtask test` installs it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "the contract tests use the rest")]
#[path = "contract/client.rs"]
mod client;
#[expect(dead_code, reason = "the contract tests use the rest")]
#[path = "contract/engine.rs"]
mod engine;
#[expect(dead_code, reason = "the tests of the documents use the rest")]
#[path = "documented/operations.rs"]
mod operations;
#[expect(dead_code, reason = "the contract tests use the rest")]
#[path = "contract/process.rs"]
mod process;
#[expect(dead_code, reason = "the tests of the documents use the rest")]
#[path = "documented/source.rs"]
mod source;

use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Runs promtool with `input`; `None` where it is not installed.
fn promtool(words: &[&str], input: &[u8]) -> Option<Output> {
    let mut command = Command::new("promtool");
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: promtool is not installed (Debian: prometheus)");
            return None;
        }
        Err(error) => panic!("promtool: {error}"),
    };
    child.stdin.take().unwrap().write_all(input).unwrap();
    Some(child.wait_with_output().unwrap())
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

fn is_content(words: &[&str], input: &[u8]) {
    if let Some(output) = promtool(words, input) {
        assert!(output.status.success(), "promtool {words:?}: {}", said(&output));
    }
}

#[test]
fn the_exposition_is_well_formed_and_its_names_follow_the_rules() {
    let engine = engine::Engine::ok();
    let router = process::Router::start("", &process::worker(&engine, 4));
    router.client().post("/v1/chat/completions", "", &client::chat("hello"));
    let text = client::Client::connect(router.admin).get("/metrics").text().to_owned();
    assert!(text.contains("cgn_router_requests_total{"));
    let Some(output) = promtool(&["check", "metrics"], text.as_bytes()) else { return };
    // It ends with 3 for advice alone; advice is followed here too.
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn the_rules_are_well_formed() {
    is_content(&["check", "rules", &source::path(operations::RULES).to_string_lossy()], b"");
}

#[test]
fn the_rules_do_what_their_tests_say() {
    is_content(&["test", "rules", &source::path(operations::RULES_TEST).to_string_lossy()], b"");
}

/// What Grafana fills in before it asks.
const VARIABLES: [(&str, &str); 4] =
    [("$__rate_interval", "5m"), ("$__range", "1h"), ("$instance", ".*"), ("$job", ".*")];

#[test]
fn the_expressions_of_the_dashboard_are_promql() {
    let mut rules = String::from("groups:\n  - name: dashboard\n    rules:\n");
    for (at, (title, expression)) in operations::dashboard().into_iter().enumerate() {
        let filled = VARIABLES.iter().fold(expression, |text, (name, to)| text.replace(name, to));
        assert!(!filled.contains('$'), "{title}: a variable nobody fills in: {filled}");
        // JSON strings are YAML strings.
        let (title, filled) = (serde_json::json!(title), serde_json::json!(filled));
        let record = format!("      - record: panel:query:number{at}\n        expr: {filled}\n");
        rules.push_str(&format!("{record}        labels: {{ panel: {title} }}\n"));
    }
    let mut file = tempfile::Builder::new().suffix(".yml").tempfile().unwrap();
    file.write_all(rules.as_bytes()).unwrap();
    is_content(&["check", "rules", &file.path().to_string_lossy()], b"");
}

#[test]
fn a_wrong_expression_is_found() {
    let mut file = tempfile::Builder::new().suffix(".yml").tempfile().unwrap();
    file.write_all(b"groups: [{ name: g, rules: [{ record: a, expr: 'sum(' }] }]").unwrap();
    let words = ["check", "rules", &file.path().to_string_lossy()];
    if let Some(output) = promtool(&words, b"") {
        assert!(!output.status.success());
    }
}
