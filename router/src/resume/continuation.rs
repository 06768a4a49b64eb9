//! How a stream goes on: what another worker is asked, from the client's own bytes and what was sent.
//!
//! There are two ways.
//!
//! * *Replay* asks the same again and leaves out what the client has. It holds where the engine says
//!   the same again (greedy, seeded), keeps grammars, tools, reasoning and the engine's own counts, and
//!   notices where the words differ. It costs the tokens sent a second time.
//! * *Continue* gives the engine what was said and lets it go on. It costs one prefill. KV of a prefill
//!   is not, to the last bit, KV of decoding: SmolLM2 on llama.cpp went on with other words after 8 of
//!   50 cuts, after 9 of 50 where it was given the exact token ids, and after none of 40 replays.
//!
//! So engines whose numbers do not depend on their load replay where they can; vLLM and SGLang, whose
//! batches change the numbers anyway and whose answers are long, continue where they can.

use std::borrow::Cow;

use dataplane::wire::EngineKind;

use crate::openai::Endpoint;
use crate::resume::asked::{Asked, LIMIT_FIELDS};
use crate::resume::object::{appended, string};
use crate::resume::rewrite::Rewriter;
use crate::resume::transcript::{Transcript, Unsafe};

/// An answer is said again up to so many tokens: at 50 tokens a second 20 s in which the client hears
/// nothing. A longer one is continued.
pub const REPLAY_TOKENS_MAX: u64 = 1024;

/// How another worker goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The same request; what the client has is left out of the answer.
    Replay,
    /// What was said is given as the beginning of the answer.
    Continue,
}

impl Way {
    /// The name used in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Way::Replay => "replay",
            Way::Continue => "continue",
        }
    }
}

/// One request to another worker, to the path of the first.
#[derive(Debug)]
pub struct Ask<'a> {
    /// How it goes on.
    pub way: Way,
    /// The body to send; in a replay the client's own.
    pub body: Cow<'a, [u8]>,
    /// Makes the client's events of the answer.
    pub rewriter: Rewriter,
}

/// What is to be done for a stream whose engine died.
#[derive(Debug)]
pub enum Plan<'a> {
    /// The answer was complete: these bytes end the stream. A usage event that was still to come is
    /// lost with the engine that counted.
    Finish(&'static [u8]),
    /// Ask another worker. Where it refuses the first way, or its answer differs from what was sent
    /// ([`crate::resume::Broken::Deviated`]), the next is tried; there are one or two.
    Ask(Vec<Ask<'a>>),
}

/// Decides how the answer to `body` goes on, on an engine of `kind`.
///
/// # Errors
/// [`Unsafe`].
pub fn plan<'a>(
    endpoint: Endpoint,
    kind: EngineKind,
    body: &'a [u8],
    sent: &Transcript,
) -> Result<Plan<'a>, Unsafe> {
    if sent.done {
        return Ok(Plan::Finish(b""));
    }
    if sent.finished {
        return Ok(Plan::Finish(b"data: [DONE]\n\n"));
    }
    let asked = Asked::read(endpoint, body)?;
    let can_replay =
        sent.is_silent() || (asked.is_deterministic() && sent.tokens() <= REPLAY_TOKENS_MAX);
    let replay = can_replay.then(|| Ask {
        way: Way::Replay,
        body: Cow::Borrowed(body),
        rewriter: Rewriter::replay(endpoint, sent),
    });
    if sent.is_silent() {
        return Ok(Plan::Ask(replay.into_iter().collect()));
    }
    let continued = continued(&asked, kind, sent).map(|body| Ask {
        way: Way::Continue,
        body: Cow::Owned(body.into_bytes()),
        rewriter: Rewriter::continuation(endpoint, sent),
    });
    let asks = match (replay, continued) {
        (None, Err(error)) => return Err(error),
        (None, Ok(continued)) => vec![continued],
        (Some(replay), Err(_)) => vec![replay],
        (Some(replay), Ok(continued)) => match kind {
            EngineKind::Vllm | EngineKind::Sglang => vec![continued, replay],
            EngineKind::LlamaCpp | EngineKind::TensorrtLlm | EngineKind::OpenaiCompat => {
                vec![replay, continued]
            }
        },
    };
    Ok(Plan::Ask(asks))
}

