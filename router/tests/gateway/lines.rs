//! The access log: one line of JSON per request, with what happened and nothing of what was said.

use std::io::Write;
use std::path::Path;

use serde_json::Value;

use super::client::chat;
use super::engine::{Engine, STREAM_HEAD, chunk, json};
use super::process::{Router, worker};
use super::tenants::{CHAT, KeyFile, bearer, get, line, post, tenant, until};

fn section(path: &Path, more: &str) -> String {
    format!("[router.access_log]\npath = \"{}\"\n{more}\n", path.display())
}

/// The lines of a file, each a JSON object.
fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // What is being written is no line yet.
    let whole = &text[..text.rfind('\n').map_or(0, |at| at + 1)];
    let parse = |line: &str| {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    };
    whole.lines().map(parse).collect()
}

fn line_of(all: &[Value], id: &str) -> Value {
    let mut of_it = all.iter().filter(|line| line["request_id"] == id);
    let line = of_it.next().unwrap_or_else(|| panic!("no line for {id}: {all:?}")).clone();
    assert!(of_it.next().is_none(), "two lines for {id}");
    line
}

#[test]
fn each_request_leaves_one_line_without_key_or_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let keys = KeyFile::with(&[line("the-secret-key", "tenant=acme id=laptop")]);
    let engine = Engine::start(|asked, stream| {
        let usage = "\"usage\":{\"prompt_tokens\":21,\"completion_tokens\":7,\"prompt_tokens_details\":{\"cached_tokens\":16}}";
        let answer = match asked.body.windows(6).any(|six| six == b"stream") {
            false => json(&format!("{{\"text\":\"the-secret-answer\",{usage}}}")),
            true => format!(
                "{STREAM_HEAD}{}{}{}0\r\n\r\n",
                chunk("data: {\"choices\":[]}\n\n"),
                chunk(&format!("data: {{\"choices\":[],{usage}}}\n\n")),
                chunk("data: [DONE]\n\n")
            )
            .into_bytes(),
        };
        stream.write_all(&answer).is_ok()
    });
    let sections = keys.section("required = true") + &section(&path, "");
    let tenants = tenant("acme", "requests_per_minute = 3");
    let router = Router::start(&sections, &(worker(&engine, 4) + &tenants));
    let id = |id: &str| format!("x-request-id: {id}\r\n");
    let known = |name: &str| id(name) + &bearer("the-secret-key");
    let body = chat("the-secret-prompt");
    let plain = post(&router, &known("plain"), &body);
    assert_eq!(plain.status, 200);
    let streamed = body.replacen('{', "{\"stream\":true,", 1);
    assert_eq!(post(&router, &known("streamed"), &streamed).status, 200);
    assert_eq!(post(&router, &(id("stranger") + &bearer("the-wrong-key")), &body).status, 401);
    assert_eq!(post(&router, &known("no-model"), &body.replace("\"m\"", "\"nope\"")).status, 404);
    assert_eq!(
        router.client().post("/v1/nonsense?api_key=the-secret-key", &known("other"), "{}").status,
        404
    );
    assert_eq!(post(&router, &known("third"), &body).status, 200);
    assert_eq!(post(&router, &known("limited"), &body).status, 429);
    assert_eq!(get(&mut router.client(), "/v1/models", &known("list")).status, 200);
    let ids = ["plain", "streamed", "stranger", "no-model", "other", "third", "limited", "list"];
    let of_ours = || {
        let all = lines(&path).into_iter();
        all.filter(|line| ids.iter().any(|id| line["request_id"] == *id)).collect::<Vec<_>>()
    };
    until("all lines are there", || of_ours().len() >= ids.len());
    let all = of_ours();
    let plain_line = line_of(&all, "plain");
    for (name, value) in [
        ("tenant", "acme"),
        ("subject", "key:laptop"),
        ("peer", "127.0.0.1"),
        ("method", "POST"),
        ("path", CHAT),
        ("model", "m"),
        ("end", "complete"),
        ("worker", plain.field("x-cgn-worker").unwrap()),
    ] {
        assert_eq!(plain_line[name], value, "{name}");
    }
    for (name, value) in [
        ("status", 200),
        ("attempts", 1),
        ("prompt_tokens", 21),
        ("cached_tokens", 16),
        ("completion_tokens", 7),
    ] {
        assert_eq!(plain_line[name], value, "{name}");
    }
    assert_eq!((&plain_line["stream"], &plain_line["resumed"]), (&false.into(), &false.into()));
    let ms =
        |name: &str| plain_line[name].as_f64().unwrap_or_else(|| panic!("no {name}: {plain_line}"));
    assert!(ms("ttft_ms") > 0.0 && ms("ttft_ms") <= ms("duration_ms") && ms("queue_ms") >= 0.0);
    // Heads count: the request has more than its body, and so has the answer.
    assert!(ms("bytes_in") > body.len() as f64 + 50.0, "{plain_line}");
    assert!(ms("bytes_out") > plain.body.len() as f64 + 50.0, "{plain_line}");
    let ts = plain_line["ts"].as_str().unwrap();
    assert!(ts.len() >= 20 && ts.starts_with("20") && ts.ends_with('Z'), "{ts}");
    assert_eq!(plain_line["trace_id"].as_str().unwrap().len(), 32);
    let streamed = line_of(&all, "streamed");
    assert_eq!((&streamed["stream"], &streamed["completion_tokens"]), (&true.into(), &7.into()));
    for (id, status, end) in [
        ("stranger", 401, "unknown_key"),
        ("no-model", 404, "model_not_found"),
        ("other", 404, "unknown_url"),
        ("limited", 429, "tenant_limit"),
        ("list", 200, "complete"),
    ] {
        let line = line_of(&all, id);
        assert_eq!(line["status"], status, "{line}");
        assert!(line["end"].as_str().unwrap().contains(end), "{line}");
        assert!(line.get("worker").is_none(), "{line}");
    }
    assert!(line_of(&all, "stranger").get("tenant").is_none());
    let text = std::fs::read_to_string(&path).unwrap();
    for secret in ["the-secret", "the-wrong-key"] {
        assert!(!text.contains(secret), "{text}");
    }
}

