//! What all connections of the RESP door share, on whatever core they are.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use dataplane::config::ConfigError;

use super::config::RespConfig;
use super::promise::Shared;
use super::terms::Terms;
use super::tls::TlsFileError;
use super::user::{self, Table, Users};

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

/// The door: its terms, its users, what it promised, who is in.
#[derive(Debug)]
pub struct Door {
    terms: RwLock<Arc<Terms>>,
    has_users: AtomicBool,
    /// Where it listens.
    pub(super) listen: SocketAddr,
    pub(super) users: Users,
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
        let has_users = AtomicBool::new(config.users_file.is_some());
        Ok(Arc::new(Door {
            terms: RwLock::new(Terms::load(config)?),
            has_users,
            listen,
            users,
            promises: Shared::default(),
            began,
            clients: AtomicUsize::new(0),
            last_client: AtomicU64::new(0),
        }))
    }

    /// Reads the files that a changed configuration names, and changes nothing.
    ///
    /// # Errors
    /// [`DoorError`].
    pub fn prepare(&self, config: &RespConfig) -> Result<Prepared, DoorError> {
        let users = config.users_file.as_deref().map(user::load).transpose()?;
        Ok(Prepared { terms: Terms::load(config.clone())?, users })
    }

    /// Lets clients in on other terms from here on. Those that are in stay on theirs, but who is not in the
    /// file of users any more is out at the next command.
    pub fn adopt(&self, prepared: Prepared) {
        let has_users = prepared.users.is_some();
        if let Some(users) = prepared.users {
            self.users.set(users);
        }
        self.has_users.store(has_users, Relaxed);
        *self.terms.write().unwrap_or_else(PoisonError::into_inner) = prepared.terms;
    }

    /// The terms for who comes in now.
    pub(super) fn terms(&self) -> Arc<Terms> {
        self.terms.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether clients log in with a name.
    pub(super) fn has_users(&self) -> bool {
        self.has_users.load(Relaxed)
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
        (before < self.terms().config.clients_max).then_some(admission)
    }
}

/// What a changed configuration makes of the door, read whole.
#[derive(Debug)]
pub struct Prepared {
    terms: Arc<Terms>,
    users: Option<Table>,
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
