//! What the router answers itself: the model list, health and metrics; and which URLs exist at all.

use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::census;
use crate::connection::Client;
use crate::error::RequestError;
use crate::identity::{Caller, Denied};
use crate::openai::Endpoint;
use crate::openmetrics;
use crate::page;
use crate::read::Request;
use crate::record::Record;
use crate::relay::Relayed;
use crate::shard::Shard;

const JSON: &str = "application/json";
const TEXT: &str = "text/plain";

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
    let is_page = || path == page::STATUS_PATH || page::asset(path).is_some();
    if shard.front.is_admin && (path == census::PATH || is_page()) {
        return true;
    }
    matches!(path, "/healthz" | "/readyz" | "/metrics" | "/v1/models")
        || path.starts_with("/v1/models/")
}

/// Answers one of the router's own URLs.
///
/// # Errors
/// [`RequestError::ModelNotFound`].
pub async fn answer(
    shard: &Shard,
    client: &mut Client,
    request: &Request,
    record: &mut Record,
) -> Result<Relayed, RequestError> {
    let keep_alive = request.head.keep_alive && !shard.is_draining();
    let caller = record.caller.as_deref();
    let request_id = Rc::clone(&record.request_id);
    let mut fields = vec![("x-request-id", &*request_id)];
    let Local { status, content_type, body } = match of_page(shard, request) {
        Some(page) => {
            fields.extend(page::FIELDS.lines().filter_map(|line| line.split_once(": ")));
            page
        }
        None if request.path() == census::PATH => of_index(shard).await,
        None => of_router(shard, request, caller)?,
    };
    record.status = status;
    Ok(client.write_response(status, content_type, &fields, &body, keep_alive).await)
}

/// What is answered.
struct Local {
    status: u16,
    content_type: &'static str,
    body: Vec<u8>,
}

impl Local {
    fn ok(content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Local { status: 200, content_type, body: body.into() }
    }
}

fn of_router(
    shard: &Shard,
    request: &Request,
    caller: Option<&Caller>,
) -> Result<Local, RequestError> {
    Ok(match request.path() {
        "/healthz" => Local::ok(TEXT, "ok\n"),
        "/readyz" => {
            let (status, text) = readiness(shard);
            Local { status, ..Local::ok(TEXT, text) }
        }
        "/metrics" => {
            let accept = request.head.accept.clone().map(|range| &request.head_bytes()[range]);
            let wants_open = accept.is_some_and(openmetrics::wants_openmetrics);
            let (format, text) =
                shard.stats.render(&shard.cluster, &shard.identity, &shard.shelf, wants_open);
            Local::ok(format, text)
        }
        "/v1/models" => Local::ok(JSON, model_list(shard, caller)),
        path => {
            let name = path.strip_prefix("/v1/models/").unwrap_or(path);
            if !may_see(caller, name) || !shard.cluster.view().models.contains_key(name) {
                return Err(RequestError::ModelNotFound(name.to_owned()));
            }
            Local::ok(JSON, model(name).to_string())
        }
    })
}

/// The admin page and its figures; `None` where the path is neither.
fn of_page(shard: &Shard, request: &Request) -> Option<Local> {
    if !shard.front.is_admin {
        return None;
    }
    if request.path() == page::STATUS_PATH {
        let tenants = shard.identity.tenants();
        let body = page::gather::status(&shard.cluster, &shard.stats, &tenants).to_json();
        return Some(Local::ok(JSON, body));
    }
    let (content_type, body) = page::asset(request.path())?;
    Some(Local::ok(content_type, body))
}

/// What the index of events has of each worker.
async fn of_index(shard: &Shard) -> Local {
    match census::take(&shard.cluster).await {
        Ok(census) => Local::ok(JSON, serde_json::to_vec(&census).unwrap_or_default()),
        Err(busy) => Local { status: 503, ..Local::ok(TEXT, format!("{busy}\n")) },
    }
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
