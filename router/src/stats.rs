//! What the router counts, declared once: name, unit, help, labels. Shared by all cores.
//!
//! Names follow `cgn_router_<noun>_<unit>[_total]`, base units, the engines' own words.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use prometheus::{
    CounterVec, Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::cluster::Cluster;
use crate::identity::Identity;
use crate::openmetrics;
use crate::openmetrics::exemplars::{Exemplars, Series};
use crate::tokenizer::shelf::Shelf;

/// Buckets for what a user waits for: 1 ms to 2 min, about ×2.
const WAIT_SECONDS: [f64; 17] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0,
    120.0,
];
/// Buckets for what the router itself takes: 1 µs to 50 ms.
const OWN_SECONDS: [f64; 12] = [
    0.000_001, 0.000_002, 0.000_005, 0.000_01, 0.000_02, 0.000_05, 0.000_1, 0.000_5, 0.001, 0.005,
    0.01, 0.05,
];

/// All metrics of the process.
pub struct Stats {
    registry: Registry,
    /// Answered requests by endpoint and status.
    pub requests: IntCounterVec,
    /// Requests refused before an engine was touched, by reason.
    pub refusals: IntCounterVec,
    /// Requests being worked on.
    pub requests_running: IntGauge,
    /// From the request read to the first byte of the answer sent.
    pub time_to_first_token: Histogram,
    /// Between two reads of a stream.
    pub inter_token_latency: Histogram,
    /// From the request read to the last byte of the answer sent.
    pub e2e_latency: Histogram,
    /// Digest, index lookup and score of one request.
    pub decision: Histogram,
    /// Attempts after the first, by what made them necessary.
    pub retries: IntCounterVec,
    /// Attempts that the retry budget did not pay.
    pub retries_refused: IntCounter,
    /// Prompts by how they were cut into blocks.
    pub tokenize: IntCounterVec,
    /// Tokens of prompts tokenized from models' files, by whether an earlier prompt had them.
    pub tokenizer_tokens: IntCounterVec,
    /// Prompts that models' files gave no tokens for.
    pub tokenizer_fallbacks: IntCounterVec,
    /// Prompts whose tokens were compared with an engine's.
    pub tokenizer_checks: IntCounterVec,
    /// Prompt tokens, as engines counted them.
    pub prompt_tokens: IntCounter,
    /// Of these, served from an engine's cache, as engines counted them.
    pub cached_tokens: IntCounter,
    /// Prefix tokens the router expected to be cached.
    pub predicted_tokens: IntCounter,
    /// Tokens generated, as engines counted them.
    pub completion_tokens: IntCounter,
    /// Requests whose client hung up before the answer was complete.
    pub clients_gone: IntCounter,
    /// Streams that ended in an error event because their engine did.
    pub streams_broken: IntCounter,
    /// Client connections open.
    pub connections: IntGauge,
    /// Streams open over all HTTP/2 connections.
    pub http2_streams: IntGauge,
    /// Clients that could not shake hands.
    pub tls_handshake_failures: IntCounter,
    /// When the certificate served ends.
    pub tls_certificate_expiry: IntGauge,
    /// Time spent waiting for a place.
    pub queue_wait: Histogram,
    /// Requests refused by a limit of their tenant.
    pub limited: IntCounterVec,
    /// Requests begun, by tenant.
    pub tenant_requests: IntCounterVec,
    /// Tokens counted, by tenant and kind.
    pub tenant_tokens: IntCounterVec,
    /// Workers ejected, by cause.
    pub ejections: IntCounterVec,
    /// Second workers asked for a first token, by who won.
    pub hedges: IntCounterVec,
    /// Streams that were to go on elsewhere, by how that ended.
    pub resumed: IntCounterVec,
    /// Bytes of requests in and answers out.
    pub bytes: IntCounterVec,
    /// How late a core's clock struck.
    pub loop_stall: Histogram,
    /// CPU time of each core's thread.
    pub cpu: CounterVec,
    /// Failed fetches of the token issuer's keys.
    pub jwks_fetch_failures: IntCounter,
    /// First tokens of requests that are traced, by bucket.
    pub ttft_exemplars: Arc<Series>,
    /// Spans that found the outbox full.
    pub spans_dropped: IntCounter,
    /// Lines that found the log's writer busy.
    pub lines_dropped: IntCounter,
    /// Decisions for the decision log, by what became of them.
    pub decision_lines: IntCounterVec,
    /// SIGHUPs, by what became of the file.
    pub config_reloads: IntCounterVec,
    /// Reads of streams that were passed on: tokens, or a few at once.
    pub stream_parts: IntCounter,
    exemplars: Exemplars,
    queue_requests: IntGaugeVec,
    breaker_state: IntGaugeVec,
    tenant_running: IntGaugeVec,
    picks: IntCounterVec,
    worker_inflight: IntGaugeVec,
    worker_inflight_others: IntGaugeVec,
    worker_other_routers: IntGaugeVec,
    worker_ready: IntGaugeVec,
    worker_blocks: IntGaugeVec,
    index_blocks: IntGauge,
    tokenizer_cache_bytes: IntGauge,
    tokenizer_trusted: IntGaugeVec,
    kv_known: IntGaugeVec,
    kv_predicted_blocks: IntGauge,
    kv_index_blocks: IntGauge,
    kv_index_bytes: IntGauge,
    kv_index_refused: IntCounter,
    /// Frames of agents.
    pub kv_feed_frames: IntCounter,
    /// Snapshots asked for.
    pub kv_feed_resyncs: IntCounter,
    /// Connections to agents that ended.
    pub kv_feed_disconnects: IntCounter,
    /// Blocks told of.
    pub kv_blocks_set: IntCounter,
    /// Blocks told to be gone.
    pub kv_blocks_removed: IntCounter,
    /// Predictions beside what engines had.
    pub kv_predictions: IntCounterVec,
    /// Prompts whose worker was to be given KV state first, by what became of it.
    pub warms: IntCounterVec,
    /// Tokens that workers were given beyond what they held.
    pub warm_tokens: IntCounter,
    /// Time requests waited for that.
    pub warm_wait: Histogram,
    snapshot_version: IntGauge,
    uptime: Gauge,
    started: Instant,
}

