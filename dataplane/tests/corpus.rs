//! Replays the committed corpus of each fuzz target (`dataplane/fuzz`).
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../fuzz/targets.rs"]
mod targets;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().flatten().collect();
    assert!(!files.is_empty(), "{folder} is empty");
    for file in files {
        run(&std::fs::read(file.path()).unwrap());
    }
}

#[test]
fn frames() {
    replay("frame", targets::frame);
}

#[test]
fn configurations() {
    replay("config", targets::config);
}

#[test]
fn frames_of_the_feed() {
    replay("feed", targets::feed);
}

#[test]
fn lines_of_the_decision_log() {
    replay("decision", targets::decision);
}

#[test]
fn frames_of_the_native_door() {
    replay("native", targets::native);
}
