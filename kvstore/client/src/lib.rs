//! The native client of the KV daemon `cgn-kvcached`: blocks leased in place, one hop away.
//!
//! [`Client`] is a blocking connection to one namespace. A GET is a [`Lease`]: the block's bytes where the
//! daemon keeps them, mapped read-only, without a copy. A PUT is a copy into memory of the client's own, that
//! the daemon takes it from, or no copy at all where the block is made in a [`Draft`]. [`Polling`] asks through
//! shared memory instead of the socket, for a client that would rather spin than sleep. The C ABI is in
//! `capi.rs`, with its header in `include/cognitora_kv.h`; Python stands on that.
//!
//! It knows the daemon's wire (`dataplane::kv`) and nothing else of it.
// Only `mapping` and `capi` may, and say why.
#![deny(unsafe_code)]

mod capi;
mod client;
mod error;
mod lease;
mod line;
mod mapping;
mod polling;
mod staging;

pub use client::{Block, Client, Limits, Options};
pub use dataplane::kv::{Fault, Listed, Name, Place, Tier};
pub use error::Error;
pub use lease::{Found, Lease};
pub use polling::Polling;
pub use staging::{Draft, Written};
