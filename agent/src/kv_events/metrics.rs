//! What is counted of KV events and of the feed.
//!
//! | metric | labels | meaning |
//! |---|---|---|
//! | `cgn_agent_kv_events_total` | worker | events taken from the engine |
//! | `cgn_agent_kv_blocks` | worker, level | prefixes told to routers |
//! | `cgn_agent_kv_known` | worker | how much of what it holds is known: 0 nothing, 1 a part, 2 all |
//! | `cgn_agent_kv_gaps_total` | worker | times batches were missing |
//! | `cgn_agent_kv_replays_total` | worker | replays asked for |
//! | `cgn_agent_kv_clears_total` | worker | times everything was forgotten: lost batches, a publisher that began anew |
//! | `cgn_agent_kv_dropped_total` | worker, reason | blocks (events, where they could not be read) not told |
//! | `cgn_agent_kv_feed_routers` | | routers that listen |
//! | `cgn_agent_kv_feed_queued_bytes` | | what waits for the router that is furthest behind |
//! | `cgn_agent_kv_feed_overflows_total` | | times a router was too far behind and what waited for it was dropped |

use dataplane::feed::{Known, Level};
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::translate::Reason;

/// All of them. Cheap to clone; clones share.
#[derive(Clone, Debug)]
pub struct KvMetrics {
    events: IntCounterVec,
    blocks: IntGaugeVec,
    known: IntGaugeVec,
    gaps: IntCounterVec,
    replays: IntCounterVec,
    clears: IntCounterVec,
    dropped: IntCounterVec,
    routers: IntGauge,
    queued_bytes: IntGauge,
    overflows: IntCounter,
}

impl KvMetrics {
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
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauges.clone()))?;
            prometheus::Result::Ok(gauges)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let worker: &[&str] = &["worker"];
        let overflows = IntCounter::new(
            "cgn_agent_kv_feed_overflows_total",
            "Times a router was too far behind and what waited for it was dropped",
        )?;
        registry.register(Box::new(overflows.clone()))?;
        Ok(KvMetrics {
            events: counters("cgn_agent_kv_events_total", "KV events of the engine", worker)?,
            blocks: gauges(
                "cgn_agent_kv_blocks",
                "Prefixes told to routers",
                &["worker", "level"],
            )?,
            known: gauges(
                "cgn_agent_kv_known",
                "How much of what the worker holds is known: 0 nothing, 1 a part, 2 all",
                worker,
            )?,
            gaps: counters("cgn_agent_kv_gaps_total", "Times batches were missing", worker)?,
            replays: counters("cgn_agent_kv_replays_total", "Replays asked for", worker)?,
            clears: counters("cgn_agent_kv_clears_total", "Times all was forgotten", worker)?,
            dropped: counters(
                "cgn_agent_kv_dropped_total",
                "Blocks, or events that could not be read, not told to routers",
                &["worker", "reason"],
            )?,
            routers: gauge("cgn_agent_kv_feed_routers", "Routers that listen")?,
            queued_bytes: gauge(
                "cgn_agent_kv_feed_queued_bytes",
                "What waits for the router that is furthest behind",
            )?,
            overflows,
        })
    }

    /// Events came.
    pub fn events(&self, worker: &str, count: usize) {
        self.events.with_label_values(&[worker]).inc_by(count as u64);
    }

    /// Batches were missing.
    pub fn gaps(&self, worker: &str) {
        self.gaps.with_label_values(&[worker]).inc();
    }

    /// A replay was asked for.
    pub fn replays(&self, worker: &str) {
        self.replays.with_label_values(&[worker]).inc();
    }

    /// Everything was forgotten.
    pub fn clears(&self, worker: &str) {
        self.clears.with_label_values(&[worker]).inc();
    }

    /// Blocks or events were dropped.
    pub fn dropped(&self, worker: &str, reason: Reason, count: u64) {
        if count > 0 {
            self.dropped.with_label_values(&[worker, reason.as_str()]).inc_by(count);
        }
    }

    /// Routers were too far behind, so often.
    pub fn overflows(&self, count: u64) {
        self.overflows.inc_by(count);
    }

    /// What a worker holds.
    pub fn show_worker(&self, worker: &str, blocks: [u64; 3], known: Known) {
        for (level, count) in Level::ALL.into_iter().zip(blocks) {
            let gauge = self.blocks.with_label_values(&[worker, level.as_str()]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.known.with_label_values(&[worker]).set(known as i64);
    }

    /// Who listens, and how far behind the last of them is.
    pub fn show_seats(&self, routers: usize, queued_bytes: usize) {
        self.routers.set(i64::try_from(routers).unwrap_or(i64::MAX));
        self.queued_bytes.set(i64::try_from(queued_bytes).unwrap_or(i64::MAX));
    }

    /// A worker's engine has ended. Its counters stay: it may come back.
    pub fn forget(&self, worker: &str) {
        for level in Level::ALL {
            // An error says only that there was no such label value.
            let _ = self.blocks.remove_label_values(&[worker, level.as_str()]);
        }
        let _ = self.known.remove_label_values(&[worker]);
    }
}
