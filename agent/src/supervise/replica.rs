//! One replica: where it is in its life, and how each fact moves it on.

use std::time::Duration;

use control::api::EngineSpec;

use super::{Applied, InFlight, Limits, PROBE_INTERVAL_WAITING, ProbeOutcome, Run, backoff};
use crate::engine::Facts;

/// One replica: the process it has, or why it has none.
#[derive(Clone, Debug)]
pub struct Replica {
    /// What its process runs, or what was last tried.
    pub spec: EngineSpec,
    /// Where it is in its life.
    pub phase: Phase,
    /// The last process; none before the first.
    pub run: Option<Run>,
    /// Starts of a process after the first.
    pub restarts: u32,
    /// Failures in a row.
    pub failures: u32,
    /// Whether this spec was ever ready.
    pub was_ready: bool,
    /// One line for a person.
    pub message: String,
    /// What the engine says of itself; none before it is ready.
    pub facts: Option<Facts>,
    /// What the engine is working on, where it says.
    pub in_flight: Option<InFlight>,
    /// When the last probe was sent, if its answer was that nothing is in flight.
    pub idle_since: Option<Duration>,
    /// Failed probes in a row.
    pub probe_failures: u32,
    /// A probe is under way.
    pub probing: bool,
    /// When the next probe is due.
    pub probe_at: Duration,
    /// When this process became ready.
    pub(super) ready_since: Option<Duration>,
    /// When the last probe was sent.
    pub(super) probe_begun: Duration,
}

/// Where a replica is in its life.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Has a process that does not answer yet.
    Starting {
        /// When it was spawned.
        since: Duration,
    },
    /// Has a process that answers.
    Ready {
        /// When it first did.
        since: Duration,
    },
    /// Has a process that finishes its requests.
    Draining {
        /// When that began.
        since: Duration,
    },
    /// Has a process that was sent a signal.
    Stopping {
        /// When.
        since: Duration,
        /// Why.
        cause: StopCause,
        /// The signal was SIGKILL.
        killed: bool,
    },
    /// Has no process; the next start is at `until`.
    Backoff {
        /// When to start.
        until: Duration,
    },
    /// Has no process and gets none until something is changed.
    Failed {
        /// When to look whether it was; none: only a new spec helps.
        recheck_at: Option<Duration>,
    },
    /// Its process was ended as decided.
    Gone,
}

/// Why a process is being ended.
#[derive(Clone, Debug, PartialEq)]
pub enum StopCause {
    /// Nobody wants it (in this form) any more.
    Unwanted,
    /// It did wrong; the line says what.
    Fault(String),
}

impl Replica {
    pub(super) fn new(spec: &EngineSpec, now: Duration) -> Self {
        Replica {
            spec: spec.clone(),
            phase: Phase::Gone,
            run: None,
            restarts: 0,
            failures: 0,
            was_ready: false,
            message: String::new(),
            facts: None,
            in_flight: None,
            idle_since: None,
            probe_failures: 0,
            probing: false,
            probe_at: now,
            ready_since: None,
            probe_begun: now,
        }
    }

    /// Whether a process of it may be alive. Then none may be started.
    pub fn has_process(&self) -> bool {
        match self.phase {
            Phase::Starting { .. }
            | Phase::Ready { .. }
            | Phase::Draining { .. }
            | Phase::Stopping { .. } => true,
            Phase::Backoff { .. } | Phase::Failed { .. } | Phase::Gone => false,
        }
    }

    pub(super) fn is_at(&self, epoch: u64) -> bool {
        self.has_process() && self.run.as_ref().is_some_and(|run| run.epoch == epoch)
    }

    pub(super) fn begin_start(&mut self, spec: &EngineSpec, now: Duration) {
        assert!(!self.has_process(), "a replica has at most one process");
        if *spec != self.spec {
            self.spec = spec.clone();
            self.failures = 0;
            self.was_ready = false;
        }
        self.phase = Phase::Starting { since: now };
        self.message = "starting".to_owned();
        self.probe_at = now;
        self.forget_process();
    }

