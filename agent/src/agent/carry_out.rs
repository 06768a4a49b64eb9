//! Carries out what was decided: spawns, probes, signals, reaps. Each deed ends in an [`Event`].

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use control::api::EngineSpec;
use nix::sys::signal::Signal;

use super::{Agent, Watched};
use crate::engine::{EventSource, Place};
use crate::kv_events::follow_engines::Source;
use crate::log::{LogFile, capture};
use crate::process::{self, Invocation};
use crate::slots::keeper::SlotSource;
use crate::supervise::{Action, Event, ReplicaId, Run};
use crate::{engine, orphans, preflight};

/// How long the last lines of an ended engine are waited for.
const LOG_END_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest name of a deployment.
const DEPLOYMENT_BYTES_MAX: usize = 200;

impl Agent {
    pub(super) fn carry_out(&mut self, action: Action) {
        match action {
            Action::Start { id, spec } => {
                let event = self.start(&id, &spec);
                self.take(&id, event);
            }
            Action::Probe { id } => self.probe(id),
            Action::Drain { id } => self.say(&id, "draining"),
            Action::Resume { id } => self.say(&id, "wanted again"),
            Action::Terminate { id } => self.signal(&id, Signal::SIGTERM),
            Action::Kill { id, fault } => {
                if let Some(fault) = fault {
                    tracing::warn!(worker = self.worker(&id), fault, "killing the engine");
                }
                self.signal(&id, Signal::SIGKILL);
            }
            Action::Forget { id } => {
                self.ports.release(&id);
                self.say(&id, "gone");
            }
        }
    }

    fn start(&mut self, id: &ReplicaId, spec: &EngineSpec) -> Event {
        if !is_deployment_name(&id.deployment) {
            return Event::Refused(format!(
                "deployment `{}` is not a name: use 1 to {DEPLOYMENT_BYTES_MAX} of A-Z a-z 0-9 . _ / -",
                id.deployment.escape_default()
            ));
        }
        let cleared = match preflight::check(spec, &self.config, &self.config_path) {
            Ok(cleared) => cleared,
            Err(error) => return Event::Refused(error.to_string()),
        };
        let Some(port) = self.ports.take(id) else {
            let (min, max) = (self.config.agent.engine_port_min, self.config.agent.engine_port_max);
            return Event::Refused(format!(
                "no free port in {min}..={max}: stop what listens there, or widen [agent] engine_port_min and engine_port_max"
            ));
        };
        let socket_dir = match self.socket_dir() {
            Ok(socket_dir) => socket_dir,
            Err(error) => return Event::SpawnFailed(error.to_string()),
        };
        let slot_dir = match self.slot_dir(&socket_dir, port) {
            Ok(slot_dir) => slot_dir,
            Err(error) => return Event::SpawnFailed(format!("the folder for slots: {error}")),
        };
        let place = Place { port, socket_dir: &socket_dir, slot_dir: slot_dir.as_deref() };
        let mut rendering = match engine::render(spec, cleared.model.as_ref(), &place) {
            Ok(rendering) => rendering,
            Err(error) => return Event::Refused(error.to_string()),
        };
        let mark = self.state.path().display().to_string();
        rendering.env.push((orphans::MARK.to_owned(), mark));
        let invocation = Invocation {
            program: &cleared.program,
            args: &rendering.args,
            env: &rendering.env,
            env_prefix_removed: rendering.env_prefix_removed,
        };
        let log_path = self.log_path(id);
        let events = rendering.events;
        let model_file = cleared.model.map(|model| model.path);
        let slots = self.slots(port, rendering.slot_layout, slot_dir, model_file);
        match self.spawn(&invocation, &log_path) {
            Ok(watched) => {
                let (epoch, pid) = (watched.epoch, watched.process.pid());
                tracing::info!(worker = self.worker(id), pid, port, epoch, "started");
                self.processes.insert(id.clone(), watched);
                let kv_block_tokens = self.follow(id, epoch, spec, events, slots, &rendering.args);
                Event::Spawned(Run {
                    epoch,
                    pid,
                    port,
                    expected: rendering.expected,
                    log_path,
                    kv_block_tokens,
                })
            }
            Err(error) => {
                Event::SpawnFailed(format!("cannot start {}: {error}", cleared.program.display()))
            }
        }
    }

