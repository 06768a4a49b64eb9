//! The OpenAI API as far as a router must know it: its endpoints and its error envelope.

use dataplane::wire::Capability;

/// An endpoint that is forwarded to an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `POST /v1/chat/completions`
    Chat,
    /// `POST /v1/completions`
    Completions,
    /// `POST /v1/embeddings`
    Embeddings,
    /// Any other `POST` below `/v1/`: responses, messages, rerank, whatever the engine offers.
    Other,
}

impl Endpoint {
    /// The endpoint at `path` (without query), if it is one.
    pub fn at(path: &str) -> Option<Self> {
        match path {
            "/v1/chat/completions" => Some(Endpoint::Chat),
            "/v1/completions" => Some(Endpoint::Completions),
            "/v1/embeddings" => Some(Endpoint::Embeddings),
            _ if path == "/v1/models" || path.starts_with("/v1/models/") => None,
            _ => path.strip_prefix("/v1/").filter(|rest| !rest.is_empty()).map(|_| Endpoint::Other),
        }
    }

    /// The name used in metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Endpoint::Chat => "chat",
            Endpoint::Completions => "completions",
            Endpoint::Embeddings => "embeddings",
            Endpoint::Other => "other",
        }
    }

    /// What a worker must offer to serve it; `None` where only its engine knows.
    pub fn capability(self) -> Option<Capability> {
        match self {
            Endpoint::Chat => Some(Capability::Chat),
            Endpoint::Completions => Some(Capability::Completions),
            Endpoint::Embeddings => Some(Capability::Embeddings),
            Endpoint::Other => None,
        }
    }
}

/// An error in the middle of a stream, as one event in the form of the API at `path`.
pub fn error_event(path: &str, message: &str, code: &str) -> Vec<u8> {
    // Anthropic's streams name their events, and their errors have no code.
    if path == "/v1/messages" {
        let error = serde_json::json!({
            "type": "error", "error": { "type": "api_error", "message": message }
        });
        return format!("event: error\ndata: {error}\n\n").into_bytes();
    }
    let error = error_body(message, "server_error", None, Some(code));
    [b"data: ".as_slice(), &error, b"\n\n"].concat()
}

/// The error envelope: `{"error":{"message","type","param","code"}}`.
pub fn error_body(message: &str, kind: &str, param: Option<&str>, code: Option<&str>) -> Vec<u8> {
    serde_json::json!({
        "error": { "message": message, "type": kind, "param": param, "code": code }
    })
    .to_string()
    .into_bytes()
}
