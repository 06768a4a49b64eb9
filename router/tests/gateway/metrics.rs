//! What is counted, and that it is counted right.

use std::io::Write;

use super::client::{Client, chat, post as bytes};
use super::engine::{Engine, json};
use super::process::{Router, worker};
use super::tenants::{CHAT, bearer, post, two_tenants, until};

#[test]
fn tenants_are_counted_apart() {
    let (keys, tenants) = two_tenants("requests_per_minute = 2", "");
    let engine = Engine::start(|asked, stream| {
        if asked.body.windows(4).any(|four| four == b"hold") {
            std::thread::sleep(std::time::Duration::from_millis(600));
        }
        let usage = "{\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":5,\"prompt_tokens_details\":{\"cached_tokens\":16}}}";
        stream.write_all(&json(usage)).is_ok()
    });
    let router = Router::start(&keys.section(""), &(worker(&engine, 4) + &tenants));
    let statuses: Vec<u16> =
        (0..4).map(|_| post(&router, &bearer("key-a"), &chat("x")).status).collect();
    assert_eq!(statuses, [200, 200, 429, 429]);
    let mut running = router.client();
    running.send(bytes(CHAT, &bearer("key-b"), &chat("hold")));
    until("it runs", || router.metric("cgn_router_tenant_running{tenant=\"b\"}") == 1.0);
    assert_eq!(running.answer().status, 200);
    until("it is over", || router.metric("cgn_router_tenant_running{tenant=\"b\"}") == 0.0);
    until("all is counted", || {
        router.metric("cgn_router_e2e_request_latency_seconds_count") == 3.0
    });
    for (name, value) in [
        ("tenant_requests_total{tenant=\"a\"}", 2.0),
        ("tenant_requests_total{tenant=\"b\"}", 1.0),
        ("tenant_tokens_total{kind=\"prompt\",tenant=\"a\"}", 40.0),
        ("tenant_tokens_total{kind=\"cached\",tenant=\"a\"}", 32.0),
        ("tenant_tokens_total{kind=\"completion\",tenant=\"a\"}", 10.0),
        ("tenant_tokens_total{kind=\"completion\",tenant=\"b\"}", 5.0),
        ("limited_total{kind=\"requests_per_minute\",tenant=\"a\"}", 2.0),
        ("refusals_total{reason=\"tenant_limit\"}", 2.0),
        ("requests_total{endpoint=\"chat\",status=\"200\"}", 3.0),
        ("requests_total{endpoint=\"chat\",status=\"429\"}", 2.0),
        ("prompt_tokens_total", 60.0),
        ("cached_tokens_total", 48.0),
        ("completion_tokens_total", 15.0),
        ("time_to_first_token_seconds_count", 3.0),
        ("e2e_request_latency_seconds_count", 3.0),
    ] {
        assert_eq!(router.metric(&format!("cgn_router_{name}")), value, "{name}");
    }
}

#[test]
fn refusals_are_counted_by_their_reason() {
    let (keys, tenants) = two_tenants("models = [\"m\"]\nendpoints = [\"chat\"]", "");
    let engine = Engine::ok();
    let router = Router::start(&keys.section(""), &(worker(&engine, 4) + &tenants));
    let a = bearer("key-a");
    let mut client = router.client();
    let mut send = |path: &str, fields: &str, body: &str| client.post(path, fields, body).status;
    assert_eq!(send(CHAT, &bearer("nobody"), &chat("x")), 401);
    assert_eq!(send(CHAT, &a, &chat("x").replace("\"m\"", "\"n\"")), 404);
    assert_eq!(send("/v1/embeddings", &a, "{\"model\":\"m\",\"input\":\"x\"}"), 403);
    assert_eq!(send(CHAT, &a, "{"), 400);
    assert_eq!(send(CHAT, &a, "{}"), 400);
    assert_eq!(send(CHAT, &(a.clone() + "x-cgn-deadline-ms: soon\r\n"), &chat("x")), 400);
    for reason in [
        "unknown_key",
        "model_not_found",
        "endpoint",
        "malformed_json",
        "invalid_field",
        "invalid_header",
    ] {
        let name = format!("cgn_router_refusals_total{{reason=\"{reason}\"}}");
        assert_eq!(router.metric(&name), 1.0, "{reason}");
    }
    assert!(engine.asked().is_empty());
}

#[test]
fn cores_tell_their_time_and_how_late_they_are() {
    let router = Router::start("", &worker(&Engine::ok(), 4));
    let mut client = router.client();
    let body = chat(&"word ".repeat(2_000));
    for _ in 0..50 {
        assert_eq!(client.post(CHAT, "", &body).status, 200);
    }
    let cpu =
        |core: &str| router.metric(&format!("cgn_router_cpu_seconds_total{{core=\"{core}\"}}"));
    until("every core has its time", || ["0", "1", "house"].iter().all(|core| cpu(core) > 0.0));
    let uptime_s = router.metric("cgn_router_uptime_seconds");
    assert!(["0", "1", "house"].iter().all(|core| cpu(core) <= uptime_s + 1.0));
    until("clocks struck", || router.metric("cgn_router_loop_stall_seconds_count") >= 10.0);
    let stalled_s = router.metric("cgn_router_loop_stall_seconds_sum");
    assert!((0.0..3.0 * uptime_s + 3.0).contains(&stalled_s), "{stalled_s}");
    let sent = (50 * body.len()) as f64;
    let read = router.metric("cgn_router_bytes_total{direction=\"in\"}");
    assert!((sent..sent * 1.1).contains(&read), "{read} of {sent} bytes");
    assert!(router.metric("cgn_router_bytes_total{direction=\"out\"}") > 50.0 * 100.0);
    let text = Client::connect(router.admin).get("/metrics");
    assert!(text.field("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
}
