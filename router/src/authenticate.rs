//! Phase *authenticate*: who asks, from what the request and its connection show.
//!
//! `identity.rs` knows keys, tokens and certificates; here is where each is found. What a client says of
//! itself in `x-cgn-*` fields is never read: those fields are ours (see `forward::is_ours`).

use std::sync::Arc;

use crate::admit::unix_ms;
use crate::connection::Peer;
use crate::error::RequestError;
use crate::identity::Caller;
use crate::read::Request;
use crate::shard::Shard;

/// Who that is.
///
/// # Errors
/// [`RequestError::Identity`].
pub fn caller(shard: &Shard, peer: &Peer, request: &Request) -> Result<Arc<Caller>, RequestError> {
    let is_loopback = peer.address.ip().to_canonical().is_loopback();
    let certificate = peer.certificate.as_deref();
    let credential = shard.identity.credential(bearer(request), certificate, is_loopback);
    let mut cache = shard.callers.borrow_mut();
    shard
        .identity
        .authenticate(&mut cache, credential, unix_ms() / 1_000)
        .map_err(RequestError::Identity)
}

/// The bearer credential; `x-api-key` as well, which Anthropic's SDKs send.
fn bearer(request: &Request) -> Option<&str> {
    let range = request.head.authorization.clone().or_else(|| request.head.api_key.clone())?;
    let value = std::str::from_utf8(&request.head_bytes()[range]).ok()?;
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Some(token.trim()),
        Some(_) => None,
        None if request.head.authorization.is_none() => Some(value),
        None => None,
    }
}
