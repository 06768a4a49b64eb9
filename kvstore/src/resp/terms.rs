//! On what terms clients are let in: the configuration and the certificates of a time.
//!
//! A connection keeps those that it came in by; a reload makes new ones for those that come after.

use std::sync::Arc;

use rustls::ServerConfig;

use super::config::RespConfig;
use super::tls::TlsFileError;

/// The terms.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) config: RespConfig,
    /// With it clients speak TLS.
    pub(super) tls: Option<Arc<ServerConfig>>,
}

impl Terms {
    /// Reads the certificates that `config` names.
    pub(super) fn load(config: RespConfig) -> Result<Arc<Terms>, TlsFileError> {
        let tls = config.tls.as_ref().map(|files| files.load()).transpose()?;
        Ok(Arc::new(Terms { config, tls }))
    }

    /// Whether each client shows a certificate of an authority of ours.
    pub(super) fn has_client_ca(&self) -> bool {
        self.config.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }
}
