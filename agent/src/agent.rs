//! The agent itself: owns every process, record and port; one event at a time.
//!
//! ```text
//!  signals ┐
//!  control ┤→ take ─→ Observed, Desired ─→ supervise ─→ act (spawn, probe, signal) ─→ report
//!  probes  ┤                                              │
//!  SIGCHLD ┘◄─────────────────────────────────────────────┘
//! ```
//!
//! It runs on one thread, the main one ([`crate::process`] says why). Deciding is
//! [`crate::supervise`]; nothing here chooses.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use control::api::{AgentReport, DesiredState};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::attach::{self, FromControl};
use crate::config::Config;
use crate::kv_events::board::Board;
use crate::kv_events::follow_engines::Following;
use crate::kv_events::serve::{Address, Bound};
use crate::log::Tail;
use crate::metrics::Metrics;
use crate::node;
use crate::orphans;
use crate::port::Ports;
use crate::probe::Prober;
use crate::process::Process;
use crate::random::Jitter;
use crate::report::{self, Node};
use crate::slots::keeper::Settings;
use crate::state::StateDir;
use crate::supervise::{Applied, Desired, Ending, Event, Limits, Observed, ReplicaId, supervise};

mod carry_out;
mod start_error;

pub use start_error::StartError;

/// Facts under way to the one who owns the records.
const EVENTS_QUEUED_MAX: usize = 256;
/// Messages of control under way.
const FROM_CONTROL_QUEUED_MAX: usize = 4;
/// Rounds of deciding before events are looked at again.
const ROUNDS_MAX: usize = 8;

