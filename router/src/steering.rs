//! What a request itself says of where it goes: its session, and, from admins, other rules for it alone.
//!
//! * A session is named by the header of `[router.routing] session_header`, else by the body's
//!   `prompt_cache_key`, else by its `user`, as OpenAI's clients send them.
//! * `x-cgn-score-weights` and `x-cgn-temperature` are for callers with the scope `admin`; from others
//!   they are refused, never ignored: whoever sends them relies on them.
//!
//! [`rules`] puts together what is in force for one decision: the request's word before control's, and
//! that before the file's.

use std::ops::Range;
use std::rc::Rc;

use dataplane::route::decision::RulesFrom;
use dataplane::route::pick::Rules;
use dataplane::wire::ScoreWeights;
use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, View};
use crate::error::RequestError;
use crate::identity::Caller;
use crate::parse::Call;
use crate::read::Request;
use crate::record::Record;
use crate::sessions::SessionKey;
use crate::shard::Shard;
use crate::trace::context::TraceId;

/// A higher temperature is chance already.
pub const TEMPERATURE_MAX: f64 = 10.0;
/// Above this a session would stay where ten prompts like its own wait.
const AFFINITY_MAX: f64 = 10.0;

const WEIGHTS_FIELD: &str = "x-cgn-score-weights";
const TEMPERATURE_FIELD: &str = "x-cgn-temperature";

/// `[router.routing]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoutingConfig {
    /// 0: the cheapest worker. Above: drawn, the cheaper ones more often; 1.0 is close to chance.
    pub temperature: f64,
    /// A session stays at its worker while that costs no more than the best and this share of computing
    /// its whole prompt; 0: sessions are not followed.
    pub session_affinity: f64,
    /// The header that names a session; empty: none does.
    pub session_header: String,
    /// Sessions remembered; 16 bytes each, taken with the first one.
    pub sessions_max: usize,
    /// One that is silent for longer is forgotten.
    pub session_idle_s_max: u32,
}

impl Default for RoutingConfig {
    fn default() -> Self {
        RoutingConfig {
            temperature: 0.0,
            session_affinity: 0.05,
            session_header: "x-session-id".to_owned(),
            sessions_max: 1 << 16,
            session_idle_s_max: 600,
        }
    }
}

/// Sessions are looked up for each request that names one; more than this is a mistake, not a load.
const SESSIONS_MAX: usize = 1 << 24;

impl RoutingConfig {
    /// The key at fault and what it must be.
    pub fn invalid(&self) -> Option<(&'static str, &'static str)> {
        let is_token = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !(0.0..=TEMPERATURE_MAX).contains(&self.temperature) {
            Some(("temperature", "must be 0 to 10"))
        } else if !(0.0..=AFFINITY_MAX).contains(&self.session_affinity) {
            Some(("session_affinity", "must be 0 to 10"))
        } else if !self.session_header.bytes().all(is_token) {
            Some(("session_header", "must be a header's name: lower-case letters, digits and -"))
        } else if self.sessions_max > SESSIONS_MAX {
            Some(("sessions_max", "must be at most 16777216"))
        } else {
            None
        }
    }
}

/// What of the rules the file says and a reload may change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preset {
    /// `[router.score_weights]`
    pub weights: ScoreWeights,
    /// `[router.routing] temperature`
    pub temperature: f64,
    /// `[router.routing] session_affinity`
    pub affinity: f64,
}

impl Preset {
    /// As `config` says.
    pub fn of(config: &crate::config::Router) -> Self {
        Preset {
            weights: config.score_weights,
            temperature: config.routing.temperature,
            affinity: config.routing.session_affinity,
        }
    }
}

/// What one request says.
#[derive(Clone, Debug, Default)]
pub struct Steering {
    /// Weights for it alone.
    pub weights: Option<ScoreWeights>,
    /// Temperature for it alone.
    pub temperature: Option<f64>,
    /// Its session.
    pub session: Option<SessionKey>,
    /// By what names its decisions are written down; `None`: they are not.
    pub logged: Option<Logged>,
}

