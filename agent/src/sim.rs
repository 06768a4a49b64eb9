//! The simulated engine: everything of an inference server that a router can see, without a model.
//!
//! It speaks the OpenAI API and the control endpoints of llama.cpp or vLLM, keeps a real
//! block-level prefix cache, batches continuously with times from a stated model, and publishes
//! vLLM-format KV events. Same seed and same arrivals give the same texts, the same cache and the
//! same events.
//!
//! * Deciding, without clock or I/O: [`tokenizer`], [`template`], [`script`] (what will be said),
//!   [`blocks`] (the cache), [`timing`], [`scheduler`], [`kv_events`], [`openai`], [`narration`].
//! * Doing: [`engine`] (the one task that owns the scheduler), [`publisher`] (ZMQ), [`serve`],
//!   [`routes`] and [`generate`] (HTTP).
//!
//! What it does not do: log-probabilities, images and audio, LoRA, choosing a tool by itself
//! (`tool_choice: "auto"` is answered in text), saving slots, speculative decoding.

pub mod blocks;
pub mod control_paths;
pub mod embedding;
pub mod engine;
pub mod generate;
pub mod json_shape;
pub mod kv_events;
pub mod metrics;
pub mod narration;
pub mod openai;
pub mod options;
pub mod publisher;
pub mod refusal;
pub mod routes;
pub mod scheduler;
pub mod script;
pub mod serve;
pub mod template;
pub mod timing;
pub mod tokenizer;
pub mod words;
