//! What the clients' listener speaks: plain TCP or TLS with the certificate in force.
//!
//! The certificate is swapped whole when its files change; connections that stand keep theirs.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;

/// Shared by the cores that serve one listener.
#[derive(Default)]
pub struct Front {
    tls: ArcSwapOption<ServerConfig>,
    /// The admin listener: what an operator sees, and nothing of a client.
    pub is_admin: bool,
}

impl Front {
    /// The listener of clients; plain until [`Front::serve_with`].
    pub fn clients() -> Self {
        Front::default()
    }

    /// The admin listener.
    pub fn admin() -> Self {
        Front { is_admin: true, ..Front::default() }
    }

    /// For new connections from here on.
    pub fn serve_with(&self, config: Arc<ServerConfig>) {
        self.tls.store(Some(config));
    }

    /// `None` on a plain listener.
    pub fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.load_full()
    }
}
