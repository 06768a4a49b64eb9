//! The state of the cluster as this control process knows it: what is desired, what agents observe,
//! which replica is where, and the two things composed from them, a [`DesiredState`] for each node
//! and one [`Snapshot`] for the data planes.
//!
//! Events in, [`Changes`] out. No I/O, and the time comes in as an argument, so any life of a
//! cluster can be replayed. A [`Snapshot`]'s version rises exactly when its content changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dataplane::wire::{ScoreWeights, Snapshot};

use crate::api::{AgentReport, Deployment, DesiredEngine, DesiredState};
use crate::deployment::{self, is_name_part};
use crate::error::ControlError;
use crate::place::{Placement, ReplicaKey, Standing, place};

mod compose;
mod view;

#[cfg(test)]
mod tests;

/// Engines one agent may report.
pub const ENGINES_PER_NODE_MAX: usize = 1024;

/// What the configuration says about nodes and deployments.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// An agent silent for so long is not attached.
    pub node_timeout_ms: u64,
    /// For so long after a node was lost its replicas stay its own.
    pub node_grace_ms: u64,
    /// Nodes known at once.
    pub nodes_max: usize,
    /// Deployments at once.
    pub deployments_max: usize,
}

/// What an event changed, so that its owner writes and publishes no more than that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Deployments or placement: make durable, and tell the agents.
    pub desired: bool,
    /// The snapshot: tell the data planes.
    pub snapshot: bool,
}

/// What survives a restart of control.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Remembered {
    /// What is asked for.
    pub deployments: Vec<Deployment>,
    /// Which replica is where.
    pub placement: Placement,
    /// Version of the newest desired state ever given out.
    pub revision: u64,
    /// Each node's last report and when it came.
    pub nodes: Vec<(AgentReport, u64)>,
    /// Weights for all routers, where an operator set some.
    pub weights: Option<ScoreWeights>,
}

#[derive(Clone, Debug)]
struct Node {
    report: AgentReport,
    seen_ms: u64,
    attached: bool,
    /// When it was lost; counts only while it is not attached.
    lost_ms: u64,
    desired: DesiredState,
}

/// All of it. Cloning is cheap enough to try a change before it is made durable.
#[derive(Clone, Debug)]
pub struct Cluster {
    limits: Limits,
    deployments: BTreeMap<String, Deployment>,
    nodes: BTreeMap<String, Node>,
    placement: Placement,
    revision: u64,
    weights: Option<ScoreWeights>,
    snapshot: Arc<Snapshot>,
    /// Until when the first snapshot of this life is held back, at most.
    held_until_ms: Option<u64>,
}

impl Cluster {
    /// The cluster as remembered. No node is attached; each gets the whole grace time to come back,
    /// since it was control that was away. For the same reason nothing is published before all
    /// nodes with replicas are back or had `node_timeout_ms` for it: data planes that outlived the
    /// old control go on with its last picture instead of seeing every worker gone.
    pub fn restore(limits: Limits, remembered: Remembered, now_ms: u64) -> Cluster {
        let node = |(report, seen_ms): (AgentReport, u64)| {
            let desired = DesiredState { version: remembered.revision, engines: Vec::new() };
            let id = report.node_id.clone();
            (id, Node { report, seen_ms, attached: false, lost_ms: now_ms, desired })
        };
        let deployments = remembered.deployments.into_iter().map(|one| (one.name.clone(), one));
        let mut cluster = Cluster {
            limits,
            deployments: deployments.collect(),
            nodes: remembered.nodes.into_iter().map(node).collect(),
            placement: remembered.placement,
            revision: remembered.revision,
            weights: remembered.weights,
            snapshot: Arc::default(),
            held_until_ms: Some(now_ms.saturating_add(limits.node_timeout_ms)),
        };
        for (id, node) in &mut cluster.nodes {
            node.desired.engines = desired_engines(&cluster.deployments, &cluster.placement, id);
        }
        cluster.settle(now_ms);
        cluster
    }

