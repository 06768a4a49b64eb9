//! `/v1/chat/completions` and `/v1/completions`: from a parsed call to an answer on its way.
//!
//! All that can be refused is refused before a byte of the answer: the model, the context, the
//! queue. As the real ones do, llama.cpp's dialect sends the head of a stream with the first token,
//! vLLM's at once.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::sync::mpsc;

use super::engine::{Ended, EngineDoor};
use super::narration::{Identity, Narration, Progress};
use super::openai::Call;
use super::options::{Dialect, Settings};
use super::refusal::Refusal;
use super::scheduler::Submission;
use super::script::{Script, Wish};

type ReportReceiver = mpsc::Receiver<(usize, Progress)>;

/// An answer that was accepted.
pub enum Generated {
    /// All of it.
    Whole(serde_json::Value),
    /// A stream of events.
    Stream(EventStream),
}

/// Runs `call`; a call that is not streamed is awaited to its end. Dropping the future, or later
/// the stream, cancels the request.
///
/// # Errors
/// [`Refusal`]
pub async fn generate(
    settings: &Settings,
    door: &EngineDoor,
    call: &Call,
    identity: Identity,
) -> Result<Generated, Refusal> {
    check_model(settings, &call.model)?;
    let mut submissions = Vec::with_capacity(call.prompts.len() * call.choices);
    let mut prompts: Vec<Arc<[u32]>> = Vec::with_capacity(call.prompts.len());
    let salt: Option<Arc<str>> = call.salt.as_deref().map(Arc::from);
    for prompt in &call.prompts {
        let room_tokens = room(settings, prompt.len(), call.tokens_max)?;
        let prompt: Arc<[u32]> = Arc::from(prompt.as_slice());
        for choice in 0..call.choices {
            let script = Script::write(&Wish {
                engine_seed: settings.seed,
                request_seed: call.seed,
                choice: choice as u32,
                prompt: &prompt,
                tokens_max: call.tokens_max,
                room_tokens,
                natural_tokens_max: settings.natural_tokens_max,
                stops: &call.stops,
                shape: &call.shape,
            });
            submissions.push(Submission {
                prompt: Arc::clone(&prompt),
                script: Arc::new(script),
                salt: salt.clone(),
            });
        }
        prompts.push(prompt);
    }
    let scripts: Vec<_> = submissions.iter().map(|one| Arc::clone(&one.script)).collect();
    let mut reports = submit(door, submissions).await?;
    let mut narration = Narration::new(identity, call, prompts, &scripts);
    if call.stream {
        return stream(settings.dialect, narration, reports).await.map(Generated::Stream);
    }
    while !narration.is_whole() {
        if let (choice, Progress::Finished(report)) = next_report(&mut reports).await? {
            narration.note_finished(choice, report);
        }
    }
    Ok(Generated::Whole(narration.whole()))
}

/// Reads prompts without answering, as embeddings do; true cost in time and blocks.
///
/// # Errors
/// [`Refusal`]
pub async fn read_only(door: &EngineDoor, submissions: Vec<Submission>) -> Result<(), Refusal> {
    let mut unfinished = submissions.len();
    let mut reports = submit(door, submissions).await?;
    while unfinished > 0 {
        if let (_, Progress::Finished(_)) = next_report(&mut reports).await? {
            unfinished -= 1;
        }
    }
    Ok(())
}

/// llama.cpp serves whatever name was asked for; vLLM wants its own.
///
/// # Errors
/// [`Refusal::UnknownModel`]
pub fn check_model(settings: &Settings, model: &str) -> Result<(), Refusal> {
    let is_served =
        settings.dialect == Dialect::LlamaCpp || model.is_empty() || model == settings.model;
    if is_served { Ok(()) } else { Err(Refusal::UnknownModel(model.to_owned())) }
}

/// Tokens left behind the prompt. vLLM refuses a prompt and a `max_tokens` that do not fit
/// together; llama.cpp answers until the context ends.
///
/// # Errors
/// [`Refusal::Context`]
pub fn room(
    settings: &Settings,
    prompt_tokens: usize,
    asked_tokens: Option<u32>,
) -> Result<u32, Refusal> {
    let context_tokens = settings.context_tokens;
    let left = (context_tokens as usize).saturating_sub(prompt_tokens) as u32;
    let needed = match settings.dialect {
        Dialect::Vllm => asked_tokens.unwrap_or(1),
        Dialect::LlamaCpp => 1,
    };
    if left < needed.max(1) {
        return Err(Refusal::Context { prompt_tokens, asked_tokens, context_tokens });
    }
    Ok(left)
}

async fn submit(
    door: &EngineDoor,
    submissions: Vec<Submission>,
) -> Result<ReportReceiver, Refusal> {
    door.submit(submissions).await.map_err(|Ended| Refusal::Ending)?.map_err(Refusal::NotTaken)
}

async fn next_report(reports: &mut ReportReceiver) -> Result<(usize, Progress), Refusal> {
    reports.recv().await.ok_or(Refusal::Ending)
}

async fn stream(
    dialect: Dialect,
    mut narration: Narration,
    mut reports: ReportReceiver,
) -> Result<EventStream, Refusal> {
    let mut ready: VecDeque<String> = narration.opening().into();
    if dialect == Dialect::LlamaCpp {
        let (choice, progress) = next_report(&mut reports).await?;
        ready.extend(narration.tell(choice, progress));
    }
    Ok(EventStream { narration, reports, ready })
}

/// The body of a streamed answer. Each event is a frame of its own; it is written when the engine
/// reports and the connection takes it.
pub struct EventStream {
    narration: Narration,
    reports: ReportReceiver,
    /// Events not written yet: those of one report at most, and of the opening.
    ready: VecDeque<String>,
}

/// What an answer's body can be.
pub enum AnswerBody {
    /// These bytes.
    Whole(Bytes),
    /// Events as they come.
    Stream(EventStream),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Ended;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Ended>>> {
        match self.get_mut() {
            AnswerBody::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            AnswerBody::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            AnswerBody::Stream(stream) => stream
                .poll_event(context)
                .map(|event| event.map(|event| event.map(|event| Frame::data(Bytes::from(event))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, AnswerBody::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            AnswerBody::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            AnswerBody::Stream(_) => SizeHint::default(),
        }
    }
}

impl EventStream {
    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<String, Ended>>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.narration.is_whole() {
                return Poll::Ready(None);
            }
            match ready!(self.reports.poll_recv(context)) {
                Some((choice, progress)) => {
                    self.ready.extend(self.narration.tell(choice, progress));
                }
                // The head is out already: cutting the connection is the only way to say it.
                None => return Poll::Ready(Some(Err(Ended))),
            }
        }
    }
}
