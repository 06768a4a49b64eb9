//! The native door, end to end: the real daemon in RAM-only form, and its clients in Rust, C and Python.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod admin;
mod bindings;
mod blocks;
mod daemon;
mod disk;
mod hostile;
mod leases;
mod polling;
