//! The RESP door.
pub mod parse;
