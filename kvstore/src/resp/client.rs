//! One client's state: who it is, which database it looks at, what it was promised. No I/O.

use std::net::SocketAddr;
use std::sync::Arc;

use super::command::{Entry, Need};
use super::door::Door;
use super::promise::Promises;
use super::terms::Terms;
use super::user::{Right, User};
use crate::block::LABEL_BYTES_MAX;
use crate::key::{Key, Name};
use crate::namespace::Namespace;
use crate::store::{Store, StoreError};

/// Databases of a namespace, as in redis.
pub const DATABASES_MAX: u32 = 16;
/// Longest key: it is kept as the block's label.
pub const KEY_BYTES_MAX: usize = LABEL_BYTES_MAX;
/// Wrong passwords of one connection; then it is closed.
pub const LOGIN_FAILURES_MAX: u32 = 8;

/// The client at the other end of a connection.
pub(super) struct Client {
    pub(super) door: Arc<Door>,
    /// Those it came in by.
    pub(super) terms: Arc<Terms>,
    pub(super) store: Store,
    pub(super) number: u64,
    pub(super) peer: SocketAddr,
    /// What CLIENT SETNAME said.
    pub(super) name: Vec<u8>,
    pub(super) database: u32,
    pub(super) promises: Promises,
    pub(super) login_failures: u32,
    login: Option<Login>,
}

struct Login {
    user: Arc<User>,
    /// The edition of the users that this login was found in.
    edition: u64,
    namespace: Arc<Namespace>,
}

/// Why a client may not do something: the error line it gets.
pub(super) type Refusal = String;

impl Client {
    /// A client just come in. Where there are no users, clients of loopback are logged in already.
    pub(super) fn new(
        door: Arc<Door>,
        terms: Arc<Terms>,
        store: Store,
        number: u64,
        peer: SocketAddr,
    ) -> Self {
        let mut client = Self {
            door,
            terms,
            store,
            number,
            peer,
            name: Vec::new(),
            database: 0,
            promises: Promises::new(peer.ip().to_canonical()),
            login_failures: 0,
            login: None,
        };
        client.log_in_without_name();
        client
    }

    /// Back to what it was when it came in.
    pub(super) fn reset(&mut self) {
        self.name.clear();
        self.database = 0;
        self.login = None;
        self.log_in_without_name();
    }

    /// From loopback, or with a certificate that TLS verified, a client needs no name where there are none.
    fn log_in_without_name(&mut self) {
        if !self.door.has_users()
            && (self.peer.ip().to_canonical().is_loopback() || self.terms.has_client_ca())
        {
            // Its namespace is the first to be opened; without it the client is told to log in.
            let _ = self.log_in(Arc::new(User::loopback()), 0);
        }
    }

    /// Takes the user's place.
    pub(super) fn log_in(&mut self, user: Arc<User>, edition: u64) -> Result<(), StoreError> {
        let namespace = self.store.namespace(&database_name(&user.namespace, 0))?;
        self.database = 0;
        self.login = Some(Login { user, edition, namespace });
        Ok(())
    }

    /// Whether it is logged in as a user that is still in the file as it was.
    pub(super) fn is_logged_in(&mut self) -> bool {
        if let Some(login) = &mut self.login
            && self.door.has_users()
        {
            let edition = self.door.users.edition();
            if login.edition != edition && !self.door.users.has(&login.user) {
                self.login = None;
                return false;
            }
            login.edition = edition;
        }
        self.login.is_some()
    }

    /// The name of the user.
    pub(super) fn user(&self) -> &str {
        self.login.as_ref().map_or("", |login| &login.user.name)
    }

    /// Whether the user may do this.
    pub(super) fn may(&self, right: Right) -> bool {
        self.login.as_ref().is_some_and(|login| login.user.may(right))
    }

    /// Whether it may give this command now.
    pub(super) fn check(&mut self, entry: &Entry) -> Result<(), Refusal> {
        if entry.need == Need::Nothing {
            return Ok(());
        }
        if !self.is_logged_in() {
            return Err("NOAUTH Authentication required.".to_owned());
        }
        match entry.need {
            Need::Right(right) if !self.may(right) => Err(format!(
                "NOPERM User {} has no permissions to run the '{}' command",
                self.user(),
                entry.name
            )),
            _ => Ok(()),
        }
    }

    /// Looks at another database from here on.
    pub(super) fn select(&mut self, database: u32) -> Result<(), StoreError> {
        if let Some(login) = &mut self.login {
            login.namespace =
                self.store.namespace(&database_name(&login.user.namespace, database))?;
            self.database = database;
        }
        Ok(())
    }

    /// Whose blocks it looks at.
    pub(super) fn namespace(&self) -> Result<&Arc<Namespace>, Refusal> {
        let login = self.login.as_ref();
        Ok(&login.ok_or_else(|| "NOAUTH Authentication required.".to_owned())?.namespace)
    }

    /// The block that the client calls `label`.
    pub(super) fn key(&self, label: &[u8]) -> Result<Key, Refusal> {
        if label.len() > KEY_BYTES_MAX {
            return Err(format!("ERR the key is longer than {KEY_BYTES_MAX} bytes"));
        }
        Ok(Key::new(self.namespace()?.id, Name::of(label)))
    }

    /// EXISTS found the block.
    pub(super) fn promise(&mut self, key: &Key) {
        self.promises.make(&self.door.promises, key);
    }

    /// The client removed the block.
    pub(super) fn forget(&mut self, key: &Key) {
        self.promises.forget(&self.door.promises, key);
    }

    /// Whether nil would break a promise, which then ends.
    pub(super) fn was_promised(&mut self, key: &Key) -> bool {
        self.promises.take(&self.door.promises, key)
    }
}

/// A database is a namespace beside the user's.
fn database_name(namespace: &str, database: u32) -> String {
    if database == 0 { namespace.to_owned() } else { format!("{namespace}/db{database}") }
}

/// The error line of what the store would not do.
pub(super) fn store_refusal(error: &StoreError) -> Refusal {
    let word = match error {
        StoreError::Busy | StoreError::QuotaExceeded => "OOM",
        _ => "ERR",
    };
    format!("{word} {error}")
}
