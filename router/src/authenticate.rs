//! Phase *authenticate*: who may ask.
//!
//! The only identity of this release is a loopback peer. Listeners refuse to bind beyond loopback
//! (`config`), and each connection's peer is checked again here, so a listener that was handed in
//! from elsewhere opens nothing. Keys, tokens and certificates: pending.

use std::net::SocketAddr;

use crate::error::RequestError;

/// Lets loopback peers through.
///
/// # Errors
/// [`RequestError::PeerNotAllowed`].
pub fn peer(address: SocketAddr) -> Result<(), RequestError> {
    if address.ip().to_canonical().is_loopback() {
        Ok(())
    } else {
        Err(RequestError::PeerNotAllowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_peers_pass() {
        for (address, passes) in [
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("10.0.0.1:1", false),
            ("[fe80::1]:1", false),
        ] {
            assert_eq!(peer(address.parse().unwrap()).is_ok(), passes, "{address}");
        }
    }
}
