//! The OpenAI contract: what passes through untouched, and what is refused with which error.

use std::io::Write;

use super::client::{Client, chat};
use super::engine::{Engine, STREAM_HEAD, chunk};
use super::process::{Router, worker};

const CHAT: &str = "/v1/chat/completions";

#[test]
fn the_engine_gets_the_clients_bytes_whatever_they_say() {
    let engine = Engine::ok();
    let router = Router::start("", &worker(&engine, 1));
    let body = r#"{ "model" : "m", "temperature":0.30, "top_p":1.0e-1, "seed":18446744073709551615,
        "messages":[{"role":"user","content":[{"type":"text","text":"h\u00e9"},{"type":"image_url","image_url":{"url":"data:,"}}]}],
        "tools":[{"type":"function","function":{"name":"f","parameters":{}}}], "tool_choice":"auto", "n":2,
        "response_format":{"type":"json_object"}, "logprobs":true, "vendor_field":{"deep":[1,2,{"x":null}]}, "stop":["\n"] }"#;
    assert_eq!(router.client().post(CHAT, "", body).status, 200);
    assert_eq!(engine.asked()[0].body, body.as_bytes());
}

#[test]
fn a_stream_arrives_byte_for_byte() {
    let stream = [
        chunk("data: {\"a\":1}\n\n"),
        chunk("data: {\"b\":"),
        chunk("\"\u{e9}\"}\n\ndata: x\n\n: ping\n\n"),
        chunk("data: [DONE]\n\n"),
    ]
    .concat()
        + "0\r\n\r\n";
    let whole = format!("{STREAM_HEAD}{stream}").into_bytes();
    let engine = Engine::start(move |asked, out| {
        // The second request gets its bytes one by one: no cut may change anything.
        if asked.body.windows(5).any(|w| w == b"bytes") {
            whole.iter().all(|byte| out.write_all(&[*byte]).is_ok())
        } else {
            out.write_all(&whole).is_ok()
        }
    });
    let router = Router::start("", &worker(&engine, 1));
    for content in ["whole", "bytes", "whole"] {
        let answer = router.client().post(CHAT, "", &chat(content));
        assert_eq!(answer.text(), stream);
        assert_eq!(answer.field("content-type"), Some("text/event-stream"));
    }
}

#[test]
fn the_first_token_is_not_held_back() {
    let (tell, told) = std::sync::mpsc::channel::<()>();
    let told = std::sync::Mutex::new(told);
    let engine = Engine::start(move |_, out| {
        out.write_all(format!("{STREAM_HEAD}{}", chunk("data: first\n\n")).as_bytes()).unwrap();
        // The rest comes only when the client has said that it saw the first.
        told.lock().unwrap().recv().unwrap();
        out.write_all(format!("{}0\r\n\r\n", chunk("data: last\n\n")).as_bytes()).is_ok()
    });
    let router = Router::start("", &worker(&engine, 1));
    let mut client = router.client();
    client.send(super::client::post(CHAT, "", &chat("x")));
    client.until("data: first\n\n");
    tell.send(()).unwrap();
    client.until("data: last\n\n");
}

#[test]
fn an_error_of_the_engine_is_passed_on_as_it_is() {
    let engine = Engine::fixed(
        "HTTP/1.1 422 Unprocessable Entity\r\nContent-Length: 17\r\nX-Why: y\r\n\r\n{\"error\":\"theirs\"",
    );
    let router = Router::start("", &worker(&engine, 1));
    let answer = router.client().post(CHAT, "", &chat("x"));
    assert_eq!(
        (answer.status, answer.text(), answer.field("x-why")),
        (422, "{\"error\":\"theirs\"", Some("y"))
    );
    assert!(answer.head.starts_with("HTTP/1.1 422 Unprocessable Entity\r\n"));
}

fn refused(client: &mut Client, path: &str, body: &str) -> (u16, serde_json::Value) {
    let answer = client.post(path, "", body);
    assert_eq!(answer.field("content-type"), Some("application/json"));
    assert!(answer.field("x-request-id").is_some());
    (answer.status, answer.error())
}

#[test]
fn bad_requests_get_the_openai_envelope_and_the_connection_lives_on() {
    let engine = Engine::ok();
    let router = Router::start("", &worker(&engine, 1));
    let mut client = router.client();
    for (body, param) in [
        ("{\"model\":\"m\",", None),
        ("", None),
        ("{\"messages\":[]}", Some("model")),
        ("{\"model\":7,\"messages\":[]}", Some("model")),
        ("{\"model\":\"m\",\"messages\":\"x\"}", Some("messages")),
        ("{\"model\":\"m\",\"messages\":[],\"stream\":\"yes\"}", Some("stream")),
    ] {
        let (status, error) = refused(&mut client, CHAT, body);
        assert_eq!((status, &error["type"]), (400, &"invalid_request_error".into()), "{body}");
        assert_eq!(error["param"].as_str(), param, "{body}");
    }
    let (status, error) =
        refused(&mut client, CHAT, r#"{"model":"other","messages":[],"stream":true}"#);
    assert_eq!((status, error["code"].as_str()), (404, Some("model_not_found")));
    let (status, error) = refused(&mut client, "/v1/nothing", "{}");
    assert_eq!((status, error["code"].as_str()), (404, Some("unknown_url")));
    assert_eq!(client.get(CHAT).status, 405);
    assert!(engine.asked().is_empty());
    assert_eq!(client.post(CHAT, "", &chat("x")).status, 200);
}

#[test]
fn an_endpoint_no_engine_offers_is_a_clear_error() {
    let engine = Engine::ok();
    let workers = worker(&engine, 1) + "capabilities = [\"chat\"]\n";
    let router = Router::start("", &workers);
    let (status, error) =
        refused(&mut router.client(), "/v1/embeddings", r#"{"model":"m","input":"x"}"#);
    assert_eq!(status, 400);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("`m`") && message.contains("embeddings"), "{message}");
    assert!(engine.asked().is_empty());
}

#[test]
fn models_health_and_metrics_are_answered_here() {
    let router = Router::start("", &worker(&Engine::ok(), 1));
    let mut client = router.client();
    let list: serde_json::Value = serde_json::from_slice(&client.get("/v1/models").body).unwrap();
    assert_eq!(list["data"][0]["id"], "m");
    assert_eq!(client.get("/v1/models/m").status, 200);
    let missing = client.get("/v1/models/x");
    assert_eq!((missing.status, missing.error()["code"].as_str()), (404, Some("model_not_found")));
    assert_eq!(client.get("/healthz").status, 200);
    assert_eq!(client.get("/readyz").status, 200);
    client.post(CHAT, "", &chat("x"));
    assert_eq!(router.metric("cgn_router_requests_total{endpoint=\"chat\",status=\"200\"}"), 1.0);
    assert!(
        Client::connect(router.http).get("/metrics").text().contains("cgn_router_uptime_seconds")
    );
}

#[test]
fn the_engines_own_counts_reach_the_metrics() {
    let usage = r#"{"usage":{"prompt_tokens":100,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":64}}}"#;
    let router = Router::start("", &worker(&Engine::fixed(super::engine::json(usage)), 1));
    router.client().post(CHAT, "", &chat("x"));
    // Counted behind the last byte of the answer.
    let name = "cgn_router_prompt_tokens_total";
    for _ in 0..500 {
        if router.metric(name) > 0.0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(router.metric(name), 100.0);
    assert_eq!(router.metric("cgn_router_cached_tokens_total"), 64.0);
    assert_eq!(router.metric("cgn_router_completion_tokens_total"), 7.0);
}
