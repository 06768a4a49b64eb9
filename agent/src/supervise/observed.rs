//! The agent's only record of its engines.
//!
//! It changes by two doors: [`Observed::begin`] (an action is being carried out) and
//! [`Observed::apply`] (something happened). Facts about an older process (by epoch) are ignored.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{
    Action, Applied, Event, Limits, Phase, RECHECK_INTERVAL, Replica, ReplicaId, StopCause,
};

/// All replicas that exist or are being ended.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// By name.
    pub replicas: BTreeMap<ReplicaId, Replica>,
}

impl Observed {
    /// Marks `action` as under way, so that it is not decided twice.
    pub fn begin(&mut self, action: &Action, now: Duration) {
        match action {
            Action::Start { id, spec } => {
                let replica =
                    self.replicas.entry(id.clone()).or_insert_with(|| Replica::new(spec, now));
                replica.begin_start(spec, now);
            }
            Action::Forget { id } => {
                self.replicas.remove(id);
            }
            Action::Probe { id } => self.change(id, |replica| {
                replica.probing = true;
                replica.probe_begun = now;
            }),
            Action::Drain { id } => self.change(id, |replica| {
                replica.phase = Phase::Draining { since: now };
                replica.message = "finishing its requests".to_owned();
                replica.idle_since = None;
                replica.probe_at = now;
            }),
            Action::Resume { id } => self.change(id, |replica| {
                replica.phase = Phase::Ready { since: now };
                replica.message.clear();
            }),
            Action::Terminate { id } => self.change(id, |replica| {
                let cause = StopCause::Unwanted;
                replica.phase = Phase::Stopping { since: now, cause, killed: false };
                replica.message = "stopping".to_owned();
            }),
            Action::Kill { id, fault } => self.change(id, |replica| {
                let cause = match (fault, &replica.phase) {
                    (Some(fault), _) => StopCause::Fault(fault.clone()),
                    (None, Phase::Stopping { cause, .. }) => cause.clone(),
                    (None, _) => StopCause::Unwanted,
                };
                replica.message = fault.clone().unwrap_or_else(|| "stopping".to_owned());
                replica.phase = Phase::Stopping { since: now, cause, killed: true };
            }),
        }
    }

    /// Takes in what happened. `unit` is a random number in `0.0..1.0`.
    pub fn apply(
        &mut self,
        id: &ReplicaId,
        event: Event,
        limits: &Limits,
        now: Duration,
        unit: f64,
    ) -> Applied {
        let Some(replica) = self.replicas.get_mut(id) else {
            return Applied::Nothing;
        };
        match event {
            Event::Spawned(run) => {
                if replica.run.is_some() {
                    replica.restarts = replica.restarts.saturating_add(1);
                }
                replica.run = Some(run);
            }
            Event::Refused(message) => {
                replica.message = message;
                replica.phase = Phase::Failed { recheck_at: Some(now + RECHECK_INTERVAL) };
            }
            Event::SpawnFailed(message) => replica.fault(message, "", limits, now, unit),
            Event::Probed { epoch, outcome } if replica.is_at(epoch) => {
                return replica.probed(outcome, limits, now);
            }
            Event::Exited { epoch, how, log_line } if replica.is_at(epoch) => {
                replica.exited(&how, &log_line, limits, now, unit);
            }
            Event::Probed { .. } | Event::Exited { .. } => {}
        }
        Applied::Nothing
    }

    fn change(&mut self, id: &ReplicaId, change: impl FnOnce(&mut Replica)) {
        if let Some(replica) = self.replicas.get_mut(id) {
            change(replica);
        }
    }
}
