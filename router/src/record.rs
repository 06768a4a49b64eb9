//! What is learned of one request on its way: for its line in the access log, its trace, and the
//! counters of its tenant. Nothing here decides anything.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::access::log::{AccessBuffer, LineCounts};
use crate::access::{AccessLine, End};
use crate::admit::unix_ms;
use crate::cluster::WorkerView;
use crate::connection::Client;
use crate::decisions::log::DecisionSender;
use crate::error::RequestError;
use crate::identity::Caller;
use crate::parse::Call;
use crate::read::Request;
use crate::shard::Shard;
use crate::trace::context::{Begun, Ids, Sampler, TRACEPARENT_BYTES, tracestate};
use crate::trace::outbox::Outbox;
use crate::trace::request_trace::{Incoming, Open, Outcome, RequestTrace, Step, Upstream};
use crate::usage::Usage;

/// A request id of a client may have so many characters; longer ones are replaced.
const REQUEST_ID_CHARS_MAX: usize = 128;

/// What one core writes records with.
pub struct Recorder {
    /// For contexts of our own.
    pub ids: Ids,
    /// Which of them are recorded.
    pub sampler: Sampler,
    /// A collector is configured.
    pub exports: bool,
    /// Spans on their way to it.
    pub outbox: Arc<Outbox>,
    /// Lines on their way to the log.
    pub access: Option<AccessBuffer>,
    /// Decisions on their way to the log.
    pub decisions: Option<DecisionSender>,
    /// How the lines fared.
    pub lines: Option<Arc<LineCounts>>,
    /// Where clients come in, for `server.address`.
    pub address: String,
    /// Its port.
    pub port: u16,
}

/// A worker as traces name it.
pub fn upstream(worker: &WorkerView) -> Upstream<'_> {
    let authority = worker.target.authority.as_str();
    let (address, port) = authority.rsplit_once(':').unwrap_or((authority, "80"));
    Upstream {
        worker: &worker.worker.id,
        provider: worker.worker.kind.as_str(),
        address,
        port: port.parse().unwrap_or(0),
    }
}

/// One request so far.
pub struct Record {
    /// Names it in answers, logs and towards the engine.
    pub request_id: Rc<str>,
    /// When it had been read.
    pub started: Instant,
    started_unix_ms: u64,
    /// `chat`, `local`, ...: for metrics.
    pub endpoint: &'static str,
    /// Who asks, once known.
    pub caller: Option<Arc<Caller>>,
    /// The model asked for, once known.
    pub model: String,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// The status sent.
    pub status: u16,
    /// The last worker asked.
    pub worker: Option<Arc<WorkerView>>,
    /// How many were asked.
    pub attempts: u32,
    /// The stream went on elsewhere.
    pub resumed: bool,
    /// Time spent waiting for a place.
    pub queued: Option<Duration>,
    /// From the request read to the first byte of the answer's body sent.
    pub ttft: Option<Duration>,
    /// What the engine counted.
    pub usage: Usage,
    /// Tokens of the prompt expected in the worker's cache.
    pub prefix_tokens: u64,
    /// How it ended.
    pub end: End,
    /// Its trace, where traces or lines are asked for.
    pub trace: Option<RequestTrace>,
    exports: bool,
    open_attempt: Option<Open>,
    sent_before: u64,
}

impl Record {
    /// A request was read.
    pub fn begin(shard: &Shard, client: &Client, request: &Request) -> Self {
        let started = Instant::now();
        shard.strike(started);
        Record {
            request_id: request_id(shard, request),
            started,
            started_unix_ms: if shard.recorder.access.is_some() { unix_ms() } else { 0 },
            endpoint: "none",
            caller: None,
            model: String::new(),
            stream: false,
            status: 0,
            worker: None,
            attempts: 0,
            resumed: false,
            queued: None,
            ttft: None,
            usage: Usage::default(),
            prefix_tokens: 0,
            end: End::Complete,
            trace: begin_trace(shard, request, started),
            exports: shard.recorder.exports,
            open_attempt: None,
            sent_before: client.sent_bytes,
        }
    }

    /// What is asked for.
    pub fn called(&mut self, call: &Call) {
        self.stream = call.stream;
        // Copied only where somebody will read it.
        if let Some(trace) = &mut self.trace {
            self.model.clone_from(&call.model);
            trace.call(call.endpoint, &call.model, None);
        }
    }

    /// Who asks.
    pub fn called_by(&mut self, caller: &Arc<Caller>) {
        if let Some(trace) = &mut self.trace {
            trace.tenant(&caller.tenant.name);
        }
        self.caller = Some(Arc::clone(caller));
    }

    /// A step of the router's own begins.
    pub fn enter(&mut self, step: Step) -> Option<Open> {
        let trace = self.trace.as_mut().filter(|trace| trace.is_recorded())?;
        Some(trace.enter(step, Instant::now()))
    }

    /// It is over.
    pub fn leave(&mut self, open: Option<Open>) {
        if let (Some(trace), Some(open)) = (&mut self.trace, open) {
            trace.leave(open, Instant::now());
        }
    }

    /// Another worker is asked; the trace's context for it, where traces are recorded.
    pub fn attempt(&mut self, worker: &Arc<WorkerView>) -> Option<[u8; TRACEPARENT_BYTES]> {
        self.attempts += 1;
        self.worker = Some(Arc::clone(worker));
        let exports = self.exports;
        let trace = self.trace.as_mut().filter(|_| exports)?;
        let (context, open) = trace.attempt(&upstream(worker), Instant::now());
        self.open_attempt = Some(open);
        Some(context.traceparent())
    }