/// The body that lets an engine go on from what was said.
fn continued(asked: &Asked<'_>, kind: EngineKind, sent: &Transcript) -> Result<String, Unsafe> {
    asked.can_be_continued()?;
    if !sent.reasoning.is_empty() {
        return Err(Unsafe::Reasoning);
    }
    let limits = reduced_limits(asked, sent.tokens())?;
    let mut changes: Vec<(&str, Option<&str>)> =
        limits.iter().map(|(key, left)| (*key, Some(left.as_str()))).collect();
    let prompt;
    match asked.endpoint {
        Endpoint::Chat => {
            prompt = continued_messages(asked, kind, sent)?;
            changes.extend([
                ("messages", Some(prompt.as_str())),
                ("continue_final_message", Some("true")),
                ("add_generation_prompt", Some("false")),
            ]);
        }
        Endpoint::Completions => {
            prompt = continued_prompt(asked, kind, sent)?;
            changes.push(("prompt", Some(prompt.as_str())));
        }
        Endpoint::Embeddings | Endpoint::Other => return Err(Unsafe::NotText),
    }
    Ok(asked.body.with(&changes))
}

/// The conversation with what was said as its last message, left open.
fn continued_messages(
    asked: &Asked<'_>,
    kind: EngineKind,
    sent: &Transcript,
) -> Result<String, Unsafe> {
    match kind {
        EngineKind::LlamaCpp | EngineKind::Vllm | EngineKind::Sglang => {}
        EngineKind::TensorrtLlm | EngineKind::OpenaiCompat => return Err(Unsafe::Engine),
    }
    let message = format!("{{\"role\":\"assistant\",\"content\":{}}}", string(&sent.text));
    asked.body.get("messages").and_then(|raw| appended(raw, &message)).ok_or(Unsafe::Unreadable)
}

/// The prompt with what was said behind it: by token ids where they are known, else by text.
fn continued_prompt(
    asked: &Asked<'_>,
    kind: EngineKind,
    sent: &Transcript,
) -> Result<String, Unsafe> {
    let prompt = asked.body.get("prompt").ok_or(Unsafe::Unreadable)?;
    let said = sent
        .token_ids
        .as_deref()
        .map(|ids| ids.iter().map(u64::to_string).collect::<Vec<_>>().join(","));
    if let Some(open) = prompt.strip_suffix('"') {
        if let (Some(prompt), Some(said)) = (&sent.prompt_token_ids, said) {
            return appended(&format!("{prompt:?}"), &said).ok_or(Unsafe::Unreadable);
        }
        return Ok(format!("{open}{}", &string(&sent.text)[1..]));
    }
    let is_tokens = prompt.strip_prefix('[').is_some_and(|open| {
        open.trim_ascii_start().starts_with(|first: char| first.is_ascii_digit())
    });
    match (is_tokens, said, kind) {
        (true, Some(said), _) => appended(prompt, &said),
        // llama.cpp takes text behind token ids.
        (true, None, EngineKind::LlamaCpp) => appended(prompt, &string(&sent.text)),
        (true, None, _) => return Err(Unsafe::Engine),
        (false, ..) => return Err(Unsafe::SeveralChoices),
    }
    .ok_or(Unsafe::Unreadable)
}

