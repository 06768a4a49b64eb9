//! HTTP/1.1, sans-IO: heads over `httparse`, and where a body ends (RFC 9112).
//!
//! Nothing here reads a socket. Bytes come in as slices, places go out as ranges into them, so the
//! relay can pass on what the engine sent byte for byte.

pub mod body;
pub mod head;
