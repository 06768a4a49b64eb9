//! What the router answers itself: the model list, health and metrics; and which URLs exist at all.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::connection::Client;
use crate::error::RequestError;
use crate::openai::Endpoint;
use crate::read::Request;
use crate::relay::Relayed;
use crate::shard::Shard;

/// The endpoint a request is for.
///
/// # Errors
/// [`RequestError::UnknownUrl`] and [`RequestError::Method`].
pub fn endpoint(request: &Request) -> Result<Endpoint, RequestError> {
    let path = request.path();
    if let Some(endpoint) = Endpoint::at(path) {
        return match request.method() {
            "POST" => Ok(endpoint),
            _ => Err(RequestError::Method { path: path.to_owned(), allowed: "POST" }),
        };
    }
    if is_local_path(path) {
        return Err(RequestError::Method { path: path.to_owned(), allowed: "GET" });
    }
    Err(RequestError::UnknownUrl { method: request.method().to_owned(), path: path.to_owned() })
}

/// Whether the router answers this itself.
pub fn is_local(request: &Request) -> bool {
    request.method() == "GET" && is_local_path(request.path())
}

fn is_local_path(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz" | "/metrics" | "/v1/models")
        || path.starts_with("/v1/models/")
}

/// Answers one of the router's own URLs.
pub async fn answer(
    shard: &Shard,
    client: &mut Client,
    request: &Request,
    request_id: &str,
) -> Relayed {
    let keep_alive = request.head.keep_alive && !shard.is_draining();
    let fields = [("x-request-id", request_id)];
    let json = "application/json";
    match request.path() {
        "/healthz" => client.write_response(200, "text/plain", &fields, b"ok\n", keep_alive).await,
        "/readyz" => {
            let (status, text) = readiness(shard);
            client.write_response(status, "text/plain", &fields, text.as_bytes(), keep_alive).await
        }
        "/metrics" => {
            let text = shard.stats.render(&shard.cluster);
            let format = "text/plain; version=0.0.4";
            client.write_response(200, format, &fields, &text, keep_alive).await
        }
        "/v1/models" => {
            let body = model_list(shard);
            client.write_response(200, json, &fields, body.as_bytes(), keep_alive).await
        }
        path => {
            let name = path.trim_start_matches("/v1/models/");
            let found = shard.cluster.view().models.contains_key(name);
            if found {
                let body = model(name).to_string();
                return client
                    .write_response(200, json, &fields, body.as_bytes(), keep_alive)
                    .await;
            }
            let error = RequestError::ModelNotFound(name.to_owned());
            client.refuse(&error, request_id, keep_alive).await
        }
    }
}

/// Ready: not draining, and some worker can be picked.
fn readiness(shard: &Shard) -> (u16, &'static str) {
    if shard.cluster.draining.load(Relaxed) {
        return (503, "draining\n");
    }
    let view = shard.cluster.view();
    let ready = view.workers().any(|worker| {
        let capabilities = &worker.worker.capabilities;
        capabilities.iter().any(|&capability| worker.exclusion(capability).is_none())
    });
    if ready { (200, "ready\n") } else { (503, "no worker is ready\n") }
}

fn model_list(shard: &Shard) -> String {
    let view = shard.cluster.view();
    let mut names: Vec<&str> = view.models.keys().map(String::as_str).collect();
    names.sort_unstable();
    let data: Vec<_> = names.into_iter().map(model).collect();
    serde_json::json!({ "object": "list", "data": data }).to_string()
}

fn model(name: &str) -> serde_json::Value {
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    serde_json::json!({ "id": name, "object": "model", "created": created, "owned_by": "cognitora" })
}