/// What is left of each limit on the answer's tokens.
fn reduced_limits(asked: &Asked<'_>, sent: u64) -> Result<Vec<(&'static str, String)>, Unsafe> {
    let mut left = Vec::new();
    for key in LIMIT_FIELDS {
        // 0 and below mean "as many as fit" where they are allowed at all.
        let Some(limit) = asked.number(key).filter(|limit| *limit >= 1.0) else { continue };
        match (limit as u64).saturating_sub(sent) {
            0 => return Err(Unsafe::LimitReached),
            rest => left.push((key, rest.to_string())),
        }
    }
    if let Some(least) = asked.number("min_tokens").filter(|least| *least >= 1.0) {
        left.push(("min_tokens", (least as u64).saturating_sub(sent).to_string()));
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(text: &str, tokens: u64) -> Transcript {
        Transcript { text: text.to_owned(), text_events: tokens, ..Transcript::default() }
    }

    fn ways(kind: EngineKind, body: &str, sent: &Transcript) -> Result<Vec<Way>, Unsafe> {
        match plan(Endpoint::Chat, kind, body.as_bytes(), sent)? {
            Plan::Ask(asks) => Ok(asks.iter().map(|ask| ask.way).collect()),
            Plan::Finish(_) => Ok(Vec::new()),
        }
    }

    fn continuation(
        endpoint: Endpoint,
        kind: EngineKind,
        body: &str,
        sent: &Transcript,
    ) -> Result<String, Unsafe> {
        continued(&Asked::read(endpoint, body.as_bytes())?, kind, sent)
    }

    const GREEDY: &str =
        r#"{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":0}"#;
    const RANDOM: &str = r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#;

    #[test]
    fn each_engine_has_its_ways() {
        use EngineKind::{LlamaCpp, OpenaiCompat, Vllm};
        let some = sent("ab", 2);
        assert_eq!(ways(LlamaCpp, GREEDY, &some).unwrap(), [Way::Replay, Way::Continue]);
        assert_eq!(ways(LlamaCpp, RANDOM, &some).unwrap(), [Way::Continue]);
        assert_eq!(ways(Vllm, GREEDY, &some).unwrap(), [Way::Continue, Way::Replay]);
        assert_eq!(ways(OpenaiCompat, GREEDY, &some).unwrap(), [Way::Replay]);
        assert_eq!(ways(OpenaiCompat, RANDOM, &some).unwrap_err(), Unsafe::Engine);
        assert_eq!(ways(OpenaiCompat, RANDOM, &sent("", 0)).unwrap(), [Way::Replay]);
        assert_eq!(ways(LlamaCpp, GREEDY, &sent("ab", 1025)).unwrap(), [Way::Continue]);
        let thought = Transcript { reasoning: "hm".into(), ..some };
        assert_eq!(ways(LlamaCpp, GREEDY, &thought).unwrap(), [Way::Replay]);
        assert_eq!(ways(LlamaCpp, RANDOM, &thought).unwrap_err(), Unsafe::Reasoning);
    }

    #[test]
    fn a_finished_answer_only_lacks_its_end() {
        let finished = Transcript { finished: true, ..sent("ab", 2) };
        let end = |sent: &Transcript| match plan(Endpoint::Chat, EngineKind::Vllm, b"{}", sent) {
            Ok(Plan::Finish(end)) => end,
            other => panic!("{other:?}"),
        };
        assert_eq!(end(&finished), b"data: [DONE]\n\n");
        assert_eq!(end(&Transcript { done: true, ..finished }), b"");
    }

    #[test]
    fn a_chat_goes_on_with_its_last_message() {
        let body = r#"{ "temperature":0.30,"max_tokens": 10,"messages":[{"role":"user","content":"x"}],"x":{"y":[1]} ,"n_predict":-1}"#;
        let asked =
            continuation(Endpoint::Chat, EngineKind::LlamaCpp, body, &sent("a\n\"é", 3)).unwrap();
        assert_eq!(
            asked,
            r#"{"temperature":0.30,"max_tokens": 7,"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"a\n\"é"}],"x":{"y":[1]},"n_predict":-1,"continue_final_message":true,"add_generation_prompt":false}"#
        );
        assert_eq!(
            continuation(Endpoint::Chat, EngineKind::Sglang, body, &sent("a", 10)).unwrap_err(),
            Unsafe::LimitReached
        );
    }

    #[test]
    fn a_prompt_goes_on_by_token_ids_or_by_text() {
        let ask = |kind, prompt: &str, sent: &Transcript| {
            let body = format!(r#"{{"prompt":{prompt},"min_tokens":5}}"#);
            continuation(Endpoint::Completions, kind, &body, sent)
        };
        let text = sent("b\"", 1);
        let ids = Transcript { token_ids: Some(vec![8, 9]), ..sent("b\"", 1) };
        let all = Transcript { prompt_token_ids: Some(vec![1, 2]), ..ids.clone() };
        let body =
            |prompt: &str, least: u64| Ok(format!(r#"{{"prompt":{prompt},"min_tokens":{least}}}"#));
        use EngineKind::{LlamaCpp, TensorrtLlm, Vllm};
        assert_eq!(ask(TensorrtLlm, r#""\u0041 ""#, &text), body(r#""\u0041 b\"""#, 4));
        assert_eq!(ask(Vllm, r#""A""#, &ids), body(r#""Ab\"""#, 3));
        assert_eq!(ask(Vllm, r#""A""#, &all), body("[1, 2,8,9]", 3));
        assert_eq!(ask(Vllm, "[1,2]", &ids), body("[1,2,8,9]", 3));
        assert_eq!(ask(LlamaCpp, "[1,2]", &text), body(r#"[1,2,"b\""]"#, 4));
        assert_eq!(ask(Vllm, "[1,2]", &text), Err(Unsafe::Engine));
        assert_eq!(ask(Vllm, r#"["a","b"]"#, &text), Err(Unsafe::SeveralChoices));
    }
}
