//! Decides what to do about the engines of a node: `supervise(desired, observed, now) → actions`.
//!
//! Pure: it reads no clock and starts nothing. The owner ([`crate::agent`]) asks for a [`Plan`],
//! marks each action as begun ([`Observed::begin`]), carries it out, and reports what came of it
//! ([`Observed::apply`]). Between those calls every process the agent started belongs to exactly one
//! [`Replica`], and a replica has at most one process.
//!
//! Time is the time since the agent started.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use control::api::EngineSpec;

mod backoff;
mod event;
mod observed;
mod replica;

pub use event::{Applied, Event, InFlight, ProbeOutcome, Run};
pub use observed::Observed;
pub use replica::{Phase, Replica, StopCause};

/// Between two probes of an engine that starts or drains: both wait for a change.
pub const PROBE_INTERVAL_WAITING: Duration = Duration::from_millis(250);
/// Between two looks at whether what an engine lacks (binary, model file) has been put there.
pub const RECHECK_INTERVAL: Duration = Duration::from_secs(5);
/// For a spec that says 0.
pub const STARTUP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(120);

/// Names one replica of one deployment on this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId {
    /// The deployment's name.
    pub deployment: String,
    /// Counted from 0.
    pub replica: u32,
}

impl ReplicaId {
    /// The name routers and metrics use: `node/deployment/replica`.
    pub fn worker_id(&self, node_id: &str) -> String {
        format!("{node_id}/{}/{}", self.deployment, self.replica)
    }
}

/// What should run.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// As control last said.
    pub engines: BTreeMap<ReplicaId, EngineSpec>,
    /// Set once the agent was told to stop: nothing is wanted any more.
    pub ending: Option<Ending>,
}

impl Desired {
    fn spec(&self, id: &ReplicaId) -> Option<&EngineSpec> {
        if self.ending.is_some() { None } else { self.engines.get(id) }
    }
}

/// How the agent ends its engines when it stops itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Engines drain, but no longer than this.
    Draining {
        /// When the last drain is cut off.
        until: Duration,
    },
    /// Told a second time: everything is killed.
    Hurried,
}

/// What the decisions depend on besides facts. From [`crate::config::Agent::limits`].
#[derive(Clone, Debug)]
pub struct Limits {
    /// Between two probes of a ready engine.
    pub probe_interval: Duration,
    /// Failed probes in a row after which an engine counts as hung.
    pub probe_failures_max: u32,
    /// Failures before an engine was ever ready, after which it is given up.
    pub start_attempts_max: u32,
    /// Pause before the first restart.
    pub backoff_initial: Duration,
    /// Longest pause before a restart.
    pub backoff_max: Duration,
    /// Ready for this long, earlier failures are forgotten.
    pub backoff_reset_after: Duration,
    /// Shortest time an engine drains.
    pub drain_settle: Duration,
    /// Between SIGTERM and SIGKILL.
    pub stop_grace: Duration,
}

/// One thing to do now.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Check, render and spawn. Answered by [`Event::Spawned`], [`Event::Refused`] or
    /// [`Event::SpawnFailed`].
    Start {
        /// Whose process.
        id: ReplicaId,
        /// What to run.
        spec: EngineSpec,
    },
    /// Ask the engine how it is. Answered by [`Event::Probed`].
    Probe {
        /// Whom.
        id: ReplicaId,
    },
    /// Take no new requests, finish the running ones.
    Drain {
        /// Who.
        id: ReplicaId,
    },
    /// A draining engine is wanted again.
    Resume {
        /// Who.
        id: ReplicaId,
    },
    /// SIGTERM to the process group.
    Terminate {
        /// Whose.
        id: ReplicaId,
    },
    /// SIGKILL to the process group.
    Kill {
        /// Whose.
        id: ReplicaId,
        /// What the engine did wrong; none if it was only too slow to leave.
        fault: Option<String>,
    },
    /// Nothing is left of a replica that nobody wants.
    Forget {
        /// Which.
        id: ReplicaId,
    },
}

/// What to do now, and when to ask again if nothing happens before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In order; at most one for each replica.
    pub actions: Vec<Action>,
    /// None: only an event can change anything.
    pub wake_at: Option<Duration>,
}

