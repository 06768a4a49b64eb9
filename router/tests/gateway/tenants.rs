//! Tenants and their keys as an operator writes them down, and requests that carry them.

use std::path::Path;
use std::time::{Duration, Instant};

use super::client::{Answer, Client};
use super::process::Router;

pub const CHAT: &str = "/v1/chat/completions";
/// What happens in another thread or process happens within this time.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// A key file in a folder of its own.
pub struct KeyFile(tempfile::TempDir);

impl KeyFile {
    /// Of lines made with [`line`].
    pub fn with(lines: &[String]) -> KeyFile {
        let file = KeyFile(tempfile::tempdir().unwrap());
        file.write(&lines.concat());
        file
    }

    pub fn write(&self, text: &str) {
        // As an editor does it: nobody reads half a file.
        let fresh = self.0.path().join("keys.new");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, self.path()).unwrap();
    }

    pub fn path(&self) -> std::path::PathBuf {
        self.0.path().join("keys")
    }

    /// `[router.identity]` with this file, and `more` keys of the section.
    pub fn section(&self, more: &str) -> String {
        section(&self.path(), more)
    }
}

pub fn section(path: &Path, more: &str) -> String {
    format!("[router.identity]\napi_keys_file = \"{}\"\n{more}\n", path.display())
}

/// The line of a key file for `key`.
pub fn line(key: &str, rest: &str) -> String {
    format!("{} {rest}\n", sha256_hex(key))
}

pub fn sha256_hex(text: &str) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `[[tenants]]`
pub fn tenant(name: &str, keys: &str) -> String {
    format!("[[tenants]]\nname = \"{name}\"\n{keys}\n")
}

/// The field that shows a key.
pub fn bearer(key: &str) -> String {
    format!("Authorization: Bearer {key}\r\n")
}

/// Two tenants, `a` and `b`, whose keys are `key-a` and `key-b`.
pub fn two_tenants(of_a: &str, of_b: &str) -> (KeyFile, String) {
    let keys = KeyFile::with(&[line("key-a", "tenant=a id=a1"), line("key-b", "tenant=b id=b1")]);
    (keys, tenant("a", of_a) + &tenant("b", of_b))
}

/// A GET with fields.
pub fn get(client: &mut Client, path: &str, fields: &str) -> Answer {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: t\r\n{fields}\r\n"));
    client.answer()
}

/// A POST on a connection of its own.
pub fn post(router: &Router, fields: &str, body: &str) -> Answer {
    router.client().post(CHAT, fields, body)
}

/// Waits until `is_so`, or fails.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
