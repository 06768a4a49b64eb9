//! Going on with a stream whose engine died, on another worker. Pure: no I/O, no clock.
//!
//! * While a stream runs, [`Tape`] writes down what the client is sent, about ten bytes a token.
//! * When its engine dies, [`Transcript::read`] reads the tape and [`plan`] decides: end it, ask another
//!   worker, or tell the client ([`Unsafe`]).
//! * [`Rewriter`] makes one stream of the second engine's answer and the first.
//!
//! Events are never completed by guess: a relay holds back the beginning of an event
//! ([`Tape::incomplete_bytes`]) until its end is there, and drops it when the engine dies.

pub mod asked;
mod chunk;
pub mod continuation;
pub mod events;
pub mod object;
pub mod rewrite;
pub mod tape;
pub mod transcript;

pub use continuation::{Ask, Plan, Way, plan};
pub use rewrite::{Broken, Rewriter};
pub use tape::Tape;
pub use transcript::{Transcript, Unsafe};
