//! Phase *parse*: the few fields of the body the router needs, and nothing else.
//!
//! The body is walked once at its top level; values are kept as ranges into the original bytes,
//! which are what the engine gets. Fields the router does not know are none of its business.

use std::ops::Range;

use sonic_rs::{JsonType, JsonValueTrait, LazyValue};

use crate::error::RequestError;
use crate::openai::Endpoint;
use crate::read::Request;

/// A model's name in a form is not longer.
const FORM_VALUE_BYTES_MAX: usize = 256;

/// Objects and arrays may nest so deep. Parsers that walk down by recursion end there or close by (128
/// in serde_json, 200 in pydantic's), and the one below would run off its stack at 5,680 levels.
pub const NESTING_MAX: usize = 128;

/// A request body as far as the router reads it. Ranges are into the body.
#[derive(Clone, Debug)]
pub struct Call {
    /// Where it goes.
    pub endpoint: Endpoint,
    /// The model asked for.
    pub model: String,
    /// Whether the answer is a stream of events.
    pub stream: bool,
    /// What the engine will compute KV for.
    pub prompt: Prompt,
    /// vLLM's per-tenant salt: prefixes under different salts are never shared.
    pub cache_salt: Option<String>,
    /// `prompt_cache_key`, else `user`: a string that is not empty, raw JSON with its quotes.
    pub session: Option<Range<usize>>,
}

/// Where the prompt lies in the body.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// A chat.
    Chat {
        /// The `messages` array, raw JSON.
        messages: Range<usize>,
        /// The `tools` array, raw JSON: templates put it before the messages.
        tools: Option<Range<usize>>,
    },
    /// `prompt`: one string, raw JSON with its quotes.
    Text(Range<usize>),
    /// `prompt`: token ids.
    Tokens(Range<usize>),
    /// What an endpoint that the router does not know computes KV for, raw JSON: only its text names it.
    Opaque(Range<usize>),
    /// Several prompts, or inputs of an embedding: no single prefix.
    Many,
}

/// Reads what `request` asks of `endpoint`.
///
/// # Errors
/// [`RequestError::Json`] and [`RequestError::Field`].
pub fn call(endpoint: Endpoint, request: &Request) -> Result<Call, RequestError> {
    match endpoint {
        Endpoint::Other if !request.is_json() => multipart_call(request.body()),
        _ => json_call(endpoint, request.body()),
    }
}

/// A form, as audio is uploaded in: only its `model` is read.
fn multipart_call(body: &[u8]) -> Result<Call, RequestError> {
    let model = form_field(body, b"name=\"model\"")
        .ok_or_else(|| field("model", "you must provide a `model` parameter"))?;
    Ok(Call {
        endpoint: Endpoint::Other,
        model,
        stream: false,
        prompt: Prompt::Many,
        cache_salt: None,
        session: None,
    })
}

/// The value of a short text field of a form (RFC 7578): what follows its part's empty line, up to the
/// next line.
fn form_field(body: &[u8], name: &[u8]) -> Option<String> {
    let part = &body[memchr::memmem::find(body, name)? + name.len()..];
    let value = &part[memchr::memmem::find(part, b"\r\n\r\n")? + 4..];
    let end = memchr::memmem::find(value, b"\r\n")?;
    let value = std::str::from_utf8(value.get(..end)?).ok()?;
    (1..=FORM_VALUE_BYTES_MAX).contains(&value.len()).then(|| value.to_owned())
}

/// Reads a JSON `body` for `endpoint`.
///
/// # Errors
/// [`RequestError::Json`] and [`RequestError::Field`].
pub fn json_call(endpoint: Endpoint, body: &[u8]) -> Result<Call, RequestError> {
    let text = std::str::from_utf8(body).map_err(|error| {
        RequestError::Json(format!("not UTF-8 at byte {}", error.valid_up_to()))
    })?;
    if is_too_deep(body) {
        let message = format!("objects and arrays are nested more than {NESTING_MAX} levels deep");
        return Err(RequestError::Json(message));
    }
    let mut found = Fields::default();
    walk(text, &mut found)?;
    let model = match &found.model {
        None => return Err(field("model", "you must provide a `model` parameter")),
        Some(value) => value
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| field("model", "`model` must be a string"))?,
    };
    let stream = match &found.stream {
        None => false,
        Some(value) if value.is_null() => false,
        Some(value) => {
            value.as_bool().ok_or_else(|| field("stream", "`stream` must be a boolean"))?
        }
    };
    let cache_salt = found.cache_salt.as_ref().and_then(|value| value.as_str()).map(str::to_owned);
    let prompt = match endpoint {
        Endpoint::Chat => chat_prompt(text, &found)?,
        Endpoint::Completions => completion_prompt(text, &found)?,
        Endpoint::Embeddings => embedding_input(&found)?,
        Endpoint::Other => opaque_prompt(text, &found),
    };
    let session = session(text, &found);
    Ok(Call { endpoint, model, stream, prompt, cache_salt, session })
}

