//! What a request will be answered, written down before its first step.
//!
//! The whole answer is a function of the engine's seed, the prompt's tokens, the request's own
//! seed, the choice and the limits: not of the time, the load or the worker. So the scheduler only
//! plays a script, the same request gets the same text everywhere, and a stream can be compared
//! byte by byte.

use serde_json::Value;

use super::json_shape;
use super::tokenizer::{self, Specials};
use super::words::Words;

/// A natural answer has at least this many tokens, where there is room.
pub const NATURAL_TOKENS_MIN: u32 = 8;

/// Why an answer ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// By itself.
    Stop,
    /// At one of the request's stop strings, which is not part of the text.
    StopString(String),
    /// At `max_tokens` or at the end of the context.
    Length,
    /// With a whole tool call.
    ToolCalls,
}

impl Finish {
    /// The `finish_reason` of the OpenAI API.
    pub fn as_str(&self) -> &'static str {
        match self {
            Finish::Stop | Finish::StopString(_) => "stop",
            Finish::Length => "length",
            Finish::ToolCalls => "tool_calls",
        }
    }
}

/// What kind of text is wanted.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// English-like words.
    Words,
    /// A JSON value that fits the schema.
    Json(Value),
    /// A call of the function, with arguments that fit the schema. The text is the arguments.
    ToolCall {
        /// The function's name.
        name: String,
        /// Its `parameters`.
        parameters: Value,
    },
    /// Nothing: the prompt is read and that is all (embeddings).
    Nothing,
}

/// All that decides an answer.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The engine's `--seed`.
    pub engine_seed: u64,
    /// The request's `seed`.
    pub request_seed: Option<u64>,
    /// Index of the choice, from 0.
    pub choice: u32,
    /// The prompt.
    pub prompt: &'a [u32],
    /// `max_tokens`, where the request has it.
    pub tokens_max: Option<u32>,
    /// Tokens left in the context behind the prompt.
    pub room_tokens: u32,
    /// A natural answer is not longer.
    pub natural_tokens_max: u32,
    /// Stop strings; none is empty.
    pub stops: &'a [String],
    /// The kind of text.
    pub shape: &'a Shape,
}

/// One answer, token by token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    tokens: Vec<u32>,
    /// The visible text.
    text: String,
    /// Where in `text` each token's visible part ends; always on a character boundary, so a token
    /// that ends inside a character shows nothing until the character is whole.
    ends: Vec<usize>,
    finish: Finish,
}

impl Script {
    /// Writes the answer.
    pub fn write(wish: &Wish<'_>) -> Script {
        let mut words = Words::new(&key(wish));
        let limit = wish.tokens_max.unwrap_or(u32::MAX).min(wish.room_tokens);
        let (text, whole) = match wish.shape {
            Shape::Nothing => (String::new(), Finish::Stop),
            Shape::Json(schema) => (json_shape::fill(schema, &mut words).to_string(), Finish::Stop),
            Shape::ToolCall { parameters, .. } => {
                (json_shape::fill(parameters, &mut words).to_string(), Finish::ToolCalls)
            }
            Shape::Words => return Self::write_words(wish, words, limit).stopped_at(wish.stops),
        };
        Self::cut(text, limit, whole).stopped_at(wish.stops)
    }

    /// How many tokens it has.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether it has no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Token `index`.
    pub fn token(&self, index: usize) -> u32 {
        self.tokens[index]
    }

    /// All tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The whole visible text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What token `index` adds to the visible text; often a few bytes, sometimes nothing.
    pub fn delta(&self, index: usize) -> &str {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start..self.ends[index]]
    }

    /// Why it ends.
    pub fn finish(&self) -> &Finish {
        &self.finish
    }

    /// `max_tokens` asks for that many; without it the length is drawn, and the answer stops by
    /// itself unless the context ends first.
    fn write_words(wish: &Wish<'_>, mut words: Words, limit: u32) -> Script {
        let (wanted, finish) = match wish.tokens_max {
            Some(_) => (limit, Finish::Length),
            None => {
                let longest = wish.natural_tokens_max.max(NATURAL_TOKENS_MIN);
                let drawn = NATURAL_TOKENS_MIN + words.number(longest - NATURAL_TOKENS_MIN + 1);
                let fits = drawn <= limit;
                (drawn.min(limit), if fits { Finish::Stop } else { Finish::Length })
            }
        };
        let mut text = String::new();
        let mut tokens = 0;
        while tokens < wanted as usize {
            let before = text.len();
            words.write_next(&mut text);
            // A word begins with a space, and a space begins a piece: words are counted one by one.
            tokens += tokenizer::encode(&text[before..], Specials::Literal).len();
        }
        let script = Self::cut(text, wanted, finish.clone());
        Script { finish, ..script }
    }

    /// The first `limit` tokens of `text`.
    fn cut(mut text: String, limit: u32, whole: Finish) -> Script {
        let mut tokens = tokenizer::encode(&text, Specials::Literal);
        let is_cut = tokens.len() > limit as usize;
        tokens.truncate(limit as usize);
        let mut end = 0;
        let ends: Vec<usize> = tokens
            .iter()
            .map(|&token| {
                end += tokenizer::token_bytes(token).unwrap_or(0);
                text.floor_char_boundary(end)
            })
            .collect();
        text.truncate(ends.last().copied().unwrap_or(0));
        Script { tokens, text, ends, finish: if is_cut { Finish::Length } else { whole } }
    }

    /// Ends the answer before the first stop string in it. The token that completes the stop string
    /// is the last; no part of the stop string is ever shown.
    fn stopped_at(mut self, stops: &[String]) -> Script {
        let first = stops
            .iter()
            .filter_map(|stop| self.text.find(stop.as_str()).map(|at| (at, stop)))
            .min_by_key(|(at, stop)| (*at, stop.len()));
        let Some((at, stop)) = first else {
            return self;
        };
        let last = self.ends.partition_point(|&end| end < at + stop.len());
        self.tokens.truncate(last + 1);
        self.ends.truncate(last + 1);
        self.ends.iter_mut().for_each(|end| *end = (*end).min(at));
        self.text.truncate(at);
        self.finish = Finish::StopString(stop.clone());
        self
    }
}

