//! What a client was already told, read off the tape when an engine has died.

use serde_json::value::RawValue;

use crate::openai::Endpoint;
use crate::resume::chunk::{Choice, Chunk};
use crate::resume::events::data;
use crate::resume::tape::Tape;

/// Why a stream cannot go on elsewhere. The client gets an error event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsafe {
    /// The stream is longer than a tape, or one of its events is.
    #[error("the answer is too long to be resumed")]
    TooLong,
    /// What was sent is not what an OpenAI engine sends.
    #[error("the answer sent so far could not be read")]
    Unreadable,
    /// The engine itself had said an error.
    #[error("the engine reported an error")]
    EngineError,
    /// `n`, `best_of` or beams: more than one answer in one stream.
    #[error("several choices in one answer cannot be resumed")]
    SeveralChoices,
    /// Log-probabilities of a prompt that now ends elsewhere would be others.
    #[error("an answer with log-probabilities cannot be resumed")]
    Logprobs,
    /// A call of a tool is half sent.
    #[error("a half-sent tool call cannot be resumed")]
    ToolCalls,
    /// Reasoning was sent; only the template knows how it is put back.
    #[error("a half-sent reasoning cannot be resumed")]
    Reasoning,
    /// Audio or a refusal was sent.
    #[error("an answer that is not text cannot be resumed")]
    NotText,
    /// A grammar would begin anew in the middle of its text.
    #[error("a half-sent structured answer cannot be resumed")]
    Structured,
    /// `echo`, `suffix`, a prompt of several, or a message the client itself began.
    #[error("an answer to this form of prompt cannot be resumed")]
    Prompt,
    /// As many tokens were sent as were asked for; only the dead engine knew how it ended.
    #[error("all tokens asked for were sent, but not how the answer ended")]
    LimitReached,
    /// The engine can neither go on with a message nor be trusted to say it again.
    #[error("the engines of this model cannot resume an answer")]
    Engine,
}

impl Unsafe {
    /// A short name for metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Unsafe::TooLong => "too_long",
            Unsafe::Unreadable => "unreadable",
            Unsafe::EngineError => "engine_error",
            Unsafe::SeveralChoices => "several_choices",
            Unsafe::Logprobs => "logprobs",
            Unsafe::ToolCalls => "tool_calls",
            Unsafe::Reasoning => "reasoning",
            Unsafe::NotText => "not_text",
            Unsafe::Structured => "structured",
            Unsafe::Prompt => "prompt",
            Unsafe::LimitReached => "limit_reached",
            Unsafe::Engine => "engine",
        }
    }
}

/// The fields that name a stream, raw JSON. Every event of it repeats them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `id`, `created`, `model`, `system_fingerprint`, as far as the first event had them.
    pub fields: Vec<(&'static str, String)>,
}

impl Identity {
    fn of(chunk: &Chunk<'_>) -> Self {
        let fields = [
            ("id", chunk.id),
            ("created", chunk.created),
            ("model", chunk.model),
            ("system_fingerprint", chunk.system_fingerprint),
        ];
        let given = |(name, raw): (_, Option<&RawValue>)| Some((name, raw?.get().to_owned()));
        Identity { fields: fields.into_iter().filter_map(given).collect() }
    }
}

/// What was sent of one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transcript {
    /// How its events are named.
    pub identity: Identity,
    /// The text of the answer.
    pub text: String,
    /// The text of its reasoning.
    pub reasoning: String,
    /// Whether an event with the role was among them.
    pub role_sent: bool,
    /// Events that carried text or reasoning: tokens, or a little fewer.
    pub text_events: u64,
    /// The token ids of the answer, where every event with text had them.
    pub token_ids: Option<Vec<u64>>,
    /// The token ids of the prompt, where the engine said them.
    pub prompt_token_ids: Option<Vec<u64>>,
    /// Tokens generated, where the engine counted them beside the text.
    pub counted_tokens: Option<u64>,
    /// A `finish_reason` was sent: of the answer nothing is missing.
    pub finished: bool,
    /// `[DONE]` was sent.
    pub done: bool,
}

