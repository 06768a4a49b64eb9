//! What the engine itself counted, read off the end of its answer.
//!
//! The answer is relayed byte for byte; only its last [`TAIL_BYTES`] are kept aside. `usage` (OpenAI's
//! two forms, and Anthropic's) and `timings` (llama.cpp) both come last, in streams too. A quote inside generated text is
//! escaped in JSON, so a bare `"cached_tokens":` is never text.

use std::sync::LazyLock;

use memchr::memmem::{FinderRev, rfind};

/// Kept of each answer: usage and timings together are below 1 KiB.
pub const TAIL_BYTES: usize = 4 << 10;

/// Looked for in every answer, so made once.
static USAGE: LazyLock<FinderRev<'static>> = LazyLock::new(|| FinderRev::new("\"usage\""));
static TIMINGS: LazyLock<FinderRev<'static>> = LazyLock::new(|| FinderRev::new("\"timings\""));

/// The end of one answer's payload.
#[derive(Debug, Default)]
pub struct Tail(Vec<u8>);

impl Tail {
    /// Takes payload as it passes.
    pub fn push(&mut self, payload: &[u8]) {
        if payload.len() >= TAIL_BYTES {
            self.0.clear();
            self.0.extend_from_slice(&payload[payload.len() - TAIL_BYTES..]);
            return;
        }
        if self.0.len() + payload.len() > 2 * TAIL_BYTES {
            self.0.drain(..self.0.len() - TAIL_BYTES);
        }
        self.0.extend_from_slice(payload);
    }

    /// Whether the payload so far ends an event of a stream.
    pub fn ends_event(&self) -> bool {
        self.0.is_empty() || self.0.ends_with(b"\n\n") || self.0.ends_with(b"\r\n\r\n")
    }

    /// Whether a stream said itself that it is over.
    pub fn ends_stream(&self) -> bool {
        self.0.trim_ascii_end().ends_with(b"[DONE]")
    }

    /// What the engine counted, as far as it said.
    pub fn usage(&self) -> Usage {
        // Both end an answer, so what is counted lies behind the first of them found from the end on.
        let begin = [&*USAGE, &*TIMINGS].map(|key| key.rfind(&self.0));
        let Some(begin) = begin.into_iter().flatten().min() else { return Usage::default() };
        let number = |key: &str| number_after(&self.0[begin..], key);
        let computed = number("\"prompt_n\":");
        let cached = number("\"cached_tokens\":").or_else(|| number("\"cache_n\":"));
        Usage {
            prompt_tokens: number("\"prompt_tokens\":")
                .or_else(|| number("\"input_tokens\":"))
                .or_else(|| Some(computed? + cached.unwrap_or(0))),
            cached_tokens: cached,
            completion_tokens: number("\"completion_tokens\":")
                .or_else(|| number("\"output_tokens\":"))
                .or_else(|| number("\"predicted_n\":")),
        }
    }
}

/// The engine's own counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: Option<u64>,
    /// Of these, taken from the KV cache.
    pub cached_tokens: Option<u64>,
    /// Tokens generated.
    pub completion_tokens: Option<u64>,
}

fn number_after(bytes: &[u8], key: &str) -> Option<u64> {
    let at = rfind(bytes, key.as_bytes())? + key.len();
    let digits: Vec<u8> = bytes[at..]
        .trim_ascii_start()
        .iter()
        .take(19)
        .copied()
        .take_while(u8::is_ascii_digit)
        .collect();
    std::str::from_utf8(&digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn usage(text: &str) -> Usage {
        let mut tail = Tail::default();
        tail.push(text.as_bytes());
        tail.usage()
    }

    #[test]
    fn openai_usage_and_llama_timings_are_read() {
        let openai = r#"{"usage":{"completion_tokens":20,"prompt_tokens": 37,"prompt_tokens_details":{"cached_tokens":16}}}"#;
        assert_eq!(
            usage(openai),
            Usage { prompt_tokens: Some(37), cached_tokens: Some(16), completion_tokens: Some(20) }
        );
        let timings = r#""timings":{"cache_n":36,"prompt_n":1,"prompt_ms":20.2,"predicted_n":5,"#;
        assert_eq!(
            usage(timings),
            Usage { prompt_tokens: Some(37), cached_tokens: Some(36), completion_tokens: Some(5) }
        );
        let responses = r#"{"usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":4},"output_tokens":3}}"#;
        assert_eq!(
            usage(responses),
            Usage { prompt_tokens: Some(9), cached_tokens: Some(4), completion_tokens: Some(3) }
        );
        assert_eq!(usage("data: [DONE]\n\n"), Usage::default());
        assert_eq!(usage(r#"{"content":"say \"cached_tokens\":9"}"#).cached_tokens, None);
        assert_eq!(usage(r#""prompt_tokens_details":null"#), Usage::default());
    }

    proptest! {
        #[test]
        fn any_cut_keeps_at_least_the_tail(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..12)
        ) {
            let mut tail = Tail::default();
            for part in &parts {
                tail.push(part);
                prop_assert!(tail.0.len() <= 2 * TAIL_BYTES);
            }
            let all = parts.concat();
            let kept = &tail.0;
            prop_assert!(all.ends_with(kept));
            prop_assert!(kept.len() >= all.len().min(TAIL_BYTES));
        }
    }
}
