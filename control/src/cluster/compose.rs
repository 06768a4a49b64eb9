//! Engines as agents report them into workers as data planes see them.

use std::collections::BTreeMap;

use dataplane::wire::{Capability, EngineKind, Worker, WorkerState};

use super::{Cluster, Node};
use crate::api::{Engine, engine::State};
use crate::place::ReplicaKey;

/// All workers, by id. Engines of a lost node stay, not ready, while the node may come back to
/// them.
pub(super) fn workers(cluster: &Cluster, now_ms: u64) -> Vec<Worker> {
    let mut workers: BTreeMap<String, Worker> = BTreeMap::new();
    for (id, node) in &cluster.nodes {
        let is_missed =
            now_ms.saturating_sub(node.lost_ms) < cluster.limits.node_grace_ms && !node.attached;
        for engine in &node.report.engines {
            let key = ReplicaKey { deployment: engine.deployment.clone(), replica: engine.replica };
            let is_desired = cluster.placement.get(&key) == Some(id);
            if !(node.attached || is_missed || is_desired) {
                continue;
            }
            let Some(worker) = worker(id, node, engine, is_desired) else { continue };
            // While a replica is replaced, its old process may be reported beside the new one.
            match workers.get(&worker.id) {
                Some(known) if known.epoch >= worker.epoch => {}
                _ => drop(workers.insert(worker.id.clone(), worker)),
            }
        }
    }
    workers.into_values().collect()
}

/// `None` while there is no address to send a request to, or nobody known to speak there.
fn worker(node_id: &str, node: &Node, engine: &Engine, is_desired: bool) -> Option<Worker> {
    if !engine.url.starts_with("http://") {
        return None;
    }
    let state = match engine.state() {
        _ if !node.attached => WorkerState::NotReady,
        // The agent will drain it as soon as it hears; nothing new should go there till then.
        State::Ready if !is_desired => WorkerState::Draining,
        State::Ready => WorkerState::Ready,
        State::Draining => WorkerState::Draining,
        _ => WorkerState::NotReady,
    };
    Some(Worker {
        id: worker_id(node_id, &engine.deployment, engine.replica),
        node: node_id.to_owned(),
        url: engine.url.clone(),
        model: engine.model.clone(),
        kind: kind(&engine.kind)?,
        slots: engine.slots,
        context_length_tokens: engine.context_length_tokens,
        kv_cache_tokens: engine.kv_cache_tokens,
        capabilities: engine.capabilities.iter().filter_map(|name| capability(name)).collect(),
        state,
        epoch: engine.epoch,
        power_watts: engine.power_watts.filter(|watts| watts.is_finite() && *watts >= 0.0),
        running_requests: engine.running_requests,
        kv_feed: Some(engine.kv_feed.clone()).filter(|address| !address.is_empty()),
        kv_events: engine.kv_events,
        kv_block_tokens: engine.kv_block_tokens,
        model_files: Some(engine.model_files.clone()).filter(|folder| !folder.is_empty()),
    })
}

/// `node/deployment/replica`.
pub(super) fn worker_id(node: &str, deployment: &str, replica: u32) -> String {
    format!("{node}/{deployment}/{replica}")
}

fn kind(name: &str) -> Option<EngineKind> {
    use EngineKind::{LlamaCpp, OpenaiCompat, Sglang, TensorrtLlm, Vllm};
    [Vllm, Sglang, TensorrtLlm, LlamaCpp, OpenaiCompat]
        .into_iter()
        .find(|kind| kind.as_str() == name)
}

fn capability(name: &str) -> Option<Capability> {
    match name {
        "chat" => Some(Capability::Chat),
        "completions" => Some(Capability::Completions),
        "embeddings" => Some(Capability::Embeddings),
        _ => None,
    }
}
