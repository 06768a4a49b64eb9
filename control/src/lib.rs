//! The control process of a node (`cgn-control`) and its command line (`cgnctl`).
//!
//! Four kinds of code are kept apart:
//!
//! * deciding, pure: [`place`] (replicas onto nodes), [`cluster`] (reports in, desired states and
//!   snapshots out), [`deployment`] (what may be asked for), [`recipe`] (files into deployments), [`pki`] (certificates);
//! * doing, awaits I/O: [`server`] (gRPC), [`attached`] (one agent's stream), [`plane`] (the Unix
//!   socket of the data planes), [`kv`] (questions to the KV daemon), [`cli`] (the commands of `cgnctl`);
//! * measuring, pure: [`bench`] (routing policies in simulation);
//! * owning: [`keeper`] (the one copy of the state) and [`store`] (what survives a restart).
//!
//! No request byte passes here, and no data plane waits for it. Without feature `process` the crate
//! is [`api`] alone: all that `agent` may use.
#![forbid(unsafe_code)]

pub mod api;
#[cfg(feature = "process")]
pub mod attached;
#[cfg(feature = "process")]
pub mod bench;
#[cfg(feature = "process")]
pub mod cli;
#[cfg(feature = "process")]
pub mod clock;
#[cfg(feature = "process")]
pub mod cluster;
#[cfg(feature = "process")]
pub mod config;
#[cfg(feature = "process")]
pub mod deployment;
#[cfg(feature = "process")]
pub mod error;
#[cfg(feature = "process")]
pub mod keeper;
#[cfg(feature = "process")]
pub mod kv;
#[cfg(feature = "process")]
pub mod pki;
#[cfg(feature = "process")]
pub mod place;
#[cfg(feature = "process")]
pub mod plane;
#[cfg(feature = "process")]
pub mod recipe;
#[cfg(feature = "process")]
pub mod server;
#[cfg(feature = "process")]
pub mod store;
#[cfg(feature = "process")]
pub mod weights;
