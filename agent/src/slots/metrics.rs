//! What is counted of slots' states.
//!
//! | metric | labels | meaning |
//! |---|---|---|
//! | `cgn_agent_slot_saves_total` | worker | states stored in the daemon |
//! | `cgn_agent_slot_restores_total` | worker | states given to an engine before a prompt |
//! | `cgn_agent_slot_tokens_total` | worker, action | tokens of states saved, tokens of prompts restored |
//! | `cgn_agent_slot_bytes_total` | worker, action | their bytes |
//! | `cgn_agent_slot_refusals_total` | worker, action, reason | states not saved, and wishes of routers that came to nothing |
//! | `cgn_agent_slot_seconds` | action | one save or restore, from its begin to its end (histogram) |

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

/// A state of some MB on tmpfs takes 10 ms, one of some GB from a disk seconds.
const SECONDS_BUCKETS: [f64; 11] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// What is done with a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Out of an engine.
    Save,
    /// Into one.
    Restore,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Action::Save => "save",
            Action::Restore => "restore",
        }
    }
}

/// All of them. Cheap to clone; clones share.
#[derive(Clone, Debug)]
pub struct SlotMetrics {
    saves: IntCounterVec,
    restores: IntCounterVec,
    tokens: IntCounterVec,
    bytes: IntCounterVec,
    refusals: IntCounterVec,
    seconds: HistogramVec,
}

impl SlotMetrics {
    /// Registered with `registry`.
    ///
    /// # Errors
    /// When a metric's declaration is wrong.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            prometheus::Result::Ok(counters)
        };
        let seconds = HistogramVec::new(
            HistogramOpts::new("cgn_agent_slot_seconds", "One save or restore of a slot's state")
                .buckets(SECONDS_BUCKETS.to_vec()),
            &["action"],
        )?;
        registry.register(Box::new(seconds.clone()))?;
        let worker: &[&str] = &["worker"];
        let action: &[&str] = &["worker", "action"];
        Ok(SlotMetrics {
            saves: counters("cgn_agent_slot_saves_total", "States stored", worker)?,
            restores: counters("cgn_agent_slot_restores_total", "States restored", worker)?,
            tokens: counters("cgn_agent_slot_tokens_total", "Tokens saved or restored", action)?,
            bytes: counters("cgn_agent_slot_bytes_total", "Bytes saved or restored", action)?,
            refusals: counters(
                "cgn_agent_slot_refusals_total",
                "States not saved, and wishes of routers that came to nothing",
                &["worker", "action", "reason"],
            )?,
            seconds,
        })
    }

    /// One more went well.
    pub fn done(&self, worker: &str, action: Action, tokens: u32, bytes: u64, took: Duration) {
        match action {
            Action::Save => &self.saves,
            Action::Restore => &self.restores,
        }
        .with_label_values(&[worker])
        .inc();
        let labels = [worker, action.as_str()];
        self.tokens.with_label_values(&labels).inc_by(u64::from(tokens));
        self.bytes.with_label_values(&labels).inc_by(bytes);
        self.seconds.with_label_values(&[action.as_str()]).observe(took.as_secs_f64());
    }

    /// One more did not.
    pub fn refused(&self, worker: &str, action: Action, reason: &str) {
        self.refusals.with_label_values(&[worker, action.as_str(), reason]).inc();
    }
}
