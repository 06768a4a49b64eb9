//! The KV daemon `cgn-kvcached`: KV blocks of 0.25 to 80 MiB, one hop away from the engine.
//!
//! It owns the tiers, their index and eviction, and the doors engines come in by. It does not route
//! requests and never imports `router`. Start reading at [`request`] and [`store`].
//!
//! * [`key`], [`namespace`], [`block`]: what a block is called, whose it is, what a lease on it is.
//! * [`arena`]: the memory blocks lie in. [`eviction`]: who makes room for others.
//! * [`index`], [`shard`]: one core's share. [`mesh`], [`request`]: how threads ask each other.
//! * [`executor`], [`socket`]: what a shard and its doors run on; [`disk`] has threads of its own.
//! * [`peer`]: blocks from and to other daemons.
//! * [`store`]: all of it as a door sees it. [`server`]: the daemon put together; [`reload`]: what of its
//!   configuration may change meanwhile.
// Only the files named in dataplane/tests/tidy.rs may, and say why.
#![deny(unsafe_code)]

pub mod admin;
pub mod arena;
pub mod block;
pub mod config;
pub mod disk;
pub mod eviction;
pub mod executor;
pub mod index;
pub mod key;
pub mod mesh;
pub mod namespace;
pub mod native;
mod numa;
pub mod peer;
pub mod reload;
pub mod request;
pub mod resp;
pub mod server;
pub mod shard;
pub mod signal;
pub mod socket;
pub mod stats;
pub mod store;
