//! OpenAI requests, from JSON to what the engine needs to know. Pure; nothing in a body is trusted.
//!
//! Fields it does not know are ignored, as engines do; a known field of the wrong type is refused
//! by name. `null` is the same as absent.

use serde_json::{Map, Value};

use super::refusal::Refusal;
use super::script::Shape;
use super::template;
use super::tokenizer::{self, Specials};

/// Choices of one request, over all its prompts.
pub const CHOICES_MAX: usize = 128;
/// Stop strings of one request (vLLM's callers rarely have more than four).
pub const STOPS_MAX: usize = 16;

/// Which of the two generating endpoints was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
}

/// A generating request.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Where it came in.
    pub endpoint: Endpoint,
    /// The model asked for; empty where none was named.
    pub model: String,
    /// Token ids, one list per prompt; chats have one. None is empty.
    pub prompts: Vec<Vec<u32>>,
    /// Choices per prompt.
    pub choices: usize,
    /// `max_tokens` or `max_completion_tokens`.
    pub tokens_max: Option<u32>,
    /// `seed`.
    pub seed: Option<u64>,
    /// `stop`.
    pub stops: Vec<String>,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// `stream_options.include_usage`
    pub include_usage: bool,
    /// vLLM's `return_token_ids`.
    pub return_token_ids: bool,
    /// vLLM's `cache_salt`.
    pub salt: Option<String>,
    /// What kind of text is wanted.
    pub shape: Shape,
}

/// An embedding request.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingCall {
    /// The model asked for; empty where none was named.
    pub model: String,
    /// Token ids, one list per input. None is empty.
    pub inputs: Vec<Vec<u32>>,
    /// Whether vectors are wanted as base64 of little-endian floats.
    pub base64: bool,
}

/// Parses the body of `/v1/chat/completions` or `/v1/completions`.
///
/// # Errors
/// [`Refusal`], the first fault found.
pub fn parse_call(endpoint: Endpoint, body: &[u8]) -> Result<Call, Refusal> {
    let object = parse_object(body)?;
    let fields = Fields(&object);
    let prompts = match endpoint {
        Endpoint::Chat => vec![encode(&chat_prompt(&object)?)],
        Endpoint::Completion => token_lists(&object, "prompt")?,
    };
    let choices = fields.number("n", CHOICES_MAX as u64)?.unwrap_or(1) as usize;
    if choices == 0 || choices * prompts.len() > CHOICES_MAX {
        return Err(field("n", format!("from 1 choice to {CHOICES_MAX} over all prompts")));
    }
    let tokens_max = match fields.tokens("max_completion_tokens")? {
        Some(tokens) => Some(tokens),
        None => fields.tokens("max_tokens")?,
    };
    let include_usage = match fields.object("stream_options")? {
        Some(options) => Fields(options).flag("include_usage")?,
        None => false,
    };
    Ok(Call {
        endpoint,
        model: fields.text("model")?.unwrap_or_default(),
        prompts,
        choices,
        tokens_max,
        seed: fields.seed()?,
        stops: fields.stops()?,
        stream: fields.flag("stream")?,
        include_usage,
        return_token_ids: fields.flag("return_token_ids")?,
        salt: fields.text("cache_salt")?,
        shape: if endpoint == Endpoint::Chat { shape(&object)? } else { Shape::Words },
    })
}

/// Parses the body of `/v1/embeddings`.
///
/// # Errors
/// [`Refusal`], the first fault found.
pub fn parse_embedding(body: &[u8]) -> Result<EmbeddingCall, Refusal> {
    let object = parse_object(body)?;
    let fields = Fields(&object);
    let base64 = match fields.text("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(field("encoding_format", "expected `float` or `base64`".into())),
    };
    let inputs = token_lists(&object, "input")?;
    if inputs.len() > CHOICES_MAX {
        return Err(field("input", format!("at most {CHOICES_MAX} inputs")));
    }
    Ok(EmbeddingCall { model: fields.text("model")?.unwrap_or_default(), inputs, base64 })
}

