//! KV state of llama.cpp's slots, kept in the KV daemon of the node: what one engine computed, another
//! takes over.
//!
//! llama.cpp tells of no block, but writes the state of a slot to a file and reads it back. So, where
//! `[agent] kv_socket` names a daemon, a slot that came to rest is saved and its file goes into the daemon
//! under our digests of its tokens; and when a router is about to send a prompt to an engine that lacks
//! its beginning, the deepest state there is goes back into an idle slot first. The engine finds it by
//! itself: it takes the slot that has most of a prompt.
//!
//! ```text
//!  engine ─ slot file → file ─ tokens → digests ─┐
//!                        └──── bytes, in parts ──┴→ daemon     (a save: keeper asks engine, then daemon)
//!  router ─ Warm → keeper → daemon ─ file → engine → Warmed    (a restore)
//! ```
//!
//! * Deciding, pure: [`file`] (what a slot file says), [`value`] (what stands in the daemon), [`layout`]
//!   (which states are interchangeable), [`choose`] (which slot is saved, which one is given up).
//! * Doing: [`engine`] (HTTP to the engine), [`daemon`] (blocking, on threads of its own).
//! * Owning: [`keeper`], one task for each engine: what was saved, and one thing at a time.
//!
//! No request byte passes through here: states are the engine's, and a request waits for one only as long
//! as its router wants to.

pub mod choose;
pub mod daemon;
pub mod engine;
pub mod file;
pub mod keeper;
pub mod layout;
pub mod metrics;
pub mod value;
