//! Strict configuration: one TOML file per process, read once, before anything starts.
//!
//! Every structure that is loaded through here derives `Deserialize` with `deny_unknown_fields`, so a
//! misspelt key is an error that names the file, the line and the nearest known key.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Why a configuration was refused. Displays as one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{}: cannot read the configuration: {source}; pass an existing file with --config", path.display())]
    Read {
        /// The file asked for.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not the TOML expected: syntax, a wrong type, an unknown or a missing key.
    #[error("{}:{line}: {message}", path.display())]
    Parse {
        /// The file read.
        path: PathBuf,
        /// Line of the fault, counted from 1.
        line: usize,
        /// The fault and its cure.
        message: String,
    },
    /// A value parsed but cannot be used.
    #[error("{}: {key}: {message}", path.display())]
    Value {
        /// The file read.
        path: PathBuf,
        /// The key as `section.key`.
        key: String,
        /// The fault and its cure.
        message: String,
    },
}

/// Reads and parses `path`.
///
/// # Errors
/// [`ConfigError::Read`] and [`ConfigError::Parse`].
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(path, &text)
}

/// Parses `text`; `path` is for the message only.
///
/// # Errors
/// [`ConfigError::Parse`].
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = 1 + text.as_bytes()[..start].iter().filter(|&&byte| byte == b'\n').count();
        ConfigError::Parse { path: path.to_owned(), line, message: advise(error.message()) }
    })
}

/// Serde names the unknown key and all known ones; a person wants the nearest.
fn advise(message: &str) -> String {
    let first = message.lines().next().unwrap_or(message);
    let Some((_, rest)) = first.split_once("unknown field `") else {
        return first.to_owned();
    };
    let mut ticked = rest.split('`').step_by(2);
    let Some(unknown) = ticked.next() else {
        return first.to_owned();
    };
    match ticked.max_by(|a, b| {
        strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b))
    }) {
        Some(nearest) => format!("unknown key `{unknown}`; the nearest known key is `{nearest}`"),
        None => format!("unknown key `{unknown}`; no key is known here"),
    }
}

/// Refuses a listener beyond loopback: without TLS and identity there is no other safe one.
///
/// # Errors
/// [`ConfigError::Value`] that names `key`.
pub fn require_loopback(path: &Path, key: &str, address: SocketAddr) -> Result<(), ConfigError> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    Err(ConfigError::Value {
        path: path.to_owned(),
        key: key.to_owned(),
        message: format!(
            "{address} is not a loopback address; listeners without authentication stay on 127.0.0.1 or [::1]"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[serde(rename = "router")]
        _router: Section,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Section {
        #[serde(rename = "listen_http")]
        _listen_http: SocketAddr,
        #[serde(rename = "cores")]
        _cores: Option<u32>,
    }

    fn error(text: &str) -> String {
        parse::<Sample>(Path::new("r.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_key_names_file_line_and_nearest_key() {
        let said = error("[router]\nlisten_http = \"127.0.0.1:1\"\nlisten_htpp = 3\n");
        assert_eq!(
            said,
            "r.toml:3: unknown key `listen_htpp`; the nearest known key is `listen_http`"
        );
    }

    #[test]
    fn wrong_types_and_syntax_name_the_line() {
        assert!(error("[router]\nlisten_http = 4\n").starts_with("r.toml:2: "));
        assert!(error("[router]\n\nlisten_http = \n").starts_with("r.toml:3: "));
        assert!(error("[router]\ncores = 1\n").contains("listen_http"));
    }

    #[test]
    fn only_loopback_listens_without_authentication() {
        let path = Path::new("r.toml");
        assert!(require_loopback(path, "k", "127.0.0.1:1".parse().unwrap()).is_ok());
        assert!(require_loopback(path, "k", "[::1]:1".parse().unwrap()).is_ok());
        assert!(require_loopback(path, "k", "0.0.0.0:1".parse().unwrap()).is_err());
    }
}
