//! A whole node on the real engine: SmolLM2 on llama.cpp's `llama-server`, through control, agent and
//! router. What the answers are worth, and how much of the prompts comes from the engines' caches.
//!
//! Skipped where the engine or the model is not there; `cargo xtask up` builds and fetches both.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "node/client.rs"]
mod client;
#[expect(dead_code, reason = "shared with node.rs, which uses all of it")]
#[path = "node/house.rs"]
mod house;
#[expect(dead_code, reason = "shared with node.rs, which uses all of it")]
#[path = "node/process.rs"]
mod process;

#[path = "llama/conversation.rs"]
mod conversation;
#[path = "llama/smollm2.rs"]
mod smollm2;

#[path = "llama/answers.rs"]
mod answers;
#[path = "llama/cache_share.rs"]
mod cache_share;
#[path = "llama/kept.rs"]
mod kept;
#[path = "llama/kept_ttft.rs"]
mod kept_ttft;
