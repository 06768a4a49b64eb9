//! Why a request of the client did not succeed, by what its caller can do about it.

use std::io;
use std::path::PathBuf;

use dataplane::frame::FrameError;
use dataplane::kv::Fault;

/// One reason.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no daemon at that path, or it may not be used.
    #[error("no connection to {}: {source}; is cgn-kvcached running, and is this kv.uds of its configuration?", path.display())]
    Connect {
        /// Of the socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke. Leases stay readable; connect again for more.
    #[error("the connection to the daemon is lost: {0}")]
    Lost(String),
    /// The daemon did not answer in time. The connection cannot be used any more.
    #[error("the daemon did not answer within {0} ms")]
    TimedOut(u128),
    /// What came is not the wire of the native door.
    #[error("the daemon's answer cannot be read: {0}")]
    Wire(#[from] FrameError),
    /// The daemon refused the request as a whole.
    #[error("{fault}: {text}")]
    Refused {
        /// Why.
        fault: Fault,
        /// Its words.
        text: String,
    },
    /// The caller asked for what cannot be.
    #[error("{0}")]
    Invalid(&'static str),
    /// The staging memory has no room for this many bytes in one piece.
    #[error(
        "{needed} bytes do not fit into the {room} free of the staging memory; ask for more at connect"
    )]
    StagingFull {
        /// Bytes asked for.
        needed: u64,
        /// Bytes free, in whatever pieces.
        room: u64,
    },
    /// The system refused memory or a descriptor.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// As the C ABI returns it: faults of the daemon by their numbers negated, others below -100.
    pub fn code(&self) -> i32 {
        match self {
            Error::Refused { fault, .. } => -i32::from(fault.number()),
            Error::Invalid(_) => -100,
            Error::Connect { .. } => -101,
            Error::Lost(_) => -102,
            Error::Wire(_) => -103,
            Error::TimedOut(_) => -104,
            Error::StagingFull { .. } => -105,
            Error::System { .. } => -106,
        }
    }

    /// For `map_err`: what was tried when the system refused.
    pub(crate) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
        move |source| Error::System { what, source: source.into() }
    }
}