/// A body that must be a JSON object.
///
/// # Errors
/// [`Refusal::Json`], or [`Refusal::Field`] when it is JSON of another kind.
pub fn parse_object(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(field("body", "expected a JSON object".to_owned())),
        Err(error) => Err(Refusal::Json(error.to_string())),
    }
}

/// The prompt text of a body with `messages` (and perhaps `tools`).
///
/// # Errors
/// [`Refusal`] when there are no usable messages.
pub fn chat_prompt(object: &Map<String, Value>) -> Result<String, Refusal> {
    let messages = match object.get("messages") {
        None | Some(Value::Null) => return Err(Refusal::Missing("messages")),
        Some(Value::Array(messages)) if messages.is_empty() => {
            return Err(field("messages", "expected at least one message".to_owned()));
        }
        Some(Value::Array(messages)) => messages,
        Some(_) => return Err(field("messages", "expected an array".to_owned())),
    };
    let add_generation_prompt =
        Fields(object).optional_flag("add_generation_prompt")?.unwrap_or(true);
    template::render(messages, tools(object)?, add_generation_prompt)
}

/// A list of token ids from JSON.
///
/// # Errors
/// [`Refusal::Field`] for what is not an id of the vocabulary.
pub fn token_ids(name: &str, values: &[Value]) -> Result<Vec<u32>, Refusal> {
    let bad = || field(name, "expected token ids of this engine's vocabulary".to_owned());
    values
        .iter()
        .map(|value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(bad)?;
            tokenizer::token_bytes(id).map(|_| id).map_err(|_| bad())
        })
        .collect()
}

fn encode(text: &str) -> Vec<u32> {
    tokenizer::encode(text, Specials::Parsed)
}

fn field(name: &str, message: String) -> Refusal {
    Refusal::Field { field: name.to_owned(), message }
}

fn tools(object: &Map<String, Value>) -> Result<&[Value], Refusal> {
    match object.get("tools") {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(tools)) => Ok(tools),
        Some(_) => Err(field("tools", "expected an array".to_owned())),
    }
}

/// A string, several, token ids, or several lists of them.
fn token_lists(object: &Map<String, Value>, name: &'static str) -> Result<Vec<Vec<u32>>, Refusal> {
    let lists = match object.get(name) {
        None | Some(Value::Null) => return Err(Refusal::Missing(name)),
        Some(Value::String(text)) => vec![encode(text)],
        Some(Value::Array(items)) if items.first().is_some_and(Value::is_number) => {
            vec![token_ids(name, items)?]
        }
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| match item {
                Value::String(text) => Ok(encode(text)),
                Value::Array(ids) => token_ids(name, ids),
                _ => Err(field(name, "expected strings or lists of token ids".to_owned())),
            })
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(field(name, "expected a string or an array".to_owned())),
    };
    if lists.is_empty() || lists.iter().any(Vec::is_empty) {
        return Err(field(name, "must not be empty".to_owned()));
    }
    Ok(lists)
}

/// A forced tool call, JSON by `response_format`, or words.
fn shape(object: &Map<String, Value>) -> Result<Shape, Refusal> {
    let tools = tools(object)?;
    let wanted = match object.get("tool_choice") {
        Some(Value::String(choice)) if choice == "required" => Some(None),
        Some(Value::Object(choice)) => {
            let name = choice.get("function").and_then(|f| f.get("name")).and_then(Value::as_str);
            Some(Some(name.ok_or_else(|| {
                field(
                    "tool_choice",
                    "expected {\"type\":\"function\",\"function\":{\"name\":…}}".into(),
                )
            })?))
        }
        _ => None,
    };
    if let Some(wanted) = wanted {
        return tool_call(tools, wanted);
    }
    let format = object
        .get("response_format")
        .and_then(|format| format.get("type").and_then(Value::as_str).map(|kind| (kind, format)));
    Ok(match format {
        Some(("json_schema", format)) => {
            Shape::Json(format.pointer("/json_schema/schema").cloned().unwrap_or(Value::Null))
        }
        Some(("json_object", _)) => {
            Shape::Json(serde_json::json!({"properties": {"text": {"type": "string"}}}))
        }
        _ => Shape::Words,
    })
}

