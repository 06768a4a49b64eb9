//! The second engine's events → the client's: one stream, as if nothing had happened.
//!
//! `id`, `created`, `model` and `system_fingerprint` stay those of the first event, the role is not
//! said twice, and what the client has is left out. All else is the second engine's: `finish_reason`,
//! `timings`, `usage`. Of a continuation's `usage` the tokens said before are moved from the prompt to
//! the answer where their number is known exactly; else it is passed on as it is.

use crate::openai::Endpoint;
use crate::resume::events::{Data, Events, data};
use crate::resume::object::{Object, elements, string};
use crate::resume::transcript::{Identity, Transcript};

/// Why the second engine's answer cannot be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It says other words than the first said, or an error. Nothing of it went to the client but pings.
    #[error("the answer given again differs from what was sent")]
    Deviated,
    /// It is not a stream of OpenAI events.
    #[error("the answer could not be read")]
    Unreadable,
}

/// An engine that does not know `continue_final_message` begins with the text it was given. Only so
/// long a text is taken for that: no token of an answer is as long and begins by chance with all of it.
const ECHO_BYTES_MIN: usize = 16;

/// Rewrites one stream.
#[derive(Debug)]
pub struct Rewriter {
    endpoint: Endpoint,
    events: Events,
    identity: Identity,
    role_sent: bool,
    prompt_ids_sent: bool,
    /// What the engine has yet to say before anything is new.
    text: Skip,
    reasoning: Skip,
    /// The text a continuation may begin with, until its first word is there.
    echo: Option<String>,
    /// Tokens that a continuation's `usage` counts as prompt.
    moved_tokens: u64,
    done: bool,
}

/// Words that are expected and left out.
#[derive(Debug, Default)]
struct Skip {
    expected: String,
    at: usize,
}

impl Skip {
    fn of(expected: &str) -> Self {
        Skip { expected: expected.to_owned(), at: 0 }
    }

    fn is_over(&self) -> bool {
        self.at == self.expected.len()
    }

    /// What of `text` is new.
    fn take<'a>(&mut self, text: &'a str) -> Result<&'a str, Broken> {
        let left = &self.expected[self.at..];
        if let Some(new) = text.strip_prefix(left) {
            self.at = self.expected.len();
            Ok(new)
        } else if left.starts_with(text) {
            self.at += text.len();
            Ok("")
        } else {
            Err(Broken::Deviated)
        }
    }
}

impl Rewriter {
    /// For the same request, asked again.
    pub fn replay(endpoint: Endpoint, sent: &Transcript) -> Self {
        Rewriter {
            endpoint,
            events: Events::default(),
            identity: sent.identity.clone(),
            role_sent: sent.role_sent,
            prompt_ids_sent: sent.prompt_token_ids.is_some(),
            text: Skip::of(&sent.text),
            reasoning: Skip::of(&sent.reasoning),
            echo: None,
            moved_tokens: 0,
            done: false,
        }
    }

    /// For a request that goes on from what was sent.
    pub fn continuation(endpoint: Endpoint, sent: &Transcript) -> Self {
        let may_echo = endpoint == Endpoint::Chat && sent.text.len() >= ECHO_BYTES_MIN;
        Rewriter {
            text: Skip::default(),
            reasoning: Skip::default(),
            echo: may_echo.then(|| sent.text.clone()),
            moved_tokens: sent.exact_tokens().unwrap_or(0),
            ..Rewriter::replay(endpoint, sent)
        }
    }

    /// Whether `[DONE]` was passed on.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Whether all that the client has was said again: what comes now is new. Until then nothing but
    /// pings was written, and another way may be tried.
    pub fn is_past_what_was_sent(&self) -> bool {
        self.text.is_over() && self.reasoning.is_over()
    }

    /// Takes payload of the second engine; appends whole events for the client to `out`.
    ///
    /// # Errors
    /// [`Broken`]. What `out` holds by then may be sent: after [`Broken::Deviated`] only pings.
    pub fn push(&mut self, run: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        let mut events = std::mem::take(&mut self.events);
        let mut outcome = Ok(());
        events.push(run, |event| {
            if outcome.is_ok() {
                outcome = self.event(event, out);
            }
        });
        if outcome.is_ok() && events.has_given_up() {
            outcome = Err(Broken::Unreadable);
        }
        self.events = events;
        outcome
    }

    fn event(&mut self, event: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        let data = data(event);
        if self.done {
            return Ok(());
        }
        if data == Data::None {
            // A ping keeps the client's connection alive here too.
            if event.starts_with(b":") {
                out.extend_from_slice(event);
            }
            return Ok(());
        }
        let bytes = data.bytes().trim_ascii();
        if bytes == b"[DONE]" {
            if !self.is_past_what_was_sent() {
                return Err(Broken::Deviated);
            }
            self.done = true;
            out.extend_from_slice(b"data: [DONE]\n\n");
            return Ok(());
        }
        let chunk = Object::read(bytes).ok_or(Broken::Unreadable)?;
        if chunk.given("error").is_some() {
            // While nothing is new another way may do better.
            if !self.is_past_what_was_sent() {
                return Err(Broken::Deviated);
            }
            out.extend_from_slice(event);
            return Ok(());
        }
        let choices = chunk.get("choices").and_then(elements).ok_or(Broken::Unreadable)?;
        let choices = match choices.as_slice() {
            [] if !self.is_past_what_was_sent() => return Ok(()),
            [] => None,
            [choice] => match self.choice(choice)? {
                None => return Ok(()),
                Some(choice) => Some(format!("[{choice}]")),
            },
            _ => return Err(Broken::Unreadable),
        };
        self.write(&chunk, choices.as_deref(), out);
        Ok(())
    }

