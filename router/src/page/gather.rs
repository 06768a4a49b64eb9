//! Reads the page's figures off the cluster and the counters. Asked about once a second by a person,
//! so it may walk all workers; nothing here is on the path of a request.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use dataplane::wire::WorkerState;
use prometheus::core::Collector;
use prometheus::{Histogram, IntCounterVec};

use super::{Buckets, Model, State, Status, Tenant, Totals, Worker};
use crate::admit::unix_ms;
use crate::breaker;
use crate::cluster::{Cluster, ModelView, WorkerView};
use crate::stats::Stats;
use crate::tenant::Tenants;

/// The figures now.
pub fn status(cluster: &Cluster, stats: &Stats, tenants: &Tenants) -> Status {
    let view = cluster.view();
    let now_ms = unix_ms();
    Status {
        version: env!("CARGO_PKG_VERSION"),
        uptime_s: stats.uptime_s(),
        draining: cluster.draining.load(Relaxed),
        totals: Totals {
            queued: view.models.values().map(|model| u64::from(model.life.waiting())).sum(),
            ..totals(stats)
        },
        models: view.models.values().map(model).collect(),
        workers: view.workers().map(|view| worker(view)).collect(),
        tenants: tenants.iter().map(|one| tenant(one, now_ms)).collect(),
        ..Status::default()
    }
    .finished()
}

fn totals(stats: &Stats) -> Totals {
    Totals {
        requests: by_label(&stats.requests, "status").values().sum(),
        running: stats.requests_running.get().try_into().unwrap_or(0),
        queued: 0,
        refusals: by_label(&stats.refusals, "reason"),
        prompt_tokens: stats.prompt_tokens.get(),
        cached_tokens: stats.cached_tokens.get(),
        completion_tokens: stats.completion_tokens.get(),
        time_to_first_token: buckets(&stats.time_to_first_token),
        inter_token_latency: buckets(&stats.inter_token_latency),
    }
}

fn model(view: &ModelView) -> Model {
    Model {
        name: view.name.clone(),
        workers_ready: view.workers.iter().filter(|view| state(view) == State::Ready).count(),
        workers: view.workers.len(),
        inflight: view.workers.iter().map(|view| u64::from(view.life.inflight.load(Relaxed))).sum(),
        slots: view.workers.iter().map(|view| u64::from(view.worker.slots.max(1))).sum(),
        queued: u64::from(view.life.waiting()),
    }
}

fn worker(view: &WorkerView) -> Worker {
    let (worker, life) = (&view.worker, &view.life);
    Worker {
        id: worker.id.clone(),
        model: worker.model.clone(),
        kind: worker.kind.as_str(),
        state: state(view),
        inflight: life.inflight.load(Relaxed),
        slots: worker.slots.max(1),
        cache_blocks: life.cache.capacity_blocks(),
        cache_free_share: life.cache.free_share(),
        picks: life.picked.load(Relaxed),
        power_watts: worker.power_watts,
    }
}

fn state(view: &WorkerView) -> State {
    match view.worker.state {
        WorkerState::Draining => State::Draining,
        WorkerState::Ready if view.life.healthy.load(Relaxed) => match view.life.breaker.state() {
            breaker::State::Closed => State::Ready,
            breaker::State::HalfOpen => State::BreakerHalfOpen,
            breaker::State::Open => State::BreakerOpen,
        },
        WorkerState::Ready | WorkerState::NotReady => State::NotReady,
    }
}

fn tenant(tenant: &crate::tenant::Tenant, now_ms: u64) -> Tenant {
    let (limits, used) = (tenant.meter.limits(), tenant.meter.report(&tenant.name, now_ms));
    let some = |limit: u64| (limit > 0).then_some(limit);
    Tenant {
        name: tenant.name.clone(),
        running: u64::from(used.running),
        running_max: some(u64::from(limits.concurrent_requests_max)),
        requests_per_minute: used.requests,
        requests_per_minute_max: some(limits.requests_per_minute),
        tokens_per_minute: used.tokens,
        tokens_per_minute_max: some(limits.tokens_per_minute),
    }
}

/// A vector's counts, summed by one of its labels.
pub fn by_label(vector: &IntCounterVec, label: &str) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for family in vector.collect() {
        for metric in family.get_metric() {
            let found = metric.get_label().iter().find(|pair| pair.name() == label);
            let value = found.map_or("", |pair| pair.value());
            // Counters are whole numbers carried as floats by the exposition model.
            *sums.entry(value.to_owned()).or_insert(0) += metric.get_counter().get_value() as u64;
        }
    }
    sums
}

/// A histogram's cumulative counts, the sum of all last.
pub fn buckets(histogram: &Histogram) -> Buckets {
    let mut buckets = Buckets::default();
    for family in histogram.collect() {
        for metric in family.get_metric() {
            for bucket in metric.get_histogram().get_bucket() {
                if bucket.upper_bound().is_finite() {
                    buckets.bounds_s.push(bucket.upper_bound());
                    buckets.counts.push(bucket.cumulative_count());
                }
            }
            buckets.counts.push(metric.get_histogram().get_sample_count());
        }
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_counts_are_cumulative_and_end_in_the_sum_of_all() {
        let stats = Stats::new().unwrap();
        for seconds in [0.0005, 0.3, 0.3, 1_000.0] {
            stats.time_to_first_token.observe(seconds);
        }
        let found = buckets(&stats.time_to_first_token);
        assert_eq!(found.counts.len(), found.bounds_s.len() + 1);
        assert_eq!(found.counts.first(), Some(&1));
        assert_eq!(found.counts[found.counts.len() - 2..], [3, 4]);
        assert!(found.counts.is_sorted());
        assert!(found.bounds_s.is_sorted());
    }

    #[test]
    fn totals_are_what_was_counted() {
        let stats = Stats::new().unwrap();
        stats.requests.with_label_values(&["chat", "200"]).inc_by(2);
        stats.requests.with_label_values(&["embeddings", "429"]).inc();
        stats.refusals.with_label_values(&["busy"]).inc();
        stats.cached_tokens.inc_by(7);
        let cluster = Cluster::new(&crate::config::Router::default(), std::sync::Arc::default());
        let tenants = Tenants::build(&[], None).unwrap();
        let status = status(&cluster, &stats, &tenants);
        assert_eq!(status.totals.requests, 3);
        assert_eq!(status.totals.refusals, BTreeMap::from([("busy".to_owned(), 1)]));
        assert_eq!(status.totals.cached_tokens, 7);
        assert!(status.workers.is_empty() && !status.draining);
    }
}
