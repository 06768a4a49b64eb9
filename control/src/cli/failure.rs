//! How a command of `cgnctl` can end badly, and the exit code that says so to a script.

use crate::api::Deployment;
use crate::deployment;
use crate::recipe::RecipeError;

/// Displays as one line that says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Control or an engine said no. Exit code 1.
    #[error("{0}")]
    Failed(String),
    /// What was typed or configured cannot be used. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Nobody answers at the control port. Exit code 3.
    #[error(
        "cannot reach cgn-control at {address}: start it with `cgn-control --config FILE`, or name another with --control ({reason})"
    )]
    Unreachable {
        /// The URL tried.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// Nobody answers at the KV daemon's socket. Exit code 3.
    #[error("{0}")]
    NoDaemon(String),
    /// No such recipe, deployment or block. Exit code 4.
    #[error("{0}")]
    NotFound(String),
}

impl Failure {
    /// 1 failed, 2 usage or configuration, 3 control or the KV daemon unreachable, 4 not found.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Failed(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Unreachable { .. } | Failure::NoDaemon(_) => 3,
            Failure::NotFound(_) => 4,
        }
    }

    /// What a call came back with. A status that has a cause of its own was made on this side: the
    /// connection broke or nothing came in time.
    pub(super) fn of_status(address: &str, status: &tonic::Status) -> Failure {
        match std::error::Error::source(status) {
            Some(cause) => {
                Failure::Unreachable { address: address.to_owned(), reason: cause.to_string() }
            }
            None => Failure::Failed(status.message().to_owned()),
        }
    }
}

impl From<RecipeError> for Failure {
    fn from(error: RecipeError) -> Failure {
        match error {
            RecipeError::NotFound { .. } => Failure::NotFound(error.to_string()),
            RecipeError::Config(_) | RecipeError::Tree { .. } | RecipeError::TooMany(_) => {
                Failure::Usage(error.to_string())
            }
        }
    }
}

/// Whether options made a good recipe into something that cannot be asked for.
pub(super) fn check(deployment: &Deployment) -> Result<(), Failure> {
    deployment::check(deployment).map_err(|fault| Failure::Usage(fault.to_string()))
}
