//! Why a request was refused, and how each engine says so.
//!
//! The only place where a refusal becomes an HTTP status and an OpenAI error envelope. The wording
//! and the status are those of the engine mimicked where it has the case; `llama-server`, for one,
//! answers malformed JSON with 500.

use hyper::StatusCode;
use serde_json::{Value, json};

use super::options::Dialect;
use super::scheduler::NotTaken;

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The body is not JSON.
    Json(String),
    /// A field has a value that cannot be used.
    Field {
        /// Its path.
        field: String,
        /// The fault.
        message: String,
    },
    /// A field that must be there is not.
    Missing(&'static str),
    /// Prompt and answer do not fit the context.
    Context {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// `max_tokens`, where asked for.
        asked_tokens: Option<u32>,
        /// Tokens of the context.
        context_tokens: u32,
    },
    /// The scheduler did not take it.
    NotTaken(NotTaken),
    /// Another model is served here.
    UnknownModel(String),
    /// Embeddings are off.
    NoEmbeddings,
    /// The engine is still loading.
    Loading,
    /// The engine is ending.
    Ending,
    /// No such path, or not with this method.
    NotFound,
    /// The body is larger than allowed.
    BodyTooLarge(usize),
    /// The body did not come whole.
    BodyBroken,
    /// Blocks are in use, so the cache cannot be cleared.
    CacheInUse,
}

impl Refusal {
    /// Status and body in the words of `dialect`.
    pub fn answer(&self, dialect: Dialect) -> (StatusCode, Value) {
        let (status, message) = (self.status(dialect), self.message(dialect));
        let code = status.as_u16();
        let error = match dialect {
            Dialect::LlamaCpp => {
                let mut error =
                    json!({"code": code, "message": message, "type": self.llama_cpp_type()});
                if let Refusal::Context { prompt_tokens, context_tokens, .. } = self {
                    error["n_prompt_tokens"] = json!(prompt_tokens);
                    error["n_ctx"] = json!(context_tokens);
                }
                error
            }
            Dialect::Vllm => json!({
                "message": message, "type": self.vllm_type(), "param": self.param(), "code": code
            }),
        };
        (status, json!({ "error": error }))
    }

    fn status(&self, dialect: Dialect) -> StatusCode {
        match self {
            Refusal::Json(_) if dialect == Dialect::LlamaCpp => StatusCode::INTERNAL_SERVER_ERROR,
            Refusal::Json(_)
            | Refusal::Field { .. }
            | Refusal::Missing(_)
            | Refusal::Context { .. }
            | Refusal::BodyBroken
            | Refusal::NotTaken(NotTaken::TooLarge { .. }) => StatusCode::BAD_REQUEST,
            Refusal::NotTaken(NotTaken::QueueFull { .. }) | Refusal::Loading | Refusal::Ending => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Refusal::UnknownModel(_) | Refusal::NotFound => StatusCode::NOT_FOUND,
            Refusal::NoEmbeddings => match dialect {
                Dialect::LlamaCpp => StatusCode::NOT_IMPLEMENTED,
                Dialect::Vllm => StatusCode::BAD_REQUEST,
            },
            Refusal::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::CacheInUse => StatusCode::CONFLICT,
        }
    }

