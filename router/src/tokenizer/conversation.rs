//! A request's body as the variables of a chat template, the way vLLM and SGLang prepare them.
//!
//! Engines do not hand a client's messages to the template as they came: content becomes a string or a
//! list, unknown fields are dropped, the arguments of tool calls are parsed, tools get their defaults.
//! Each rule here is one of theirs (vLLM `chat_utils.py`, `protocol.py`; SGLang `serving_chat.py`). Pure.
//! What cannot be prepared the same way is a [`Refusal`]: an engine is asked, or the text names the prompt.

use dataplane::wire::EngineKind;
use minijinja::value::{Value, ValueKind};
use serde::Deserialize;
use sonic_rs::{JsonValueTrait, LazyValue};

use super::tools::{pairs, prepare_calls, prepare_tool};

/// Messages of one conversation. More are left to the text path: each costs the template its steps.
const MESSAGES_MAX: usize = 8_192;

/// Why a request cannot be rendered here as at its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field was not what engines take, or is no JSON of ours (a lone surrogate).
    #[error("{0} cannot be read as an engine would")]
    Field(&'static str),
    /// Images, audio and the like become tokens in the engine alone.
    #[error("a part of the content is no text")]
    NotText,
    /// The request changes what is tokenized, and how is the engine's affair.
    #[error("the request sets {0}")]
    Special(&'static str),
    /// More than is rendered here.
    #[error("the conversation is too long")]
    TooLong,
}

impl Refusal {
    /// For metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Refusal::Field(_) => "field",
            Refusal::NotText => "not_text",
            Refusal::Special(_) => "special_field",
            Refusal::TooLong => "too_long",
        }
    }
}

/// What of a body decides what is tokenized.
#[derive(Debug, Default)]
pub struct Fields<'a> {
    messages: Option<LazyValue<'a>>,
    tools: Option<LazyValue<'a>>,
    documents: Option<LazyValue<'a>>,
    kwargs: Option<LazyValue<'a>>,
    prompt: Option<LazyValue<'a>>,
    reasoning_effort: Option<LazyValue<'a>>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    /// Whether the tokenizer's own first and last tokens are added, where the request says.
    pub add_special_tokens: Option<bool>,
}

impl<'a> Fields<'a> {
    /// Reads the top level of `body`.
    ///
    /// # Errors
    /// [`Refusal::Field`], [`Refusal::Special`].
    pub fn read(body: &'a str) -> Result<Self, Refusal> {
        let mut fields = Fields::default();
        for entry in sonic_rs::to_object_iter(body.trim_ascii()) {
            let (key, value) = entry.map_err(|_| Refusal::Field("the body"))?;
            let value = Some(value).filter(|value| !value.is_null());
            let flag = |name| match &value {
                None => Ok(None),
                Some(value) => value.as_bool().map(Some).ok_or(Refusal::Field(name)),
            };
            let absent = |name| match &value {
                None => Ok(()),
                Some(_) => Err(Refusal::Special(name)),
            };
            match key.as_ref() {
                "messages" => fields.messages = value,
                "tools" => fields.tools = value,
                "documents" => fields.documents = value,
                "chat_template_kwargs" => fields.kwargs = value,
                "prompt" => fields.prompt = value,
                "reasoning_effort" => fields.reasoning_effort = value,
                "add_generation_prompt" => {
                    fields.add_generation_prompt = flag("add_generation_prompt")?;
                }
                "continue_final_message" => {
                    fields.continue_final_message = flag("continue_final_message")?;
                }
                "add_special_tokens" => fields.add_special_tokens = flag("add_special_tokens")?,
                "chat_template" => absent("chat_template")?,
                "truncate_prompt_tokens" => absent("truncate_prompt_tokens")?,
                "prompt_embeds" => absent("prompt_embeds")?,
                "input_ids" => absent("input_ids")?,
                _ => {}
            }
        }
        Ok(fields)
    }

