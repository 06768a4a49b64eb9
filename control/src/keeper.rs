//! The one owner of control's state. Every event passes through here: it is decided by
//! [`Cluster`], made durable by [`Store`], and only then told to agents and data planes.
//!
//! Its methods never wait for a peer. What is told goes through `watch` channels, which hold the
//! newest value only: a slow reader skips what is outdated and costs nobody anything.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dataplane::wire::{ScoreWeights, Snapshot};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::api::{AgentReport, Deployment, DeploymentStatus, DesiredState, Model, Node};
use crate::clock::Clock;
use crate::cluster::{Changes, Cluster, Limits};
use crate::error::ControlError;
use crate::store::{Store, StoreError};

/// A report that brings nothing new is written this often all the same, for "last seen".
const NODE_WRITTEN_EVERY_MS: u64 = 30_000;

/// State, store and the two ways out.
pub struct Keeper {
    clock: Clock,
    kept: Mutex<Kept>,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
}

struct Kept {
    cluster: Cluster,
    store: Store,
    streams: HashMap<String, Stream>,
    streams_opened: u64,
    /// Of each stored node: the report without its fleeting parts, and when it was written.
    written: HashMap<String, (AgentReport, u64)>,
}

struct Stream {
    id: u64,
    desired: watch::Sender<DesiredState>,
}

/// An agent's place: proof that this stream speaks for its node.
#[derive(Debug)]
pub struct Place {
    /// The node.
    pub node: String,
    /// What it should be running; closed when another stream took over.
    pub desired: watch::Receiver<DesiredState>,
    id: u64,
}

impl Keeper {
    /// Takes over what `store` remembers.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`].
    pub fn new(limits: Limits, store: Store, clock: Clock) -> Result<Keeper, StoreError> {
        let now_ms = clock.now_ms();
        let remembered = store.remembered()?;
        let written = remembered.nodes.iter().map(|(report, seen_ms)| {
            (report.node_id.clone(), (without_fleeting(report), *seen_ms))
        });
        let written = written.collect();
        let cluster = Cluster::restore(limits, remembered, now_ms);
        let (snapshots, _) = watch::channel(cluster.published().cloned());
        let streams = HashMap::new();
        let kept = Kept { cluster, store, streams, streams_opened: 0, written };
        Ok(Keeper { clock, kept: Mutex::new(kept), snapshots })
    }

    /// The first report of a new stream.
    ///
    /// # Errors
    /// [`ControlError::NodeTaken`] while another live stream speaks for that node, and whatever
    /// [`Cluster::report`] refuses.
    pub fn attach(&self, report: AgentReport) -> Result<Place, ControlError> {
        let mut kept = self.kept();
        let node = report.node_id.clone();
        // A stream that is open but silent has lost its place (see `Cluster::expire`).
        if kept.streams.contains_key(&node) && kept.cluster.is_attached(&node) {
            return Err(ControlError::NodeTaken(node));
        }
        let changes = kept.cluster.report(report, self.clock.now_ms())?;
        kept.streams_opened += 1;
        let id = kept.streams_opened;
        let (sender, desired) = watch::channel(kept.cluster.desired(&node));
        kept.streams.insert(node.clone(), Stream { id, desired: sender });
        kept.remember_node(&node);
        self.publish(&mut kept, changes);
        info!(node, "an agent attached");
        Ok(Place { node, desired, id })
    }

    /// A further report of a stream.
    ///
    /// # Errors
    /// [`ControlError::Replaced`], [`ControlError::BadRequest`].
    pub fn report(&self, place: &Place, report: AgentReport) -> Result<(), ControlError> {
        let mut kept = self.kept();
        if !kept.is_current(place) {
            return Err(ControlError::Replaced(place.node.clone()));
        }
        if report.node_id != place.node {
            let message = format!("a stream of node `{}` cannot report for another", place.node);
            return Err(ControlError::BadRequest(message));
        }
        let changes = kept.cluster.report(report, self.clock.now_ms())?;
        kept.remember_node(&place.node);
        self.publish(&mut kept, changes);
        Ok(())
    }

    /// The stream ended, for whatever reason.
    pub fn detach(&self, place: &Place) {
        let mut kept = self.kept();
        if kept.is_current(place) {
            kept.streams.remove(&place.node);
            let changes = kept.cluster.detach(&place.node, self.clock.now_ms());
            self.publish(&mut kept, changes);
            warn!(node = place.node, "an agent went away");
        }
    }

    /// Time passed; call about once a second.
    pub fn tick(&self) {
        let mut kept = self.kept();
        let attached = kept.streams.keys().filter(|node| kept.cluster.is_attached(node));
        let attached: Vec<String> = attached.cloned().collect();
        let changes = kept.cluster.expire(self.clock.now_ms());
        for node in attached.iter().filter(|node| !kept.cluster.is_attached(node)) {
            warn!(node, "an agent has stopped reporting; its workers are taken out");
        }
        self.publish(&mut kept, changes);
    }