    /// Takes a report; the first one attaches its node.
    ///
    /// # Errors
    /// [`ControlError::BadRequest`] and [`ControlError::Full`]; nothing has changed then.
    pub fn report(&mut self, report: AgentReport, now_ms: u64) -> Result<Changes, ControlError> {
        check_report(&report)?;
        let id = report.node_id.clone();
        if let Some(node) = self.nodes.get_mut(&id) {
            let was_attached = std::mem::replace(&mut node.attached, true);
            node.report = report;
            node.seen_ms = now_ms;
            return Ok(if was_attached {
                Changes { desired: false, snapshot: self.recompose(now_ms) }
            } else {
                self.settle(now_ms)
            });
        }
        self.forget_for_room()?;
        let desired = DesiredState { version: self.revision, engines: Vec::new() };
        let node = Node { report, seen_ms: now_ms, attached: true, lost_ms: now_ms, desired };
        self.nodes.insert(id, node);
        Ok(self.settle(now_ms))
    }

    /// The stream of that node's agent broke.
    pub fn detach(&mut self, node: &str, now_ms: u64) -> Changes {
        match self.nodes.get_mut(node) {
            Some(node) if node.attached => {
                node.attached = false;
                node.lost_ms = now_ms;
                self.settle(now_ms)
            }
            _ => Changes::default(),
        }
    }

    /// Time passed: silent agents are no longer attached, and a grace time may be over.
    pub fn expire(&mut self, now_ms: u64) -> Changes {
        for node in self.nodes.values_mut().filter(|node| node.attached) {
            if now_ms.saturating_sub(node.seen_ms) >= self.limits.node_timeout_ms {
                node.attached = false;
                node.lost_ms = now_ms;
            }
        }
        self.settle(now_ms)
    }

    /// Adds a deployment or replaces the one of that name.
    ///
    /// # Errors
    /// [`ControlError::BadRequest`] and [`ControlError::Full`]; nothing has changed then.
    pub fn apply(&mut self, new: Deployment, now_ms: u64) -> Result<Changes, ControlError> {
        deployment::check(&new).map_err(|fault| ControlError::BadRequest(fault.to_string()))?;
        let old = self.deployments.get(&new.name);
        if old == Some(&new) {
            return Ok(Changes::default());
        }
        if old.is_none() && self.deployments.len() >= self.limits.deployments_max {
            let limit = self.limits.deployments_max;
            return Err(ControlError::Full { what: "deployments", limit, key: "deployments_max" });
        }
        self.deployments.insert(new.name.clone(), new);
        self.revision += 1;
        Ok(Changes { desired: true, ..self.settle(now_ms) })
    }

    /// Removes a deployment; `None` when there is none of that name.
    pub fn delete(&mut self, name: &str, now_ms: u64) -> Option<Changes> {
        self.deployments.remove(name)?;
        self.revision += 1;
        Some(Changes { desired: true, ..self.settle(now_ms) })
    }

    /// Sets the weights of all routers; `None`: each goes by its own file.
    pub fn set_weights(&mut self, weights: Option<ScoreWeights>, now_ms: u64) -> Changes {
        self.weights = weights;
        Changes { desired: false, snapshot: self.recompose(now_ms) }
    }

    /// The weights set for all routers.
    pub fn weights(&self) -> Option<ScoreWeights> {
        self.weights
    }

    /// What the agent of `node` should be running; nothing for an unknown node.
    pub fn desired(&self, node: &str) -> DesiredState {
        self.nodes.get(node).map(|node| node.desired.clone()).unwrap_or_default()
    }

    /// The newest picture.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// The picture for the data planes; `None` while it is held back (see [`Cluster::restore`]).
    pub fn published(&self) -> Option<&Arc<Snapshot>> {
        self.held_until_ms.is_none().then_some(&self.snapshot)
    }

