//! Why the agent did not start.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::state::StateError;

/// Why the agent did not start; nothing was left running. Displays as one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// The log folder.
    #[error("log_dir {}: {source}; set [agent] log_dir to a folder this user can write", path.display())]
    LogDir {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The metrics listener.
    #[error(
        "metrics_listen {address}: {source}; stop what listens there, or set [agent] metrics_listen to another port"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The listener of the feed.
    #[error(
        "events_listen {address}: {source}; stop what listens there, or set [agent] events_listen to another address"
    )]
    Events {
        /// The address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The address of control.
    #[error("control: {0}; set [agent] control to http://127.0.0.1:PORT")]
    Control(#[from] tonic::transport::Error),
    /// A metric's declaration.
    #[error("metrics: {0}; this is a fault of cgn-agent, please report it")]
    Metrics(#[from] prometheus::Error),
    /// The system would not let the agent listen for signals.
    #[error("signals: {0}; the limits of this user (ulimit -a) are too tight")]
    Signals(io::Error),
}