    /// The text of a completion.
    ///
    /// # Errors
    /// [`Refusal::Field`].
    pub fn completion(&self) -> Result<String, Refusal> {
        let prompt = self.prompt.as_ref().ok_or(Refusal::Field("prompt"))?;
        sonic_rs::from_str(prompt.as_raw_str()).map_err(|_| Refusal::Field("prompt"))
    }

    /// A chat, as engines of `kind` prepare it for a template that wants content as parts or not.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn chat(&self, kind: EngineKind, wants_parts: bool) -> Result<Conversation, Refusal> {
        let raw = self.messages.as_ref().ok_or(Refusal::Field("messages"))?.as_raw_str();
        let messages: Vec<Message> =
            sonic_rs::from_str(raw).map_err(|_| Refusal::Field("messages"))?;
        if messages.len() > MESSAGES_MAX {
            return Err(Refusal::TooLong);
        }
        let continues = self.continue_final_message.unwrap_or(false);
        let begins = self.add_generation_prompt.unwrap_or(true);
        if continues && begins {
            return Err(Refusal::Field("continue_final_message"));
        }
        let continued = match messages.last() {
            Some(last) if continues => Some(last.last_text(wants_parts)?),
            _ => None,
        };
        let messages = messages.into_iter().map(|message| message.prepare(wants_parts));
        let messages = messages.collect::<Result<Vec<Value>, Refusal>>()?;
        let mut variables = vec![
            ("messages".to_owned(), Value::from(messages)),
            ("tools".to_owned(), self.tools(kind)?),
            ("documents".to_owned(), value(self.documents.as_ref(), "documents")?),
            ("add_generation_prompt".to_owned(), Value::from(begins)),
        ];
        if self.reasoning_effort.is_some() {
            let effort = value(self.reasoning_effort.as_ref(), "reasoning_effort")?;
            variables.push(("reasoning_effort".to_owned(), effort));
        }
        self.add_kwargs(&mut variables)?;
        Ok(Conversation { variables, continued })
    }

    /// `chat_template_kwargs` go over what the request says otherwise.
    fn add_kwargs(&self, variables: &mut Vec<(String, Value)>) -> Result<(), Refusal> {
        let kwargs = value(self.kwargs.as_ref(), "chat_template_kwargs")?;
        if kwargs.is_none() {
            return Ok(());
        }
        if kwargs.kind() != ValueKind::Map {
            return Err(Refusal::Field("chat_template_kwargs"));
        }
        for (name, value) in pairs(&kwargs)? {
            // Arguments of `apply_chat_template` itself, not variables.
            let is_special = ["messages", "conversation", "chat_template", "tokenize", "tools"];
            if is_special.contains(&name.as_str()) || name == "continue_final_message" {
                return Err(Refusal::Special("chat_template_kwargs"));
            }
            variables.push((name, value));
        }
        Ok(())
    }

    fn tools(&self, kind: EngineKind) -> Result<Value, Refusal> {
        let tools = value(self.tools.as_ref(), "tools")?;
        if tools.is_none() {
            return Ok(tools);
        }
        let tools = tools.try_iter().map_err(|_| Refusal::Field("tools"))?;
        let prepared: Result<Vec<Value>, Refusal> =
            tools.map(|tool| prepare_tool(kind, &tool)).collect();
        // An empty list is as good as none to templates, and engines hand none over.
        Ok(Some(prepared?).filter(|tools| !tools.is_empty()).map_or(Value::from(()), Value::from))
    }
}

/// What a template renders.
#[derive(Debug)]
pub struct Conversation {
    /// Its variables; later ones go over earlier ones of the same name.
    pub variables: Vec<(String, Value)>,
    /// The text of the last message, where the answer goes on in it.
    pub continued: Option<String>,
}

