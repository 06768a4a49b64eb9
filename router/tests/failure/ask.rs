//! How the tests ask, and what they expect of a stream.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{Client, post};
use super::heard::{Heard, payload};
use super::process::Router;
use super::speaker::{Speaker, answer_to};

pub const CHAT: &str = "/v1/chat/completions";

/// Greedy, as what can be resumed by asking again.
pub fn chat(prompt: &str) -> Value {
    json!({ "model": "m", "messages": [{ "role": "user", "content": prompt }], "temperature": 0,
            "stream": true, "stream_options": { "include_usage": true } })
}

/// `value` with `fields` in it.
pub fn with(mut value: Value, fields: Value) -> Value {
    let Value::Object(fields) = fields else { panic!("no fields: {fields}") };
    value.as_object_mut().unwrap().extend(fields);
    value
}

/// Entries for all of them.
pub fn workers<'a>(engines: impl IntoIterator<Item = &'a Speaker>) -> String {
    let entry = |engine: &Speaker| worker(engine, "openai_compat");
    engines.into_iter().map(entry).collect()
}

pub fn worker(engine: &Speaker, kind: &str) -> String {
    format!(
        "[[workers]]\nurl = \"http://{}\"\nmodel = \"m\"\nkind = \"{kind}\"\nslots = 16\n",
        engine.address
    )
}

/// As metrics name it.
pub fn id(engine: &Speaker) -> String {
    format!("m@{}", engine.address)
}

/// The real binary, with these keys and workers.
pub fn start(keys: &str, workers: &str) -> Router {
    Router::start(keys, workers)
}

/// The value of a metric about one worker.
pub fn of_worker(router: &Router, name: &str, engine: &Speaker) -> f64 {
    router.metric(&format!("{name}{{worker=\"{}\"}}", id(engine)))
}

pub fn picks(router: &Router, engine: &Speaker) -> f64 {
    of_worker(router, "cgn_router_picks_total", engine)
}

/// Streams whose worker failed and that ended so. Counted behind the last byte of the answer, so it looks
/// again for a while before it says none.
pub fn resumed(router: &Router, result: &str) -> f64 {
    let name = format!("cgn_router_streams_resumed_total{{result=\"{result}\"}}");
    let looks = std::iter::repeat_with(|| router.metric(&name)).take(100);
    let pause = |_: &f64| std::thread::sleep(Duration::from_millis(10));
    looks.inspect(pause).find(|count| *count > 0.0).unwrap_or(0.0)
}

/// Asks on a connection of its own; status and raw response, to the end of the connection.
pub fn raw(router: &Router, path: &str, body: &Value) -> Vec<u8> {
    begin(router, path, body).rest()
}

/// Asks and does not wait.
pub fn begin(router: &Router, path: &str, body: &Value) -> Client {
    let mut client = router.client();
    client.send(post(path, "Connection: close\r\n", &body.to_string()));
    client
}

/// Asks for a stream, which must be a 200 whose framing is whole.
pub fn stream(router: &Router, body: &Value) -> Heard {
    of_response(&raw(router, CHAT, body))
}

pub fn of_response(response: &[u8]) -> Heard {
    let text = String::from_utf8_lossy(response);
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    Heard::of(&payload(response).unwrap_or_else(|| panic!("cut off: {text}")))
}

/// Whether this is the undisturbed answer.
pub fn assert_whole(heard: &Heard, prompt: &str) {
    assert!(heard.is_whole(), "{heard:?}");
    assert_eq!(heard.text, answer_to(prompt), "{heard:?}");
    assert_eq!((heard.roles, heard.finish_reasons[0].as_str()), (1, "length"), "{heard:?}");
}

/// Whether it said some of the answer, and then that the engine failed.
pub fn assert_ended_by_error(heard: &Heard, prompt: &str) {
    assert!(heard.is_ended_by_error(), "{heard:?}");
    assert_eq!(heard.errors[0]["code"], "engine_failed", "{heard:?}");
    assert!(answer_to(prompt).starts_with(&heard.text), "{heard:?}");
    assert!(heard.finish_reasons.is_empty(), "{heard:?}");
}

/// Waits until `is_so`; a test fails rather than hangs.
pub fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
