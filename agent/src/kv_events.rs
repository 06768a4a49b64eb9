//! What the engines of this node hold in their KV caches, told to routers; and what routers gave them,
//! told to the other routers.
//!
//! ```text
//!  engine ─ZMQ/HTTP→ subscribe ─bytes→ decode ─Event→ translate ─Change→ writer ─frames→ board ─→ serve ─→ routers
//! ```
//!
//! * Deciding, pure: [`msgpack`], [`event`], [`decode`], [`tensorrt`] (an engine's bytes into events),
//!   [`sequence`] (gaps and restarts), [`translate`] (engine hashes into our digests and levels),
//!   [`writer`] (one worker's feed), [`loads`] (what routers gave, added up for each other).
//! * Doing: [`subscribe`] (engines), [`serve`] (routers).
//! * Owning: [`board`] (all writers and the routers that listen), [`follow_engines`] (one task for each engine).
//!
//! All of it runs on a thread of its own, so that a burst of events never delays the watch over
//! engines. No request byte passes through here.

pub mod board;
pub mod decode;
pub mod event;
pub mod follow_engines;
pub mod loads;
pub mod metrics;
pub mod msgpack;
pub mod sequence;
pub mod serve;
pub mod subscribe;
pub mod tensorrt;
pub mod translate;
pub mod writer;