    fn message(&self, dialect: Dialect) -> String {
        match (self, dialect) {
            (Refusal::Json(fault), _) => format!("the body is not valid JSON: {fault}"),
            (Refusal::Field { field, message }, _) => format!("Field '{field}': {message}"),
            (Refusal::Missing(field), _) => format!("'{field}' is required"),
            (Refusal::Context { prompt_tokens, asked_tokens, context_tokens }, Dialect::Vllm) => {
                let asked = asked_tokens.unwrap_or(1);
                format!(
                    "This model's maximum context length is {context_tokens} tokens. However, you \
                     requested {asked} output tokens and your prompt contains {prompt_tokens} \
                     input tokens. Please reduce the length of the input prompt or the number \
                     of requested output tokens."
                )
            }
            (Refusal::Context { prompt_tokens, context_tokens, .. }, Dialect::LlamaCpp) => format!(
                "request ({prompt_tokens} tokens) exceeds the available context size \
                 ({context_tokens} tokens), try increasing it"
            ),
            (Refusal::NotTaken(fault), _) => fault.to_string(),
            (Refusal::UnknownModel(name), _) => format!("The model `{name}` does not exist."),
            (Refusal::NoEmbeddings, Dialect::LlamaCpp) => {
                "This server does not support embeddings. Start it with `--embeddings`".to_owned()
            }
            (Refusal::NoEmbeddings, Dialect::Vllm) => {
                "The model does not support Embeddings API".to_owned()
            }
            (Refusal::Loading, _) => "Loading model".to_owned(),
            (Refusal::Ending, _) => "The engine is ending".to_owned(),
            (Refusal::NotFound, Dialect::LlamaCpp) => "File Not Found".to_owned(),
            (Refusal::NotFound, Dialect::Vllm) => "Not Found".to_owned(),
            (Refusal::BodyTooLarge(limit), _) => {
                format!("the body is larger than {limit} bytes; see --body-bytes-max")
            }
            (Refusal::BodyBroken, _) => "the body did not come whole".to_owned(),
            (Refusal::CacheInUse, _) => "requests hold KV blocks; try again when idle".to_owned(),
        }
    }

    fn llama_cpp_type(&self) -> &'static str {
        match self {
            Refusal::Json(_) => "server_error",
            Refusal::Context { .. } => "exceed_context_size_error",
            Refusal::NoEmbeddings => "not_supported_error",
            Refusal::NotFound | Refusal::UnknownModel(_) => "not_found_error",
            Refusal::Loading | Refusal::Ending | Refusal::NotTaken(NotTaken::QueueFull { .. }) => {
                "unavailable_error"
            }
            _ => "invalid_request_error",
        }
    }

    fn vllm_type(&self) -> &'static str {
        match self {
            Refusal::Json(_) => "Bad Request",
            Refusal::NotFound | Refusal::UnknownModel(_) => "NotFoundError",
            Refusal::Loading | Refusal::Ending | Refusal::NotTaken(NotTaken::QueueFull { .. }) => {
                "ServiceUnavailableError"
            }
            _ => "BadRequestError",
        }
    }

    fn param(&self) -> Option<String> {
        match self {
            Refusal::Field { field, .. } => Some(field.clone()),
            Refusal::Missing(field) => Some((*field).to_owned()),
            Refusal::UnknownModel(_) => Some("model".to_owned()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `llama-server` 0.3.36 answered 4,001 tokens at a context of 512, and a missing path.
    #[test]
    fn llama_cpp_errors_are_its_own() {
        let context =
            Refusal::Context { prompt_tokens: 4001, asked_tokens: None, context_tokens: 512 };
        assert_eq!(
            context.answer(Dialect::LlamaCpp).1,
            json!({"error": {"code": 400, "message": "request (4001 tokens) exceeds the available \
                   context size (512 tokens), try increasing it",
                   "type": "exceed_context_size_error", "n_prompt_tokens": 4001, "n_ctx": 512}})
        );
        assert_eq!(
            Refusal::NotFound.answer(Dialect::LlamaCpp).1,
            json!({"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}})
        );
        assert_eq!(Refusal::Json(String::new()).answer(Dialect::LlamaCpp).0, 500);
    }

    #[test]
    fn vllm_errors_name_the_parameter() {
        let (status, body) = Refusal::UnknownModel("m".into()).answer(Dialect::Vllm);
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert_eq!(body["error"]["param"], "model");
        assert_eq!(body["error"]["type"], "NotFoundError");
        assert_eq!(body["error"]["code"], 404);
    }
}