/// Names of a request whose decisions are written down.
#[derive(Clone, Debug)]
pub struct Logged {
    /// As in `x-request-id`.
    pub request_id: Rc<str>,
    /// Its trace.
    pub trace_id: TraceId,
}

impl Steering {
    /// Reads what `request` says.
    ///
    /// # Errors
    /// [`RequestError::HeaderDenied`] and [`RequestError::Header`].
    pub fn read(
        shard: &Shard,
        request: &Request,
        call: &Call,
        caller: &Caller,
        record: &Record,
    ) -> Result<Self, RequestError> {
        let head = &request.head;
        let mut steering = Steering { logged: logged(shard, record), ..Steering::default() };
        if let Some(range) = &head.score_weights {
            let weights = for_admins(request, range, caller, WEIGHTS_FIELD)?.parse();
            steering.weights = Some(weights.map_err(|_| RequestError::Header {
                field: WEIGHTS_FIELD,
                message: "must be kv=…,load=…,power=…,capacity=…: each once, 0 or more, and 1.0 together",
            })?);
        }
        if let Some(range) = &head.temperature {
            let value = for_admins(request, range, caller, TEMPERATURE_FIELD)?.parse().ok();
            let value = value.filter(|value| (0.0..=TEMPERATURE_MAX).contains(value));
            steering.temperature = Some(value.ok_or(RequestError::Header {
                field: TEMPERATURE_FIELD,
                message: "must be a number, 0 to 10",
            })?);
        }
        if shard.cluster.preset().affinity > 0.0
            && let Some(name) = session_name(shard, request, call)
        {
            let key = shard.cluster.sessions.key(&caller.tenant.name, &call.model, name);
            steering.session = Some(key);
        }
        Ok(steering)
    }
}

/// What is in force for one decision, and by whose word.
pub fn rules(cluster: &Cluster, view: &View, steering: &Steering) -> (Rules, RulesFrom) {
    let preset = cluster.preset();
    let from = match (steering.weights.is_some() || steering.temperature.is_some(), view.weights) {
        (true, _) => RulesFrom::Request,
        (false, Some(_)) => RulesFrom::Control,
        (false, None) => RulesFrom::Configuration,
    };
    let rules = Rules {
        weights: steering.weights.or(view.weights).unwrap_or(preset.weights),
        temperature: steering.temperature.unwrap_or(preset.temperature),
        affinity: preset.affinity,
        ..Rules::default()
    };
    (rules, from)
}

/// The text of a field that only admins may send.
fn for_admins<'a>(
    request: &'a Request,
    range: &Range<usize>,
    caller: &Caller,
    field: &'static str,
) -> Result<&'a str, RequestError> {
    caller.may_admin().map_err(|denied| RequestError::HeaderDenied { field, denied })?;
    // What is no text is no number either.
    Ok(std::str::from_utf8(&request.head_bytes()[range.clone()]).unwrap_or_default())
}

/// The name of its session, as it was sent.
fn session_name<'a>(shard: &Shard, request: &'a Request, call: &Call) -> Option<&'a [u8]> {
    let known = shard.config.routing.session_header.as_bytes();
    let bytes = request.head_bytes();
    let mut fields = request.head.fields.iter().filter(|_| !known.is_empty());
    let field = fields.find(|field| bytes[field.name.clone()].eq_ignore_ascii_case(known));
    let of_body = || call.session.clone().map(|range| &request.body()[range]);
    field.map(|field| &bytes[field.value.clone()]).filter(|name| !name.is_empty()).or_else(of_body)
}

fn logged(shard: &Shard, record: &Record) -> Option<Logged> {
    let log = shard.recorder.decisions.as_ref()?;
    let trace_id = record.trace.as_ref()?.context().trace_id;
    let logged = || Logged { request_id: Rc::clone(&record.request_id), trace_id };
    log.wants(trace_id).then(logged)
}
