//! The one error of this crate: a line for a person, with the next step in it.

use std::fmt;
use std::path::Path;

/// Why a command ended early. Displays as what happened and what to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(String);

impl Failure {
    /// A failure that says `line`.
    pub fn new(line: impl Into<String>) -> Failure {
        Failure(line.into())
    }

    /// What the system said about `path`.
    pub fn at(path: &Path, action: &str, error: &std::io::Error) -> Failure {
        Failure(format!("cannot {action} {}: {error}", path.display()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