    /// The choice as the client is to see it; `None` where it holds nothing new.
    fn choice(&mut self, raw: &str) -> Result<Option<String>, Broken> {
        let choice = Object::read(raw.as_bytes()).ok_or(Broken::Unreadable)?;
        let ends = choice.given("finish_reason").is_some();
        let was_past = self.is_past_what_was_sent();
        let (changed, says) = match self.endpoint {
            Endpoint::Chat => {
                let delta = Object::read(choice.given("delta").unwrap_or("{}").as_bytes());
                let (delta, says) = self.delta(&delta.ok_or(Broken::Unreadable)?)?;
                (choice.with(&[("delta", Some(&delta))]), says)
            }
            _ => {
                let text = text_at(&choice, "text")?;
                let new = self.new_text(&text)?;
                let says = !new.is_empty() || (was_past && text.is_empty());
                match new == text {
                    true => (raw.to_owned(), says),
                    false => (choice.with(&[("text", Some(&string(&new)))]), says),
                }
            }
        };
        // Something new, or the end, in front of something the client has.
        if (says || ends) && !self.is_past_what_was_sent() {
            return Err(Broken::Deviated);
        }
        // A cut within an event: its token ids would be those of words the client has.
        if says && !was_past && choice.given("token_ids").is_some() && self.is_past_what_was_sent()
        {
            return Err(Broken::Deviated);
        }
        Ok((says || ends).then_some(changed))
    }

    /// The delta as the client is to see it, and whether it holds anything new.
    fn delta(&mut self, delta: &Object<'_>) -> Result<(String, bool), Broken> {
        let was_past = self.is_past_what_was_sent();
        let mut changes: Vec<(&str, Option<String>)> = Vec::new();
        let mut says = false;
        let reasoning =
            ["reasoning_content", "reasoning"].into_iter().filter(|key| delta.given(key).is_some());
        let before = self.reasoning.at;
        for key in reasoning {
            // Engines that send both fields send the same words in both.
            self.reasoning.at = before;
            let text = text_at(delta, key)?;
            let new = self.reasoning.take(&text)?;
            says |= !new.is_empty();
            if new != text {
                changes.push((key, Some(string(new))));
            }
        }
        let text = text_at(delta, "content")?;
        let new = self.new_text(&text)?;
        says |= !new.is_empty();
        if new != text {
            changes.push(("content", Some(string(&new))));
        }
        let has_role = delta.given("role").is_some();
        if has_role && (self.role_sent || !was_past) {
            changes.push(("role", None));
        } else {
            // An empty delta says nothing, but it is the engine's to send.
            says |= has_role || was_past;
            self.role_sent |= has_role;
        }
        let others = ["role", "content", "reasoning_content", "reasoning"];
        let is_more =
            |key: &str| !others.contains(&key) && delta.given(key).is_some_and(|raw| raw != "[]");
        if delta.keys().any(is_more) {
            if !was_past {
                return Err(Broken::Deviated);
            }
            says = true;
        }
        let changes: Vec<(&str, Option<&str>)> =
            changes.iter().map(|(key, raw)| (*key, raw.as_deref())).collect();
        Ok((delta.with(&changes), says))
    }

    /// What of the answer's next text is new.
    fn new_text(&mut self, text: &str) -> Result<String, Broken> {
        let new = self.text.take(text)?;
        if new.is_empty() {
            return Ok(String::new());
        }
        let echo = self.echo.take();
        Ok(echo.and_then(|echo| new.strip_prefix(&echo)).unwrap_or(new).to_owned())
    }

    /// Writes the event with the names of the first stream.
    fn write(&self, chunk: &Object<'_>, choices: Option<&str>, out: &mut Vec<u8>) {
        let mut changes: Vec<(&str, Option<&str>)> = self
            .identity
            .fields
            .iter()
            .filter(|(key, _)| chunk.get(key).is_some())
            .map(|(key, raw)| (*key, Some(raw.as_str())))
            .collect();
        if choices.is_some() {
            changes.push(("choices", choices));
        }
        if self.prompt_ids_sent {
            changes.push(("prompt_token_ids", None));
        }
        let usage = chunk.given("usage").and_then(|raw| self.usage(raw));
        if usage.is_some() {
            changes.push(("usage", usage.as_deref()));
        }
        out.extend_from_slice(b"data: ");
        // Data of several lines: between the values of JSON a space does as well.
        out.extend_from_slice(chunk.with(&changes).replace(['\n', '\r'], " ").as_bytes());
        out.extend_from_slice(b"\n\n");
    }

    /// The engine's counts with the tokens said before on the side of the answer.
    fn usage(&self, raw: &str) -> Option<String> {
        let usage = Object::read(raw.as_bytes())?;
        let number = |key| usage.get(key)?.parse::<u64>().ok();
        let moved = self.moved_tokens;
        let prompt = number("prompt_tokens")?.checked_sub(moved)?.to_string();
        let completion = number("completion_tokens")?.checked_add(moved)?.to_string();
        Some(
            usage.with(&[
                ("prompt_tokens", Some(&prompt)),
                ("completion_tokens", Some(&completion)),
            ]),
        )
    }
}

/// The text at `key`; empty where there is none.
fn text_at(object: &Object<'_>, key: &str) -> Result<String, Broken> {
    match object.given(key) {
        None => Ok(String::new()),
        Some(raw) => serde_json::from_str(raw).map_err(|_| Broken::Unreadable),
    }
}

#[cfg(test)]
#[path = "rewrite/tests.rs"]
mod tests;
