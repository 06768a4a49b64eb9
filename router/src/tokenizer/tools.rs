//! Tools and tool calls as vLLM and SGLang hand them to a chat template. Pure.

use dataplane::wire::EngineKind;
use minijinja::value::{Value, ValueKind};

use super::conversation::Refusal;
use crate::parse::is_too_deep;

/// Tool calls with their arguments parsed: clients send them as strings, templates want objects.
pub fn prepare_calls(calls: &Value) -> Result<Vec<Value>, Refusal> {
    if calls.is_none() || calls.is_undefined() {
        return Ok(Vec::new());
    }
    let refuse = |_| Refusal::Field("tool_calls");
    let mut prepared = Vec::new();
    for call in calls.try_iter().map_err(refuse)? {
        let function = call.get_attr("function").map_err(refuse)?;
        let mut fields = pairs(&function)?;
        let arguments = fields.iter().find(|(name, _)| name == "arguments").map(|(_, v)| v.clone());
        let parsed = match arguments {
            Some(text) if text.as_str().is_some() => parsed(text.as_str().unwrap_or_default())?,
            Some(value) if matches!(value.kind(), ValueKind::Map | ValueKind::Seq) => value,
            _ => empty(),
        };
        match fields.iter_mut().find(|(name, _)| name == "arguments") {
            Some((_, value)) => *value = parsed,
            None => fields.push(("arguments".to_owned(), parsed)),
        }
        let function = Value::from_pairs(fields);
        let call = pairs(&call)?.into_iter().map(|(name, value)| match name.as_str() {
            "function" => (name, function.clone()),
            _ => (name, value),
        });
        prepared.push(Value::from_pairs(call));
    }
    Ok(prepared)
}

/// What is no JSON counts as an empty object. JSON within a string was not looked at when the body was.
fn parsed(arguments: &str) -> Result<Value, Refusal> {
    if is_too_deep(arguments.as_bytes()) {
        return Err(Refusal::Field("tool_calls"));
    }
    Ok(sonic_rs::from_str(arguments).unwrap_or_else(|_| empty()))
}

fn empty() -> Value {
    Value::from_pairs(Vec::<(String, Value)>::new())
}

/// The pairs of a map, in order.
pub fn pairs(map: &Value) -> Result<Vec<(String, Value)>, Refusal> {
    if map.kind() != ValueKind::Map {
        return Err(Refusal::Field("an object"));
    }
    let keys = map.try_iter().map_err(|_| Refusal::Field("an object"))?;
    keys.map(|key| {
        let value = map.get_item(&key).map_err(|_| Refusal::Field("an object"))?;
        Ok((key.as_str().unwrap_or_default().to_owned(), value))
    })
    .collect()
}

/// A tool with the fields its engine's data model gives it, in their order; what it does not know follows.
pub fn prepare_tool(kind: EngineKind, tool: &Value) -> Result<Value, Refusal> {
    let function = tool.get_attr("function").map_err(|_| Refusal::Field("tools"))?;
    let given = pairs(&function).map_err(|_| Refusal::Field("tools"))?;
    let known: &[(&str, Option<bool>)] = match kind {
        EngineKind::Sglang => {
            &[("description", None), ("name", None), ("parameters", None), ("strict", Some(false))]
        }
        _ => &[("name", None), ("description", None), ("parameters", None)],
    };
    let mut fields: Vec<(String, Value)> = Vec::new();
    for (name, default) in known {
        let found = given.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let default = || default.map_or(Value::from(()), Value::from);
        fields.push(((*name).to_owned(), found.unwrap_or_else(default)));
    }
    if kind == EngineKind::Sglang {
        return Ok(Value::from_pairs(fields));
    }
    fields
        .extend(given.into_iter().filter(|(name, _)| known.iter().all(|(known, _)| known != name)));
    let mut whole = vec![
        ("type".to_owned(), Value::from("function")),
        ("function".to_owned(), Value::from_pairs(fields)),
    ];
    let others = pairs(tool).map_err(|_| Refusal::Field("tools"))?.into_iter();
    whole.extend(others.filter(|(name, _)| name != "type" && name != "function"));
    Ok(Value::from_pairs(whole))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::python::{JsonStyle, json};

    fn value(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    fn written(value: &Value) -> String {
        json(value, &JsonStyle::new(None)).unwrap()
    }

    #[test]
    fn tools_get_their_defaults_in_the_engines_order() {
        let tool = value(
            r#"{"function":{"parameters":{"z":1},"name":"f","strict":true},"type":"function"}"#,
        );
        assert_eq!(
            written(&prepare_tool(EngineKind::Vllm, &tool).unwrap()),
            r#"{"type": "function", "function": {"name": "f", "description": null, "parameters": {"z": 1}, "strict": true}}"#
        );
        assert_eq!(
            written(&prepare_tool(EngineKind::Sglang, &tool).unwrap()),
            r#"{"description": null, "name": "f", "parameters": {"z": 1}, "strict": true}"#
        );
    }

    #[test]
    fn arguments_are_parsed_or_nothing() {
        let call = |arguments: &str| {
            let arguments = serde_json::Value::from(arguments);
            value(&format!(r#"[{{"function":{{"name":"f","arguments":{arguments}}}}}]"#))
        };
        let prepared =
            |arguments: &str| Some(written(prepare_calls(&call(arguments)).ok()?.first()?));
        let around =
            |inner: &str| format!(r#"{{"function": {{"name": "f", "arguments": {inner}}}}}"#);
        assert_eq!(prepared(r#"{"b":[1],"a":2}"#), Some(around(r#"{"b": [1], "a": 2}"#)));
        for broken in ["", " ", "{", "{\"a\":}", "\\ud800"] {
            assert_eq!(prepared(broken), Some(around("{}")), "{broken}");
        }
        assert_eq!(prepared(&"[".repeat(1_000_000)), None, "nests too deep");
        assert_eq!(prepared(&r#"{"a":"#.repeat(1_000_000)), None, "nests too deep");
    }
}