    /// How it went.
    pub fn attempted(&mut self, status: Option<u16>) {
        if let (Some(trace), Some(open)) = (&mut self.trace, self.open_attempt.take()) {
            trace.attempt_ended(open, status.ok_or("engine_failed"), Instant::now());
        }
    }

    /// The first byte of the answer's body is on its way.
    pub fn first_token(&mut self, shard: &Shard, now: Instant) {
        let ttft = now - self.started;
        self.ttft = Some(ttft);
        shard.stats.time_to_first_token.observe(ttft.as_secs_f64());
        if let Some(trace) = &mut self.trace {
            trace.first_token(now);
            if trace.is_recorded() {
                let context = trace.context();
                shard.stats.ttft_exemplars.note(context, ttft.as_secs_f64(), unix_ms());
            }
        }
    }

    /// It was refused.
    pub fn refused(&mut self, error: &RequestError) {
        self.status = error.status();
        self.end = match error {
            RequestError::ClientGone => End::ClientGone,
            other => End::Refused(other.reason()),
        };
    }

    /// It is over: the counters, the line and the spans.
    pub fn close(self, shard: &Shard, client: &Client, request: &Request) {
        let sent = client.sent_bytes - self.sent_before;
        shard.count_bytes(read_bytes(request), sent);
        if let Some(access) = &shard.recorder.access {
            self.write_line(access, client, request, sent);
        }
        let Some(trace) = self.trace else { return };
        let error = match self.end {
            End::Complete => None,
            End::ClientGone => Some("client_gone"),
            End::EngineFailed => Some("engine_failed"),
            End::Refused(reason) => Some(reason),
        };
        let worker = self.worker.as_deref();
        let outcome = Outcome {
            status: self.status,
            error,
            upstream: worker.map(|worker| upstream(worker)),
            response_model: worker.map(|worker| worker.worker.model.as_str()),
            input_tokens: self.usage.prompt_tokens,
            cached_tokens: self.usage.cached_tokens,
            output_tokens: self.usage.completion_tokens,
            prefix_tokens: self.prefix_tokens,
        };
        if let Some(spans) = trace.finish(&outcome, Instant::now()) {
            shard.recorder.outbox.put(spans);
        }
    }

    fn write_line(
        &self,
        access: &AccessBuffer,
        client: &Client,
        request: &Request,
        bytes_out: u64,
    ) {
        let Some(trace) = &self.trace else { return };
        let trace_id = trace.context().trace_id;
        if !access.wants(trace_id) {
            return;
        }
        access.put(&AccessLine {
            ts: self.started_unix_ms,
            request_id: &self.request_id,
            trace_id,
            tenant: self.caller.as_ref().map(|caller| caller.tenant.name.as_str()),
            subject: self.caller.as_ref().map(|caller| caller.subject.as_str()),
            peer: Some(client.peer.address.ip()),
            method: request.method(),
            path: request.path(),
            model: Some(self.model.as_str()).filter(|model| !model.is_empty()),
            stream: self.stream,
            status: self.status,
            worker: self.worker.as_ref().map(|worker| worker.worker.id.as_str()),
            attempts: self.attempts,
            resumed: self.resumed,
            queue_ms: self.queued,
            ttft_ms: self.ttft,
            duration_ms: self.started.elapsed(),
            prompt_tokens: self.usage.prompt_tokens,
            cached_tokens: self.usage.cached_tokens,
            completion_tokens: self.usage.completion_tokens,
            prefix_tokens: self.prefix_tokens,
            bytes_in: read_bytes(request),
            bytes_out,
            end: self.end,
        });
    }
}

/// Head and body of a request; a body in chunks without their framing.
fn read_bytes(request: &Request) -> u64 {
    (request.head.length + request.body().len()) as u64
}

fn begin_trace(shard: &Shard, request: &Request, started: Instant) -> Option<RequestTrace> {
    let recorder = &shard.recorder;
    if !recorder.exports && recorder.access.is_none() && recorder.decisions.is_none() {
        return None;
    }
    let head = &request.head;
    let of = |range: &Option<std::ops::Range<usize>>| {
        range.clone().map(|range| &request.head_bytes()[range])
    };
    let begun = Begun::of(of(&head.traceparent), recorder.sampler, &recorder.ids);
    if !recorder.exports {
        return Some(RequestTrace::unrecorded(begun.context));
    }
    let started_unix_ns = match begun.context.sampled {
        true => unix_ms().saturating_mul(1_000_000),
        false => 0,
    };
    let incoming = Incoming {
        method: request.method(),
        path: request.path(),
        address: &recorder.address,
        port: recorder.port,
        tracestate: begun.parent.and(of(&head.tracestate)).and_then(tracestate),
    };
    Some(RequestTrace::begin(begun, &incoming, started, started_unix_ns))
}

/// The client's own id where it can stand in a header again, else a fresh one.
fn request_id(shard: &Shard, request: &Request) -> Rc<str> {
    let sent = request
        .head
        .request_id
        .clone()
        .and_then(|range| std::str::from_utf8(&request.head_bytes()[range]).ok());
    let is_fit = |id: &&str| {
        (1..=REQUEST_ID_CHARS_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
    };
    sent.filter(is_fit).map_or_else(|| fresh_id(shard), Rc::from)
}

/// An id of ours.
pub fn fresh_id(shard: &Shard) -> Rc<str> {
    let number = shard.next_id();
    let mut id = *b"req-0000000000000000";
    for (at, digit) in id[4..].iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (60 - 4 * at)) as usize & 15];
    }
    std::str::from_utf8(&id).unwrap_or_default().into()
}
