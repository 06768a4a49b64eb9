//! The native client of the KV daemon.
