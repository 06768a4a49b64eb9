//! The spans of one request: the server's span, and below it queue, tokenize, each attempt and resume.
//!
//! Names and attributes follow the OpenTelemetry semantic conventions for HTTP and for generative AI;
//! what they do not name begins with `cgn.`. Prompt and answer are never in it. A request that is
//! not sampled holds its context only, and every call below returns at once. Times are handed in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::context::{Begun, SpanId, TraceContext};
use super::span::{Attribute, Event, Kind, Span, Value, cut};
use crate::openai::Endpoint;

/// Children of one request; a request that is tried more often than this is recorded up to here.
pub const CHILDREN_MAX: usize = 32;

/// A request's trace, recorded or not.
#[derive(Debug)]
pub struct RequestTrace {
    context: TraceContext,
    recording: Option<Box<Recording>>,
}

/// The HTTP side of a request.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// `POST`
    pub method: &'a str,
    /// Without query.
    pub path: &'a str,
    /// The address of the listener, without port.
    pub address: &'a str,
    /// The port of the listener.
    pub port: u16,
    /// The caller's, where its `traceparent` was good.
    pub tracestate: Option<&'a str>,
}

/// A step within the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Waiting for room at a worker.
    Queue,
    /// Cutting the prompt into blocks, an engine's help included.
    Tokenize,
    /// The worker being given what it lacks of the prompt.
    Warm,
    /// Going on with a broken stream on another worker.
    Resume,
}

/// Whom an attempt is sent to.
#[derive(Clone, Copy, Debug)]
pub struct Upstream<'a> {
    /// The worker's id.
    pub worker: &'a str,
    /// `vllm`, `sglang`, `llama_cpp`, ...
    pub provider: &'static str,
    /// Host or address.
    pub address: &'a str,
    /// Port.
    pub port: u16,
}

/// A child that has begun. Give it back to end it; one that is never given back ends with the request.
#[derive(Debug)]
#[must_use = "a child ends where it is given back"]
pub struct Open(Option<usize>);

/// How the request ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome<'a> {
    /// HTTP status sent; 0 where none was.
    pub status: u16,
    /// A refusal's reason, `client_gone`, `engine_failed`; none where all went well.
    pub error: Option<&'a str>,
    /// The worker that answered.
    pub upstream: Option<Upstream<'a>>,
    /// The model that the engine names.
    pub response_model: Option<&'a str>,
    /// As the engine counted.
    pub input_tokens: Option<u64>,
    /// Of these, found in the engine's cache.
    pub cached_tokens: Option<u64>,
    /// As the engine counted.
    pub output_tokens: Option<u64>,
    /// Prefix tokens expected in the worker's cache.
    pub prefix_tokens: u64,
}

#[derive(Debug)]
struct Recording {
    started: Instant,
    root: Span,
    operation: &'static str,
    model: String,
    children: Vec<Child>,
    attempts: u64,
    queued: Duration,
    first_token: Option<Duration>,
    resumed: bool,
}

#[derive(Debug)]
struct Child {
    span: Span,
    step: Option<Step>,
    started: Instant,
    is_open: bool,
}

impl RequestTrace {
    /// A trace that is not recorded, whatever its flag: nothing is to be sent anywhere.
    pub fn unrecorded(context: TraceContext) -> Self {
        RequestTrace { context, recording: None }
    }

    /// Begins; records where the context is sampled. `started_unix_ns` is the wall clock at `started`.
    pub fn begin(
        begun: Begun,
        incoming: &Incoming<'_>,
        started: Instant,
        started_unix_ns: u64,
    ) -> Self {
        let context = begun.context;
        let recording = context
            .sampled
            .then(|| Box::new(Recording::begin(begun, incoming, started, started_unix_ns)));
        RequestTrace { context, recording }
    }

    /// The context of the request's own span.
    pub fn context(&self) -> TraceContext {
        self.context
    }

    /// Whether spans are recorded: then exemplars are worth writing.
    pub fn is_recorded(&self) -> bool {
        self.recording.is_some()
    }

    /// What is asked for, as soon as it is parsed.
    pub fn call(&mut self, endpoint: Endpoint, model: &str, max_tokens: Option<u64>) {
        let Some(recording) = &mut self.recording else { return };
        recording.operation = operation(endpoint);
        recording.model = cut(model).to_owned();
        recording.root.name = recording.span_name();
        let attributes = &mut recording.root.attributes;
        put(attributes, "gen_ai.operation.name", Value::Word(recording.operation));
        put(attributes, "gen_ai.request.model", model);
        put_some(attributes, "gen_ai.request.max_tokens", max_tokens);
    }