    /// Adds or replaces a deployment; gives the version of the desired state it is part of.
    ///
    /// # Errors
    /// Whatever [`Cluster::apply`] refuses, and [`ControlError::Store`]; nothing has changed then.
    pub fn apply(&self, deployment: Deployment) -> Result<u64, ControlError> {
        let mut kept = self.kept();
        let mut next = kept.cluster.clone();
        let changes = next.apply(deployment.clone(), self.clock.now_ms())?;
        if changes.desired {
            kept.store.put_deployment(&deployment, &next)?;
            info!(deployment = deployment.name, replicas = deployment.replicas, "applied");
        }
        kept.cluster = next;
        self.tell(&mut kept, changes);
        Ok(kept.cluster.revision())
    }

    /// Removes a deployment; `false` when there was none of that name.
    ///
    /// # Errors
    /// [`ControlError::Store`]; nothing has changed then.
    pub fn delete(&self, name: &str) -> Result<bool, ControlError> {
        let mut kept = self.kept();
        let mut next = kept.cluster.clone();
        let Some(changes) = next.delete(name, self.clock.now_ms()) else {
            return Ok(false);
        };
        kept.store.delete_deployment(name, &next)?;
        kept.cluster = next;
        self.tell(&mut kept, changes);
        info!(deployment = name, "deleted");
        Ok(true)
    }

    /// Sets the weights of all routers, or leaves each its own again.
    ///
    /// # Errors
    /// [`ControlError::Store`]; nothing has changed then.
    pub fn set_weights(&self, weights: Option<ScoreWeights>) -> Result<(), ControlError> {
        let mut kept = self.kept();
        if kept.cluster.weights() == weights {
            return Ok(());
        }
        kept.store.put_weights(weights)?;
        let changes = kept.cluster.set_weights(weights, self.clock.now_ms());
        self.tell(&mut kept, changes);
        match weights {
            Some(weights) => info!(%weights, "route weights set"),
            None => info!("route weights reset"),
        }
        Ok(())
    }

    /// The weights set for all routers.
    pub fn weights(&self) -> Option<ScoreWeights> {
        self.kept().cluster.weights()
    }

    /// The newest picture, and each one after; `None` while it is held back after a start (see
    /// [`Cluster::published`]).
    pub fn snapshots(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.snapshots.subscribe()
    }

    /// All nodes known.
    pub fn nodes(&self) -> Vec<Node> {
        self.kept().cluster.nodes(self.clock.now_ms())
    }

    /// All deployments.
    pub fn deployments(&self) -> Vec<DeploymentStatus> {
        self.kept().cluster.deployments()
    }

    /// All models.
    pub fn models(&self) -> Vec<Model> {
        self.kept().cluster.models()
    }

    /// Writes down a placement that nodes changed, then tells. A full disk must not stop the agents
    /// from being told, and a restart finds the replicas where they run, so that failure is only
    /// logged.
    fn publish(&self, kept: &mut Kept, changes: Changes) {
        if changes.desired
            && let Err(error) = kept.store.put_placement(&kept.cluster)
        {
            error!(%error, "the placement is not durable");
        }
        self.tell(kept, changes);
    }

    fn tell(&self, kept: &mut Kept, changes: Changes) {
        if changes.snapshot {
            self.snapshots.send_replace(kept.cluster.published().cloned());
        }
        for (node, stream) in &kept.streams {
            let desired = kept.cluster.desired(node);
            stream.desired.send_if_modified(|told| {
                let is_new = *told != desired;
                *told = desired;
                is_new
            });
        }
    }

    /// A panic ends the process, so a poisoned lock is never seen.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn is_current(&self, place: &Place) -> bool {
        self.streams.get(&place.node).is_some_and(|stream| stream.id == place.id)
    }

    /// Writes the node when its report says something lasting, or now and then; forgets in the
    /// store whom the cluster forgot.
    fn remember_node(&mut self, node: &str) {
        let Some((report, seen_ms)) = self.cluster.last_report(node) else {
            return;
        };
        let lasting = without_fleeting(report);
        let written = self.written.get(node);
        if written.is_some_and(|(old, at_ms)| {
            *old == lasting && seen_ms.saturating_sub(*at_ms) < NODE_WRITTEN_EVERY_MS
        }) {
            return;
        }
        if let Err(error) = self.store.put_node(report, seen_ms) {
            error!(%error, node, "the node's report is not durable");
            return;
        }
        self.written.insert(node.to_owned(), (lasting, seen_ms));
        let forgotten = self.written.keys().filter(|one| self.cluster.last_report(one).is_none());
        for node in forgotten.cloned().collect::<Vec<_>>() {
            if let Err(error) = self.store.delete_node(&node) {
                error!(%error, node, "the node is not forgotten for good");
            }
            self.written.remove(&node);
        }
    }
}

/// What of a report is worth a synced write: all but what changes from second to second.
fn without_fleeting(report: &AgentReport) -> AgentReport {
    let mut report = report.clone();
    for engine in &mut report.engines {
        engine.running_requests = None;
        engine.power_watts = None;
        engine.retry_in_ms = 0;
    }
    report
}
