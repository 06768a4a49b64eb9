//! Why a request is refused, and the one place that turns a refusal into HTTP.

use crate::http::head::HeadError;
use crate::identity::{Denied, IdentityError};
use crate::meter::{LimitError, LimitKind};
use crate::openai;

/// A refusal before the first byte of a 200. Each is decided by the router, not by an engine.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The head is not HTTP as we speak it.
    #[error("{0}")]
    Head(HeadError),
    /// The head is longer than `[router.limits] head_bytes_max`.
    #[error("the request head is over the limit of {0} bytes")]
    HeadTooLong(usize),
    /// The body is longer than `[router.limits] body_bytes_max`.
    #[error("the request body is over the limit of {0} bytes")]
    BodyTooLong(usize),
    /// The body's chunk framing is broken.
    #[error("the chunked request body is malformed")]
    Chunks,
    /// The body is not JSON.
    #[error("we could not parse the JSON body of your request: {0}")]
    Json(String),
    /// A field is missing or has the wrong type.
    #[error("{message}")]
    Field {
        /// The field's name.
        param: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// No worker, ready or not, serves this model.
    #[error("the model `{0}` does not exist or you do not have access to it")]
    ModelNotFound(String),
    /// Workers serve the model, but none offers this endpoint.
    #[error(
        "the model `{model}` does not support {endpoint} here: no engine that serves it offers /v1/{path}"
    )]
    NotSupported {
        /// The model asked for.
        model: String,
        /// The endpoint's name.
        endpoint: &'static str,
        /// The path below `/v1/`.
        path: &'static str,
    },
    /// Nothing is at this path.
    #[error("unknown request URL: {method} {path}; see GET /v1/models and the /v1 endpoints")]
    UnknownUrl {
        /// As sent.
        method: String,
        /// As sent.
        path: String,
    },
    /// The path is there, but for another method.
    #[error("{path} takes {allowed}")]
    Method {
        /// The path.
        path: String,
        /// The method it takes.
        allowed: &'static str,
    },
    /// Nobody knows who asks.
    #[error("{0}")]
    Identity(IdentityError),
    /// The caller is known and may not.
    #[error("{0}")]
    Denied(Denied),
    /// A limit of the tenant is reached.
    #[error("{0}")]
    Limited(LimitError),
    /// The model's queue or the router is full; seconds until there may be room.
    #[error("the server is busy: {0}; retry after the time in Retry-After")]
    Busy(&'static str, u64),
    /// The first token would come too late for the caller.
    #[error(
        "the first token would come after {predicted_ms} ms and is wanted within {within_ms} ms; retry after the time in Retry-After"
    )]
    DeadlineMissed {
        /// When it would come.
        predicted_ms: u64,
        /// When it is wanted.
        within_ms: u64,
        /// When it may be in time.
        retry_after_s: u64,
    },
    /// A header field of ours has a value that means nothing.
    #[error("{field}: {message}")]
    Header {
        /// The field.
        field: &'static str,
        /// What it must hold.
        message: &'static str,
    },
    /// A header field of ours that the caller may not send.
    #[error("{field}: {denied}")]
    HeaderDenied {
        /// The field.
        field: &'static str,
        /// Why not.
        denied: Denied,
    },
    /// The client hung up; nobody hears this.
    #[error("the client hung up")]
    ClientGone,
    /// Workers serve the model, but none is ready.
    #[error("no engine is ready to serve the model `{0}`; retry after the time in Retry-After")]
    NoneReady(String),
    /// Every attempt failed before an answer began.
    #[error("the engines failed before they answered ({0}); retry after the time in Retry-After")]
    EnginesFailed(&'static str),
    /// An engine took longer than `[router.limits] first_byte_s_max`, or the request as a whole longer
    /// than `request_s_max`.
    #[error("the engine did not answer within {0} s")]
    EngineSilent(u64),
}

/// How a refusal looks on the wire.
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// The OpenAI envelope.
    pub body: Vec<u8>,
    /// Seconds for `Retry-After`.
    pub retry_after_s: Option<u64>,
    /// Further header fields.
    pub fields: Vec<(&'static str, &'static str)>,
    /// The connection cannot go on: we did not read, or could not delimit, the body.
    pub close: bool,
}

/// Seconds a client is asked to wait when no better estimate is at hand: a probe interval.
const RETRY_AFTER_S: u64 = 2;

