//! Who may come in by the RESP door, and what each may: the file of users.
//!
//! Passwords are kept as SHA-256, which is enough for random ones of 32 bytes and for no others; the
//! file says so. It is read at start and when the daemon is told to, and a bad file changes nothing.
//! Commands are not known here.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use dataplane::config::{self, ConfigError};
use serde::Deserialize;

/// Users of one file.
pub const USERS_MAX: usize = 4096;
/// The user of a login that names none, as in redis.
pub const STANDARD_USER: &str = "default";
/// The namespace of users that name none.
pub const STANDARD_NAMESPACE: &str = "resp";

/// What a user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    /// Look for blocks and get them.
    Read,
    /// Store and remove blocks.
    Write,
    /// Empty the namespace, and see who is connected.
    Admin,
}

/// One user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name that AUTH gives.
    pub name: String,
    /// What it may do.
    pub may: Vec<Right>,
    /// The namespace of its database 0.
    pub namespace: String,
    password: [u8; 32],
}

impl User {
    /// The user that clients from loopback are where there is no file: it may do everything.
    pub fn loopback() -> User {
        User {
            name: STANDARD_USER.to_owned(),
            may: vec![Right::Read, Right::Write, Right::Admin],
            namespace: STANDARD_NAMESPACE.to_owned(),
            password: [0; 32],
        }
    }

    /// Whether the user may do this.
    pub fn may(&self, right: Right) -> bool {
        self.may.contains(&right)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UserFile {
    #[serde(default)]
    user: Vec<UserEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UserEntry {
    name: String,
    password_sha256: String,
    may: Vec<Right>,
    #[serde(default = "standard_namespace")]
    namespace: String,
}

fn standard_namespace() -> String {
    STANDARD_NAMESPACE.to_owned()
}

/// Users by name.
pub type Table = BTreeMap<String, Arc<User>>;

/// Reads the file at `path`.
///
/// # Errors
/// [`ConfigError`].
pub fn load(path: &Path) -> Result<Table, ConfigError> {
    read(path, config::load(path)?)
}

/// The users of the file as it was last read.
#[derive(Debug, Default)]
pub struct Users {
    users: RwLock<Table>,
    /// Changes when the users do.
    edition: AtomicU64,
}

impl Users {
    /// Reads the file at `path` in place of what was read before.
    ///
    /// # Errors
    /// [`ConfigError`]; the users stay as they are.
    pub fn load(&self, path: &Path) -> Result<(), ConfigError> {
        self.set(load(path)?);
        Ok(())
    }

    /// Takes the users of another reading of the file.
    pub fn set(&self, users: Table) {
        *self.users.write().unwrap_or_else(PoisonError::into_inner) = users;
        self.edition.fetch_add(1, Ordering::Release);
    }

    /// Which reading of the file this is. A connection whose login is of another one looks again.
    pub fn edition(&self) -> u64 {
        self.edition.load(Ordering::Acquire)
    }

    /// The user called `name`, if the password is right. Takes as long for a name that nobody has.
    pub fn log_in(&self, name: &[u8], password: &[u8]) -> Option<Arc<User>> {
        let given = ring::digest::digest(&ring::digest::SHA256, password);
        let found = std::str::from_utf8(name).ok().and_then(|name| self.find(name));
        let expected = found.as_ref().map_or([0; 32], |user| user.password);
        // Hashes of BLAKE3 compare in constant time.
        let is_right = blake3::hash(given.as_ref()) == blake3::hash(&expected);
        found.filter(|_| is_right)
    }

    /// The user called `name`.
    pub fn find(&self, name: &str) -> Option<Arc<User>> {
        self.users.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Whether `user` stands in the file unchanged.
    pub fn has(&self, user: &User) -> bool {
        self.find(&user.name).is_some_and(|found| *found == *user)
    }
}

fn read(path: &Path, file: UserFile) -> Result<Table, ConfigError> {
    let refuse = |key: String, message: String| {
        Err(ConfigError::Value { path: path.to_owned(), key, message })
    };
    if file.user.len() > USERS_MAX {
        return refuse("user".to_owned(), format!("{USERS_MAX} users are the most"));
    }
    let mut users = BTreeMap::new();
    for entry in file.user {
        let key = format!("user.{}", entry.name);
        let Some(password) = digest(&entry.password_sha256) else {
            let message = "password_sha256 must be 64 hexadecimal digits; make them with \
                           `printf %s PASSWORD | sha256sum`";
            return refuse(key, message.to_owned());
        };
        if entry.name.is_empty() || entry.name.contains(char::is_whitespace) {
            return refuse(key, "a name has at least one letter and no blanks".to_owned());
        }
        let user = User { name: entry.name, may: entry.may, namespace: entry.namespace, password };
        let name = user.name.clone();
        if users.insert(name, Arc::new(user)).is_some() {
            return refuse(key, "the user stands there twice; remove one".to_owned());
        }
    }
    Ok(users)
}

fn digest(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let is_hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    is_hex.then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf %s secret | sha256sum`
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn user(name: &str) -> String {
        format!("[[user]]\nname = \"{name}\"\npassword_sha256 = \"{SECRET}\"\nmay = [\"read\"]\n")
    }

    #[test]
    fn only_the_right_password_opens() {
        let users = Users::default();
        users.load(file(&user("engine")).path()).unwrap();
        let engine = users.log_in(b"engine", b"secret").unwrap();
        assert!(engine.may(Right::Read) && !engine.may(Right::Write));
        assert_eq!(engine.namespace, STANDARD_NAMESPACE);
        for (name, password) in
            [("engine", "Secret"), ("engine", ""), ("Engine", "secret"), ("", "secret")]
        {
            assert!(users.log_in(name.as_bytes(), password.as_bytes()).is_none());
        }
        assert!(users.log_in(b"nobody", &[0; 32]).is_none());
    }

    #[test]
    fn a_bad_file_changes_nothing_and_says_what_to_do() {
        let users = Users::default();
        users.load(file(&user("engine")).path()).unwrap();
        let edition = users.edition();
        for (text, said) in [
            (user("a").replace(SECRET, "ab"), "sha256sum"),
            (user("a") + &user("a"), "twice"),
            (user("a b"), "no blanks"),
            (user("a").replace("may", "my"), "nearest known key is `may`"),
        ] {
            let error = users.load(file(&text).path()).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        assert_eq!(users.edition(), edition);
        assert!(users.log_in(b"engine", b"secret").is_some());
    }

    #[test]
    fn who_left_the_file_is_in_no_more() {
        let users = Users::default();
        users.load(file(&user("engine")).path()).unwrap();
        let engine = users.log_in(b"engine", b"secret").unwrap();
        let edition = users.edition();
        users.load(file(&user("other")).path()).unwrap();
        assert_ne!(users.edition(), edition);
        assert!(!users.has(&engine));
    }
}
