//! What a request asked for, as far as it decides whether and how its answer can be resumed.
//!
//! Read only when an engine has died: the hot path pays nothing for it.

use crate::openai::Endpoint;
use crate::resume::object::{Object, elements};
use crate::resume::transcript::Unsafe;

/// Fields of which each makes the engine follow a grammar: a continuation would begin it anew.
const GRAMMAR_FIELDS: [&str; 12] = [
    "grammar",
    "json_schema",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "guided_decoding_backend",
    "regex",
    "ebnf",
    "structural_tag",
    "functions",
];

/// The fields that limit the answer, in tokens.
pub const LIMIT_FIELDS: [&str; 3] = ["max_completion_tokens", "max_tokens", "n_predict"];

/// A request body, read for a resume.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The endpoint it was sent to.
    pub endpoint: Endpoint,
    /// The body.
    pub body: Object<'a>,
}

impl<'a> Asked<'a> {
    /// Reads `body`.
    ///
    /// # Errors
    /// [`Unsafe`], where no way to resume its answer exists.
    pub fn read(endpoint: Endpoint, body: &'a [u8]) -> Result<Self, Unsafe> {
        let body = Object::read(body).ok_or(Unsafe::Unreadable)?;
        let asked = Asked { endpoint, body };
        if endpoint == Endpoint::Embeddings {
            return Err(Unsafe::NotText);
        }
        let is_several = |key| asked.body.given(key).is_some_and(|raw| raw != "1");
        if is_several("n") || is_several("best_of") || asked.is_true("use_beam_search") {
            return Err(Unsafe::SeveralChoices);
        }
        // For a chat `logprobs` is a switch; for completions a number, and 0 asks for some too.
        let logprobs = asked.body.given("logprobs").is_some_and(|raw| raw != "false");
        let others = ["top_logprobs", "prompt_logprobs", "n_probs"];
        if logprobs || others.iter().any(|key| asked.number(key).is_some_and(|n| n > 0.0)) {
            return Err(Unsafe::Logprobs);
        }
        if asked.body.given("audio").is_some()
            || asked.body.given("modalities").is_some_and(|raw| raw.contains("audio"))
        {
            return Err(Unsafe::NotText);
        }
        Ok(asked)
    }

    /// Whether an engine that is asked again says the same again.
    pub fn is_deterministic(&self) -> bool {
        self.number("temperature") == Some(0.0)
            || self.number("top_k") == Some(1.0)
            || self.number("seed").is_some_and(|seed| seed >= 0.0)
    }

    /// Why an engine cannot be given what was said so far and go on from there.
    ///
    /// Stop strings are no reason: an engine holds back text that may begin one, so none lies across
    /// the cut. Penalties are none either, but count what was said as prompt.
    ///
    /// # Errors
    /// [`Unsafe`].
    pub fn can_be_continued(&self) -> Result<(), Unsafe> {
        let has_format = self.body.given("response_format").is_some_and(|raw| {
            Object::read(raw.as_bytes()).and_then(|format| format.get("type")) != Some("\"text\"")
        });
        let is_forced = self
            .body
            .given("tool_choice")
            .is_some_and(|raw| !matches!(raw, "\"auto\"" | "\"none\""));
        if has_format
            || is_forced
            || GRAMMAR_FIELDS.iter().any(|key| self.body.given(key).is_some())
        {
            return Err(Unsafe::Structured);
        }
        let shapes = ["suffix", "continue_final_message", "add_generation_prompt"];
        if self.is_true("echo") || shapes.iter().any(|key| self.body.given(key).is_some()) {
            return Err(Unsafe::Prompt);
        }
        if self.endpoint == Endpoint::Chat && self.ends_with_assistant() {
            return Err(Unsafe::Prompt);
        }
        Ok(())
    }

    /// The number at `key`.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.body.given(key)?.parse().ok()
    }

    fn is_true(&self, key: &str) -> bool {
        self.body.get(key) == Some("true")
    }

    /// Whether the client had begun the answer itself.
    fn ends_with_assistant(&self) -> bool {
        let messages = self.body.get("messages").and_then(elements).unwrap_or_default();
        messages.last().is_some_and(|message| {
            Object::read(message.as_bytes())
                .is_none_or(|message| message.get("role") == Some("\"assistant\""))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(more: &str) -> String {
        format!(r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}]{more}}}"#)
    }

    #[test]
    fn what_rules_every_way_out() {
        let refused = |more: &str| Asked::read(Endpoint::Chat, chat(more).as_bytes()).err();
        for (more, expected) in [
            (r#","n":2"#, Some(Unsafe::SeveralChoices)),
            (r#","n":1,"best_of":null"#, None),
            (r#","best_of":3"#, Some(Unsafe::SeveralChoices)),
            (r#","use_beam_search":true"#, Some(Unsafe::SeveralChoices)),
            (r#","logprobs":true"#, Some(Unsafe::Logprobs)),
            (r#","logprobs":false,"top_logprobs":null"#, None),
            (r#","logprobs":0"#, Some(Unsafe::Logprobs)),
            (r#","n_probs":2"#, Some(Unsafe::Logprobs)),
            (r#","modalities":["text","audio"]"#, Some(Unsafe::NotText)),
            (r#","modalities":["text"]"#, None),
        ] {
            assert_eq!(refused(more), expected, "{more}");
        }
        assert_eq!(Asked::read(Endpoint::Chat, b"[]").err(), Some(Unsafe::Unreadable));
        assert_eq!(Asked::read(Endpoint::Embeddings, b"{}").err(), Some(Unsafe::NotText));
    }

    #[test]
    fn what_rules_a_continuation_out() {
        let refused = |more: &str| {
            let body = chat(more);
            Asked::read(Endpoint::Chat, body.as_bytes()).unwrap().can_be_continued().err()
        };
        for (more, expected) in [
            ("", None),
            (r#","response_format":{"type":"text"},"tools":[],"tool_choice":"auto""#, None),
            (r#","stop":["x"],"frequency_penalty":0.5"#, None),
            (r#","response_format":{"type":"json_object"}"#, Some(Unsafe::Structured)),
            (r#","tool_choice":"required""#, Some(Unsafe::Structured)),
            (r#","tool_choice":{"type":"function"}"#, Some(Unsafe::Structured)),
            (r#","guided_regex":"a+""#, Some(Unsafe::Structured)),
            (r#","echo":true"#, Some(Unsafe::Prompt)),
            (r#","echo":false"#, None),
            (r#","suffix":"x""#, Some(Unsafe::Prompt)),
            (r#","messages":[{"role":"assistant","content":"So"}]"#, Some(Unsafe::Prompt)),
            (r#","messages":[7]"#, Some(Unsafe::Prompt)),
        ] {
            assert_eq!(refused(more), expected, "{more}");
        }
    }

    #[test]
    fn only_greedy_and_seeded_answers_are_said_again() {
        let said_again = |more: &str| {
            let body = chat(more);
            Asked::read(Endpoint::Chat, body.as_bytes()).unwrap().is_deterministic()
        };
        for yes in [r#","temperature":0"#, r#","temperature":0.0"#, r#","top_k":1"#, r#","seed":7"#]
        {
            assert!(said_again(yes), "{yes}");
        }
        for no in ["", r#","temperature":0.7"#, r#","seed":-1"#, r#","seed":null"#] {
            assert!(!said_again(no), "{no}");
        }
    }
}