/// A message as far as engines look at it.
#[derive(Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Value,
    #[serde(default)]
    name: Value,
    #[serde(default)]
    tool_calls: Value,
    #[serde(default)]
    tool_call_id: Option<Value>,
    #[serde(default)]
    reasoning: Value,
    #[serde(default)]
    reasoning_content: Value,
    #[serde(default)]
    tools: Value,
}

impl Message {
    /// The text in which an answer goes on: of the last part where content is a list.
    fn last_text(&self, wants_parts: bool) -> Result<String, Refusal> {
        let texts = texts(&self.content)?;
        Ok(match wants_parts {
            true => texts.last().cloned().unwrap_or_default(),
            false => texts.join("\n"),
        })
    }

    /// The message for the template.
    fn prepare(self, wants_parts: bool) -> Result<Value, Refusal> {
        // A tool's answer is a string to templates that want lists elsewhere, too.
        let content = match wants_parts && self.role != "tool" {
            true => parts(&texts(&self.content)?),
            false if self.content.as_str().is_some() => self.content,
            false => Value::from(texts(&self.content)?.join("\n")),
        };
        let mut fields = vec![("role", Value::from(self.role.as_str())), ("content", content)];
        if self.role == "assistant" {
            let calls = prepare_calls(&self.tool_calls)?;
            if !calls.is_empty() {
                fields.push(("tool_calls", Value::from(calls)));
            }
            let reasoning = [self.reasoning, self.reasoning_content];
            if let Some(reasoning) = reasoning.into_iter().find(|value| value.as_str().is_some()) {
                fields.push(("reasoning", reasoning.clone()));
                fields.push(("reasoning_content", reasoning));
            }
        } else if self.role == "tool"
            && let Some(id) = self.tool_call_id
        {
            fields.push(("tool_call_id", id));
        } else if self.role == "developer" {
            fields.push(("tools", none_if_undefined(self.tools)));
        }
        if self.name.as_str().is_some() {
            fields.push(("name", self.name));
        }
        Ok(Value::from_pairs(fields))
    }
}

fn none_if_undefined(value: Value) -> Value {
    if value.is_undefined() { Value::from(()) } else { value }
}

/// The texts of a content: none, one string, or parts.
fn texts(content: &Value) -> Result<Vec<String>, Refusal> {
    if content.is_undefined() || content.is_none() {
        return Ok(Vec::new());
    }
    if let Some(text) = content.as_str() {
        return Ok(vec![text.to_owned()]);
    }
    if content.kind() != ValueKind::Seq {
        return Err(Refusal::Field("content"));
    }
    let mut texts = Vec::new();
    for part in content.try_iter().map_err(|_| Refusal::Field("content"))? {
        if let Some(text) = part.as_str() {
            texts.push(text.to_owned());
            continue;
        }
        let field = |name: &str| part.get_attr(name).map_err(|_| Refusal::Field("content"));
        let name = match field("type")?.as_str() {
            Some("text" | "input_text" | "output_text") => "text",
            Some("refusal") => "refusal",
            Some("thinking") => "thinking",
            _ => return Err(Refusal::NotText),
        };
        match field(name)? {
            text if text.is_none() || text.is_undefined() => {}
            text => texts.push(text.as_str().ok_or(Refusal::Field("content"))?.to_owned()),
        }
    }
    Ok(texts)
}

fn parts(texts: &[String]) -> Value {
    let part = |text: &String| {
        Value::from_pairs([("type", Value::from("text")), ("text", Value::from(text.as_str()))])
    };
    texts.iter().map(part).collect::<Vec<Value>>().into()
}