    pub(super) fn probed(
        &mut self,
        outcome: ProbeOutcome,
        limits: &Limits,
        now: Duration,
    ) -> Applied {
        self.probing = false;
        self.probe_at = now + self.probe_interval(limits);
        let (facts, in_flight) = match outcome {
            ProbeOutcome::Up { facts, in_flight } => (facts, in_flight),
            ProbeOutcome::Down(why) => {
                self.down(why);
                return Applied::Nothing;
            }
        };
        self.probe_failures = 0;
        self.in_flight = in_flight;
        let idle = in_flight.is_some_and(|requests| requests.running + requests.waiting == 0);
        // The answer is true of some moment after the question was asked.
        self.idle_since = if idle { Some(self.probe_begun) } else { None };
        self.facts = facts.or(self.facts);
        match self.phase {
            Phase::Starting { since } => {
                self.phase = Phase::Ready { since: now };
                self.message.clear();
                self.was_ready = true;
                self.ready_since = Some(now);
                self.probe_at = now + limits.probe_interval;
                Applied::Ready { after: now.saturating_sub(since) }
            }
            Phase::Ready { .. } => {
                self.message.clear();
                Applied::Nothing
            }
            _ => Applied::Nothing,
        }
    }

    fn down(&mut self, why: String) {
        self.in_flight = None;
        self.idle_since = None;
        match self.phase {
            Phase::Starting { .. } => self.message = format!("starting: {why}"),
            Phase::Ready { .. } | Phase::Draining { .. } => {
                self.probe_failures = self.probe_failures.saturating_add(1);
                self.message = why;
            }
            _ => {}
        }
    }

    fn probe_interval(&self, limits: &Limits) -> Duration {
        match self.phase {
            Phase::Ready { .. } => limits.probe_interval,
            _ => PROBE_INTERVAL_WAITING.min(limits.probe_interval),
        }
    }

    pub(super) fn exited(
        &mut self,
        how: &str,
        log_line: &str,
        limits: &Limits,
        now: Duration,
        unit: f64,
    ) {
        match &self.phase {
            Phase::Stopping { cause: StopCause::Fault(fault), .. } => {
                let fault = fault.clone();
                self.fault(fault, log_line, limits, now, unit);
            }
            Phase::Draining { .. } | Phase::Stopping { cause: StopCause::Unwanted, .. } => {
                self.phase = Phase::Gone;
                self.message = "stopped".to_owned();
                self.forget_process();
            }
            _ => self.fault(how.to_owned(), log_line, limits, now, unit),
        }
    }

    /// The process is gone and should not be.
    pub(super) fn fault(
        &mut self,
        why: String,
        log_line: &str,
        limits: &Limits,
        now: Duration,
        unit: f64,
    ) {
        let ready_for = self.ready_since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        if ready_for >= limits.backoff_reset_after {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        let mut message = why;
        if !log_line.is_empty() {
            message = format!("{message}; last line: {log_line}");
        }
        if let Some(run) = &self.run {
            message = format!("{message}; log: {}", run.log_path.display());
        }
        if !self.was_ready && self.failures >= limits.start_attempts_max {
            self.message = format!(
                "given up after {} attempts: {message}; cure that, then take the recipe down and up",
                self.failures
            );
            self.phase = Phase::Failed { recheck_at: None };
        } else {
            let pause =
                backoff::pause(self.failures, limits.backoff_initial, limits.backoff_max, unit);
            self.message = message;
            self.phase = Phase::Backoff { until: now + pause };
        }
        self.forget_process();
    }

    fn forget_process(&mut self) {
        self.facts = None;
        self.in_flight = None;
        self.idle_since = None;
        self.probe_failures = 0;
        self.probing = false;
        self.ready_since = None;
    }
}
