//! Answers, as JSON and as server-sent events, in the shapes of the engine mimicked.
//!
//! One narration tells one request: what the engine reports about its sequences goes in, chunks (or
//! one whole answer) come out. Pure; identity and time of the answer are given.
//!
//! The two dialects differ in where things stand. llama.cpp closes a choice with an empty delta and
//! puts `timings` into the last chunk before `[DONE]`; vLLM gives the last token and the
//! `finish_reason` in one chunk and has `stop_reason`, `prompt_token_ids` and `token_ids`.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::openai::{Call, Endpoint};
use super::options::Dialect;
use super::scheduler::Report;
use super::script::{Finish, Script, Shape};

/// The last event of a stream.
const DONE: &str = "data: [DONE]\n\n";

/// What all chunks of an answer repeat.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Whose shapes.
    pub dialect: Dialect,
    /// The answer's id.
    pub id: String,
    /// Seconds since 1970.
    pub created_s: u64,
    /// The model's name.
    pub model: String,
}

/// What happened to one of the request's sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Token `index` was said.
    Token(usize),
    /// It is at its end.
    Finished(Report),
}

/// One answer in the making.
#[derive(Debug)]
pub struct Narration {
    identity: Identity,
    endpoint: Endpoint,
    include_usage: bool,
    return_token_ids: bool,
    tool: Option<String>,
    prompts: Vec<Arc<[u32]>>,
    choices: Vec<Choice>,
    unfinished: usize,
}

#[derive(Debug)]
struct Choice {
    prompt: usize,
    script: Arc<Script>,
    report: Report,
    /// First token whose id has not been in a chunk yet.
    ids_told: usize,
}

impl Narration {
    /// Begins the answer to `call`. `scripts` hold the choices of the first prompt, then those of
    /// the second, and so on.
    pub fn new(
        identity: Identity,
        call: &Call,
        prompts: Vec<Arc<[u32]>>,
        scripts: &[Arc<Script>],
    ) -> Self {
        let per_prompt = call.choices;
        let choices: Vec<_> = scripts
            .iter()
            .enumerate()
            .map(|(index, script)| Choice {
                prompt: index / per_prompt,
                script: Arc::clone(script),
                report: Report::default(),
                ids_told: 0,
            })
            .collect();
        Narration {
            identity,
            endpoint: call.endpoint,
            include_usage: call.include_usage,
            return_token_ids: call.return_token_ids,
            tool: match &call.shape {
                Shape::ToolCall { name, .. } => Some(name.clone()),
                _ => None,
            },
            unfinished: choices.len(),
            prompts,
            choices,
        }
    }

    /// The events before the first token.
    pub fn opening(&self) -> Vec<String> {
        if self.endpoint == Endpoint::Completion {
            return Vec::new();
        }
        let mut events = Vec::new();
        for index in 0..self.choices.len() {
            let content = match self.identity.dialect {
                Dialect::LlamaCpp => Value::Null,
                Dialect::Vllm => json!(""),
            };
            let delta = json!({"role": "assistant", "content": content});
            let mut chunk = self.chunk(vec![self.chat_choice(index, delta, None)]);
            if self.return_token_ids && self.identity.dialect == Dialect::Vllm {
                chunk["prompt_token_ids"] = json!(*self.prompts[0]);
            }
            events.push(event(&chunk));
            if let Some(name) = &self.tool {
                let call = json!({"index": 0, "id": self.call_id(index), "type": "function",
                                  "function": {"name": name, "arguments": ""}});
                let delta = json!({"tool_calls": [call]});
                events.push(event(&self.chunk(vec![self.chat_choice(index, delta, None)])));
            }
        }
        events
    }

    /// The events of one report about choice `index`; the last report brings the end of the stream.
    pub fn tell(&mut self, index: usize, progress: Progress) -> Vec<String> {
        let mut events = Vec::new();
        match progress {
            Progress::Token(token) => {
                let is_last = token + 1 == self.choices[index].script.len();
                // vLLM's last token comes with the finish reason.
                if !(is_last && self.identity.dialect == Dialect::Vllm) {
                    events.extend(self.token_chunk(index, token, false).as_ref().map(event));
                }
            }
            Progress::Finished(report) => {
                self.note_finished(index, report);
                let mut last = match self.identity.dialect {
                    Dialect::LlamaCpp => self.bare_finish(index),
                    Dialect::Vllm => self.choices[index]
                        .script
                        .len()
                        .checked_sub(1)
                        .and_then(|token| self.token_chunk(index, token, true))
                        .unwrap_or_else(|| self.bare_finish(index)),
                };
                let is_whole = self.unfinished == 0;
                let own_usage = is_whole && self.closes_with_usage_chunk();
                if is_whole && !own_usage {
                    self.add_closing(&mut last);
                }
                events.push(event(&last));
                if own_usage {
                    let mut chunk = self.chunk(Vec::new());
                    chunk["usage"] = self.usage();
                    self.add_timings(&mut chunk);
                    events.push(event(&chunk));
                }
                if is_whole {
                    events.push(DONE.to_owned());
                }
            }
        }
        events
    }

