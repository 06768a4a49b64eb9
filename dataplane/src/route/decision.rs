//! One decision with all that it was made from, as a line of the decision log: the router writes it,
//! `cgnctl route replay` makes the decision again.
//!
//! [`pick::worker`] is pure, so the same line gives the same pick, bit for bit: floats are written with
//! [`super::exact`]. Only with a temperature above 0 is a logarithm of the system's library in it, which
//! may differ between two systems in its last bit. A line holds no text of a prompt and no digest of one.
//! Reading and writing of files is not done here.

use serde::{Deserialize, Serialize};

use super::exact;
use super::pick::{self, Candidate, Picked, Request, Rules};
use crate::wire::ScoreWeights;

/// Of the fields and of what the decision makes of them. Another one is refused.
pub const VERSION: u32 = 1;
/// A line may not be longer: 10,000 candidates of 1 KiB each fit, a runaway one does not.
pub const LINE_BYTES_MAX: usize = 16 << 20;

/// One decision: a line is this as JSON.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// [`VERSION`]
    pub version: u32,
    /// When it was made, in ms since 1970.
    pub time_unix_ms: u64,
    /// The id in `x-request-id`.
    pub request_id: String,
    /// The trace, 32 hex digits.
    pub trace_id: String,
    /// As asked for.
    pub model: String,
    /// Workers this request had been at, or could not be let in by, before this decision.
    pub tried: u32,
    /// Whose rules these are.
    pub rules_from: RulesFrom,
    /// What of the request counts.
    pub request: Request,
    /// How it was decided.
    pub rules: Rules,
    /// What ties were broken and draws were made with.
    pub seed: u64,
    /// All workers of the model, in the order they were decided on.
    pub candidates: Vec<Seen>,
    /// What came out; none where all were excluded.
    pub picked: Option<Picked>,
}

/// Whose word the weights in force were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RulesFrom {
    /// The router's own file.
    Configuration,
    /// Control's, for all routers.
    Control,
    /// An admin's, for this request alone.
    Request,
}

/// One worker as it was seen.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// Its id.
    pub worker: String,
    /// Where knowledge of its cache came from: `events`, `partial events` or `learned`.
    pub source: String,
    /// What was decided on.
    pub state: Candidate,
}

/// Why a line is none.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Not the JSON of a decision.
    #[error("not a decision: {0}")]
    Json(#[from] serde_json::Error),
    /// Written by a router of another version.
    #[error("of version {0}, this is for version {VERSION}")]
    Version(u32),
    /// It names a candidate that it does not have.
    #[error("it names candidate {at} of {count}")]
    Candidate {
        /// The place it names.
        at: usize,
        /// How many there are.
        count: usize,
    },
}

impl Decision {
    /// The line, without its end.
    ///
    /// # Errors
    /// None that can be met: all fields are plain.
    pub fn to_line(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// Reads a line.
    ///
    /// # Errors
    /// [`LineError`].
    pub fn from_line(line: &[u8]) -> Result<Self, LineError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let decision: Decision = serde_json::from_slice(line).map_err(|error| {
            match serde_json::from_slice::<Versioned>(line) {
                // Its fields may be others: that is no fault of the line.
                Ok(Versioned { version }) if version != VERSION => LineError::Version(version),
                _ => LineError::Json(error),
            }
        })?;
        if decision.version != VERSION {
            return Err(LineError::Version(decision.version));
        }
        let count = decision.candidates.len();
        let named = [decision.picked.map(|picked| picked.at), decision.request.preferred];
        match named.into_iter().flatten().find(|at| *at >= count) {
            Some(at) => Err(LineError::Candidate { at, count }),
            None => Ok(decision),
        }
    }

    /// Decides again, by `rules` where those are to be others.
    pub fn again(&self, rules: Option<&Rules>) -> Option<Picked> {
        let candidates: Vec<Candidate> = self.candidates.iter().map(|seen| seen.state).collect();
        pick::worker(&candidates, &self.request, rules.unwrap_or(&self.rules), self.seed)
    }

    /// The id of a worker that was picked.
    pub fn worker(&self, picked: Option<Picked>) -> Option<&str> {
        self.candidates.get(picked?.at).map(|seen| seen.worker.as_str())
    }
}

/// [`ScoreWeights`] with every bit; a configuration file writes them as plain numbers.
#[derive(Deserialize, Serialize)]
#[serde(remote = "ScoreWeights", deny_unknown_fields)]
pub(super) struct ExactWeights {
    #[serde(with = "exact")]
    kv: f64,
    #[serde(with = "exact")]
    load: f64,
    #[serde(with = "exact")]
    power: f64,
    #[serde(with = "exact")]
    capacity: f64,
}

#[cfg(test)]
mod tests;
