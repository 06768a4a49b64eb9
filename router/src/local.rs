//! What the router answers itself: the model list, health and metrics; and which URLs exist at all.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::connection::Client;
use crate::error::RequestError;
use crate::identity::{Caller, Denied};
use crate::openai::Endpoint;
use crate::openmetrics;
use crate::page;
use crate::read::Request;
use crate::relay::Relayed;
use crate::shard::Shard;

/// The endpoint a request is for.
///
/// # Errors
/// [`RequestError::UnknownUrl`] and [`RequestError::Method`].
pub fn endpoint(shard: &Shard, request: &Request) -> Result<Endpoint, RequestError> {
    let path = request.path();
    if let Some(endpoint) = Endpoint::at(path) {
        return match request.method() {
            "POST" => Ok(endpoint),
            _ => Err(RequestError::Method { path: path.to_owned(), allowed: "POST" }),
        };
    }
    if is_local_path(shard, path) {
        return Err(RequestError::Method { path: path.to_owned(), allowed: "GET" });
    }
    Err(RequestError::UnknownUrl { method: request.method().to_owned(), path: path.to_owned() })
}

/// Whether the router answers this itself.
pub fn is_local(shard: &Shard, request: &Request) -> bool {
    request.method() == "GET" && is_local_path(shard, request.path())
}

/// Whether a probe may ask without saying who it is.
pub fn is_open(request: &Request) -> bool {
    matches!(request.path(), "/healthz" | "/readyz")
}

/// Whether `caller` may see what lies there: models are for those who may use some, metrics and the
/// page for admins.
///
/// # Errors
/// [`Denied`].
pub fn may(caller: &Caller, request: &Request) -> Result<(), Denied> {
    match request.path().starts_with("/v1/") {
        true => caller.may("models", ""),
        false => caller.may_admin(),
    }
}

/// The page is for who may see the admin listener; clients of the API find nothing there.
fn is_local_path(shard: &Shard, path: &str) -> bool {
    if shard.front.is_admin && (path == page::STATUS_PATH || page::asset(path).is_some()) {
        return true;
    }
    matches!(path, "/healthz" | "/readyz" | "/metrics" | "/v1/models")
        || path.starts_with("/v1/models/")
}

/// Answers one of the router's own URLs.
pub async fn answer(
    shard: &Shard,
    client: &mut Client,
    request: &Request,
    caller: Option<&Caller>,
    request_id: &str,
) -> Relayed {
    let keep_alive = request.head.keep_alive && !shard.is_draining();
    let fields = [("x-request-id", request_id)];
    let json = "application/json";
    if shard.front.is_admin
        && let Some(relayed) = answer_page(shard, client, request, request_id).await
    {
        return relayed;
    }
    match request.path() {
        "/healthz" => client.write_response(200, "text/plain", &fields, b"ok\n", keep_alive).await,
        "/readyz" => {
            let (status, text) = readiness(shard);
            client.write_response(status, "text/plain", &fields, text.as_bytes(), keep_alive).await
        }
        "/metrics" => {
            let accept = request.head.accept.clone().map(|range| &request.head_bytes()[range]);
            let wants_open = accept.is_some_and(openmetrics::wants_openmetrics);
            let (format, text) = shard.stats.render(&shard.cluster, &shard.identity, wants_open);
            client.write_response(200, format, &fields, &text, keep_alive).await
        }
        "/v1/models" => {
            let body = model_list(shard, caller);
            client.write_response(200, json, &fields, body.as_bytes(), keep_alive).await
        }
        path => {
            let name = path.trim_start_matches("/v1/models/");
            let found = may_see(caller, name) && shard.cluster.view().models.contains_key(name);
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

/// Answers the admin page and its figures; `None` where the path is neither.
async fn answer_page(
    shard: &Shard,
    client: &mut Client,
    request: &Request,
    request_id: &str,
) -> Option<Relayed> {
    let keep_alive = request.head.keep_alive && !shard.is_draining();
    let mut fields = vec![("x-request-id", request_id)];
    fields.extend(page::FIELDS.lines().filter_map(|line| line.split_once(": ")));
    if request.path() == page::STATUS_PATH {
        let tenants = shard.identity.tenants();
        let body = page::gather::status(&shard.cluster, &shard.stats, &tenants).to_json();
        let json = "application/json";
        return Some(client.write_response(200, json, &fields, &body, keep_alive).await);
    }
    let (content_type, body) = page::asset(request.path())?;
    Some(client.write_response(200, content_type, &fields, body, keep_alive).await)
}

/// Ready: not draining, and some worker can be picked.
fn readiness(shard: &Shard) -> (u16, &'static str) {
    if shard.cluster.draining.load(Relaxed) {
        return (503, "draining\n");
    }
    let view = shard.cluster.view();
    let now_ms = shard.cluster.now_ms();
    let ready = view.workers().any(|worker| worker.is_ready(now_ms));
    if ready { (200, "ready\n") } else { (503, "no worker is ready\n") }
}

/// A tenant sees the models it may use.
fn may_see(caller: Option<&Caller>, model: &str) -> bool {
    caller.is_none_or(|caller| caller.tenant.allows_model(model))
}

fn model_list(shard: &Shard, caller: Option<&Caller>) -> String {
    let view = shard.cluster.view();
    let all = view.models.keys().map(String::as_str);
    let mut names: Vec<&str> = all.filter(|name| may_see(caller, name)).collect();
    names.sort_unstable();
    let data: Vec<_> = names.into_iter().map(model).collect();
    serde_json::json!({ "object": "list", "data": data }).to_string()
}

fn model(name: &str) -> serde_json::Value {
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    serde_json::json!({ "id": name, "object": "model", "created": created, "owned_by": "cognitora" })
}
