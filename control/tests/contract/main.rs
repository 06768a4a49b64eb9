//! The real `cgn-control` and `cgnctl`, through their public faces only: the control port, the Unix
//! socket of the data planes, the command line and the exit codes.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

mod agent;
mod cgnctl;
mod explain;
mod house;
mod kv;
mod nodes;
mod plane;
mod start;
mod usage;
mod weights;