impl Transcript {
    /// Reads `tape`, the stream of an answer of `endpoint`.
    ///
    /// # Errors
    /// [`Unsafe`], where what was sent rules out that another engine goes on.
    pub fn read(endpoint: Endpoint, tape: &Tape) -> Result<Self, Unsafe> {
        if !tape.is_whole() {
            return Err(Unsafe::TooLong);
        }
        let mut sent = Transcript { token_ids: Some(Vec::new()), ..Transcript::default() };
        let mut outcome = Ok(());
        tape.replay(|event| {
            if outcome.is_ok() {
                outcome = sent.take(endpoint, event);
            }
        });
        outcome?;
        sent.token_ids = sent.token_ids.filter(|ids| !ids.is_empty());
        Ok(sent)
    }

    /// Tokens sent: as counted by the engine, else one for each event with text, which counts those
    /// too low that came together.
    pub fn tokens(&self) -> u64 {
        self.exact_tokens().unwrap_or(self.text_events)
    }

    /// Tokens sent, where that is known and not guessed.
    pub fn exact_tokens(&self) -> Option<u64> {
        self.counted_tokens.or_else(|| self.token_ids.as_ref().map(|ids| ids.len() as u64))
    }

    /// Whether no word of the answer was sent yet.
    pub fn is_silent(&self) -> bool {
        self.text.is_empty() && self.reasoning.is_empty() && !self.finished
    }

    fn take(&mut self, endpoint: Endpoint, event: &[u8]) -> Result<(), Unsafe> {
        let data = data(event);
        let bytes = data.bytes().trim_ascii();
        if bytes.is_empty() {
            return Ok(());
        }
        if bytes == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk: Chunk<'_> = serde_json::from_slice(bytes).map_err(|_| Unsafe::Unreadable)?;
        if chunk.error.is_some() {
            return Err(Unsafe::EngineError);
        }
        if self.identity.fields.is_empty() {
            self.identity = Identity::of(&chunk);
        }
        if let Some(ids) = chunk.prompt_token_ids {
            self.prompt_token_ids = Some(ids);
        }
        let counted = chunk.usage.and_then(|usage| usage.completion_tokens);
        let counted = counted.or(chunk.timings.and_then(|timings| timings.predicted_n));
        match chunk.choices.as_slice() {
            [] => {}
            [choice] if choice.index.unwrap_or(0) == 0 => {
                self.choice(endpoint, choice)?;
                self.counted_tokens = counted;
            }
            _ => return Err(Unsafe::SeveralChoices),
        }
        Ok(())
    }