    /// Notes that choice `index` is at its end, for an answer that is not streamed.
    pub fn note_finished(&mut self, index: usize, report: Report) {
        assert!(self.unfinished > 0, "a choice finishes once");
        self.choices[index].report = report;
        self.unfinished -= 1;
    }

    /// Whether all choices are at their end.
    pub fn is_whole(&self) -> bool {
        self.unfinished == 0
    }

    /// The whole answer.
    pub fn whole(&self) -> Value {
        let choices: Vec<_> = (0..self.choices.len())
            .map(|index| match self.endpoint {
                Endpoint::Chat => self.whole_chat_choice(index),
                Endpoint::Completion => {
                    let mut choice = self.text_choice(
                        index,
                        self.choices[index].script.text(),
                        Some(self.finish(index)),
                    );
                    if self.return_token_ids {
                        let Choice { prompt, script, .. } = &self.choices[index];
                        choice["prompt_token_ids"] = json!(*self.prompts[*prompt]);
                        choice["token_ids"] = json!(script.tokens());
                    }
                    choice
                }
            })
            .collect();
        let object = match self.endpoint {
            Endpoint::Chat => "chat.completion",
            Endpoint::Completion => "text_completion",
        };
        let mut answer = self.envelope(object, choices);
        answer["usage"] = self.usage();
        if self.identity.dialect == Dialect::Vllm {
            answer["prompt_logprobs"] = Value::Null;
            answer["kv_transfer_params"] = Value::Null;
            if self.endpoint == Endpoint::Chat && self.return_token_ids {
                answer["prompt_token_ids"] = json!(*self.prompts[0]);
            }
        }
        self.add_timings(&mut answer);
        answer
    }

    fn finish(&self, index: usize) -> &Finish {
        self.choices[index].script.finish()
    }

    fn call_id(&self, index: usize) -> String {
        format!("call_{}_{index}", self.identity.id.trim_start_matches("chatcmpl-"))
    }

    fn whole_chat_choice(&self, index: usize) -> Value {
        let script = &self.choices[index].script;
        let mut message = json!({"role": "assistant", "content": script.text()});
        if let Some(name) = &self.tool {
            message["content"] = Value::Null;
            message["tool_calls"] = json!([{"id": self.call_id(index), "type": "function",
                "function": {"name": name, "arguments": script.text()}}]);
        } else if self.identity.dialect == Dialect::Vllm {
            message["tool_calls"] = json!([]);
        }
        let finish = self.finish(index).as_str();
        let mut choice = json!({"index": index, "message": message, "finish_reason": finish});
        self.add_vllm_choice(&mut choice, Some(self.finish(index)));
        if self.return_token_ids {
            choice["token_ids"] = json!(script.tokens());
        }
        choice
    }

    /// The chunk of one token, or nothing when it shows nothing and is not the last: the bytes of a
    /// character come when it is whole, the token ids with them.
    fn token_chunk(&mut self, index: usize, token: usize, is_last: bool) -> Option<Value> {
        let delta = self.choices[index].script.delta(token);
        if delta.is_empty() && !is_last {
            return None;
        }
        let finish = is_last.then(|| self.finish(index));
        let mut choice = match (self.endpoint, &self.tool) {
            (Endpoint::Completion, _) => self.text_choice(index, delta, finish),
            (Endpoint::Chat, None) => self.chat_choice(index, json!({"content": delta}), finish),
            (Endpoint::Chat, Some(_)) => {
                let call = json!({"index": 0, "function": {"arguments": delta}});
                self.chat_choice(index, json!({"tool_calls": [call]}), finish)
            }
        };
        if self.return_token_ids {
            let from = self.choices[index].ids_told;
            choice["token_ids"] = json!(self.choices[index].script.tokens()[from..=token]);
            if self.endpoint == Endpoint::Completion && from == 0 {
                choice["prompt_token_ids"] = json!(*self.prompts[self.choices[index].prompt]);
            }
        }
        self.choices[index].ids_told = token + 1;
        Some(self.chunk(vec![choice]))
    }

