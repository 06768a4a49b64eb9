//! `cgn-sim-engine` from outside: the process, its HTTP answers in both dialects, its cache and its
//! KV events.
#![expect(clippy::unwrap_used, reason = "a test that meets the unexpected has failed")]

#[path = "sim_engine/client.rs"]
mod client;
#[path = "sim_engine/process.rs"]
mod process;

#[path = "sim_engine/answers.rs"]
mod answers;
#[path = "sim_engine/cache.rs"]
mod cache;
#[path = "sim_engine/control.rs"]
mod control;
#[path = "sim_engine/events.rs"]
mod events;
#[path = "sim_engine/life.rs"]
mod life;
