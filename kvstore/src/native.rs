//! The native door: engines on the same node, by a Unix socket for words and shared memory for bytes.
//!
//! Its wire is `dataplane::kv`. [`door`] accepts and hands connections to shards; [`greeting`] is the first
//! exchange, with descriptors; [`connection`] is one client's life; [`answer`] is what it may ask for.
//! A client's leases are in a table of its connection's ([`leases`]) and end with it. What a client
//! stores is copied out of its own memory ([`staging`]), so that no client can change what another reads.
//! A client that polls has a [`ring`], which a [`poller`] looks at as long as there is something to see.

pub mod answer;
pub mod connection;
pub mod door;
pub mod gather;
pub mod greeting;
pub mod leases;
pub mod poller;
pub mod ring;
pub mod staging;

pub use door::{Door, DoorError};