/// Whether JSON nests deeper than [`NESTING_MAX`]. For whoever gives bytes from outside to a parser
/// that recurses.
pub fn is_too_deep(json: &[u8]) -> bool {
    nests_deeper(json, NESTING_MAX)
}

/// Whether JSON nests deeper than `levels_max`.
///
/// A body with few brackets cannot, and that is all that most bodies are asked. Up to the first error of
/// syntax, where every parser stops, strings end here where they end for the parser.
pub fn nests_deeper(json: &[u8], levels_max: usize) -> bool {
    if memchr::memchr2_iter(b'{', b'[', json).nth(levels_max).is_none() {
        return false;
    }
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(&byte) = json.get(at) {
        at += 1;
        match byte {
            b'{' | b'[' if depth == levels_max => return true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => at = end_of_string(json, at),
            _ => {}
        }
    }
    false
}

/// The place behind the quote that ends the string whose content begins at `at`.
fn end_of_string(json: &[u8], mut at: usize) -> usize {
    while let Some(found) = json.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += found + 1;
        if json[at - 1] == b'"' {
            return at;
        }
        at += 1;
    }
    json.len()
}

#[derive(Default)]
struct Fields<'a> {
    model: Option<LazyValue<'a>>,
    stream: Option<LazyValue<'a>>,
    messages: Option<LazyValue<'a>>,
    tools: Option<LazyValue<'a>>,
    prompt: Option<LazyValue<'a>>,
    input: Option<LazyValue<'a>>,
    cache_salt: Option<LazyValue<'a>>,
    prompt_cache_key: Option<LazyValue<'a>>,
    user: Option<LazyValue<'a>>,
}

/// One pass over the top level. As in every JSON parser of the engines, the last of equal keys wins.
fn walk<'a>(text: &'a str, found: &mut Fields<'a>) -> Result<(), RequestError> {
    let trimmed = text.trim_ascii();
    if !trimmed.starts_with('{') || !trimmed.ends_with('}') {
        return Err(RequestError::Json("the body must be one JSON object".to_owned()));
    }
    let mut end = 0;
    for entry in sonic_rs::to_object_iter(trimmed) {
        let (key, value) =
            entry.map_err(|error| RequestError::Json(first_line(&error.to_string())))?;
        end = offset_in(trimmed, value.as_raw_str()).end;
        match key.as_ref() {
            "model" => found.model = Some(value),
            "stream" => found.stream = Some(value),
            "messages" => found.messages = Some(value),
            "tools" => found.tools = Some(value),
            "prompt" => found.prompt = Some(value),
            "input" => found.input = Some(value),
            "cache_salt" => found.cache_salt = Some(value),
            "prompt_cache_key" => found.prompt_cache_key = Some(value),
            "user" => found.user = Some(value),
            _ => {}
        }
    }
    // The iterator stops at the brace that closes the object; nothing may follow it.
    match trimmed[end..].trim_ascii() {
        "}" => Ok(()),
        "{}" if end == 0 => Ok(()),
        rest if end == 0 && rest.len() > 2 && rest[1..rest.len() - 1].trim_ascii().is_empty() => {
            Ok(())
        }
        _ => Err(RequestError::Json("unexpected bytes after the object".to_owned())),
    }
}

/// OpenAI's name for requests that share a prefix, else its older one for who asks.
fn session(text: &str, found: &Fields<'_>) -> Option<Range<usize>> {
    let mut values = [&found.prompt_cache_key, &found.user].into_iter().flatten();
    let value = values.find(|value| value.is_str() && value.as_raw_str().len() > 2)?;
    Some(offset_in(text, value.as_raw_str()))
}

