//! What all connections of the RESP door share, on whatever core they are.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use dataplane::config::ConfigError;
use rustls::ServerConfig;

use super::config::RespConfig;
use super::promise::Shared;
use super::tls::TlsFileError;
use super::user::Users;

/// Why the door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The file of users.
    #[error(transparent)]
    Users(#[from] ConfigError),
    /// Certificates or keys.
    #[error(transparent)]
    Tls(#[from] TlsFileError),
}

/// The door: its configuration, its users, what it promised, who is in.
#[derive(Debug)]
pub struct Door {
    pub(super) config: RespConfig,
    /// Where it listens.
    pub(super) listen: SocketAddr,
    pub(super) users: Users,
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) promises: Shared,
    pub(super) began: Instant,
    clients: AtomicUsize,
    last_client: AtomicU64,
}

impl Door {
    /// A door that listens at `listen`; reads the files that `config` names.
    ///
    /// # Errors
    /// [`DoorError`].
    pub fn new(
        config: RespConfig,
        listen: SocketAddr,
        began: Instant,
    ) -> Result<Arc<Door>, DoorError> {
        let users = Users::default();
        if let Some(path) = &config.users_file {
            users.load(path)?;
        }
        let tls = config.tls.as_ref().map(|files| files.load()).transpose()?;
        Ok(Arc::new(Door {
            config,
            listen,
            users,
            tls,
            promises: Shared::default(),
            began,
            clients: AtomicUsize::new(0),
            last_client: AtomicU64::new(0),
        }))
    }

    /// Reads the file of users again. Who is not in it any more is out at the next command.
    ///
    /// # Errors
    /// [`ConfigError`]; the users stay as they are.
    pub fn reload(&self) -> Result<(), ConfigError> {
        match &self.config.users_file {
            Some(path) => self.users.load(path),
            None => Ok(()),
        }
    }

    /// Whether clients log in with a name.
    pub(super) fn has_users(&self) -> bool {
        self.config.users_file.is_some()
    }

    /// How many clients are in.
    pub(super) fn clients(&self) -> usize {
        self.clients.load(Relaxed)
    }

    /// A place for one more client, unless there are enough.
    pub(super) fn admit(self: &Arc<Self>) -> Option<Admission> {
        let admission =
            Admission { door: self.clone(), number: self.last_client.fetch_add(1, Relaxed) + 1 };
        let before = self.clients.fetch_add(1, Relaxed);
        (before < self.config.clients_max).then_some(admission)
    }
}

/// A client's place. Given back when dropped.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) door: Arc<Door>,
    /// The client's number, unique for the life of the daemon.
    pub(super) number: u64,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.door.clients.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_come_back() {
        let config = RespConfig { clients_max: 2, ..RespConfig::default() };
        let door = Door::new(config, "127.0.0.1:1".parse().unwrap(), Instant::now()).unwrap();
        let (one, two) = (door.admit().unwrap(), door.admit().unwrap());
        assert_ne!(one.number, two.number);
        assert!(door.admit().is_none());
        assert_eq!(door.clients(), 2);
        drop(one);
        assert!(door.admit().is_some());
        drop(two);
        assert_eq!(door.clients(), 0);
    }
}