impl RequestError {
    /// A short name for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            RequestError::Head(_) => "malformed_head",
            RequestError::HeadTooLong(_) => "head_too_long",
            RequestError::BodyTooLong(_) => "body_too_long",
            RequestError::Chunks => "malformed_chunks",
            RequestError::Json(_) => "malformed_json",
            RequestError::Field { .. } => "invalid_field",
            RequestError::ModelNotFound(_) => "model_not_found",
            RequestError::NotSupported { .. } => "not_supported",
            RequestError::UnknownUrl { .. } => "unknown_url",
            RequestError::Method { .. } => "method",
            RequestError::Identity(error) => error.reason(),
            RequestError::Denied(denied) => denied.reason(),
            RequestError::Limited(_) => "tenant_limit",
            RequestError::Busy(..) => "busy",
            RequestError::DeadlineMissed { .. } => "deadline",
            RequestError::Header { .. } => "invalid_header",
            RequestError::HeaderDenied { denied, .. } => denied.reason(),
            RequestError::ClientGone => "client_gone",
            RequestError::NoneReady(_) => "none_ready",
            RequestError::EnginesFailed(_) => "engines_failed",
            RequestError::EngineSilent(_) => "engine_silent",
        }
    }

    /// Status, error type, parameter and code of the OpenAI contract.
    fn contract(&self) -> (u16, &'static str, Option<&'static str>, Option<&'static str>) {
        const INVALID: &str = "invalid_request_error";
        match self {
            RequestError::Head(HeadError::TooManyFields) | RequestError::HeadTooLong(_) => {
                (431, INVALID, None, Some("request_header_fields_too_large"))
            }
            RequestError::Head(HeadError::TransferCoding) => (501, INVALID, None, None),
            RequestError::Head(_) | RequestError::Chunks | RequestError::Json(_) => {
                (400, INVALID, None, None)
            }
            RequestError::BodyTooLong(_) => (413, INVALID, None, Some("request_too_large")),
            RequestError::Field { param, .. } => (400, INVALID, Some(param), None),
            RequestError::ModelNotFound(_) => {
                (404, INVALID, Some("model"), Some("model_not_found"))
            }
            RequestError::NotSupported { .. } => {
                (400, INVALID, Some("model"), Some("endpoint_not_supported"))
            }
            RequestError::UnknownUrl { .. } => (404, INVALID, None, Some("unknown_url")),
            RequestError::Method { .. } => (405, INVALID, None, Some("method_not_allowed")),
            RequestError::Identity(IdentityError::KeysUnavailable) => {
                (503, "server_error", None, Some("identity_unavailable"))
            }
            RequestError::Identity(IdentityError::BadCertificate(_) | IdentityError::NoTenant)
            | RequestError::Denied(_)
            | RequestError::HeaderDenied { .. } => {
                (403, "permission_error", None, Some("insufficient_permissions"))
            }
            RequestError::Identity(_) => {
                (401, "authentication_error", None, Some("invalid_api_key"))
            }
            RequestError::Limited(limit) => (
                429,
                "rate_limit_error",
                None,
                Some(match limit.kind {
                    LimitKind::Budget => "insufficient_quota",
                    _ => "rate_limit_exceeded",
                }),
            ),
            RequestError::Busy(..) => (429, "rate_limit_error", None, Some("queue_full")),
            RequestError::DeadlineMissed { .. } => {
                (429, "rate_limit_error", None, Some("deadline_unreachable"))
            }
            RequestError::Header { .. } => (400, INVALID, None, Some("invalid_header")),
            // As nginx logs it; nobody reads it.
            RequestError::ClientGone => (499, INVALID, None, None),
            RequestError::NoneReady(_) => (503, "server_error", None, Some("no_engine_ready")),
            RequestError::EnginesFailed(_) => (502, "server_error", None, Some("engine_failed")),
            RequestError::EngineSilent(_) => (504, "server_error", None, Some("engine_timeout")),
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.contract().0
    }

    /// The only place where a refusal becomes HTTP.
    pub fn refusal(&self) -> Refusal {
        let (status, kind, param, code) = self.contract();
        Refusal {
            status,
            body: openai::error_body(&self.to_string(), kind, param, code),
            retry_after_s: match self {
                RequestError::Limited(limit) => Some(limit.retry_after_s),
                RequestError::Busy(_, seconds) => Some(*seconds),
                RequestError::DeadlineMissed { retry_after_s, .. } => Some(*retry_after_s),
                _ => matches!(status, 429 | 502 | 503).then_some(RETRY_AFTER_S),
            },
            fields: match self {
                RequestError::Method { allowed, .. } => vec![("allow", *allowed)],
                RequestError::Identity(_) if status == 401 => {
                    vec![("www-authenticate", "Bearer realm=\"cognitora\"")]
                }
                _ => Vec::new(),
            },
            close: matches!(
                self,
                RequestError::Head(_)
                    | RequestError::HeadTooLong(_)
                    | RequestError::BodyTooLong(_)
                    | RequestError::Chunks
                    | RequestError::ClientGone
            ),
        }
    }
}

/// The reason phrase of the statuses we send ourselves.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Content Too Large",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        499 => "Client Closed Request",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Error",
    }
}
