//! The cluster as operators see it: nodes, deployments, models.

use std::collections::{BTreeMap, BTreeSet};

use super::{Cluster, Node};
use crate::api::{self, DeploymentStatus, Engine, Model, engine::State};
use crate::place::ReplicaKey;

impl Cluster {
    /// All nodes known, by name, with their last report.
    pub fn nodes(&self, now_ms: u64) -> Vec<api::Node> {
        let node = |(id, node): (&String, &Node)| api::Node {
            id: id.clone(),
            version: node.report.version.clone(),
            attached: node.attached,
            last_seen_ms_ago: now_ms.saturating_sub(node.seen_ms),
            cpu_cores: node.report.cpu_cores,
            memory_bytes: node.report.memory_bytes,
            engines: node.report.engines.clone(),
        };
        self.nodes.iter().map(node).collect()
    }

    /// All deployments, by name, with the engines that are theirs.
    pub fn deployments(&self) -> Vec<DeploymentStatus> {
        self.deployments.values().map(|one| self.deployment_status(one)).collect()
    }

    /// All models that are desired or observed, by name.
    pub fn models(&self) -> Vec<Model> {
        let mut models: BTreeMap<&str, Model> = BTreeMap::new();
        let mut lists: BTreeMap<&str, (BTreeSet<&str>, BTreeSet<&str>)> = BTreeMap::new();
        for spec in self.deployments.values().filter_map(|one| one.spec.as_ref()) {
            models.entry(&spec.model).or_default();
        }
        for (id, node) in &self.nodes {
            let engines = node.report.engines.iter();
            for engine in engines.filter(|engine| node.attached || self.is_placed(id, engine)) {
                let model = models.entry(&engine.model).or_default();
                let is_ready = node.attached && engine.state() == State::Ready;
                model.workers += 1;
                model.workers_ready += u32::from(is_ready);
                model.slots = model.slots.saturating_add(engine.slots);
                model.context_length_tokens =
                    model.context_length_tokens.max(engine.context_length_tokens);
                let (kinds, capabilities) = lists.entry(&engine.model).or_default();
                kinds.insert(&engine.kind);
                capabilities.extend(engine.capabilities.iter().map(String::as_str));
            }
        }
        let owned = |names: BTreeSet<&str>| names.into_iter().map(str::to_owned).collect();
        let named = models.into_iter().map(|(name, model)| {
            let (kinds, capabilities) = lists.remove(name).unwrap_or_default();
            let (kinds, capabilities) = (owned(kinds), owned(capabilities));
            Model { name: name.to_owned(), kinds, capabilities, ..model }
        });
        named.collect()
    }

    fn deployment_status(&self, deployment: &api::Deployment) -> DeploymentStatus {
        let mut engines = Vec::new();
        for (id, node) in &self.nodes {
            let ours = node.report.engines.iter();
            let ours = ours.filter(|engine| engine.deployment == deployment.name);
            engines.extend(ours.filter(|engine| self.is_placed(id, engine)).map(|engine| {
                let mut engine = engine.clone();
                if let Some(why) = not_current(id, node) {
                    engine.set_state(State::Unspecified);
                    engine.message = why;
                }
                engine
            }));
        }
        let ready = engines.iter().filter(|engine| engine.state() == State::Ready).count();
        DeploymentStatus {
            deployment: Some(deployment.clone()),
            ready: u32::try_from(ready).unwrap_or(u32::MAX),
            message: self.why_unplaced(deployment),
            engines,
        }
    }

    fn is_placed(&self, node: &str, engine: &Engine) -> bool {
        let key = ReplicaKey { deployment: engine.deployment.clone(), replica: engine.replica };
        self.placement.get(&key).is_some_and(|at| at == node)
    }

    fn why_unplaced(&self, deployment: &api::Deployment) -> String {
        let key = |replica| ReplicaKey { deployment: deployment.name.clone(), replica };
        let at = |replica| self.placement.get(&key(replica));
        let on_attached = |replica: &u32| at(*replica).is_some_and(|node| self.is_attached(node));
        let missing = (0..deployment.replicas).filter(|replica| !on_attached(replica)).count();
        if missing == 0 {
            return String::new();
        }
        if !self.nodes.values().any(|node| node.attached) {
            return "no node attached; start cgn-agent on this node".to_owned();
        }
        format!("{missing} of {} replicas wait for their node to come back", deployment.replicas)
    }
}

/// Why what the node reports does not yet speak for what is desired of it now.
fn not_current(id: &str, node: &Node) -> Option<String> {
    if !node.attached {
        return Some(format!("node {id} is not attached; is its cgn-agent running?"));
    }
    let (applied, wanted) = (node.report.desired_version, node.desired.version);
    (applied != wanted).then(|| {
        format!("the agent of {id} has not applied desired state {wanted} yet (it is at {applied})")
    })
}
