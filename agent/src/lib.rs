//! `cgn-agent`: starts, watches and ends the engines of one node; and the simulated engine.
//!
//! * Deciding, pure: [`supervise`] (what to do now), [`engine`] (command lines), [`report`].
//! * Doing: [`process`] (spawn, signal, reap), [`log`], [`probe`] (HTTP), [`preflight`], [`attach`]
//!   (gRPC to control), [`metrics`], [`state`] (files).
//! * Owning: [`agent`], the one place that holds processes and records.
//! * [`kv_events`] (what engines cache, told to routers) and [`slots`] (what llama.cpp computed, kept in the
//!   KV daemon) run on a thread of their own.
//! * [`sim`]: `cgn-sim-engine`, a tool of its own.
//!
//! No request byte passes through here: routers talk to engines directly.

pub mod agent;
pub mod attach;
pub mod config;
pub mod engine;
pub mod gguf;
pub mod kv_events;
pub mod log;
pub mod metrics;
pub mod node;
pub mod orphans;
pub mod port;
pub mod preflight;
pub mod probe;
pub mod process;
pub mod random;
pub mod report;
pub mod sim;
pub mod slots;
pub mod state;
pub mod supervise;
