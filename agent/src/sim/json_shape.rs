//! Values that fit a JSON schema, for tool calls and `response_format`.
//!
//! It follows `type`, `properties`, `required`, `items`, `enum`, `const`, `anyOf`/`oneOf`; the
//! first choice is taken. Anything else in a schema is not looked at. Depth and size are bounded,
//! so a hostile schema costs no more than a plain one.

use serde_json::{Map, Value};

use super::words::Words;

/// Deeper than this a value is `null`.
const DEPTH_MAX: usize = 16;
/// Values in one answer; past it every further one is `null`.
const VALUES_MAX: usize = 4096;

/// A value for `schema`; strings and numbers come from `words`.
pub fn fill(schema: &Value, words: &mut Words) -> Value {
    let mut values_left = VALUES_MAX;
    fill_at(schema, words, DEPTH_MAX, &mut values_left)
}

fn fill_at(schema: &Value, words: &mut Words, depth: usize, values_left: &mut usize) -> Value {
    if depth == 0 || *values_left == 0 {
        return Value::Null;
    }
    *values_left -= 1;
    if let Some(value) = schema.get("const") {
        return value.clone();
    }
    let first_of =
        |key: &str| schema.get(key).and_then(Value::as_array).and_then(|all| all.first());
    if let Some(value) = first_of("enum") {
        return value.clone();
    }
    if let Some(choice) = first_of("anyOf").or_else(|| first_of("oneOf")) {
        return fill_at(choice, words, depth - 1, values_left);
    }
    let kind = match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.first().and_then(Value::as_str),
        other => other.and_then(Value::as_str),
    };
    match kind {
        Some("string") => {
            let mut text = String::new();
            words.write_next(&mut text);
            Value::String(text.trim().to_owned())
        }
        Some("integer" | "number") => Value::from(words.number(100)),
        Some("boolean") => Value::Bool(words.number(2) == 1),
        Some("null") => Value::Null,
        Some("array") => {
            let item = schema.get("items").unwrap_or(&Value::Null);
            Value::Array(vec![fill_at(item, words, depth - 1, values_left)])
        }
        _ => fill_object(schema, words, depth, values_left),
    }
}

/// The required properties, or all of them where none is required.
fn fill_object(schema: &Value, words: &mut Words, depth: usize, values_left: &mut usize) -> Value {
    let mut object = Map::new();
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return Value::Object(object);
    };
    let required: Option<Vec<&str>> = schema
        .get("required")
        .and_then(Value::as_array)
        .map(|names| names.iter().filter_map(Value::as_str).collect());
    for (name, property) in properties {
        if required.as_ref().is_none_or(|names| names.is_empty() || names.contains(&name.as_str()))
        {
            object.insert(name.clone(), fill_at(property, words, depth - 1, values_left));
        }
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn filled(schema: &Value) -> Value {
        fill(schema, &mut Words::new(&blake3::Hasher::new()))
    }

    #[test]
    fn a_value_has_the_types_and_the_required_properties() {
        let value =
            filled(&json!({"type": "object", "required": ["a", "b", "c", "d"], "properties": {
            "a": {"type": "string"}, "b": {"type": ["integer", "null"]}, "c": {"enum": ["x", "y"]},
            "d": {"type": "array", "items": {"type": "boolean"}}, "e": {"type": "string"}}}));
        assert!(value["a"].is_string() && value["b"].is_u64() && value["d"][0].is_boolean());
        assert_eq!(value["c"], "x");
        assert!(value.get("e").is_none());
    }

    #[test]
    fn a_hostile_schema_ends() {
        let mut schema = json!({"type": "string"});
        for _ in 0..100 {
            schema = json!({"type": "array", "items": schema});
        }
        assert!(filled(&schema).to_string().ends_with("null]]]]]]]]]]]]]]]]"));
    }
}
