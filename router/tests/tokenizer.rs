//! Exact tokens in the router: the cache against tokenizing the whole, with real models' tokenizers where
//! they are at hand and with a small one everywhere; and the same through the public face.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "contract/client.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod client;
#[path = "contract/engine.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod engine;
#[path = "tokenizer/face.rs"]
mod face;
#[path = "tokenizer/models.rs"]
mod models;
#[path = "contract/process.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod process;
#[path = "tokenizer/whole.rs"]
mod whole;
