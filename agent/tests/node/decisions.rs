//! The decision log of a router under load, replayed by `cgnctl`; and rules that change while requests go on,
//! by control and by the router's own file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::house::House;
use crate::load::Load;
use crate::process::eventually;
use crate::recipe::{FAST, up_with};

/// Below its folder the router writes its decisions.
const LOG: &str = "decisions.jsonl";
/// Decisions that a rule must be seen in.
const SOME: usize = 40;
/// So many lie in this much of the log's end, and more.
const TAIL_BYTES: u64 = 256 << 10;

/// A node whose router writes down every decision.
fn node(more: &str) -> (House, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(LOG);
    let section = format!("[router.decision_log]\nfile = {file:?}\nsample_ratio = 1.0\n{more}");
    (up_with(3, 4, FAST, &section).0, folder)
}

/// The newest whole lines of the log, at most [`SOME`].
fn newest(folder: &tempfile::TempDir) -> Vec<Value> {
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(folder.path().join(LOG)) {
        let length = file.metadata().unwrap().len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).unwrap();
        file.read_to_end(&mut text).unwrap();
    }
    let whole = &text[..text.iter().rposition(|byte| *byte == b'\n').unwrap_or(0)];
    let lines = whole.split(|byte| *byte == b'\n').rev().take(SOME);
    // The tail may begin within a line.
    lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// Waits until the newest decisions were all made by these weights, on this one's word.
fn decided_by(folder: &tempfile::TempDir, kv: f64, from: &str) {
    let is_by = |line: &Value| line["rules"]["weights"]["kv"] == kv && line["rules_from"] == from;
    eventually(&format!("decisions follow {from}, kv {kv}"), || {
        let newest = newest(folder);
        newest.len() == SOME && newest.iter().all(is_by)
    });
}

#[test]
fn what_was_decided_under_load_is_decided_again_the_same() {
    let (mut house, folder) = node("");
    let load = Load::start(house.http(), 8, 8);
    // A probe that came too early may leave a worker out for a second.
    eventually("there are decisions between all three", || {
        let whole = load.so_far().whole;
        whole.len() == 3 && whole.values().all(|count| *count >= 100)
    });
    let seen = load.end();
    assert!(seen.lost.is_empty() && seen.broken_off == 0, "{seen:#?}");
    // Its last lines are written when it ends.
    assert!(house.router.take().unwrap().stop().success());
    let file = folder.path().join(LOG);
    let file = file.to_str().unwrap();
    let replayed = house.ctl(&["route", "replay", file]);
    let count = json!(seen.whole_sum());
    assert_eq!((&replayed["decisions"], &replayed["same"]), (&count, &count), "{replayed}");
    assert_eq!((&replayed["changed"], &replayed["bad_lines"]), (&json!(0), &json!(0)));
    println!("{}", house.cgnctl(&["route", "replay", file]).stdout);

    let warm = house.ctl(&["route", "replay", file, "--temperature", "1"]);
    assert!(warm["changed"].as_u64().unwrap() > 0, "{warm}");

    // A line that says something else, and one that says nothing.
    let text = std::fs::read_to_string(file).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    let mut line: Value = serde_json::from_str(first).unwrap();
    line["picked"]["at"] = json!((line["picked"]["at"].as_u64().unwrap() + 1) % 3);
    let tampered = folder.path().join("tampered.jsonl");
    std::fs::write(&tampered, format!("{line}\n{rest}")).unwrap();
    let ran = house.cgnctl(&["route", "replay", tampered.to_str().unwrap()]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("are not the same") && ran.stdout.contains("LOGGED"), "{ran:?}");
    std::fs::write(&tampered, format!("{{}}\n{rest}")).unwrap();
    let ran = house.cgnctl(&["route", "replay", tampered.to_str().unwrap()]);
    assert!(ran.code == Some(1) && ran.stdout.contains("line 1: not a decision"), "{ran:?}");
}

#[test]
fn weights_change_under_load_by_control_and_by_the_file_and_no_request_notices() {
    let (house, folder) = node("");
    let config = house.dir.path().join("cgn-router.toml");
    let original = std::fs::read_to_string(&config).unwrap();
    let by_file = |kv: f64, more: &str| {
        let rest = 1.0 - kv;
        let weights = format!("kv = {kv:?}\nload = {rest:?}\npower = 0.0\ncapacity = 0.0\n");
        std::fs::write(&config, format!("{original}\n[router.score_weights]\n{weights}{more}"))
            .unwrap();
        house.router.as_ref().unwrap().signal(Signal::SIGHUP);
    };
    let by_control = |kv: f64| {
        let weights = format!("kv={kv},load={},power=0,capacity=0", 1.0 - kv);
        house.ctl(&["route", "weights", "--set", &weights]);
    };
    let load = Load::start(house.http(), 4, 8);
    decided_by(&folder, 0.55, "configuration");
    by_control(0.75);
    decided_by(&folder, 0.75, "control");
    // Control's word comes first: the file is taken and waits.
    by_file(0.25, "[router.routing]\ntemperature = 0.125\nsessions_max = 9\n");
    eventually("the temperature is the file's", || {
        newest(&folder).iter().all(|line| line["rules"]["temperature"] == 0.125)
    });
    decided_by(&folder, 0.75, "control");
    by_control(0.5);
    decided_by(&folder, 0.5, "control");
    house.ctl(&["route", "weights", "--reset"]);
    decided_by(&folder, 0.25, "configuration");
    by_file(1.0, "");
    decided_by(&folder, 1.0, "configuration");

    // A file that cannot be: all stays as it was.
    by_file(1.0, "unknown = 1\n");
    let refused = "cgn_router_config_reloads_total{result=\"refused\"}";
    eventually("the file is refused", || house.metric(refused) == 1.0);
    let before = load.so_far().whole_sum();
    eventually("requests go on", || load.so_far().whole_sum() >= before + 2 * SOME);
    decided_by(&folder, 1.0, "configuration");
    assert_eq!(house.metric("cgn_router_config_reloads_total{result=\"taken\"}"), 2.0);

    let seen = load.end();
    assert!(seen.lost.is_empty() && seen.broken_off == 0, "{seen:#?}");
    let log = std::fs::read_to_string(house.dir.path().join("cgn-router.log")).unwrap();
    assert!(log.contains("router.routing.sessions_max"), "it says what needs a restart");
    assert!(log.contains("unknown key `unknown`"), "it says why the file was refused");
}