fn key(wish: &Wish<'_>) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"cgn-sim-engine text v1\0");
    hasher.update(&wish.engine_seed.to_le_bytes());
    hasher.update(&[u8::from(wish.request_seed.is_some())]);
    hasher.update(&wish.request_seed.unwrap_or(0).to_le_bytes());
    hasher.update(&wish.choice.to_le_bytes());
    for token in wish.prompt {
        hasher.update(&token.to_le_bytes());
    }
    hasher
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wish<'a>(tokens_max: Option<u32>, stops: &'a [String], shape: &'a Shape) -> Wish<'a> {
        Wish {
            engine_seed: 1,
            request_seed: None,
            choice: 0,
            prompt: &[1, 2, 3],
            tokens_max,
            room_tokens: 1000,
            natural_tokens_max: 64,
            stops,
            shape,
        }
    }

    #[test]
    fn max_tokens_is_met_exactly_and_the_context_is_never_passed() {
        for (asked, expected) in [(0, 0), (1, 1), (37, 37), (5000, 1000)] {
            let script = Script::write(&wish(Some(asked), &[], &Shape::Words));
            assert_eq!((script.len(), script.finish()), (expected, &Finish::Length));
        }
    }

    #[test]
    fn an_answer_that_stops_by_itself_has_a_length_in_the_bounds() {
        for seed in 0..200 {
            let wish = Wish { request_seed: Some(seed), ..wish(None, &[], &Shape::Words) };
            let script = Script::write(&wish);
            assert!((8..=64).contains(&script.len()), "{}", script.len());
            assert_eq!(script.finish(), &Finish::Stop);
        }
    }

    #[test]
    fn every_part_of_the_wish_changes_the_text() {
        let base = wish(Some(40), &[], &Shape::Words);
        let text = |wish: Wish<'_>| Script::write(&wish).text().to_owned();
        let all = [
            text(base),
            text(Wish { engine_seed: 2, ..base }),
            text(Wish { request_seed: Some(0), ..base }),
            text(Wish { choice: 1, ..base }),
            text(Wish { prompt: &[1, 2, 4], ..base }),
        ];
        assert_eq!(text(base), all[0]);
        for (i, a) in all.iter().enumerate() {
            assert!(!all[i + 1..].contains(a));
        }
    }

    #[test]
    fn a_tool_call_is_whole_json_unless_it_is_cut() {
        let parameters =
            serde_json::json!({"type": "object", "properties": {"city": {"type": "string"}}});
        let shape = Shape::ToolCall { name: "f".into(), parameters };
        let script = Script::write(&wish(None, &[], &shape));
        assert_eq!(script.finish(), &Finish::ToolCalls);
        let arguments: Value = serde_json::from_str(script.text()).unwrap();
        assert!(arguments["city"].is_string());
        assert_eq!(Script::write(&wish(Some(2), &[], &shape)).finish(), &Finish::Length);
    }

    proptest! {
        #[test]
        fn deltas_join_to_the_text_and_the_text_is_what_the_tokens_say(
            request_seed in any::<u64>(), tokens_max in prop::option::of(0u32..200),
        ) {
            let script = Script::write(&Wish {
                request_seed: Some(request_seed), ..wish(tokens_max, &[], &Shape::Words)
            });
            let joined: String = (0..script.len()).map(|index| script.delta(index)).collect();
            prop_assert_eq!(&joined, script.text());
            let bytes = tokenizer::decode(script.tokens()).unwrap();
            prop_assert!(bytes.starts_with(script.text().as_bytes()));
            prop_assert!(bytes.len() - script.text().len() < 4, "held back: a cut character");
        }

        #[test]
        fn no_part_of_a_stop_string_is_shown(request_seed in any::<u64>(), stop in "[a-z ]{1,3}") {
            let stops = [stop.clone()];
            let base = wish(Some(100), &[], &Shape::Words);
            let unstopped = Wish { request_seed: Some(request_seed), ..base };
            let plain = Script::write(&unstopped);
            let script = Script::write(&Wish { stops: &stops, ..unstopped });
            match plain.text().find(&stop) {
                None => prop_assert_eq!(script, plain),
                Some(at) => {
                    prop_assert_eq!(script.text(), &plain.text()[..at]);
                    let deltas = (0..script.len()).map(|index| script.delta(index));
                    let shown: String = deltas.collect();
                    prop_assert_eq!(shown, script.text());
                    prop_assert_eq!(script.finish(), &Finish::StopString(stop));
                }
            }
        }
    }
}
