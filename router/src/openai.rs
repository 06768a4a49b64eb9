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
}

impl Endpoint {
    /// The endpoint at `path` (without query), if it is one.
    pub fn at(path: &str) -> Option<Self> {
        match path {
            "/v1/chat/completions" => Some(Endpoint::Chat),
            "/v1/completions" => Some(Endpoint::Completions),
            "/v1/embeddings" => Some(Endpoint::Embeddings),
            _ => None,
        }
    }

    /// The name used in metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Endpoint::Chat => "chat",
            Endpoint::Completions => "completions",
            Endpoint::Embeddings => "embeddings",
        }
    }

    /// What a worker must offer to serve it.
    pub fn capability(self) -> Capability {
        match self {
            Endpoint::Chat => Capability::Chat,
            Endpoint::Completions => Capability::Completions,
            Endpoint::Embeddings => Capability::Embeddings,
        }
    }
}

/// The error envelope: `{"error":{"message","type","param","code"}}`.
pub fn error_body(message: &str, kind: &str, param: Option<&str>, code: Option<&str>) -> Vec<u8> {
    serde_json::json!({
        "error": { "message": message, "type": kind, "param": param, "code": code }
    })
    .to_string()
    .into_bytes()
}