#[test]
fn a_file_at_its_size_is_put_aside_and_no_line_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let router = Router::start(&section(&path, "bytes_max = 65536"), &worker(&Engine::ok(), 4));
    let mut client = router.client();
    const COUNT: usize = 220;
    for i in 0..COUNT {
        let fields = format!("x-request-id: line-{i}\r\n");
        assert_eq!(client.post(CHAT, &fields, &chat("x")).status, 200);
    }
    let older = folder.path().join("access.log.1");
    let of_ours = || {
        let both = lines(&older).into_iter().chain(lines(&path));
        let mut ids: Vec<String> =
            both.map(|line| line["request_id"].as_str().unwrap().to_owned()).collect();
        ids.retain(|id| id.starts_with("line-"));
        ids
    };
    until("all lines are there", || of_ours().len() >= COUNT);
    let ids = of_ours();
    assert_eq!(ids, (0..COUNT).map(|i| format!("line-{i}")).collect::<Vec<_>>());
    assert!(older.exists(), "{} bytes", std::fs::metadata(&path).unwrap().len());
    for file in [&path, &older] {
        assert!(std::fs::metadata(file).unwrap().len() <= 65_536);
    }
    assert_eq!(router.metric("cgn_router_access_lines_dropped_total"), 0.0);
}

#[test]
fn a_share_of_nothing_is_no_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let sections = section(&path, "sample_ratio = 0.0");
    let mut router = Router::start(&sections, &worker(&Engine::ok(), 4));
    assert_eq!(post(&router, "Connection: close\r\n", &chat("x")).status, 200);
    router.terminate();
    assert_eq!((router.wait(), lines(&path)), (Some(0), Vec::new()));
}

#[test]
fn the_last_lines_are_written_before_the_router_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let mut router = Router::start(&section(&path, ""), &worker(&Engine::ok(), 4));
    let answer = post(&router, "x-request-id: last\r\nConnection: close\r\n", &chat("x"));
    assert_eq!(answer.status, 200);
    router.terminate();
    assert_eq!(router.wait(), Some(0));
    line_of(&lines(&path), "last");
}