impl Stats {
    /// Registers everything.
    ///
    /// # Errors
    /// Only for a name declared twice, which a test rules out.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let declare = Declare(&registry);
        let exemplars = Exemplars::default();
        Ok(Stats {
            requests: declare.counters(
                "requests_total",
                "Requests answered.",
                &["endpoint", "status"],
            )?,
            refusals: declare.counters(
                "refusals_total",
                "Requests the router refused itself.",
                &["reason"],
            )?,
            requests_running: declare.gauge("requests_running", "Requests being worked on.")?,
            time_to_first_token: declare.histogram(
                "time_to_first_token_seconds",
                "From request read to first byte of the answer sent.",
                &WAIT_SECONDS,
            )?,
            inter_token_latency: declare.histogram(
                "inter_token_latency_seconds",
                "Between two reads of a streamed answer.",
                &WAIT_SECONDS,
            )?,
            e2e_latency: declare.histogram(
                "e2e_request_latency_seconds",
                "From request read to last byte of the answer sent.",
                &WAIT_SECONDS,
            )?,
            decision: declare.histogram(
                "decision_seconds",
                "Index lookup, scoring and pick of one request.",
                &OWN_SECONDS,
            )?,
            retries: declare.counters("retries_total", "Attempts after the first.", &["cause"])?,
            retries_refused: declare.counter(
                "retries_refused_total",
                "Attempts that the retry budget did not pay for.",
            )?,
            tokenize: declare.counters(
                "tokenize_total",
                "Prompts by how they were cut into blocks.",
                &["path"],
            )?,
            tokenizer_tokens: declare.counters(
                "tokenizer_tokens_total",
                "Tokens of prompts tokenized from models' files.",
                &["source"],
            )?,
            tokenizer_fallbacks: declare.counters(
                "tokenizer_fallbacks_total",
                "Prompts that models' files gave no tokens for.",
                &["reason"],
            )?,
            tokenizer_checks: declare.counters(
                "tokenizer_checks_total",
                "Prompts whose tokens were compared with an engine's.",
                &["result"],
            )?,
            prompt_tokens: declare
                .counter("prompt_tokens_total", "Prompt tokens as engines counted them.")?,
            cached_tokens: declare.counter(
                "cached_tokens_total",
                "Prompt tokens served from an engine's cache, as engines counted them.",
            )?,
            predicted_tokens: declare.counter(
                "predicted_prefix_tokens_total",
                "Prefix tokens expected in the cache of the worker picked.",
            )?,
            completion_tokens: declare
                .counter("completion_tokens_total", "Tokens generated as engines counted them.")?,
            clients_gone: declare
                .counter("clients_gone_total", "Requests whose client hung up first.")?,
            streams_broken: declare.counter(
                "streams_broken_total",
                "Streams that ended in an error event because their engine failed.",
            )?,
            connections: declare.gauge("client_connections", "Client connections open.")?,
            http2_streams: declare.gauge("http2_streams", "Streams open on HTTP/2 connections.")?,
            tls_handshake_failures: declare
                .counter("tls_handshake_failures_total", "TLS handshakes that failed.")?,
            tls_certificate_expiry: declare.gauge(
                "tls_certificate_expiry_seconds",
                "When the certificate served ends, Unix time; 0 without TLS.",
            )?,
            queue_wait: declare.histogram(
                "queue_wait_seconds",
                "Time requests waited for a place at a worker.",
                &WAIT_SECONDS,
            )?,
            limited: declare.counters(
                "limited_total",
                "Requests refused by a limit of their tenant.",
                &["tenant", "kind"],
            )?,
            tenant_requests: declare.counters(
                "tenant_requests_total",
                "Requests begun, by tenant.",
                &["tenant"],
            )?,
            tenant_tokens: declare.counters(
                "tenant_tokens_total",
                "Tokens counted against a tenant's limits.",
                &["tenant", "kind"],
            )?,
            ejections: declare.counters(
                "worker_ejections_total",
                "Workers rested because they were much worse than their peers.",
                &["worker", "cause"],
            )?,
            hedges: declare.counters(
                "hedges_total",
                "First tokens that were asked of a second worker too, by who was first.",
                &["result"],
            )?,
            resumed: declare.counters(
                "streams_resumed_total",
                "Streams whose worker failed, by what became of them.",
                &["result"],
            )?,
            bytes: declare.counters("bytes_total", "Bytes of bodies.", &["direction"])?,
            loop_stall: declare.histogram(
                "loop_stall_seconds",
                "How late a core's clock struck.",
                &OWN_SECONDS,
            )?,
            cpu: {
                let options = opts("cpu_seconds_total", "CPU time of a core's thread.");
                let counter = CounterVec::new(options, &["core"])?;
                registry.register(Box::new(counter.clone()))?;
                counter
            },
            jwks_fetch_failures: declare.counter(
                "jwks_fetch_failures_total",
                "Failed fetches of the token issuer's keys.",
            )?,
            ttft_exemplars: exemplars.declare(
                "cgn_router_time_to_first_token_seconds",
                &[],
                &WAIT_SECONDS,
            ),
            spans_dropped: declare.counter(
                "trace_spans_dropped_total",
                "Spans dropped because the collector did not keep up.",
            )?,
            lines_dropped: declare.counter(
                "access_lines_dropped_total",
                "Lines of the access log dropped because the disk did not keep up.",
            )?,
            decision_lines: declare.counters(
                "decision_lines_total",
                "Decisions for the decision log, by what became of them.",
                &["result"],
            )?,
            config_reloads: declare.counters(
                "config_reloads_total",
                "Times the configuration was read again.",
                &["result"],
            )?,
            stream_parts: declare.counter(
                "stream_parts_total",
                "Reads of streamed answers passed on: one token or a few each.",
            )?,
            queue_requests: declare.gauges(
                "queue_requests",
                "Requests that wait for a place.",
                &["model"],
            )?,
            breaker_state: declare.gauges(
                "breaker_state",
                "0 closed, 1 half open, 2 open.",
                &["worker"],
            )?,
            tenant_running: declare.gauges(
                "tenant_running",
                "Requests of a tenant being worked on.",
                &["tenant"],
            )?,
            picks: declare.counters("picks_total", "Requests given to a worker.", &["worker"])?,
            worker_inflight: declare.gauges(
                "worker_inflight_requests",
                "Requests of this router in flight to a worker.",
                &["worker"],
            )?,
            worker_inflight_others: declare.gauges(
                "worker_inflight_others_requests",
                "Requests of other routers in flight to a worker, as its agent tells.",
                &["worker"],
            )?,
            worker_other_routers: declare.gauges(
                "worker_other_routers",
                "Other routers that a worker's agent hears.",
                &["worker"],
            )?,
            worker_ready: declare.gauges(
                "worker_ready",
                "1 while a worker can be picked.",
                &["worker", "model"],
            )?,
            worker_blocks: declare.gauges(
                "worker_cache_blocks",
                "Blocks a worker's KV cache is believed to hold.",
                &["worker"],
            )?,
            index_blocks: declare.gauge("index_blocks", "Blocks the prefix index remembers.")?,
            tokenizer_cache_bytes: declare
                .gauge("tokenizer_cache_bytes", "Bytes of tokenized prefixes kept.")?,
            tokenizer_trusted: declare.gauges(
                "tokenizer_trusted",
                "1 while a model's own files are used, 0 once its engine disagreed.",
                &["model"],
            )?,
            kv_known: declare.gauges(
                "kv_known",
                "How much of a worker's KV cache its engine's events say: 2 all, 1 a part, 0 nothing.",
                &["worker"],
            )?,
            kv_predicted_blocks: declare.gauge(
                "kv_predicted_blocks",
                "Blocks on their way to engines that tell of them: routed there, neither confirmed nor denied.",
            )?,
            kv_index_blocks: declare
                .gauge("kv_index_blocks", "Blocks that engines say they hold, each counted once.")?,
            kv_index_bytes: declare
                .gauge("kv_index_bytes", "Memory of the index of what engines say they hold.")?,
            kv_index_refused: declare.counter(
                "kv_index_refused_total",
                "Blocks that engines told of and for which the index had no room.",
            )?,
            kv_feed_frames: declare
                .counter("kv_feed_frames_total", "Frames of agents about workers known here.")?,
            kv_feed_resyncs: declare.counter(
                "kv_feed_resyncs_total",
                "Snapshots of a worker asked for, the first one included.",
            )?,
            kv_feed_disconnects: declare.counter(
                "kv_feed_disconnects_total",
                "Connections to agents that ended or could not be made.",
            )?,
            kv_blocks_set: declare
                .counter("kv_blocks_set_total", "Blocks that engines said they hold now.")?,
            kv_blocks_removed: declare
                .counter("kv_blocks_removed_total", "Blocks that engines said they dropped.")?,
            kv_predictions: declare.counters(
                "kv_predictions_total",
                "Answers of engines with events by what they had cached beside the prediction: equal to a block, fewer, more.",
                &["cached"],
            )?,
            warms: declare.counters(
                "warms_total",
                "Prompts whose worker was to be given KV state first, by what became of it.",
                &["result"],
            )?,
            warm_tokens: declare.counter(
                "warm_tokens_total",
                "Prompt tokens that workers were given beyond what they held.",
            )?,
            warm_wait: declare.histogram(
                "warm_wait_seconds",
                "Time requests waited for KV state to be given to their worker.",
                &WAIT_SECONDS,
            )?,
            snapshot_version: declare.gauge(
                "snapshot_version",
                "Version of control's snapshot in force; 0 for a static list.",
            )?,
            uptime: {
                let gauge = Gauge::with_opts(opts("uptime_seconds", "Since the process started."))?;
                registry.register(Box::new(gauge.clone()))?;
                gauge
            },
            started: Instant::now(),
            exemplars,
            registry,
        })
    }

    /// The exposition text. Per-worker figures are read off the cluster here, not on the path.
    pub fn render(
        &self,
        cluster: &Cluster,
        identity: &Identity,
        shelf: &Shelf,
        open_metrics: bool,
    ) -> (&'static str, Vec<u8>) {
        self.refresh(cluster, identity);
        self.tokenizer_cache_bytes.set(shelf.cache.bytes().try_into().unwrap_or(i64::MAX));
        for (model, tokenizer) in shelf.configured() {
            let trusted = i64::from(!tokenizer.is_distrusted());
            self.tokenizer_trusted.with_label_values(&[model]).set(trusted);
        }
        let families = self.registry.gather();
        if open_metrics {
            let text = openmetrics::render(&families, &self.exemplars);
            return (openmetrics::CONTENT_TYPE, text.into_bytes());
        }
        let mut text = Vec::with_capacity(16 << 10);
        if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
            tracing::error!(%error, "metrics cannot be rendered");
        }
        ("text/plain; version=0.0.4", text)
    }

    /// Seconds since the process started.
    pub fn uptime_s(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// What is read where it lies, not counted on the path.
    fn refresh(&self, cluster: &Cluster, identity: &Identity) {
        let view = cluster.view();
        let now_ms = cluster.now_ms();
        for vector in [
            &self.worker_inflight,
            &self.worker_inflight_others,
            &self.worker_other_routers,
            &self.worker_blocks,
            &self.worker_ready,
            &self.kv_known,
            &self.breaker_state,
            &self.queue_requests,
            &self.tenant_running,
        ] {
            vector.reset();
        }
        self.picks.reset();
        for worker in view.workers() {
            let id = worker.worker.id.as_str();
            let ready = worker.is_ready(now_ms);
            self.worker_inflight
                .with_label_values(&[id])
                .set(i64::from(worker.life.inflight.load(Relaxed)));
            if worker.worker.kv_feed.is_some() {
                let others = worker.life.others.at(now_ms);
                let inflight = i64::from(others.load.inflight);
                self.worker_inflight_others.with_label_values(&[id]).set(inflight);
                let routers = i64::from(others.routers);
                self.worker_other_routers.with_label_values(&[id]).set(routers);
            }
            self.worker_blocks
                .with_label_values(&[id])
                .set(worker.life.cache.capacity_blocks().try_into().unwrap_or(i64::MAX));
            if worker.worker.kv_events {
                let known = worker.life.feed.known(now_ms) as i64;
                self.kv_known.with_label_values(&[id]).set(known);
            }
            let breaker = worker.life.breaker.state() as i64;
            self.breaker_state.with_label_values(&[id]).set(breaker);
            self.worker_ready.with_label_values(&[id, &worker.worker.model]).set(ready.into());
            self.picks.with_label_values(&[id]).inc_by(worker.life.picked.load(Relaxed));
        }
        for model in view.models.values() {
            let waiting = i64::from(model.life.waiting());
            self.queue_requests.with_label_values(&[model.name.as_str()]).set(waiting);
        }
        let predicted = cluster.predictions.len();
        self.kv_predicted_blocks.set(predicted.try_into().unwrap_or(i64::MAX));
        self.index_blocks.set(cluster.index.len().try_into().unwrap_or(i64::MAX));
        if let Some(index) = cluster.held() {
            self.kv_index_blocks.set(index.len().try_into().unwrap_or(i64::MAX));
            self.kv_index_bytes.set(index.bytes().try_into().unwrap_or(i64::MAX));
            let refused = index.refused() as u64;
            self.kv_index_refused.inc_by(refused.saturating_sub(self.kv_index_refused.get()));
        }
        self.snapshot_version.set(view.version.try_into().unwrap_or(i64::MAX));
        for tenant in identity.tenants().iter() {
            let running = i64::from(tenant.meter.running());
            self.tenant_running.with_label_values(&[tenant.name.as_str()]).set(running);
        }
        self.uptime.set(self.uptime_s());
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("cgn_router_{name}"), help)
}

struct Declare<'a>(&'a Registry);

impl Declare<'_> {
    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        let metric = IntCounter::with_opts(opts(name, help))?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        let metric = IntCounterVec::new(opts(name, help), labels)?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        let metric = IntGauge::with_opts(opts(name, help))?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        let metric = IntGaugeVec::new(opts(name, help), labels)?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn histogram(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
    ) -> Result<Histogram, prometheus::Error> {
        let options = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
        let metric = Histogram::with_opts(options)?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_declared_once_and_carries_the_prefix() {
        let stats = Stats::new().unwrap();
        stats.requests.with_label_values(&["chat", "200"]).inc();
        let cluster = Cluster::new(&crate::config::Router::default(), Arc::default());
        let identity = Identity::open(&crate::identity::IdentityConfig::default(), &[]).unwrap();
        let (_, text) = stats.render(&cluster, &identity, &Shelf::open(&[], 0).unwrap(), false);
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("cgn_router_requests_total{endpoint=\"chat\",status=\"200\"} 1"));
        assert!(text.lines().filter(|l| !l.starts_with('#')).all(|l| l.starts_with("cgn_router_")));
    }
}