    /// Whether an agent reports for `node`.
    pub fn is_attached(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|node| node.attached)
    }

    /// Version of the newest desired state.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Which replica is where.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The last report of `node` and when it came.
    pub fn last_report(&self, node: &str) -> Option<(&AgentReport, u64)> {
        self.nodes.get(node).map(|node| (&node.report, node.seen_ms))
    }

    /// Names of all nodes known.
    pub fn node_names(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// Brings placement, desired states and snapshot into line with deployments and nodes.
    fn settle(&mut self, now_ms: u64) -> Changes {
        let desired = self.replace(now_ms);
        self.refresh_desired();
        Changes { desired, snapshot: self.recompose(now_ms) }
    }

    fn replace(&mut self, now_ms: u64) -> bool {
        let standing = |(id, node): (&String, &Node)| {
            let standing = if node.attached {
                Standing::Attached
            } else if now_ms.saturating_sub(node.lost_ms) < self.limits.node_grace_ms {
                Standing::Missed
            } else {
                return None;
            };
            Some((id.clone(), standing))
        };
        let nodes = self.nodes.iter().filter_map(standing).collect();
        let wanted = self.deployments.values().map(|one| (one.name.clone(), one.replicas));
        let running: BTreeSet<(&str, &str, u32)> = self
            .nodes
            .iter()
            .flat_map(|(id, node)| {
                let engines = node.report.engines.iter();
                engines.map(move |engine| (id.as_str(), engine.deployment.as_str(), engine.replica))
            })
            .collect();
        let is_running = |node: &str, key: &ReplicaKey| {
            running.contains(&(node, key.deployment.as_str(), key.replica))
        };
        let placement = place(&wanted.collect(), &nodes, &self.placement, is_running);
        let moved = placement != self.placement;
        if moved {
            self.placement = placement;
            self.revision += 1;
        }
        moved
    }

    /// A node's desired state gets a new version only when its own content changed.
    fn refresh_desired(&mut self) {
        for (id, node) in &mut self.nodes {
            let engines = desired_engines(&self.deployments, &self.placement, id);
            if engines != node.desired.engines {
                node.desired = DesiredState { version: self.revision, engines };
            }
        }
    }

    /// Whether there is something new to publish.
    fn recompose(&mut self, now_ms: u64) -> bool {
        let is_released = self.release(now_ms);
        let workers = compose::workers(self, now_ms);
        let weights = self.weights;
        let is_new = workers != self.snapshot.workers || weights != self.snapshot.weights;
        if is_new {
            let version = self.snapshot.version + 1;
            self.snapshot = Arc::new(Snapshot { version, workers, weights });
        }
        self.held_until_ms.is_none() && (is_new || is_released)
    }

    fn release(&mut self, now_ms: u64) -> bool {
        let Some(until_ms) = self.held_until_ms else {
            return false;
        };
        let is_over = now_ms >= until_ms || self.placement.values().all(|at| self.is_attached(at));
        if is_over {
            self.held_until_ms = None;
        }
        is_over
    }

    /// Makes room for one node more: the longest lost goes.
    fn forget_for_room(&mut self) -> Result<(), ControlError> {
        let limit = self.limits.nodes_max;
        if self.nodes.len() < limit {
            return Ok(());
        }
        let lost = self.nodes.iter().filter(|(_, node)| !node.attached);
        let Some((id, _)) = lost.min_by_key(|(_, node)| node.lost_ms) else {
            return Err(ControlError::Full { what: "nodes", limit, key: "nodes_max" });
        };
        let id = id.clone();
        self.nodes.remove(&id);
        Ok(())
    }
}

fn desired_engines(
    deployments: &BTreeMap<String, Deployment>,
    placement: &Placement,
    node: &str,
) -> Vec<DesiredEngine> {
    let here = placement.iter().filter(|(_, at)| *at == node);
    here.filter_map(|(key, _)| {
        let spec = deployments.get(&key.deployment)?.spec.clone();
        Some(DesiredEngine { deployment: key.deployment.clone(), replica: key.replica, spec })
    })
    .collect()
}

fn check_report(report: &AgentReport) -> Result<(), ControlError> {
    let refuse = |message| Err(ControlError::BadRequest(message));
    if !is_name_part(&report.node_id) {
        return refuse(format!(
            "{:?} cannot be a node_id; use a-z A-Z 0-9 . _ - only, without /",
            report.node_id
        ));
    }
    if report.engines.len() > ENGINES_PER_NODE_MAX {
        return refuse(format!(
            "{} engines in one report; at most {ENGINES_PER_NODE_MAX}",
            report.engines.len()
        ));
    }
    let names = |name: &str| deployment::is_name(name);
    match report.engines.iter().find(|engine| !names(&engine.deployment)) {
        Some(engine) => refuse(format!("{:?} cannot be a deployment", engine.deployment)),
        None => Ok(()),
    }
}
