//! Replays the committed corpus of each fuzz target (`router/fuzz`).
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
fn request_heads() {
    replay("request_head", targets::request_head);
}

#[test]
fn response_heads() {
    replay("response_head", targets::response_head);
}

#[test]
fn chunks() {
    replay("chunks", targets::chunks);
}

#[test]
fn calls() {
    replay("call", targets::call);
}

#[test]
fn traceparents() {
    replay("traceparent", targets::traceparent);
}

#[test]
fn event_streams() {
    replay("sse", targets::sse);
}

#[test]
fn credentials() {
    replay("credential", targets::credential);
}

#[test]
fn conversations() {
    replay("conversation", targets::conversation);
}