    /// Has the engine's KV events followed and its slots kept, if it has any, and routers speak of it, for as
    /// long as this process lives. Gives where the size of its blocks will be.
    fn follow(
        &self,
        id: &ReplicaId,
        epoch: u64,
        spec: &EngineSpec,
        events: Option<EventSource>,
        slots: Option<SlotSource>,
        args: &[String],
    ) -> Option<Arc<AtomicU32>> {
        let has_events = events.is_some();
        let block_tokens = Arc::<AtomicU32>::default();
        let source = Source {
            epoch,
            model: spec.model.clone(),
            ranks: engine::data_parallel_ranks(args),
            events,
            slots,
            block_tokens: Arc::clone(&block_tokens),
        };
        self.following.begin(&self.worker(id), source);
        has_events.then_some(block_tokens)
    }

    fn spawn(&mut self, invocation: &Invocation<'_>, log_path: &Path) -> io::Result<Watched> {
        let agent = &self.config.agent;
        let mut log = LogFile::open(log_path, agent.log_bytes_max, agent.log_files_max)?;
        let epoch = self.state.next_epoch();
        let command = format!("{} {}", invocation.program.display(), invocation.args.join(" "));
        log.append(format!("=== cgn-agent: epoch {epoch}: {command}\n").as_bytes());
        let (process, output) = process::spawn(invocation)?;
        Ok(Watched { process, epoch, log: tokio::spawn(capture(output, log)) })
    }

    fn probe(&self, id: ReplicaId) {
        let Some(replica) = self.observed.replicas.get(&id) else { return };
        let Some(run) = replica.run.clone() else { return };
        let (prober, events) = (self.prober.clone(), self.events.clone());
        let facts_known = replica.facts.is_some();
        tokio::spawn(async move {
            let outcome = prober.probe(run.port, &run.expected, facts_known).await;
            // Nobody listens any more only when the agent has ended.
            let _ = events.send((id, Event::Probed { epoch: run.epoch, outcome })).await;
        });
    }

    fn signal(&self, id: &ReplicaId, signal: Signal) {
        if let Some(watched) = self.processes.get(id) {
            watched.process.signal(signal);
        }
    }

    /// Reaps what has ended. The record changes when the last of its log has been read.
    pub(super) fn reap(&mut self) {
        let ended: Vec<_> = self
            .processes
            .iter_mut()
            .filter_map(|(id, watched)| Some((id.clone(), watched.process.try_reap()?)))
            .collect();
        for (id, status) in ended {
            let Some(watched) = self.processes.remove(&id) else { continue };
            self.following.end(&self.worker(&id), watched.epoch);
            let events = self.events.clone();
            tokio::spawn(async move {
                // Should something that left the group hold the pipe open, it loses its log.
                let capture = watched.log.abort_handle();
                let tail = tokio::time::timeout(LOG_END_TIMEOUT, watched.log).await;
                capture.abort();
                let log_line = tail.ok().and_then(Result::ok).unwrap_or_default().error_line();
                let (epoch, how) = (watched.epoch, process::describe(status));
                let _ = events.send((id, Event::Exited { epoch, how, log_line })).await;
            });
        }
    }

    /// Holds the engines' Unix sockets: `state_dir/run`, for the agent's own user alone. What is
    /// published there are the tokens of prompts.
    fn socket_dir(&self) -> io::Result<PathBuf> {
        let folder = self.state.path().join("run");
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(folder)
    }

    /// Where the engine of that port writes states of its slots, empty; none where they are not kept. In RAM
    /// only where `state_dir` is; a file lives for some ms, so hardly one reaches a disk.
    fn slot_dir(&self, socket_dir: &Path, port: u16) -> io::Result<Option<PathBuf>> {
        if self.slots.is_none() {
            return Ok(None);
        }
        let folder = std::path::absolute(socket_dir.join("slots").join(port.to_string()))?;
        // What an earlier engine or agent left is of nobody's use.
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => DirBuilder::new().recursive(true).mode(0o700).create(&folder)?,
        }
        Ok(Some(folder))
    }

    /// How the slots of an engine are kept, of one whose can be.
    fn slots(
        &self,
        port: u16,
        layout: Option<String>,
        folder: Option<PathBuf>,
        model_file: Option<PathBuf>,
    ) -> Option<SlotSource> {
        let settings = Arc::clone(self.slots.as_ref()?);
        Some(SlotSource {
            settings,
            port,
            folder: folder?,
            model_file: model_file?,
            layout: layout?,
        })
    }

    /// One file for each worker; `+` is in no deployment's name.
    fn log_path(&self, id: &ReplicaId) -> PathBuf {
        let name = format!("{}+{}.log", id.deployment.replace('/', "+"), id.replica);
        self.config.agent.log_dir.join(name)
    }
}

fn is_deployment_name(name: &str) -> bool {
    (1..=DEPLOYMENT_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte))
}