    /// Who asks, as soon as it is known.
    pub fn tenant(&mut self, tenant: &str) {
        if let Some(recording) = &mut self.recording {
            put(&mut recording.root.attributes, "cgn.tenant", tenant);
        }
    }

    /// Begins a step.
    pub fn enter(&mut self, step: Step, now: Instant) -> Open {
        let Some(recording) = &mut self.recording else { return Open(None) };
        let name = match step {
            Step::Queue => "queue",
            Step::Tokenize => "tokenize",
            Step::Warm => "warm",
            Step::Resume => "resume",
        };
        recording.resumed |= step == Step::Resume;
        recording.child(name.to_owned(), Kind::Internal, Some(step), now).1
    }

    /// Ends a step.
    pub fn leave(&mut self, open: Open, now: Instant) {
        let (Some(recording), Some(at)) = (&mut self.recording, open.0) else { return };
        recording.close(at, now);
    }

    /// Begins an attempt. The context is what the worker is to be sent.
    pub fn attempt(&mut self, to: &Upstream<'_>, now: Instant) -> (TraceContext, Open) {
        let Some(recording) = &mut self.recording else { return (self.context, Open(None)) };
        let (span_id, open) = recording.child(recording.span_name(), Kind::Client, None, now);
        let resends = recording.attempts;
        recording.attempts += 1;
        if let Some(child) = open.0.and_then(|at| recording.children.get_mut(at)) {
            let attributes = &mut child.span.attributes;
            put(attributes, "gen_ai.operation.name", Value::Word(recording.operation));
            put(attributes, "gen_ai.request.model", recording.model.as_str());
            put(attributes, "server.address", to.address);
            put(attributes, "server.port", u64::from(to.port));
            put_provider(attributes, to);
            put_some(attributes, "http.request.resend_count", (resends > 0).then_some(resends));
        }
        // Over the limit of children the worker's parent is the request itself.
        (TraceContext { span_id: span_id.unwrap_or(self.context.span_id), ..self.context }, open)
    }

    /// Ends an attempt: the worker's status, or why there is none.
    pub fn attempt_ended(&mut self, open: Open, result: Result<u16, &str>, now: Instant) {
        let (Some(recording), Some(at)) = (&mut self.recording, open.0) else { return };
        recording.close(at, now);
        let Some(child) = recording.children.get_mut(at) else { return };
        match result {
            Ok(status) => end_http(&mut child.span, status, None, 400),
            Err(reason) => end_http(&mut child.span, 0, Some(reason), 400),
        }
    }

    /// The first byte of the answer's body went to the client. Only the first call counts.
    pub fn first_token(&mut self, now: Instant) {
        let Some(recording) = &mut self.recording else { return };
        if recording.first_token.is_none() {
            recording.first_token = Some(now.saturating_duration_since(recording.started));
            let unix_ns = recording.unix_ns(now);
            recording.root.events.push(Event { name: "first_token", unix_ns });
        }
    }

    /// Ends the request: its spans, where it was recorded. The server's span is the first.
    pub fn finish(self, outcome: &Outcome<'_>, now: Instant) -> Option<Vec<Span>> {
        self.recording.map(|recording| recording.finish(outcome, now))
    }
}

impl Recording {
    fn begin(begun: Begun, incoming: &Incoming<'_>, started: Instant, unix_ns: u64) -> Self {
        let mut root = Span {
            trace_id: begun.context.trace_id,
            span_id: begun.context.span_id,
            parent: begun.parent,
            parent_is_remote: begun.parent.is_some(),
            tracestate: incoming.tracestate.map(Arc::from),
            // Until the call is known: a request that never gets there is HTTP and no more.
            name: cut(incoming.method).to_owned(),
            kind: Kind::Server,
            start_unix_ns: unix_ns,
            end_unix_ns: unix_ns,
            attributes: Vec::with_capacity(24),
            events: Vec::new(),
            failure: None,
        };
        put(&mut root.attributes, "http.request.method", incoming.method);
        put(&mut root.attributes, "url.path", incoming.path);
        put(&mut root.attributes, "server.address", incoming.address);
        put(&mut root.attributes, "server.port", u64::from(incoming.port));
        Recording {
            started,
            root,
            operation: "",
            model: String::new(),
            children: Vec::new(),
            attempts: 0,
            queued: Duration::ZERO,
            first_token: None,
            resumed: false,
        }
    }

    /// `chat llama-3`, as the conventions name a span of generative AI.
    fn span_name(&self) -> String {
        format!("{} {}", self.operation, self.model)
    }

