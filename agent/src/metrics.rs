//! The agent's Prometheus metrics and their listener (`/metrics`, `/healthz`).
//!
//! | metric | labels | meaning |
//! |---|---|---|
//! | `cgn_agent_engine_ready` | worker | 1 while it takes requests, else 0 |
//! | `cgn_agent_engine_restarts_total` | worker | starts after the first |
//! | `cgn_agent_engine_running_requests` | worker | by the engine's own word; absent where it has none |
//! | `cgn_agent_engine_start_seconds` | | from spawn to ready (histogram) |
//! | `cgn_agent_control_connected` | | 1 while attached to control |
//!
//! Those of KV events and the feed stand in [`crate::kv_events::metrics`], those of slots in
//! [`crate::slots::metrics`].

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use control::api::AgentReport;
use control::api::engine::State;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use tokio::net::TcpListener;

use crate::kv_events::metrics::KvMetrics;
use crate::slots::metrics::SlotMetrics;

/// Engines start in a second (simulated) to many minutes (hundreds of GB of weights).
const START_SECONDS_BUCKETS: [f64; 12] =
    [0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0];

/// All metrics of the agent. Cheap to clone; clones share.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    ready: IntGaugeVec,
    restarts: IntCounterVec,
    running_requests: IntGaugeVec,
    /// From spawn to ready.
    pub start_seconds: Histogram,
    /// 1 while attached.
    pub control_connected: IntGauge,
    /// Of KV events and the feed.
    pub kv: KvMetrics,
    /// Of slots' states.
    pub slots: SlotMetrics,
}

impl Metrics {
    /// A registry of its own.
    ///
    /// # Errors
    /// When a metric's declaration is wrong.
    pub fn new() -> prometheus::Result<Self> {
        let worker = &["worker"];
        let registry = Registry::new();
        let metrics = Metrics {
            kv: KvMetrics::new(&registry)?,
            slots: SlotMetrics::new(&registry)?,
            registry,
            ready: IntGaugeVec::new(
                Opts::new("cgn_agent_engine_ready", "1 while the engine takes requests"),
                worker,
            )?,
            restarts: IntCounterVec::new(
                Opts::new(
                    "cgn_agent_engine_restarts_total",
                    "Starts of the engine after the first",
                ),
                worker,
            )?,
            running_requests: IntGaugeVec::new(
                Opts::new(
                    "cgn_agent_engine_running_requests",
                    "Requests the engine says it is working on",
                ),
                worker,
            )?,
            start_seconds: Histogram::with_opts(
                HistogramOpts::new("cgn_agent_engine_start_seconds", "From spawn to ready")
                    .buckets(START_SECONDS_BUCKETS.to_vec()),
            )?,
            control_connected: IntGauge::new(
                "cgn_agent_control_connected",
                "1 while attached to control",
            )?,
        };
        metrics.registry.register(Box::new(metrics.ready.clone()))?;
        metrics.registry.register(Box::new(metrics.restarts.clone()))?;
        metrics.registry.register(Box::new(metrics.running_requests.clone()))?;
        metrics.registry.register(Box::new(metrics.start_seconds.clone()))?;
        metrics.registry.register(Box::new(metrics.control_connected.clone()))?;
        Ok(metrics)
    }

    /// Shows what `new` says; workers only in `old` disappear.
    pub fn show(&self, old: &AgentReport, new: &AgentReport) {
        for gone in &old.engines {
            let worker = [gone.worker_id.as_str()];
            let stays = new.engines.iter().find(|engine| engine.worker_id == gone.worker_id);
            if stays.is_none() {
                // An error says only that there was no such label value.
                let _ = self.ready.remove_label_values(&worker);
                let _ = self.restarts.remove_label_values(&worker);
            }
            if stays.is_none_or(|engine| engine.running_requests.is_none()) {
                let _ = self.running_requests.remove_label_values(&worker);
            }
        }
        for engine in &new.engines {
            let worker = [engine.worker_id.as_str()];
            let ready = engine.state() == State::Ready;
            self.ready.with_label_values(&worker).set(ready.into());
            let restarts = self.restarts.with_label_values(&worker);
            restarts.inc_by(u64::from(engine.restarts).saturating_sub(restarts.get()));
            if let Some(running) = engine.running_requests {
                self.running_requests.with_label_values(&worker).set(running.into());
            }
        }
    }

    /// Answers on `listener` for as long as the agent lives.
    ///
    /// # Errors
    /// When the listener breaks.
    pub async fn serve(self, listener: TcpListener) -> std::io::Result<()> {
        let routes = Router::new()
            .route("/healthz", get(async || "ok\n"))
            .route("/metrics", get(async move || self.render()));
        axum::serve(listener, routes).await
    }

    fn render(&self) -> Response {
        let encoder = TextEncoder::new();
        let mut text = Vec::new();
        match encoder.encode(&self.registry.gather(), &mut text) {
            Ok(()) => ([(CONTENT_TYPE, encoder.format_type().to_owned())], text).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    }
}

#[cfg(test)]
mod tests {
    use control::api::Engine;

    use super::*;

    fn text(metrics: &Metrics) -> String {
        let mut text = Vec::new();
        TextEncoder::new().encode(&metrics.registry.gather(), &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    fn report(engines: Vec<Engine>) -> AgentReport {
        AgentReport { engines, ..AgentReport::default() }
    }

    #[test]
    fn a_worker_is_shown_while_it_is_there() {
        let metrics = Metrics::new().unwrap();
        let engine = Engine {
            worker_id: "n/d/0".into(),
            state: State::Ready.into(),
            restarts: 2,
            running_requests: Some(3),
            ..Engine::default()
        };
        let (none, one) = (report(vec![]), report(vec![engine]));
        metrics.show(&none, &one);
        metrics.show(&one, &one);
        let shown = text(&metrics);
        assert!(shown.contains("cgn_agent_engine_ready{worker=\"n/d/0\"} 1"), "{shown}");
        assert!(shown.contains("cgn_agent_engine_restarts_total{worker=\"n/d/0\"} 2"), "{shown}");
        assert!(shown.contains("cgn_agent_engine_running_requests{worker=\"n/d/0\"} 3"), "{shown}");
        metrics.show(&one, &none);
        assert!(!text(&metrics).contains("n/d/0"));
    }
}
