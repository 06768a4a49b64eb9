//! What the agent tells control: an [`AgentReport`] made from what is [`Observed`]. Pure.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use control::api::engine::State;
use control::api::{AgentReport, Engine};

use crate::supervise::{Observed, Phase, Replica, ReplicaId, StopCause};

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name.
    pub id: String,
    /// Cores the agent may use.
    pub cpu_cores: u32,
    /// Memory of the machine; 0 is unknown.
    pub memory_bytes: u64,
    /// Where routers dial for what KV caches hold and what other routers gave, if anywhere.
    pub kv_feed: Option<String>,
}

/// The whole of what is observed.
pub fn report(
    node: &Node,
    desired_version: u64,
    observed: &Observed,
    now: Duration,
) -> AgentReport {
    AgentReport {
        node_id: node.id.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cpu_cores: node.cpu_cores,
        memory_bytes: node.memory_bytes,
        desired_version,
        engines: observed
            .replicas
            .iter()
            .map(|(id, replica)| engine(node, id, replica, now))
            .collect(),
    }
}

/// Whether `new` says something that `old` did not; clocks running on are nothing new.
pub fn is_news(old: &AgentReport, new: &AgentReport) -> bool {
    let without_clocks = |report: &AgentReport| {
        let mut report = report.clone();
        report.engines.iter_mut().for_each(|engine| engine.retry_in_ms = 0);
        report
    };
    without_clocks(old) != without_clocks(new)
}

/// The state of a replica as control knows states.
pub fn state(replica: &Replica) -> State {
    match &replica.phase {
        Phase::Starting { .. } | Phase::Gone => State::Starting,
        Phase::Ready { .. } => State::Ready,
        Phase::Draining { .. } | Phase::Stopping { cause: StopCause::Unwanted, .. } => {
            State::Draining
        }
        Phase::Stopping { cause: StopCause::Fault(_), .. } | Phase::Backoff { .. } => {
            State::Backoff
        }
        Phase::Failed { .. } => State::Failed,
    }
}

fn engine(node: &Node, id: &ReplicaId, replica: &Replica, now: Duration) -> Engine {
    let mut engine = Engine {
        worker_id: id.worker_id(&node.id),
        deployment: id.deployment.clone(),
        replica: id.replica,
        state: state(replica).into(),
        message: replica.message.clone(),
        model: replica.spec.model.clone(),
        slots: replica.spec.slots,
        context_length_tokens: replica.spec.context_length_tokens,
        restarts: replica.restarts,
        running_requests: replica.in_flight.map(|requests| requests.running),
        ..Engine::default()
    };
    if let Phase::Backoff { until } = replica.phase {
        let left = until.saturating_sub(now).as_millis();
        engine.retry_in_ms = u64::try_from(left).unwrap_or(u64::MAX);
    }
    let Some(run) = &replica.run else {
        engine.kind = replica.spec.kind.clone();
        return engine;
    };
    engine.kind = run.expected.kind.as_str().to_owned();
    engine.capabilities = run
        .expected
        .capabilities
        .iter()
        .filter_map(|capability| serde_json::to_value(capability).ok()?.as_str().map(str::to_owned))
        .collect();
    engine.epoch = run.epoch;
    engine.model_files = run.expected.model_files.clone().unwrap_or_default();
    engine.kv_feed = node.kv_feed.clone().unwrap_or_default();
    if let Some(block_tokens) = &run.kv_block_tokens {
        engine.kv_events = node.kv_feed.is_some();
        engine.kv_block_tokens = block_tokens.load(Relaxed);
    }
    engine.log_path = run.log_path.display().to_string();
    // Kept while it is down: it comes back there, and routers know it is only away.
    engine.url = format!("http://127.0.0.1:{}", run.port);
    if replica.has_process() {
        engine.pid = run.pid;
    }
    if let Some(facts) = replica.facts {
        engine.slots = facts.slots;
        if facts.context_length_tokens > 0 {
            engine.context_length_tokens = facts.context_length_tokens;
        }
        engine.kv_cache_tokens = run.expected.kv_cache_tokens(facts);
    }
    engine
}
