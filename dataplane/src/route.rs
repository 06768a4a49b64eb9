//! Routing decided from facts: pure code that the router and the simulator in `control` share.
//!
//! * [`index`]: which worker holds which block, as the engines' events say.
//!
//! It opens no connection and reads no clock; time and randomness come in as arguments.

pub mod index;
