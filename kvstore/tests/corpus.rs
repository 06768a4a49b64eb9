//! Replays the committed corpus of each fuzz target (`kvstore/fuzz`).
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
fn pages_of_disks() {
    replay("record", targets::record);
}

#[test]
fn what_peers_say() {
    replay("peer", targets::peer);
}

#[test]
fn bytes_of_resp_clients() {
    replay("resp", targets::resp);
}