fn chat_prompt(text: &str, found: &Fields<'_>) -> Result<Prompt, RequestError> {
    let messages = array(found.messages.as_ref(), "messages")?;
    let tools = match &found.tools {
        Some(value) if !value.is_null() => Some(array(Some(value), "tools")?),
        _ => None,
    };
    Ok(Prompt::Chat {
        messages: offset_in(text, messages.as_raw_str()),
        tools: tools.map(|tools| offset_in(text, tools.as_raw_str())),
    })
}

fn completion_prompt(text: &str, found: &Fields<'_>) -> Result<Prompt, RequestError> {
    let wrong = || {
        field("prompt", "`prompt` must be a string, an array of strings or an array of token ids")
    };
    let value = found
        .prompt
        .as_ref()
        .ok_or_else(|| field("prompt", "you must provide a `prompt` parameter"))?;
    let raw = value.as_raw_str();
    match value.get_type() {
        JsonType::String => Ok(Prompt::Text(offset_in(text, raw))),
        JsonType::Array => match raw[1..].trim_ascii_start().as_bytes().first() {
            Some(b'0'..=b'9') => Ok(Prompt::Tokens(offset_in(text, raw))),
            Some(b'"' | b'[') => Ok(Prompt::Many),
            _ => Err(wrong()),
        },
        _ => Err(wrong()),
    }
}

fn embedding_input(found: &Fields<'_>) -> Result<Prompt, RequestError> {
    match &found.input {
        None => Err(field("input", "you must provide an `input` parameter")),
        Some(value) if matches!(value.get_type(), JsonType::String | JsonType::Array) => {
            Ok(Prompt::Many)
        }
        Some(_) => Err(field("input", "`input` must be a string or an array")),
    }
}

/// `messages` of Anthropic's API, `input` of responses, whatever is there.
fn opaque_prompt(text: &str, found: &Fields<'_>) -> Prompt {
    let value = [&found.messages, &found.input, &found.prompt].into_iter().flatten().next();
    match value {
        Some(value) if value.as_raw_str().len() > 2 => {
            Prompt::Opaque(offset_in(text, value.as_raw_str()))
        }
        _ => Prompt::Many,
    }
}

fn array<'a, 'b>(
    value: Option<&'b LazyValue<'a>>,
    param: &'static str,
) -> Result<&'b LazyValue<'a>, RequestError> {
    match value {
        None => Err(field(param, &format!("you must provide a `{param}` parameter"))),
        Some(value) if value.is_array() => Ok(value),
        Some(_) => Err(field(param, &format!("`{param}` must be an array"))),
    }
}

fn field(param: &'static str, message: &str) -> RequestError {
    RequestError::Field { param, message: message.to_owned() }
}

fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or(message).to_owned()
}