    fn choice(&mut self, endpoint: Endpoint, choice: &Choice<'_>) -> Result<(), Unsafe> {
        self.finished |= choice.finish_reason.is_some();
        if choice.logprobs.is_some() {
            return Err(Unsafe::Logprobs);
        }
        let (mut text, mut reasoning) = (choice.text.as_deref().unwrap_or_default(), "");
        if endpoint == Endpoint::Chat {
            let Some(delta) = &choice.delta else { return Ok(()) };
            if delta.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty())
                || delta.function_call.is_some()
            {
                return Err(Unsafe::ToolCalls);
            }
            if delta.audio.is_some() || delta.refusal.is_some() {
                return Err(Unsafe::NotText);
            }
            self.role_sent |= delta.role.is_some();
            text = delta.content.as_deref().unwrap_or_default();
            // Engines that send both fields send the same words in both.
            reasoning = delta
                .reasoning_content
                .as_deref()
                .or(delta.reasoning.as_deref())
                .unwrap_or_default();
        }
        self.text.push_str(text);
        self.reasoning.push_str(reasoning);
        let has_text = !text.is_empty() || !reasoning.is_empty();
        self.text_events += u64::from(has_text);
        match (&mut self.token_ids, &choice.token_ids) {
            (Some(all), Some(ids)) => all.extend(ids),
            (Some(_), None) if has_text => self.token_ids = None,
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(endpoint: Endpoint, events: &[&str]) -> Result<Transcript, Unsafe> {
        let mut tape = Tape::default();
        events.iter().for_each(|data| tape.push(format!("data: {data}\n\n").as_bytes()));
        Transcript::read(endpoint, &tape)
    }

    fn chat(deltas: &[&str]) -> Result<Transcript, Unsafe> {
        let events: Vec<String> = deltas
            .iter()
            .map(|delta| format!(r#"{{"choices":[{{"finish_reason":null,"index":0,"delta":{delta}}}],"created":17,"id":"chatcmpl-1","model":"m","object":"chat.completion.chunk"}}"#))
            .collect();
        read(Endpoint::Chat, &events.iter().map(String::as_str).collect::<Vec<_>>())
    }

    #[test]
    fn the_text_of_a_chat_is_read_escapes_and_all() {
        let sent = chat(&[
            r#"{"role":"assistant","content":null}"#,
            r#"{"content":"a\n\"é"}"#,
            r#"{"content":"\ud83d\ude00!"}"#,
            r#"{"content":""}"#,
        ])
        .unwrap();
        assert_eq!(sent.text, "a\n\"é😀!");
        assert_eq!((sent.role_sent, sent.finished, sent.done), (true, false, false));
        assert_eq!((sent.text_events, sent.tokens(), sent.exact_tokens()), (2, 2, None));
        assert_eq!(
            sent.identity.fields,
            [
                ("id", "\"chatcmpl-1\"".to_owned()),
                ("created", "17".to_owned()),
                ("model", "\"m\"".to_owned())
            ]
        );
    }

    #[test]
    fn token_ids_and_counts_are_exact_where_the_engine_gives_them() {
        let events = [
            r#"{"id":"c","prompt_token_ids":[1,2],"choices":[{"index":0,"text":"ab","token_ids":[7,8]}]}"#,
            r#"{"id":"c","choices":[{"index":0,"text":"","token_ids":[9]}]}"#,
        ];
        let sent = read(Endpoint::Completions, &events).unwrap();
        assert_eq!(sent.token_ids, Some(vec![7, 8, 9]));
        assert_eq!(sent.prompt_token_ids, Some(vec![1, 2]));
        assert_eq!((sent.tokens(), sent.text.as_str()), (3, "ab"));
        let counted = r#"{"choices":[{"index":0,"text":"ab"}],"usage":{"completion_tokens":5}}"#;
        let sent = read(Endpoint::Completions, &[events[0], counted]).unwrap();
        assert_eq!((sent.token_ids.clone(), sent.exact_tokens()), (None, Some(5)));
    }

    #[test]
    fn an_end_is_seen() {
        let end = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#;
        let sent = read(Endpoint::Chat, &[end]).unwrap();
        assert!(sent.finished && !sent.done);
        let usage = r#"{"choices":[],"usage":{"completion_tokens":5}}"#;
        let sent = read(Endpoint::Chat, &[end, usage, "[DONE]"]).unwrap();
        assert!(sent.finished && sent.done);
    }

    #[test]
    fn what_rules_a_resume_out_is_named() {
        assert_eq!(chat(&[r#"{"tool_calls":[{"index":0}]}"#]).unwrap_err(), Unsafe::ToolCalls);
        assert_eq!(chat(&[r#"{"audio":{"data":"x"}}"#]).unwrap_err(), Unsafe::NotText);
        assert!(chat(&[r#"{"tool_calls":[],"content":"x","audio":null,"refusal":null}"#]).is_ok());
        let read = |data| read(Endpoint::Chat, &[data]).unwrap_err();
        assert_eq!(read(r#"{"choices":[{"index":1,"delta":{}}]}"#), Unsafe::SeveralChoices);
        assert_eq!(
            read(r#"{"choices":[{"index":0,"delta":{}},{"index":1}]}"#),
            Unsafe::SeveralChoices
        );
        assert_eq!(read(r#"{"error":{"message":"x"},"choices":[]}"#), Unsafe::EngineError);
        assert_eq!(
            read(r#"{"choices":[{"index":0,"delta":{},"logprobs":{"content":[]}}]}"#),
            Unsafe::Logprobs
        );
        for bad in ["{", "x", "[]", r#"{"choices":[{"delta":{"content":"\ud800"}}]}"#] {
            assert_eq!(read(bad), Unsafe::Unreadable, "{bad}");
        }
        let mut tape = Tape::default();
        tape.push(&[b'x'; 40_000]);
        assert_eq!(Transcript::read(Endpoint::Chat, &tape).unwrap_err(), Unsafe::TooLong);
    }
}
