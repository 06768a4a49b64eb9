//! The chat template: ChatML, as SmolLM2 and Qwen have it.
//!
//! ```text
//! <|im_start|>system\n…<|im_end|>\n<|im_start|>user\n…<|im_end|>\n<|im_start|>assistant\n
//! ```
//!
//! Tools are listed in the system message (one is added where the chat has none), tool calls of
//! earlier turns are written out inside the assistant's message. Pure; the messages come from
//! outside and are checked here.

use serde_json::Value;

use super::refusal::Refusal;

/// Marks the template for `/props`.
pub const NAME: &str = "chatml";
/// The same template in Jinja, as `/props` shows it.
pub const JINJA: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + \
    '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}\
    {{ '<|im_start|>assistant\\n' }}{% endif %}";

/// The prompt of a chat.
///
/// # Errors
/// [`Refusal::Field`] for a message that is not one, or content other than text.
pub fn render(
    messages: &[Value],
    tools: &[Value],
    add_generation_prompt: bool,
) -> Result<String, Refusal> {
    let mut prompt = String::new();
    let starts_with_system = messages
        .first()
        .is_some_and(|first| first.get("role").and_then(Value::as_str) == Some("system"));
    if !tools.is_empty() && !starts_with_system {
        write_message(&mut prompt, "system", &with_tools("", tools));
    }
    for (index, message) in messages.iter().enumerate() {
        let role = message.get("role").and_then(Value::as_str).ok_or_else(|| Refusal::Field {
            field: format!("messages[{index}].role"),
            message: "expected a string".to_owned(),
        })?;
        let mut content = content_text(message.get("content"), index)?;
        if let Some(calls) = message.get("tool_calls").and_then(Value::as_array) {
            for call in calls {
                let function = call.get("function").unwrap_or(&Value::Null);
                content.push_str(&format!("<tool_call>\n{function}\n</tool_call>"));
            }
        }
        if index == 0 && starts_with_system && !tools.is_empty() {
            content = with_tools(&content, tools);
        }
        write_message(&mut prompt, role, &content);
    }
    if add_generation_prompt {
        prompt.push_str("<|im_start|>assistant\n");
    }
    Ok(prompt)
}

fn write_message(prompt: &mut String, role: &str, content: &str) {
    prompt.push_str("<|im_start|>");
    prompt.push_str(role);
    prompt.push('\n');
    prompt.push_str(content);
    prompt.push_str("<|im_end|>\n");
}

fn with_tools(system: &str, tools: &[Value]) -> String {
    let mut text = system.to_owned();
    if !text.is_empty() {
        text.push_str("\n\n");
    }
    text.push_str("# Tools\n<tools>\n");
    for tool in tools {
        text.push_str(&tool.to_string());
        text.push('\n');
    }
    text.push_str("</tools>");
    text
}

fn content_text(content: Option<&Value>, index: usize) -> Result<String, Refusal> {
    let refuse =
        |message: String| Refusal::Field { field: format!("messages[{index}].content"), message };
    match content {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => {
            let mut text = String::new();
            for part in parts {
                match (part.get("type").and_then(Value::as_str), part.get("text")) {
                    (Some("text"), Some(Value::String(piece))) => text.push_str(piece),
                    (Some(kind), _) if kind != "text" => {
                        return Err(refuse(format!("this engine takes text only, not `{kind}`")));
                    }
                    _ => {
                        return Err(refuse("expected {\"type\":\"text\",\"text\":…}".into()));
                    }
                }
            }
            Ok(text)
        }
        Some(_) => Err(refuse("expected a string or an array".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_chat_is_rendered_as_chatml() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let calls = json!([{"function": {"name": "f"}}]);
        let messages = [
            json!({"role": "user", "content": parts}),
            json!({"role": "assistant", "content": null, "tool_calls": calls}),
        ];
        assert_eq!(
            render(&messages, &[], true).unwrap(),
            "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{\"name\":\"f\"}\n\
             </tool_call><|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn tools_stand_in_the_one_system_message() {
        let tools = [json!({"type": "function"})];
        let listed = "# Tools\n<tools>\n{\"type\":\"function\"}\n</tools><|im_end|>\n";
        let bare = render(&[json!({"role": "user", "content": "x"})], &tools, false).unwrap();
        assert!(bare.starts_with(&format!("<|im_start|>system\n{listed}")));
        let own = render(&[json!({"role": "system", "content": "s"})], &tools, false).unwrap();
        assert_eq!(own, format!("<|im_start|>system\ns\n\n{listed}"));
    }

    #[test]
    fn an_earlier_turn_is_a_prefix_of_the_later_one() {
        let first = json!({"role": "user", "content": "x"});
        let turn_1 = render(std::slice::from_ref(&first), &[], true).unwrap();
        let answer = json!({"role": "assistant", "content": "said"});
        let turn_2 =
            render(&[first, answer, json!({"role": "user", "content": "y"})], &[], true).unwrap();
        assert!(turn_2.starts_with(&format!("{turn_1}said<|im_end|>\n")));
    }

    #[test]
    fn what_is_not_text_is_refused_by_name() {
        for content in
            [json!(5), json!([{"type": "image_url"}]), json!([{"text": "x"}]), json!([7])]
        {
            let refused = render(&[json!({"role": "user", "content": content})], &[], true);
            let Err(Refusal::Field { field, .. }) = refused else { panic!("{refused:?}") };
            assert_eq!(field, "messages[0].content");
        }
        assert!(render(&[json!("x")], &[], true).is_err());
    }
}