/// The range of `part` in `whole`; `part` must be a subslice of it.
fn offset_in(whole: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chat(body: &str) -> Result<Call, RequestError> {
        json_call(Endpoint::Chat, body.as_bytes())
    }

    #[test]
    fn a_chat_is_read_without_its_unknown_fields() {
        let body = r#" {"x":{"model":"no"},"model":"m","stream":true,"messages":[{"role":"user","content":"}"}],"tools":[1],"t":0.30} "#;
        let call = chat(body).unwrap();
        assert_eq!((call.model.as_str(), call.stream), ("m", true));
        let Prompt::Chat { messages, tools } = call.prompt else { panic!("not a chat") };
        assert_eq!(&body[messages], r#"[{"role":"user","content":"}"}]"#);
        assert_eq!(&body[tools.unwrap()], "[1]");
    }

    #[test]
    fn malformed_bodies_are_refused_as_json() {
        for body in [
            "",
            "null",
            "[]",
            "{",
            "{\"model\":\"m\"",
            "{\"model\":\"m\",}",
            "{\"a\":1}}",
            "{\"a\":1} {\"b\":2}",
            "{'model':1}",
            "{\"model\":\"m\",\"messages\":[1,}",
            "{\"a\":tru}",
            "{\"a\":1,\"b\":}",
            "nonsense",
            "{\"a\" 1}",
            "{\"model\":\"m\",\"messages\":[{\"a\":\"unterminated}]}",
        ] {
            assert!(matches!(chat(body), Err(RequestError::Json(_))), "{body:?} {:?}", chat(body));
        }
        assert!(matches!(
            json_call(Endpoint::Chat, b"{\"a\":\"\xff\"}"),
            Err(RequestError::Json(_))
        ));
    }

    #[test]
    fn wrong_types_name_the_field() {
        let param = |endpoint, body: &str| match json_call(endpoint, body.as_bytes()) {
            Err(RequestError::Field { param, .. }) => param,
            other => panic!("{body}: {other:?}"),
        };
        assert_eq!(param(Endpoint::Chat, "{}"), "model");
        assert_eq!(param(Endpoint::Chat, "{ }"), "model");
        assert_eq!(param(Endpoint::Chat, r#"{"model":3}"#), "model");
        assert_eq!(param(Endpoint::Chat, r#"{"model":"m"}"#), "messages");
        assert_eq!(param(Endpoint::Chat, r#"{"model":"m","messages":"hi"}"#), "messages");
        assert_eq!(
            param(Endpoint::Chat, r#"{"model":"m","stream":"yes","messages":[]}"#),
            "stream"
        );
        assert_eq!(param(Endpoint::Chat, r#"{"model":"m","tools":{},"messages":[]}"#), "tools");
        assert_eq!(param(Endpoint::Completions, r#"{"model":"m","prompt":{}}"#), "prompt");
        assert_eq!(param(Endpoint::Completions, r#"{"model":"m","prompt":[]}"#), "prompt");
        assert_eq!(param(Endpoint::Embeddings, r#"{"model":"m","input":1}"#), "input");
    }

    #[test]
    fn prompts_are_told_apart() {
        let prompt = |body: &str| json_call(Endpoint::Completions, body.as_bytes()).unwrap().prompt;
        assert!(matches!(prompt(r#"{"model":"m","prompt":"x"}"#), Prompt::Text(_)));
        assert!(matches!(prompt(r#"{"model":"m","prompt":[ 1,2]}"#), Prompt::Tokens(_)));
        assert!(matches!(prompt(r#"{"model":"m","prompt":["a","b"]}"#), Prompt::Many));
    }

    #[test]
    fn nesting_is_bounded_however_it_is_written() {
        let nested = |open: &str, close: &str, levels: usize| {
            let (open, close) = (open.repeat(levels), close.repeat(levels));
            format!(r#"{{"model":"m","x":{open}1{close},"messages":[]}}"#)
        };
        // The object itself is the first level.
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}"), (r#"[{"\"[":"#, "}]")] {
            let step = open.matches(['[', '{']).count() - usize::from(open.contains("\"["));
            let levels = (NESTING_MAX - 1) / step;
            assert!(chat(&nested(open, close, levels)).is_ok(), "{open}");
            assert!(matches!(
                chat(&nested(open, close, levels + 1)),
                Err(RequestError::Json(message)) if message.contains("levels deep")
            ));
            assert!(matches!(chat(&nested(open, close, 1_000_000)), Err(RequestError::Json(_))));
        }
        assert!(chat(&"[".repeat(10_000_000)).is_err());
        assert!(chat(&r#"{"a":"#.repeat(5_000_000)).is_err());
    }

    #[test]
    fn brackets_in_text_and_side_by_side_are_not_nesting() {
        let text = "[{".repeat(1_000) + r#"\\\"]"#;
        let wide = "[],{},".repeat(1_000);
        let body = format!(r#"{{"model":"m","messages":[{wide}{{"content":"{text}"}}]}}"#);
        assert!(chat(&body).is_ok());
    }

    proptest! {
        #[test]
        fn depth_is_counted_as_a_parser_counts_it(
            parts in prop::collection::vec(
                prop::sample::select(vec!["[", "{\"a\":", "\"[\\\"{\\\\\",", "1,"]), 0..400,
            )
        ) {
            // Only opens: the depth is the number of brackets outside of strings.
            let depth = parts.iter().filter(|part| matches!(**part, "[" | "{\"a\":")).count();
            prop_assert_eq!(is_too_deep(parts.concat().as_bytes()), depth > NESTING_MAX);
        }

        #[test]
        fn hostile_bodies_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = json_call(Endpoint::Chat, &bytes);
        }

        #[test]
        fn what_a_strict_parser_takes_is_taken_and_what_it_refuses_is_refused(
            text in "[{}\\[\\]\",:a1 ]{0,24}"
        ) {
            let strict: Result<serde_json::Map<String, serde_json::Value>, _> = serde_json::from_str(&text);
            let ours = chat(&text);
            prop_assert_eq!(strict.is_err(), matches!(ours, Err(RequestError::Json(_))), "{:?} {:?}", text, ours);
        }
    }
}
