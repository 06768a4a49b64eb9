//! A changed configuration while the daemon runs: read whole, then taken over whole or not at all.
//!
//! It makes so; what may change is decided in [`reload`](crate::reload).

use std::path::Path;
use std::sync::PoisonError;

use dataplane::config::ConfigError;

use super::Server;
use crate::config::Config;
use crate::peer::config::PeersConfig;
use crate::peer::tls::{Credentials, TlsError};
use crate::reload::merge;
use crate::request::Request;
use crate::resp;

/// Why the configuration stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// The file is good, but not with what of it needs a restart left out.
    #[error("what needs a restart ({}) is left out, and without it: {source}; restart", keys.join(", "))]
    Half {
        /// Keys that need one.
        keys: Vec<&'static str>,
        /// What does not go together.
        source: ConfigError,
    },
    /// The RESP door's users or certificates.
    #[error(transparent)]
    Resp(#[from] resp::DoorError),
    /// The peers' certificates.
    #[error(transparent)]
    Peers(#[from] TlsError),
    /// They are another node's.
    #[error("kv.peers.cert_file is now {0}'s; a node that is another needs a restart")]
    Identity(String),
}

impl Server {
    /// Reads the configuration at `path` again and takes over what can change while the daemon runs. What
    /// cannot is named in the log, as is a file that cannot be used; that changes nothing.
    pub fn reload(&self, path: &Path) {
        match self.take_over(path) {
            Ok(waiting) if waiting.is_empty() => tracing::info!("the configuration is read again"),
            Ok(waiting) => {
                let keys = waiting.join(", ");
                tracing::warn!(keys, "the configuration is read again; these keys need a restart");
            }
            Err(error) => tracing::error!(%error, "the configuration stays as it is"),
        }
    }

    fn take_over(&self, path: &Path) -> Result<Vec<&'static str>, ReloadError> {
        let mut running = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let (config, keys) = merge(&running, Config::load(path)?);
        let config = match config.checked(path) {
            Ok(config) => config,
            Err(source) => return Err(ReloadError::Half { keys, source }),
        };
        // All that can fail comes before all that changes something.
        let resp = match &self.resp_door {
            Some(door) => Some((door, door.prepare(&config.resp)?)),
            None => None,
        };
        let credentials = self.credentials(&config.peers)?;
        let (rules, standard) = config.rules();
        self.house.namespaces.set_rules(rules, standard, config.limits.namespaces_max);
        for inbox in self.house.inboxes.iter() {
            let mut limits = Request::Limits { limits: config.limits };
            while let Err(back) = inbox.send(limits) {
                // The shard empties its inbox; this thread has nothing else to do.
                limits = back;
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        if let Some((door, prepared)) = resp {
            door.adopt(prepared);
        }
        if let (Some(thread), Some(credentials)) = (&self.peers, credentials) {
            thread.reload(config.peers.clone(), credentials);
        }
        *running = config;
        Ok(keys)
    }

    /// What the files of certificates hold now, if there are peers.
    fn credentials(&self, peers: &PeersConfig) -> Result<Option<Credentials>, ReloadError> {
        let (Some(thread), Ok(Some(files))) = (&self.peers, peers.checked()) else {
            return Ok(None);
        };
        let credentials = Credentials::load(&files)?;
        if credentials.identity != thread.identity {
            return Err(ReloadError::Identity(credentials.identity.to_string()));
        }
        Ok(Some(credentials))
    }
}
