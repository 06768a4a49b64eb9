//! What can be refused or go wrong while control runs, and the one place that turns it into a gRPC
//! status.

use tonic::{Code, Status};

use crate::store::StoreError;

/// Why a call was not done.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The caller sent something that cannot be used; another call may.
    #[error("{0}")]
    BadRequest(String),
    /// A configured limit is reached; `key` raises it.
    #[error("{what}: the limit of {limit} is reached; raise [control] {key} or remove some")]
    Full {
        /// What there are too many of.
        what: &'static str,
        /// How many there may be.
        limit: usize,
        /// The configuration key.
        key: &'static str,
    },
    /// A live agent holds that node's name.
    #[error(
        "node `{0}` is attached already by another agent; stop that one or give this one another [agent] node_id"
    )]
    NodeTaken(String),
    /// A newer stream of the same node took over after this one had gone silent.
    #[error("another agent attached as node `{0}` after this one had stopped reporting")]
    Replaced(String),
    /// An agent opened its stream and said nothing.
    #[error("the first report did not come within {0} s")]
    Silent(u64),
    /// There is nobody to ask.
    #[error(
        "no cgn-router is attached to this control process; start one with [router] control_socket set to this control's [control] socket"
    )]
    NoRouter,
    /// The router has more questions open than it may.
    #[error("the router has {0} explanations pending; try again")]
    RouterBusy(usize),
    /// The router went away while it was asked.
    #[error("the router hung up before it answered; try again")]
    RouterGone,
    /// The router did not answer.
    #[error("the router did not answer within {0} s; see its log")]
    RouterSlow(u64),
    /// The router answered that it cannot explain this.
    #[error("{0}")]
    RouterRefused(String),
    /// The desired state could not be made durable, so it was not taken.
    #[error("the store refused the change, nothing was changed: {0}")]
    Store(#[from] StoreError),
}

impl From<ControlError> for Status {
    fn from(error: ControlError) -> Status {
        let code = match &error {
            ControlError::BadRequest(_) => Code::InvalidArgument,
            ControlError::Full { .. } | ControlError::RouterBusy(_) => Code::ResourceExhausted,
            ControlError::NodeTaken(_) => Code::AlreadyExists,
            ControlError::Replaced(_) => Code::Aborted,
            ControlError::Silent(_) | ControlError::RouterSlow(_) => Code::DeadlineExceeded,
            ControlError::NoRouter | ControlError::RouterGone => Code::Unavailable,
            ControlError::RouterRefused(_) => Code::FailedPrecondition,
            ControlError::Store(_) => Code::Internal,
        };
        Status::new(code, error.to_string())
    }
}