    fn bare_finish(&self, index: usize) -> Value {
        let finish = Some(self.finish(index));
        self.chunk(vec![match self.endpoint {
            Endpoint::Chat => self.chat_choice(index, Value::Object(Map::new()), finish),
            Endpoint::Completion => self.text_choice(index, "", finish),
        }])
    }

    fn chat_choice(&self, index: usize, delta: Value, finish: Option<&Finish>) -> Value {
        let mut choice =
            json!({"index": index, "delta": delta, "finish_reason": finish.map(Finish::as_str)});
        self.add_vllm_choice(&mut choice, finish);
        choice
    }

    fn text_choice(&self, index: usize, text: &str, finish: Option<&Finish>) -> Value {
        let mut choice = json!({"index": index, "text": text, "logprobs": null,
                                "finish_reason": finish.map(Finish::as_str)});
        self.add_vllm_choice(&mut choice, finish);
        choice
    }

    fn add_vllm_choice(&self, choice: &mut Value, finish: Option<&Finish>) {
        if self.identity.dialect != Dialect::Vllm {
            return;
        }
        choice["logprobs"] = Value::Null;
        if let Some(finish) = finish {
            choice["stop_reason"] = match finish {
                Finish::StopString(stop) => json!(stop),
                _ => Value::Null,
            };
        }
    }

    fn chunk(&self, choices: Vec<Value>) -> Value {
        self.envelope(
            match self.endpoint {
                Endpoint::Chat => "chat.completion.chunk",
                Endpoint::Completion => "text_completion",
            },
            choices,
        )
    }

    fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        let Identity { dialect, id, created_s, model } = &self.identity;
        let mut envelope = json!({"id": id, "object": object, "created": created_s, "model": model,
                                  "choices": choices});
        if *dialect == Dialect::LlamaCpp {
            envelope["system_fingerprint"] = json!("cgn-sim-engine");
        }
        envelope
    }

    /// llama.cpp's completions always end with usage in their last chunk; otherwise usage is a
    /// chunk of its own, and only on request.
    fn closes_with_usage_chunk(&self) -> bool {
        self.include_usage
            && (self.identity.dialect == Dialect::Vllm || self.endpoint == Endpoint::Chat)
    }

    fn add_closing(&self, last: &mut Value) {
        if self.identity.dialect == Dialect::LlamaCpp && self.endpoint == Endpoint::Completion {
            last["usage"] = self.usage();
        }
        self.add_timings(last);
    }

    fn usage(&self) -> Value {
        let prompt: usize = self.prompts.iter().map(|prompt| prompt.len()).sum();
        let said: usize = self.choices.iter().map(|choice| choice.script.len()).sum();
        json!({"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said,
               "prompt_tokens_details": {"cached_tokens": self.cached_tokens()}})
    }

    /// Per prompt what its first choice found; later choices find the first one's own blocks.
    fn cached_tokens(&self) -> usize {
        let mut next_prompt = 0;
        let mut cached = 0;
        for choice in &self.choices {
            if choice.prompt == next_prompt {
                cached += choice.report.cached_tokens;
                next_prompt += 1;
            }
        }
        cached
    }

    fn add_timings(&self, answer: &mut Value) {
        let (Dialect::LlamaCpp, Some(first)) = (self.identity.dialect, self.choices.first()) else {
            return;
        };
        let cached = first.report.cached_tokens;
        let prompt = self.prompts[first.prompt].len() - cached;
        let said = first.script.len();
        let (prompt_ms, predicted_ms) =
            (first.report.prefill_us as f64 / 1e3, first.report.decode_us as f64 / 1e3);
        answer["timings"] = json!({
            "cache_n": cached,
            "prompt_n": prompt,
            "prompt_ms": prompt_ms,
            "prompt_per_token_ms": ratio(prompt_ms, prompt as f64),
            "prompt_per_second": ratio(prompt as f64 * 1e3, prompt_ms),
            "predicted_n": said,
            "predicted_ms": predicted_ms,
            "predicted_per_token_ms": ratio(predicted_ms, said as f64),
            "predicted_per_second": ratio(said as f64 * 1e3, predicted_ms),
        });
    }
}

/// 0 where there is nothing to divide by: JSON has no infinity.
fn ratio(value: f64, by: f64) -> f64 {
    if by > 0.0 { value / by } else { 0.0 }
}

fn event(chunk: &Value) -> String {
    format!("data: {chunk}\n\n")
}