    fn unix_ns(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.started).as_nanos();
        self.root.start_unix_ns.saturating_add(since.try_into().unwrap_or(u64::MAX))
    }

    fn child(
        &mut self,
        name: String,
        kind: Kind,
        step: Option<Step>,
        now: Instant,
    ) -> (Option<SpanId>, Open) {
        let at = self.children.len();
        if at >= CHILDREN_MAX {
            return (None, Open(None));
        }
        let unix_ns = self.unix_ns(now);
        let span_id = self.root.span_id.child(at as u64);
        let span = Span {
            trace_id: self.root.trace_id,
            span_id,
            parent: Some(self.root.span_id),
            parent_is_remote: false,
            tracestate: self.root.tracestate.clone(),
            name,
            kind,
            start_unix_ns: unix_ns,
            end_unix_ns: unix_ns,
            attributes: Vec::new(),
            events: Vec::new(),
            failure: None,
        };
        self.children.push(Child { span, step, started: now, is_open: true });
        (Some(span_id), Open(Some(at)))
    }

    fn close(&mut self, at: usize, now: Instant) {
        let unix_ns = self.unix_ns(now);
        let Some(child) = self.children.get_mut(at).filter(|child| child.is_open) else { return };
        child.is_open = false;
        child.span.end_unix_ns = unix_ns.max(child.span.start_unix_ns);
        if child.step == Some(Step::Queue) {
            self.queued += now.saturating_duration_since(child.started);
        }
    }

    fn finish(mut self: Box<Self>, outcome: &Outcome<'_>, now: Instant) -> Vec<Span> {
        for at in 0..self.children.len() {
            let child = &mut self.children[at];
            // An attempt that nobody ended shares the fate of its request.
            if child.is_open && child.step.is_none() {
                end_http(&mut child.span, outcome.status, outcome.error, 400);
            }
            self.close(at, now);
        }
        self.root.end_unix_ns = self.unix_ns(now);
        let has_queued = self.children.iter().any(|child| child.step == Some(Step::Queue));
        let attributes = &mut self.root.attributes;
        if let Some(upstream) = &outcome.upstream {
            put_provider(attributes, upstream);
        }
        if let Some(model) = outcome.response_model {
            put(attributes, "gen_ai.response.model", model);
        }
        put_some(attributes, "gen_ai.usage.input_tokens", outcome.input_tokens);
        put_some(attributes, "gen_ai.usage.output_tokens", outcome.output_tokens);
        put_some(attributes, "gen_ai.usage.cache_read.input_tokens", outcome.cached_tokens);
        put(attributes, "cgn.prefix_tokens", outcome.prefix_tokens);
        put(attributes, "cgn.retries", self.attempts.saturating_sub(1));
        put(attributes, "cgn.resumed", self.resumed);
        put_some(attributes, "cgn.queue_ms", has_queued.then_some(ms(self.queued)));
        put_some(attributes, "cgn.ttft_ms", self.first_token.map(ms));
        end_http(&mut self.root, outcome.status, outcome.error, 500);
        let children = self.children.into_iter().map(|child| child.span);
        std::iter::once(self.root).chain(children).collect()
    }
}

/// The operation's name in the conventions.
fn operation(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Chat => "chat",
        Endpoint::Completions => "text_completion",
        Endpoint::Embeddings => "embeddings",
        Endpoint::Other => "other",
    }
}

/// Status and failure of an exchange. A server's span fails from 500 on, a client's from 400.
fn end_http(span: &mut Span, status: u16, error: Option<&str>, fails_from: u16) {
    let has_failed = status >= fails_from;
    put_some(
        &mut span.attributes,
        "http.response.status_code",
        (status > 0).then_some(u64::from(status)),
    );
    let reason = error.map(cut).map(str::to_owned).or(has_failed.then(|| status.to_string()));
    let Some(reason) = reason else { return };
    put(&mut span.attributes, "error.type", reason.as_str());
    // A refusal of the client's own making is no failure of the server.
    if has_failed || status < 400 {
        span.failure = Some(reason);
    }
}

/// The provider under its name of today and the one that older collectors know.
fn put_provider(attributes: &mut Vec<Attribute>, upstream: &Upstream<'_>) {
    put(attributes, "gen_ai.provider.name", Value::Word(upstream.provider));
    put(attributes, "gen_ai.system", Value::Word(upstream.provider));
    put(attributes, "cgn.worker", upstream.worker);
}

fn put(attributes: &mut Vec<Attribute>, key: &'static str, value: impl Into<Value>) {
    attributes.push(Attribute { key, value: value.into() });
}

fn put_some(attributes: &mut Vec<Attribute>, key: &'static str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        put(attributes, key, value);
    }
}

fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1_000.0
}

#[cfg(test)]
mod tests;