fn tool_call(tools: &[Value], wanted: Option<&str>) -> Result<Shape, Refusal> {
    let functions = tools.iter().filter_map(|tool| {
        let function = tool.get("function")?;
        Some((function.get("name")?.as_str()?, function))
    });
    let (name, function) = functions
        .into_iter()
        .find(|(name, _)| wanted.is_none_or(|wanted| wanted == *name))
        .ok_or_else(|| field("tool_choice", "names no function of `tools`".to_owned()))?;
    Ok(Shape::ToolCall {
        name: name.to_owned(),
        parameters: function.get("parameters").cloned().unwrap_or(Value::Null),
    })
}

/// Typed access to the fields of an object.
pub struct Fields<'a>(pub &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// A boolean that is false when absent.
    ///
    /// # Errors
    /// [`Refusal::Field`]
    pub fn flag(&self, name: &str) -> Result<bool, Refusal> {
        Ok(self.optional_flag(name)?.unwrap_or(false))
    }

    /// A boolean.
    ///
    /// # Errors
    /// [`Refusal::Field`]
    pub fn optional_flag(&self, name: &str) -> Result<Option<bool>, Refusal> {
        self.typed(name, "boolean", Value::as_bool)
    }

    /// A string.
    ///
    /// # Errors
    /// [`Refusal::Field`]
    pub fn text(&self, name: &str) -> Result<Option<String>, Refusal> {
        self.typed(name, "string", |value| value.as_str().map(str::to_owned))
    }

    fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, Refusal> {
        self.typed(name, "object", Value::as_object)
    }

    fn number(&self, name: &str, max: u64) -> Result<Option<u64>, Refusal> {
        let number = self.typed(name, "non-negative integer", Value::as_u64)?;
        match number {
            Some(number) if number > max => Err(field(name, format!("at most {max}"))),
            _ => Ok(number),
        }
    }

    /// A count of tokens; llama.cpp's `-1` is "no limit of its own".
    fn tokens(&self, name: &str) -> Result<Option<u32>, Refusal> {
        if self.0.get(name).and_then(Value::as_i64) == Some(-1) {
            return Ok(None);
        }
        Ok(self.number(name, u64::MAX)?.map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX)))
    }

    /// Any integer; `-1` is "random" in llama.cpp and absent here, so that nothing is random.
    fn seed(&self) -> Result<Option<u64>, Refusal> {
        let seed = self.typed("seed", "integer", |value| {
            value.as_i64().map(i64::cast_unsigned).or_else(|| value.as_u64())
        })?;
        Ok(seed.filter(|&seed| seed != u64::MAX))
    }

    fn stops(&self) -> Result<Vec<String>, Refusal> {
        let stops: Vec<String> = match self.0.get("stop") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::String(stop)) => vec![stop.clone()],
            Some(Value::Array(stops)) => stops
                .iter()
                .map(|stop| stop.as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .ok_or_else(|| field("stop", "expected strings".to_owned()))?,
            Some(_) => return Err(field("stop", "expected a string or an array".to_owned())),
        };
        if stops.len() > STOPS_MAX {
            return Err(field("stop", format!("at most {STOPS_MAX} strings")));
        }
        Ok(stops.into_iter().filter(|stop| !stop.is_empty()).collect())
    }

    fn typed<T>(
        &self,
        name: &str,
        kind: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                convert(value).map(Some).ok_or_else(|| field(name, format!("type must be {kind}")))
            }
        }
    }
}

#[cfg(test)]
mod tests;