/// Runs until told to stop by SIGTERM or SIGINT; then no process of it is left.
///
/// Must be awaited on the main thread by a current-thread runtime.
///
/// # Errors
/// Any [`StartError`]; then nothing was started.
pub async fn run(config: Config, config_path: PathBuf) -> Result<(), StartError> {
    let listener = listen(config.agent.metrics_listen).await?;
    let state = StateDir::open(&config.agent.state_dir)?;
    let left = orphans::sweep(state.path());
    if left > 0 {
        tracing::info!(processes = left, "killed what engines of an earlier agent left behind");
    }
    make_log_dir(&config.agent.log_dir)?;
    let metrics = Metrics::new()?;
    let (following, kv_feed) = follow_engines(&config.agent.events_listen, &metrics)?;
    let (mut stop, mut children) = signals().map_err(StartError::Signals)?;
    let (events_in, mut events) = mpsc::channel(EVENTS_QUEUED_MAX);
    let (control_in, mut from_control) = mpsc::channel(FROM_CONTROL_QUEUED_MAX);
    let (mut agent, reports) =
        Agent::new(config, config_path, state, metrics.clone(), events_in, following, kv_feed);

    tokio::spawn(async move {
        if let Err(error) = metrics.serve(listener).await {
            tracing::error!(%error, "the metrics listener broke");
        }
    });
    // With nobody to dial, the sender is kept so that the channel stays silent, not closed.
    let _alone = if agent.config.agent.control.is_empty() {
        Some(control_in)
    } else {
        let endpoint = attach::endpoint(&agent.config.agent.control)?;
        tokio::spawn(attach::keep_attached(endpoint, reports, control_in, Jitter::from_entropy()));
        None
    };
    tracing::info!(
        node = agent.node.id,
        control = agent.config.agent.control,
        metrics = %agent.config.agent.metrics_listen,
        "watching over engines"
    );
    agent.recall();
    loop {
        let wake = agent.act();
        agent.publish();
        if agent.is_done() {
            tracing::info!("all engines have ended");
            return Ok(());
        }
        let wake = agent.started + wake;
        tokio::select! {
            () = stop.recv() => agent.end(),
            _ = children.recv() => agent.reap(),
            Some((id, event)) = events.recv() => agent.take(&id, event),
            Some(message) = from_control.recv() => agent.hear(message),
            () = tokio::time::sleep_until(wake.into()) => {}
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}

/// Opens the feed, if there is to be one; gives where routers dial it.
fn follow_engines(
    events_listen: &str,
    metrics: &Metrics,
) -> Result<(Following, Option<String>), StartError> {
    let refuse = |source| StartError::Events { address: events_listen.to_owned(), source };
    let invalid = |why| refuse(io::Error::new(io::ErrorKind::InvalidInput, why));
    let address = Address::parse(events_listen).map_err(invalid)?;
    let bound = address.map(|address| address.bind()).transpose().map_err(refuse)?;
    let dialled = bound.as_ref().map(Bound::dialled).transpose().map_err(refuse)?;
    let following = Following::start(bound, Board::new(metrics.kv.clone(), metrics.slots.clone()))
        .map_err(refuse)?;
    Ok((following, dialled))
}

fn make_log_dir(path: &Path) -> Result<(), StartError> {
    std::fs::create_dir_all(path)
        .and_then(|()| try_writing(path))
        .map_err(|source| StartError::LogDir { path: path.to_owned(), source })
}

/// A folder that exists may still refuse files.
fn try_writing(path: &Path) -> io::Result<()> {
    let probe = path.join(".writable");
    std::fs::write(&probe, [])?;
    std::fs::remove_file(probe)
}

/// Either way of being told to stop.
struct Stop {
    term: SignalStream,
    int: SignalStream,
}

impl Stop {
    async fn recv(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

fn signals() -> io::Result<(Stop, SignalStream)> {
    let term = signal(SignalKind::terminate())?;
    let int = signal(SignalKind::interrupt())?;
    Ok((Stop { term, int }, signal(SignalKind::child())?))
}

/// A process and the task that reads its output.
struct Watched {
    process: Process,
    epoch: u64,
    log: JoinHandle<Tail>,
}

struct Agent {
    config: Config,
    config_path: PathBuf,
    limits: Limits,
    node: Node,
    started: Instant,
    jitter: Jitter,
    state: StateDir,
    desired: Desired,
    desired_version: u64,
    observed: Observed,
    processes: BTreeMap<ReplicaId, Watched>,
    ports: Ports,
    prober: Prober,
    metrics: Metrics,
    reports: watch::Sender<AgentReport>,
    events: mpsc::Sender<(ReplicaId, Event)>,
    following: Following,
    slots: Option<Arc<Settings>>,
}

impl Agent {
    fn new(
        config: Config,
        config_path: PathBuf,
        state: StateDir,
        metrics: Metrics,
        events: mpsc::Sender<(ReplicaId, Event)>,
        following: Following,
        kv_feed: Option<String>,
    ) -> (Self, watch::Receiver<AgentReport>) {
        let node = Node {
            id: config.agent.node_id.clone(),
            cpu_cores: node::cpu_cores(),
            memory_bytes: node::memory_bytes(),
            kv_feed,
        };
        let observed = Observed::default();
        let (reports, receiver) =
            watch::channel(report::report(&node, 0, &observed, Duration::ZERO));
        let agent = Agent {
            limits: config.agent.limits(),
            node,
            started: Instant::now(),
            jitter: Jitter::from_entropy(),
            state,
            desired: Desired::default(),
            desired_version: 0,
            observed,
            processes: BTreeMap::new(),
            ports: Ports::new(config.agent.engine_port_min..=config.agent.engine_port_max),
            prober: Prober::new(Duration::from_millis(config.agent.probe_timeout_ms)),
            metrics,
            reports,
            events,
            following,
            slots: config.agent.slots().map(Arc::new),
            config,
            config_path,
        };
        (agent, receiver)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Decides and acts until nothing is due. Says when something may be.
    fn act(&mut self) -> Duration {
        for _ in 0..ROUNDS_MAX {
            let now = self.now();
            let plan = supervise(&self.desired, &self.observed, &self.limits, now);
            if plan.actions.is_empty() {
                return plan.wake_at.unwrap_or(now + attach::REPORT_INTERVAL);
            }
            for action in plan.actions {
                self.observed.begin(&action, now);
                self.carry_out(action);
            }
        }
        self.now()
    }

    /// Something happened to an engine.
    fn take(&mut self, id: &ReplicaId, event: Event) {
        let before = self.observed.replicas.get(id).map(report::state);
        let unit = self.jitter.unit();
        let now = self.now();
        if let Applied::Ready { after } = self.observed.apply(id, event, &self.limits, now, unit) {
            self.metrics.start_seconds.observe(after.as_secs_f64());
        }
        let Some(replica) = self.observed.replicas.get(id) else { return };
        let state = report::state(replica);
        if before != Some(state) {
            let worker = self.worker(id);
            tracing::info!(worker, state = state.as_str_name(), message = replica.message);
        }
    }

    /// Something came from control.
    fn hear(&mut self, message: FromControl) {
        match message {
            FromControl::Connected => {
                tracing::info!("attached to control");
                self.metrics.control_connected.set(1);
            }
            FromControl::Disconnected(why) => {
                if self.metrics.control_connected.get() == 1 {
                    tracing::warn!(why, "control is away; engines stay as last desired");
                } else {
                    tracing::debug!(why, "control cannot be reached");
                }
                self.metrics.control_connected.set(0);
            }
            FromControl::Desired(desired) => {
                if let Err(error) = self.state.save_desired(&desired) {
                    tracing::warn!(%error, "cannot keep the desired state over a restart");
                }
                self.adopt(desired);
            }
        }
    }

    /// Starts from what control last said, until it says more.
    fn recall(&mut self) {
        if let Some(desired) = self.state.desired() {
            tracing::info!(
                engines = desired.engines.len(),
                "starting from the saved desired state"
            );
            self.adopt(desired);
        }
    }

    /// Replaces what is desired, whole.
    fn adopt(&mut self, desired: DesiredState) {
        self.desired_version = desired.version;
        self.desired.engines = desired
            .engines
            .into_iter()
            .filter_map(|engine| {
                let id = ReplicaId { deployment: engine.deployment, replica: engine.replica };
                Some((id, engine.spec?))
            })
            .collect();
    }

    /// Told to stop; told again, to hurry.
    fn end(&mut self) {
        let timeout = Duration::from_secs(self.config.agent.shutdown_timeout_s);
        self.desired.ending = match self.desired.ending {
            None => {
                tracing::info!(timeout_s = timeout.as_secs(), "stopping: engines drain");
                Some(Ending::Draining { until: self.now() + timeout })
            }
            Some(_) => {
                tracing::info!("told again: engines are killed");
                Some(Ending::Hurried)
            }
        };
    }

    fn is_done(&self) -> bool {
        self.desired.ending.is_some() && self.observed.replicas.is_empty()
    }

    fn publish(&self) {
        let new = report::report(&self.node, self.desired_version, &self.observed, self.now());
        self.reports.send_if_modified(|old| {
            self.metrics.show(old, &new);
            let news = report::is_news(old, &new);
            *old = new;
            news
        });
    }

    fn worker(&self, id: &ReplicaId) -> String {
        id.worker_id(&self.node.id)
    }

    fn say(&self, id: &ReplicaId, what: &str) {
        tracing::info!(worker = self.worker(id), what);
    }
}