impl Plan {
    fn wake(&mut self, at: Duration) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

/// Compares what should be with what is.
pub fn supervise(desired: &Desired, observed: &Observed, limits: &Limits, now: Duration) -> Plan {
    let mut plan = Plan::default();
    let ids: BTreeSet<&ReplicaId> =
        desired.engines.keys().chain(observed.replicas.keys()).collect();
    for id in ids {
        let wanted = desired.spec(id);
        match observed.replicas.get(id) {
            None => plan.actions.extend(wanted.map(|spec| start(id, spec))),
            Some(replica) if replica.has_process() => {
                running(id, wanted, replica, desired.ending, limits, now, &mut plan);
            }
            Some(replica) => at_rest(id, wanted, replica, now, &mut plan),
        }
    }
    plan
}

fn start(id: &ReplicaId, spec: &EngineSpec) -> Action {
    Action::Start { id: id.clone(), spec: spec.clone() }
}

/// A replica without a process.
fn at_rest(
    id: &ReplicaId,
    wanted: Option<&EngineSpec>,
    replica: &Replica,
    now: Duration,
    plan: &mut Plan,
) {
    let Some(spec) = wanted else {
        plan.actions.push(Action::Forget { id: id.clone() });
        return;
    };
    let due = match replica.phase {
        _ if *spec != replica.spec => Some(now),
        Phase::Backoff { until } => Some(until),
        Phase::Failed { recheck_at } => recheck_at,
        _ => Some(now),
    };
    match due {
        Some(at) if at <= now => plan.actions.push(start(id, spec)),
        Some(at) => plan.wake(at),
        None => {}
    }
}

/// A replica with a process.
fn running(
    id: &ReplicaId,
    wanted: Option<&EngineSpec>,
    replica: &Replica,
    ending: Option<Ending>,
    limits: &Limits,
    now: Duration,
    plan: &mut Plan,
) {
    let wanted = wanted.is_some_and(|spec| *spec == replica.spec);
    let killed = matches!(replica.phase, Phase::Stopping { killed: true, .. });
    if ending == Some(Ending::Hurried) && !killed {
        plan.actions.push(Action::Kill { id: id.clone(), fault: None });
        return;
    }
    let hung = replica.probe_failures >= limits.probe_failures_max;
    match &replica.phase {
        Phase::Starting { .. } if !wanted => {
            plan.actions.push(Action::Terminate { id: id.clone() });
        }
        Phase::Starting { since } => {
            let timeout = startup_timeout(&replica.spec);
            if now >= *since + timeout {
                let fault = format!("not ready within {} s", timeout.as_secs());
                plan.actions.push(Action::Kill { id: id.clone(), fault: Some(fault) });
            } else {
                plan.wake(*since + timeout);
                probe_when_due(id, replica, now, plan);
            }
        }
        Phase::Ready { .. } if !wanted => plan.actions.push(Action::Drain { id: id.clone() }),
        Phase::Ready { .. } if hung => {
            let fault = format!(
                "hung: {} probes in a row failed ({})",
                replica.probe_failures, replica.message
            );
            plan.actions.push(Action::Kill { id: id.clone(), fault: Some(fault) });
        }
        Phase::Ready { .. } => probe_when_due(id, replica, now, plan),
        Phase::Draining { .. } if wanted => plan.actions.push(Action::Resume { id: id.clone() }),
        Phase::Draining { since } => {
            let deadline = drain_deadline(*since, &replica.spec, ending);
            let idle = replica.idle_since.is_some_and(|idle| idle >= *since + limits.drain_settle);
            if idle || hung || now >= deadline {
                plan.actions.push(Action::Terminate { id: id.clone() });
            } else {
                plan.wake(deadline);
                probe_when_due(id, replica, now, plan);
            }
        }
        Phase::Stopping { since, killed, .. } => {
            let deadline = *since + limits.stop_grace;
            if *killed {
                // Only its exit can change anything.
            } else if now >= deadline {
                plan.actions.push(Action::Kill { id: id.clone(), fault: None });
            } else {
                plan.wake(deadline);
            }
        }
        Phase::Backoff { .. } | Phase::Failed { .. } | Phase::Gone => {}
    }
}

fn probe_when_due(id: &ReplicaId, replica: &Replica, now: Duration, plan: &mut Plan) {
    if replica.probing {
        return;
    }
    if now >= replica.probe_at {
        plan.actions.push(Action::Probe { id: id.clone() });
    } else {
        plan.wake(replica.probe_at);
    }
}

fn startup_timeout(spec: &EngineSpec) -> Duration {
    match spec.startup_timeout_s {
        0 => STARTUP_TIMEOUT_DEFAULT,
        seconds => Duration::from_secs(seconds.into()),
    }
}

fn drain_deadline(since: Duration, spec: &EngineSpec, ending: Option<Ending>) -> Duration {
    let own = since + Duration::from_secs(spec.drain_timeout_s.into());
    match ending {
        Some(Ending::Draining { until }) => own.min(until),
        _ => own,
    }
}

#[cfg(test)]
mod tests;
