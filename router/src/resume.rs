//! Going on with a stream whose engine died, on another worker.
pub mod events;
pub mod object;
pub mod tape;
pub mod transcript;
