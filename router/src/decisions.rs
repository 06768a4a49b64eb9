//! The decision log: all that each decision about a worker was made from, for `cgnctl route replay`, where
//! `[router.decision_log]` asks for it.
//!
//! * This file: the configuration, and a decision as the core hands it over.
//! * [`log`]: the way to the disk.
//!
//! Each pick has a line of its own: a retry, a hedge and a stream that goes on elsewhere have theirs
//! beside that of the first. The line itself is [`dataplane::route::decision`].

use std::path::PathBuf;
use std::sync::Arc;

use dataplane::route::decision::{Decision, RulesFrom, Seen, VERSION};
use dataplane::route::pick::{Candidate, Picked, Request, Rules};
use serde::{Deserialize, Serialize};

use crate::cluster::View;
use crate::overlap::Source;
use crate::trace::context::TraceId;

pub mod log;

/// `[router.decision_log]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecisionConfig {
    /// Where the lines go; none are written without it.
    pub file: Option<PathBuf>,
    /// Share of the requests whose decisions are written, 0.0 to 1.0; those of one trace all or none.
    pub sample_ratio: f64,
    /// The file is renamed to `<file>.1` at this size, over the one before: at most twice this
    /// much lies on the disk.
    pub bytes_max: u64,
}

impl Default for DecisionConfig {
    fn default() -> Self {
        DecisionConfig { file: None, sample_ratio: 0.01, bytes_max: 256 << 20 }
    }
}

/// Below this size a file would be renamed every few decisions of a large model.
const BYTES_MAX_MIN: u64 = 1 << 20;

/// A value of `[router.decision_log]` that cannot be: its key, and what it must be.
pub type DecisionConfigError = (&'static str, &'static str);

impl DecisionConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`DecisionConfigError`].
    pub fn check(&self) -> Result<(), DecisionConfigError> {
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            return Err(("sample_ratio", "must lie between 0.0 and 1.0"));
        }
        if self.bytes_max < BYTES_MAX_MIN {
            return Err(("bytes_max", "must be 1048576 (1 MiB) or more"));
        }
        Ok(())
    }
}

/// One decision as it leaves its core; the writer's thread makes the line of it.
pub struct Made {
    /// When, in ms since 1970.
    pub time_unix_ms: u64,
    /// The request's id.
    pub request_id: Box<str>,
    /// Its trace.
    pub trace_id: TraceId,
    /// The picture with the model's workers.
    pub view: Arc<View>,
    /// The model asked for.
    pub model: Box<str>,
    /// Workers that were out for this request already.
    pub tried: usize,
    /// Whose rules.
    pub rules_from: RulesFrom,
    /// What was decided on.
    pub request: Request,
    /// By which rules.
    pub rules: Rules,
    /// With what for ties and draws.
    pub seed: u64,
    /// In the order of the view's workers.
    pub candidates: Vec<Candidate>,
    /// In the same order, where knowledge of their caches came from.
    pub sources: Vec<Source>,
    /// What came out.
    pub picked: Option<Picked>,
}

impl Made {
    /// The whole record.
    pub fn decision(&self) -> Decision {
        let workers = self.view.models.get(&*self.model).map_or(&[][..], |model| &model.workers);
        let seen = workers.iter().zip(&self.candidates).zip(&self.sources);
        let seen = seen.map(|((view, state), source)| Seen {
            worker: view.worker.id.clone(),
            source: source.as_str().to_owned(),
            state: *state,
        });
        Decision {
            version: VERSION,
            time_unix_ms: self.time_unix_ms,
            request_id: self.request_id.as_ref().to_owned(),
            trace_id: self.trace_id.to_string(),
            model: self.model.as_ref().to_owned(),
            tried: u32::try_from(self.tried).unwrap_or(u32::MAX),
            rules_from: self.rules_from,
            request: self.request,
            rules: self.rules,
            seed: self.seed,
            candidates: seen.collect(),
            picked: self.picked,
        }
    }
}
