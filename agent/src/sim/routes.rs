//! Paths and methods: what is asked for, and who answers.
//!
//! Every request ends here as a response: a refusal gets the envelope of the dialect, and the
//! headers the real server would send. Paths of one dialect do not exist in the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::control_paths;
use super::embedding;
use super::engine::{Ended, EngineDoor};
use super::generate::{self, AnswerBody, Generated};
use super::metrics;
use super::narration::Identity;
use super::openai::{self, CHOICES_MAX, Endpoint};
use super::options::{Dialect, Settings};
use super::publisher::Publisher;
use super::refusal::Refusal;
use super::scheduler::Submission;
use super::script::{Script, Shape, Wish};

/// Exit code of the abrupt end asked for by `--fail-after`.
pub const EXIT_FAIL_AFTER: u8 = 86;
/// What `/version` says: the vLLM whose formats are spoken, marked as not being it.
const VLLM_VERSION: &str = "0.33.0+cgn.sim";

/// What all connections share.
pub struct Server {
    pub(super) settings: Settings,
    pub(super) door: EngineDoor,
    pub(super) publisher: Option<Publisher>,
    /// Until then the engine says it is loading.
    ready_at: Instant,
    /// Generating requests seen.
    generations: AtomicU64,
    pub(super) started_s: u64,
}

/// What an endpoint answers.
pub(super) enum Answer {
    Json(Value),
    Text(String),
    Empty,
    Stream(generate::EventStream),
}

impl Server {
    /// A server that is ready `settings.startup` from now.
    pub fn new(settings: Settings, door: EngineDoor, publisher: Option<Publisher>) -> Self {
        let ready_at = Instant::now() + settings.startup;
        let generations = AtomicU64::new(0);
        Server { settings, door, publisher, ready_at, generations, started_s: now_s() }
    }

    /// Whose dialect is spoken.
    pub fn dialect(&self) -> Dialect {
        self.settings.dialect
    }

    /// Answers one request.
    pub async fn respond<B>(&self, request: Request<B>) -> Response<AnswerBody>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match self.answer(request).await {
            Ok(answer) => self.response(StatusCode::OK, answer),
            Err(refusal) => {
                let (status, body) = refusal.answer(self.settings.dialect);
                let mut response = self.response(status, Answer::Json(body));
                let headers = response.headers_mut();
                if status == StatusCode::SERVICE_UNAVAILABLE {
                    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
                }
                if self.settings.dialect == Dialect::LlamaCpp {
                    // cpp-httplib closes behind every error.
                    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                response
            }
        }
    }

