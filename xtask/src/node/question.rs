//! The question a fresh node is asked, as the `curl` line a person can repeat.
//!
//! `up` and the smoke test run exactly what is printed, so the printed line works.

use std::process::Command;

use super::Ports;
use crate::failure::Failure;
use crate::recipe::Recipe;
use crate::step;

/// Longest wait for the answer: a small model on two busy cores.
const ANSWER_S_MAX: u32 = 120;

/// What is asked. So worded, a model of 135 million parameters answers it in an English sentence.
const TEXT: &str = "What is the capital city of France? Answer in one sentence.";

/// One chat completion.
#[derive(Clone, Debug)]
pub struct Question {
    model: String,
    port: u16,
}

impl Question {
    /// The question for the model of `recipe` on a node at `ports`.
    pub fn of(recipe: &Recipe, ports: Ports) -> Question {
        Question { model: recipe.model.clone(), port: ports.http }
    }

    /// The shell line that asks it.
    pub fn curl(&self, is_streamed: bool) -> String {
        let (flags, stream) = if is_streamed { ("-sSN", "\"stream\":true,") } else { ("-sS", "") };
        format!(
            "curl {flags} http://127.0.0.1:{}/v1/chat/completions -H 'content-type: application/json' \
             -d '{{\"model\":\"{}\",{stream}\"temperature\":0,\"max_tokens\":64,\
             \"messages\":[{{\"role\":\"user\",\"content\":\"{TEXT}\"}}]}}'",
            self.port, self.model
        )
    }

    /// Asks it and answers the text that came.
    pub fn ask(&self, is_streamed: bool) -> Result<String, Failure> {
        let line = format!("{} --max-time {ANSWER_S_MAX}", self.curl(is_streamed));
        let body = step::output(Command::new("sh").args(["-c", &line])).ok_or_else(|| {
            Failure::new(format!("the node did not answer; try it by hand: {}", self.curl(false)))
        })?;
        let text: String = strings(&body, "content").concat();
        let is_whole = !is_streamed || body.trim_end().ends_with("data: [DONE]");
        if text.trim().is_empty() || !is_whole {
            let start: String = body.chars().take(400).collect();
            return Err(Failure::new(format!("the node's answer holds no whole text: {start}")));
        }
        Ok(text)
    }
}

/// The values of all string members called `key`, in order.
fn strings(json: &str, key: &str) -> Vec<String> {
    let name = format!("\"{key}\"");
    json.split(&name)
        .skip(1)
        .filter_map(|rest| {
            let rest = rest.trim_start().strip_prefix(':')?.trim_start();
            rest.strip_prefix('"').map(unescaped)
        })
        .collect()
}

/// The JSON string that begins behind its opening quote.
fn unescaped(json: &str) -> String {
    let mut text = String::new();
    let mut chars = json.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => break,
            '\\' => match chars.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some('u') => {
                    let code: String = chars.by_ref().take(4).collect();
                    let code = u32::from_str_radix(&code, 16).ok().and_then(char::from_u32);
                    text.push(code.unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                Some(other) => text.push(other),
                None => break,
            },
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_put_together_from_whole_and_streamed_answers() {
        assert_eq!(strings(r#"{"content": "a \"b\"\nc"}"#, "content"), ["a \"b\"\nc"]);
        let stream = "data: {\"delta\":{\"role\":\"assistant\",\"content\":null}}\n\n\
                      data: {\"delta\":{\"content\":\"Pa\"}}\n\ndata: {\"delta\":{\"content\":\"ris\\u0021\"}}\n";
        assert_eq!(strings(stream, "content").concat(), "Paris!");
        assert!(strings("{}", "content").is_empty());
    }

    #[test]
    fn the_line_is_plain_shell() {
        let question = Question { model: "m".to_owned(), port: 8080 };
        assert!(question.curl(true).contains("\"stream\":true"));
        assert!(
            question.curl(false).starts_with("curl -sS http://127.0.0.1:8080/v1/chat/completions ")
        );
    }
}
