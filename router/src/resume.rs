//! Going on with a stream whose engine died, on another worker.
pub mod events;
pub mod tape;
