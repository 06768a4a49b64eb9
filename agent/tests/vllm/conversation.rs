//! Conversations with nothing in common but the template, whose turns come interleaved. All of it
//! follows from one seed.

use serde_json::{Value, json};

/// Words the tiny model's tokenizer was made with: about a token each.
const WORDS: [&str; 40] = [
    "about", "again", "air", "animal", "answer", "before", "begin", "book", "bring", "build",
    "carry", "change", "city", "close", "country", "earth", "example", "family", "father",
    "follow", "friend", "ground", "hand", "house", "learn", "letter", "light", "money", "morning",
    "mother", "mountain", "number", "paper", "people", "place", "river", "school", "story",
    "water", "world",
];

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// So many words.
    pub fn words(&mut self, count: usize) -> String {
        let words: Vec<&str> = (0..count).map(|_| WORDS[self.below(WORDS.len())]).collect();
        words.join(" ")
    }
}

/// One conversation as far as it has come.
pub struct Conversation {
    random: Random,
    messages: Vec<Value>,
}

impl Conversation {
    pub fn new(seed: u64, number: usize) -> Conversation {
        let mut random = Random(seed ^ (number as u64) << 32);
        let system = json!({ "role": "system", "content": random.words(10) });
        Conversation { random, messages: vec![system] }
    }

    /// The messages with the next question: 30 to 109 words.
    pub fn question(&mut self) -> Value {
        let words = 30 + self.random.below(80);
        self.messages.push(json!({ "role": "user", "content": self.random.words(words) }));
        json!(self.messages)
    }

    /// What was answered becomes part of the next prompt.
    pub fn answered(&mut self, answer: &Value) {
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default();
        self.messages.push(json!({ "role": "assistant", "content": content }));
    }
}

/// Whose turn it is, request by request: a random order of `turns` of each.
pub fn order(seed: u64, conversations: usize, turns: usize) -> Vec<usize> {
    let mut order: Vec<usize> =
        (0..conversations).flat_map(|number| std::iter::repeat_n(number, turns)).collect();
    let mut random = Random(seed);
    for end in (1..order.len()).rev() {
        order.swap(end, random.below(end + 1));
    }
    order
}