fn value(raw: Option<&LazyValue<'_>>, name: &'static str) -> Result<Value, Refusal> {
    raw.map_or(Ok(Value::from(())), |raw| {
        sonic_rs::from_str(raw.as_raw_str()).map_err(|_| Refusal::Field(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::python::{JsonStyle, json};

    fn chat(body: &str, wants_parts: bool) -> Result<Conversation, Refusal> {
        Fields::read(body)?.chat(EngineKind::Vllm, wants_parts)
    }

    fn variable(conversation: &Conversation, name: &str) -> String {
        let found = conversation.variables.iter().rev().find(|(key, _)| key == name);
        json(&found.unwrap().1, &JsonStyle::new(None)).unwrap()
    }

    #[test]
    fn messages_are_prepared_as_vllm_does() {
        let body = r#"{"messages":[
            {"role":"system","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}],"extra":1},
            {"role":"user","content":"c","name":"n"},
            {"content":null,"role":"assistant","tool_calls":[{"id":"i","type":"function","function":{"name":"f","arguments":"{\"y\": 1, \"x\": 2.0}"}}]},
            {"role":"assistant","content":"d","tool_calls":[],"reasoning_content":"r"},
            {"role":"tool","tool_call_id":"i","content":[{"type":"text","text":"e"}]}
        ]}"#;
        let conversation = chat(body, false).unwrap();
        assert_eq!(
            variable(&conversation, "messages"),
            r#"[{"role": "system", "content": "a\nb"}, {"role": "user", "content": "c", "name": "n"}, {"role": "assistant", "content": "", "tool_calls": [{"id": "i", "type": "function", "function": {"name": "f", "arguments": {"y": 1, "x": 2.0}}}]}, {"role": "assistant", "content": "d", "reasoning": "r", "reasoning_content": "r"}, {"role": "tool", "content": "e", "tool_call_id": "i"}]"#
        );
        assert_eq!(variable(&conversation, "tools"), "null");
        assert_eq!(variable(&conversation, "add_generation_prompt"), "true");
        let parts = variable(&chat(body, true).unwrap(), "messages");
        assert!(parts.contains(r#""content": [{"type": "text", "text": "c"}]"#), "{parts}");
        assert!(parts.contains(r#"{"role": "tool", "content": "e""#), "{parts}");
    }

    #[test]
    fn what_an_engine_would_do_otherwise_is_refused() {
        let refusal = |body: &str| chat(body, false).unwrap_err();
        let messages = r#""messages":[{"role":"user","content":"x"}]"#;
        for (more, expected) in [
            (r#""chat_template":"x""#, Refusal::Special("chat_template")),
            (r#""truncate_prompt_tokens":5"#, Refusal::Special("truncate_prompt_tokens")),
            (
                r#""chat_template_kwargs":{"chat_template":"x"}"#,
                Refusal::Special("chat_template_kwargs"),
            ),
            (r#""chat_template_kwargs":[]"#, Refusal::Field("chat_template_kwargs")),
            (r#""continue_final_message":true"#, Refusal::Field("continue_final_message")),
            (r#""add_generation_prompt":3"#, Refusal::Field("add_generation_prompt")),
            (r#""tools":[{}]"#, Refusal::Field("tools")),
        ] {
            assert_eq!(refusal(&format!("{{{messages},{more}}}")), expected, "{more}");
        }
        for (content, expected) in [
            (r#"[{"type":"image_url","image_url":{"url":"data:"}}]"#, Refusal::NotText),
            (r#"[{"text":"no type"}]"#, Refusal::NotText),
            (r#"{"a":1}"#, Refusal::Field("content")),
            (r#"3"#, Refusal::Field("content")),
            (r#""\ud800""#, Refusal::Field("messages")),
        ] {
            let body = format!(r#"{{"messages":[{{"role":"user","content":{content}}}]}}"#);
            assert_eq!(refusal(&body), expected, "{content}");
        }
        assert_eq!(
            refusal(r#"{"messages":[{"role":3,"content":"x"}]}"#),
            Refusal::Field("messages")
        );
        let many = vec![r#"{"role":"user","content":"x"}"#; MESSAGES_MAX + 1].join(",");
        assert_eq!(refusal(&format!(r#"{{"messages":[{many}]}}"#)), Refusal::TooLong);
    }
}
