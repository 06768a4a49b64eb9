//! The multi-turn workload: conversations with nothing in common but the template, whose turns come
//! interleaved. All of it follows from one seed.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::client;
use crate::smollm2::MODEL;

const CONVERSATIONS: usize = 20;
const TURNS: usize = 4;
/// Answers only have to be there; they are read back as part of the next prompt.
const ANSWER_TOKENS: u32 = 8;

const TOPICS: [&str; 20] = [
    "astronomy",
    "beekeeping",
    "carpentry",
    "dancing",
    "electricity",
    "fishing",
    "gardening",
    "history",
    "insurance",
    "juggling",
    "knitting",
    "law",
    "medicine",
    "navigation",
    "opera",
    "painting",
    "quilting",
    "rivers",
    "sailing",
    "trains",
];
const WORDS: [&str; 40] = [
    "about", "again", "air", "animal", "answer", "before", "begin", "book", "bring", "build",
    "carry", "change", "city", "close", "country", "earth", "example", "family", "father",
    "follow", "friend", "ground", "hand", "house", "learn", "letter", "light", "money", "morning",
    "mother", "mountain", "number", "paper", "people", "place", "river", "school", "story",
    "water", "world",
];

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// One conversation as far as it has come.
struct Conversation {
    random: Random,
    messages: Vec<Value>,
}

impl Conversation {
    fn new(seed: u64, number: usize) -> Conversation {
        let topic = TOPICS[number];
        let system = format!("{topic} is what you know best; answer questions on {topic}.");
        let system = json!({ "role": "system", "content": system });
        Conversation { random: Random(seed ^ (number as u64) << 32), messages: vec![system] }
    }

    /// The next question: 55 to 90 words, of about as many tokens and a few more.
    fn question(&mut self) -> Value {
        let words = 55 + self.random.below(36);
        let text: Vec<&str> = (0..words).map(|_| WORDS[self.random.below(WORDS.len())]).collect();
        self.messages.push(json!({ "role": "user", "content": text.join(" ") }));
        json!({
            "model": MODEL, "messages": self.messages,
            "temperature": 0, "max_tokens": ANSWER_TOKENS, "cache_prompt": true,
        })
    }
}

/// Whose turn it is, request by request: a random order of all turns.
fn order(seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..CONVERSATIONS).flat_map(|number| [number; TURNS]).collect();
    let mut random = Random(seed);
    for end in (1..order.len()).rev() {
        order.swap(end, random.below(end + 1));
    }
    order
}

/// What the engines counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
}

impl Share {
    pub fn value(self) -> f64 {
        self.cached_tokens as f64 / self.prompt_tokens as f64
    }
}

/// Holds all conversations; `door` says where the request of that number is sent.
pub fn hold(seed: u64, door: impl Fn(usize) -> SocketAddr) -> Share {
    let mut conversations: Vec<Conversation> =
        (0..CONVERSATIONS).map(|number| Conversation::new(seed, number)).collect();
    let mut share = Share::default();
    for (request, number) in order(seed).into_iter().enumerate() {
        let conversation = &mut conversations[number];
        let question = conversation.question();
        let answer = client::post(door(request), "/v1/chat/completions", &question);
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer = answer.json();
        let usage = &answer["usage"];
        share.prompt_tokens += usage["prompt_tokens"].as_u64().unwrap();
        share.cached_tokens += usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
        conversation.messages.push(json!({ "role": "assistant", "content": content }));
    }
    share
}