    async fn answer<B>(&self, request: Request<B>) -> Result<Answer, Refusal>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if Instant::now() < self.ready_at {
            return Err(Refusal::Loading);
        }
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        if head.method == Method::GET {
            return self.answer_get(path).await;
        }
        if head.method != Method::POST {
            return Err(Refusal::NotFound);
        }
        let body = self.read(body).await?;
        let request_id = head.headers.get("x-request-id").and_then(|id| id.to_str().ok());
        match (path, self.settings.dialect) {
            ("/v1/chat/completions" | "/chat/completions", _) => {
                self.generate(Endpoint::Chat, &body, request_id).await
            }
            ("/v1/completions", _) => self.generate(Endpoint::Completion, &body, request_id).await,
            ("/v1/embeddings", _) => self.embeddings(&body).await,
            ("/tokenize", dialect) => self.tokenize(dialect, &body),
            ("/detokenize", dialect) => control_paths::detokenize(dialect, &body),
            ("/apply-template", Dialect::LlamaCpp) => {
                let prompt = openai::chat_prompt(&openai::parse_object(&body)?)?;
                Ok(Answer::Json(json!({ "prompt": prompt })))
            }
            ("/reset_prefix_cache", Dialect::Vllm) => {
                match self.door.clear_cache().await.map_err(|Ended| Refusal::Ending)? {
                    true => Ok(Answer::Empty),
                    false => Err(Refusal::CacheInUse),
                }
            }
            _ => Err(Refusal::NotFound),
        }
    }

    async fn answer_get(&self, path: &str) -> Result<Answer, Refusal> {
        match (path, self.settings.dialect) {
            ("/health" | "/v1/health", Dialect::LlamaCpp) => {
                Ok(Answer::Json(json!({"status": "ok"})))
            }
            ("/health" | "/ping", Dialect::Vllm) => Ok(Answer::Empty),
            ("/v1/models", _) | ("/models", Dialect::LlamaCpp) => Ok(Answer::Json(self.models())),
            ("/metrics", _) => {
                let look = self.door.look().await.map_err(|Ended| Refusal::Ending)?;
                Ok(Answer::Text(metrics::render(&self.settings, &look.stats)))
            }
            ("/props", Dialect::LlamaCpp) => Ok(Answer::Json(self.props())),
            ("/slots", Dialect::LlamaCpp) => self.slots().await,
            ("/version", Dialect::Vllm) => Ok(Answer::Json(json!({"version": VLLM_VERSION}))),
            ("/kv_event_sources", Dialect::Vllm) => Ok(Answer::Json(self.kv_event_sources())),
            _ => Err(Refusal::NotFound),
        }
    }

    async fn read<B>(&self, body: B) -> Result<Bytes, Refusal>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let bytes_max = self.settings.body_bytes_max;
        match Box::pin(Limited::new(body, bytes_max).collect()).await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(Refusal::BodyTooLarge(bytes_max)),
            Err(_) => Err(Refusal::BodyBroken),
        }
    }

    async fn generate(
        &self,
        endpoint: Endpoint,
        body: &[u8],
        request_id: Option<&str>,
    ) -> Result<Answer, Refusal> {
        let number = self.generations.fetch_add(1, Ordering::Relaxed);
        if self.settings.fail_after.is_some_and(|requests| number >= requests) {
            tracing::error!(number, "ending abruptly, as --fail-after asks");
            std::process::exit(i32::from(EXIT_FAIL_AFTER));
        }
        let call = openai::parse_call(endpoint, body)?;
        let identity = self.identity(endpoint, number, request_id);
        let generated = generate::generate(&self.settings, &self.door, &call, identity).await?;
        Ok(match generated {
            Generated::Whole(answer) => Answer::Json(answer),
            Generated::Stream(stream) => Answer::Stream(stream),
        })
    }

    fn identity(&self, endpoint: Endpoint, number: u64, request_id: Option<&str>) -> Identity {
        let dialect = self.settings.dialect;
        let kind = match (endpoint, dialect) {
            (Endpoint::Completion, Dialect::Vllm) => "cmpl",
            _ => "chatcmpl",
        };
        let own = || {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&self.started_s.to_le_bytes());
            hasher.update(&u64::from(std::process::id()).to_le_bytes());
            hasher.update(&number.to_le_bytes());
            hasher.finalize().to_hex()[..32].to_owned()
        };
        let suffix = match (dialect, request_id) {
            (Dialect::Vllm, Some(id)) => id.to_owned(),
            _ => own(),
        };
        Identity {
            dialect,
            id: format!("{kind}-{suffix}"),
            created_s: now_s(),
            model: self.settings.model.clone(),
        }
    }

    async fn embeddings(&self, body: &[u8]) -> Result<Answer, Refusal> {
        if !self.settings.embeddings {
            return Err(Refusal::NoEmbeddings);
        }
        let call = openai::parse_embedding(body)?;
        generate::check_model(&self.settings, &call.model)?;
        assert!(call.inputs.len() <= CHOICES_MAX, "parsing bounds the inputs");
        let mut submissions = Vec::with_capacity(call.inputs.len());
        for input in &call.inputs {
            let room_tokens = generate::room(&self.settings, input.len(), None)?;
            let script = Script::write(&Wish {
                engine_seed: self.settings.seed,
                request_seed: None,
                choice: 0,
                prompt: input,
                tokens_max: Some(0),
                room_tokens,
                natural_tokens_max: self.settings.natural_tokens_max,
                stops: &[],
                shape: &Shape::Nothing,
            });
            let prompt = Arc::from(input.as_slice());
            submissions.push(Submission { prompt, script: Arc::new(script), salt: None });
        }
        generate::read_only(&self.door, submissions).await?;
        let data: Vec<_> = call
            .inputs
            .iter()
            .enumerate()
            .map(|(index, input)| {
                let vector = embedding::embed(self.settings.seed, input);
                let vector = match call.base64 {
                    true => json!(embedding::base64(&vector)),
                    false => json!(vector.as_slice()),
                };
                json!({"object": "embedding", "index": index, "embedding": vector})
            })
            .collect();
        let tokens: usize = call.inputs.iter().map(Vec::len).sum();
        Ok(Answer::Json(json!({"object": "list", "model": self.settings.model, "data": data,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})))
    }

    fn response(&self, status: StatusCode, answer: Answer) -> Response<AnswerBody> {
        let dialect = self.settings.dialect;
        let (content_type, body) = match answer {
            Answer::Json(value) => (
                Some(match dialect {
                    Dialect::LlamaCpp => "application/json; charset=utf-8",
                    Dialect::Vllm => "application/json",
                }),
                AnswerBody::Whole(Bytes::from(value.to_string())),
            ),
            Answer::Text(text) => {
                (Some("text/plain; version=0.0.4"), AnswerBody::Whole(Bytes::from(text)))
            }
            Answer::Empty => (None, AnswerBody::Whole(Bytes::new())),
            Answer::Stream(stream) => (
                Some(match dialect {
                    Dialect::LlamaCpp => "text/event-stream",
                    Dialect::Vllm => "text/event-stream; charset=utf-8",
                }),
                AnswerBody::Stream(stream),
            ),
        };
        let is_stream = matches!(body, AnswerBody::Stream(_));
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        if let Some(content_type) = content_type {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        headers.insert(
            header::SERVER,
            HeaderValue::from_static(match dialect {
                Dialect::LlamaCpp => "llama.cpp",
                Dialect::Vllm => "uvicorn",
            }),
        );
        if is_stream && dialect == Dialect::LlamaCpp {
            headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        }
        response
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
