//! The ground floor: what every Cognitora process shares, and nothing that one of them owns alone.
//!
//! * [`digest`]: chained BLAKE3 block digests, the name of a prefix.
//! * [`route`]: routing decided from facts, for the router and for the simulator in control.
//! * [`feed`]: what an agent tells routers of the KV blocks its engines hold.
//! * [`kv`]: what a client on the same node says to the KV daemon.
//! * [`frame`]: a byte stream cut into frames, for the wires that have them.
//! * [`identity`]: who a certificate speaks for: cluster, role and name in one URI.
//! * [`pem`]: certificates and keys in files, as every listener with TLS reads them.
//! * [`wire`]: what control and the data planes of one node say to each other over a Unix socket.
//! * [`config`]: strict TOML loading; unknown keys are errors with file, line and nearest key.
//!
//! It knows no HTTP, no engine protocol and no runtime: all of it is plain functions over bytes.
// Only `route::index::pages` may, and says why.
#![deny(unsafe_code)]

pub mod config;
pub mod crash;
pub mod digest;
pub mod feed;
pub mod frame;
pub mod identity;
pub mod kv;
pub mod pem;
pub mod route;
pub mod wire;
