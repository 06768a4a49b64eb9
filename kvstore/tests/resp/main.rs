//! The RESP door, end to end: the real daemon, raw sockets, and stock clients where they are installed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod commands;
mod daemon;
mod hostile;
mod lmcache;
mod reload;
mod stock;
mod tls;
mod users;
mod values;
