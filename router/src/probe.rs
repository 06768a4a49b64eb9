//! Health probes: each worker is asked every `probe_interval_ms` whether it is there.
//!
//! A request that cannot reach a worker marks it down at once; only a probe that succeeds brings it
//! back. So a dead engine costs at most the requests that were in flight to it, and a live one is
//! used again within one interval.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use dataplane::wire::EngineKind;

use crate::cluster::WorkerView;
use crate::shard::Shard;

/// Probes under way at once: enough for a rack, few enough not to be a burst.
const PROBES_MAX: usize = 64;

/// Probes every worker for ever, starting now.
pub async fn run(shard: Rc<Shard>) {
    let interval = Duration::from_millis(shard.config.limits.probe_interval_ms.max(10));
    loop {
        round(&shard).await;
        monoio::time::sleep(interval).await;
    }
}

/// Asks each worker once.
pub async fn round(shard: &Rc<Shard>) {
    let workers: Vec<Arc<WorkerView>> = shard.cluster.view().workers().map(Arc::clone).collect();
    for group in workers.chunks(PROBES_MAX) {
        let probes: Vec<_> = group
            .iter()
            .map(|worker| {
                let (shard, worker) = (Rc::clone(shard), Arc::clone(worker));
                monoio::spawn(async move {
                    let healthy = is_healthy(&shard, &worker).await;
                    if worker.life.healthy.swap(healthy, Relaxed) != healthy {
                        // Nobody counts the starts of an engine in a static list, so one that was
                        // away is believed to have come back with an empty cache.
                        if healthy && worker.worker.epoch == 0 {
                            worker.life.cache.clear();
                        }
                        if healthy {
                            worker.life.breaker.reset();
                            worker.life.window.reset(shard.cluster.now_ms());
                        }
                        let now = if healthy { "up" } else { "down" };
                        tracing::info!(worker = worker.worker.id, "worker is {now}");
                    }
                })
            })
            .collect();
        for probe in probes {
            probe.await;
        }
    }
}

/// Engines with a health endpoint must say 200 there; of others any answer below 500 will do.
async fn is_healthy(shard: &Shard, worker: &WorkerView) -> bool {
    let (path, strict) = match worker.worker.kind {
        EngineKind::LlamaCpp | EngineKind::Vllm | EngineKind::Sglang | EngineKind::TensorrtLlm => {
            ("/health", true)
        }
        EngineKind::OpenaiCompat => ("/v1/models", false),
    };
    let limits = &shard.config.limits;
    let limit = Duration::from_millis(limits.probe_timeout_ms);
    match shard.pool.exchange(&worker.target, "GET", path, b"", limit, limits).await {
        Ok((status, _)) => status == 200 || (!strict && status < 500),
        Err(_) => false,
    }
}
