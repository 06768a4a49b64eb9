//! A whole node on a real vLLM, on the CPU: what its answers are through the router, what it says of its
//! cache, and whether who predicts the cache predicts what the engine then finds.
//!
//! Ignored where all tests run: an engine takes minutes to start. `cargo xtask test --only vllm` installs
//! a vLLM (a modified one, see `xtask/src/vllm.rs`), writes the tiny model and runs these.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "shared with node.rs, which uses all of it")]
#[path = "node/client.rs"]
mod client;
#[expect(dead_code, reason = "shared with node.rs, which uses all of it")]
#[path = "node/house.rs"]
mod house;
#[path = "node/process.rs"]
mod process;

#[path = "vllm/conversation.rs"]
mod conversation;
#[path = "vllm/feed.rs"]
mod feed;
#[path = "vllm/held.rs"]
mod held;
#[path = "vllm/real.rs"]
mod real;

#[path = "vllm/answers.rs"]
mod answers;
#[path = "vllm/predictions.rs"]
mod predictions;
