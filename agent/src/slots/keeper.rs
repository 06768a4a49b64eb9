//! One engine's slots, for as long as its process lives: saves what came to rest, and restores what a
//! router wishes. One thing at a time, so that the engine, which stops for each, is never asked for two.
//!
//! It owns the memory of what was saved, the two lines to the daemon and the files on their way. An
//! engine or a daemon that is away costs a look now and then; the requests go on without.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::feed::Warm;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::choose::{Memory, pause_after};
use super::daemon::{self, Fetched, Line, Naming, StoreError, Wish};
use super::engine::{Engine, EngineError};
use super::layout;
use super::metrics::{Action, SlotMetrics};
use crate::kv_events::board::Board;

/// Between two looks at what the slots hold.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Between two looks while engine or daemon are away.
const AWAY_PAUSE: Duration = Duration::from_secs(2);
/// The engine says within this time what its slots hold. One that computes a long prompt takes a batch.
const SLOTS_TIMEOUT: Duration = Duration::from_secs(5);
/// It writes or reads a state within this time: a state of some GB over a slow disk.
const STATE_TIMEOUT: Duration = Duration::from_secs(60);
/// After a restore its prompt is on its way for at most so long, and the slot is given to no other one.
const PROMPT_ON_ITS_WAY: Duration = Duration::from_secs(2);
/// A file that is older belongs to nobody any more.
const FILE_AGE_MAX: Duration = Duration::from_secs(180);
/// Wishes that wait for one engine.
pub const WISHES_MAX: usize = 64;

/// What all keepers of a node have in common: keys of `[agent]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The daemon's native door: `kv_socket`.
    pub socket: PathBuf,
    /// Tokens in a block of the digests: `kv_block_tokens`.
    pub block_tokens: u32,
    /// A slot with fewer is not saved: `kv_save_tokens_min`.
    pub tokens_min: u32,
    /// A longer state is neither saved nor restored: `kv_state_mib_max`.
    pub bytes_max: u64,
}

/// An engine whose slots are kept.
#[derive(Clone, Debug)]
pub struct SlotSource {
    /// Of the node.
    pub settings: Arc<Settings>,
    /// Where the engine listens.
    pub port: u16,
    /// Its `--slot-save-path`, absolute.
    pub folder: PathBuf,
    /// Its model's file.
    pub model_file: PathBuf,
    /// As [`layout::of_arguments`] says.
    pub layout: String,
}

/// Who it is.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Worker id.
    pub worker: String,
    /// Of the process.
    pub epoch: u64,
    /// The name clients ask for.
    pub model: String,
}

/// A router's wish. Whoever drops it without an answer has answered that nothing was done.
#[derive(Debug)]
pub struct Asked {
    wish: Warm,
    deadline: Instant,
    board: Board,
    seat: u64,
    is_answered: bool,
}

impl Asked {
    /// The wish of the router at `seat`, which came at `now`.
    pub fn new(wish: Warm, board: &Board, seat: u64, now: Instant) -> Self {
        let deadline = now + Duration::from_millis(u64::from(wish.deadline_ms));
        Asked { wish, deadline, board: board.clone(), seat, is_answered: false }
    }

    fn left(&self) -> Result<Duration, Refusal> {
        let left = self.deadline.checked_duration_since(Instant::now());
        left.filter(|left| !left.is_zero()).ok_or(Refusal::Late)
    }

    fn answer(mut self, tokens: u32) {
        self.is_answered = true;
        self.board.warmed(self.seat, &self.wish.worker, self.wish.ticket, tokens);
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.is_answered {
            self.board.warmed(self.seat, &self.wish.worker, self.wish.ticket, 0);
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("no slot is idle")]
    NoSlot,
    #[error("too late")]
    Late,
}

impl Refusal {
    fn reason(&self) -> &'static str {
        match self {
            Refusal::Store(error) => error.reason(),
            Refusal::Engine(EngineError::Late(_)) | Refusal::Late => "late",
            Refusal::Engine(_) => "engine",
            Refusal::NoSlot => "no_slot",
        }
    }
}

/// A file of the slot folder, gone with this.
#[derive(Debug)]
struct SlotFile {
    path: PathBuf,
}

impl Drop for SlotFile {
    fn drop(&mut self) {
        // One that is not there is what is wanted.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Keeps the slots of one process. Ends only by being dropped.
pub async fn keep(subject: Subject, source: SlotSource, board: Board) {
    let (model_file, layout) = (source.model_file.clone(), source.layout.clone());
    let named = spawn_blocking(move || layout::namespace(&model_file, &layout)).await;
    let namespace = match named {
        Ok(Ok(namespace)) => namespace,
        Ok(Err(error)) => {
            tracing::warn!(worker = subject.worker, %error, "its slots are not kept: the model cannot be read");
            return;
        }
        Err(error) => return tracing::error!(%error, "its slots are not kept"),
    };
    let engine = Engine::new(source.port);
    while engine.slots(SLOTS_TIMEOUT).await.is_err() {
        sleep(AWAY_PAUSE / 4).await;
    }
    tracing::info!(worker = subject.worker, namespace, "its slots are kept in the KV daemon");
    let (wishes_in, mut wishes) = mpsc::channel(WISHES_MAX);
    let block_tokens = source.settings.block_tokens;
    board.open_warm(&subject.worker, subject.epoch, block_tokens, wishes_in);
    let mut keeper = Keeper::new(subject, source, engine, &namespace, board.slot_metrics().clone());
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            Some(asked) = wishes.recv() => keeper.warm(asked).await,
            _ = looks.tick() => keeper.look().await,
        }
    }
}

struct Keeper {
    subject: Subject,
    settings: Arc<Settings>,
    naming: Naming,
    engine: Engine,
    folder: PathBuf,
    to_store: Arc<Line>,
    to_fetch: Arc<Line>,
    metrics: SlotMetrics,
    memory: Memory,
    started: Instant,
    /// Nothing is saved before.
    save_from: Duration,
    /// The daemon is being given a state.
    storing: Option<JoinHandle<()>>,
    swept: Duration,
    files_made: u64,
    is_daemon_away: bool,
}

impl Keeper {
    fn new(
        subject: Subject,
        source: SlotSource,
        engine: Engine,
        namespace: &str,
        metrics: SlotMetrics,
    ) -> Self {
        let SlotSource { settings, folder, .. } = source;
        Keeper {
            naming: Naming { model: subject.model.clone(), block_tokens: settings.block_tokens },
            to_store: Arc::new(Line::to_store(&settings.socket, namespace)),
            to_fetch: Arc::new(Line::to_fetch(&settings.socket, namespace)),
            subject,
            settings,
            engine,
            folder,
            metrics,
            memory: Memory::default(),
            started: Instant::now(),
            save_from: Duration::ZERO,
            storing: None,
            swept: Duration::ZERO,
            files_made: 0,
            is_daemon_away: false,
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// A name that no file had before, of whatever process listens on this port.
    fn file(&mut self) -> (String, SlotFile) {
        self.files_made += 1;
        let name = format!("{}-{}.slot", self.subject.epoch, self.files_made);
        let path = self.folder.join(&name);
        (name, SlotFile { path })
    }

    /// Saves one slot, if one is to be saved now.
    async fn look(&mut self) {
        self.sweep();
        let is_storing = self.storing.as_ref().is_some_and(|storing| !storing.is_finished());
        if is_storing || self.now() < self.save_from {
            return;
        }
        let Ok(slots) = self.engine.slots(SLOTS_TIMEOUT).await else { return };
        self.memory.keep_only(&slots);
        let Some((id, content)) = self.memory.to_save(&slots, self.settings.tokens_min) else {
            return;
        };
        // An engine does not stop for a daemon that is not there.
        if !self.is_daemon_there().await {
            self.save_from = self.now() + AWAY_PAUSE;
            return;
        }
        // Whatever comes of it: it is not tried again until the slot has worked again.
        self.memory.know(id, content);
        let begun = Instant::now();
        let (name, file) = self.file();
        let saved = self.engine.save(id, &name, STATE_TIMEOUT).await;
        self.save_from = self.now() + pause_after(begun.elapsed());
        match saved {
            Ok(()) => self.store(file, begun),
            Err(error) => self.refuse(Action::Save, &error.into()),
        }
    }

    async fn is_daemon_there(&mut self) -> bool {
        let line = Arc::clone(&self.to_store);
        let greeted = spawn_blocking(move || line.greet()).await;
        let error = match greeted {
            Ok(Ok(())) => {
                self.is_daemon_away = false;
                return true;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        if !std::mem::replace(&mut self.is_daemon_away, true) {
            let worker = &self.subject.worker;
            tracing::warn!(worker, error, "slots are not saved: the KV daemon is away");
        }
        false
    }

    /// Has the daemon take a file, on a thread of its own. Wishes of routers do not wait for it.
    fn store(&mut self, file: SlotFile, begun: Instant) {
        let (line, naming) = (Arc::clone(&self.to_store), self.naming.clone());
        let (metrics, worker) = (self.metrics.clone(), self.subject.worker.clone());
        let bytes_max = self.settings.bytes_max;
        self.storing = Some(spawn_blocking(move || {
            match daemon::store(&line, &naming, &file.path, bytes_max) {
                Ok(stored) => {
                    let took = begun.elapsed();
                    metrics.done(&worker, Action::Save, stored.tokens, stored.bytes, took);
                    tracing::debug!(worker, ?stored, "saved a slot");
                }
                Err(error) => {
                    metrics.refused(&worker, Action::Save, error.reason());
                    tracing::debug!(worker, %error, "a slot was not saved");
                }
            }
        }));
    }

    /// Gives the engine what the prompt has in common with a state of the daemon, and answers.
    async fn warm(&mut self, asked: Asked) {
        let begun = Instant::now();
        match self.restore(&asked).await {
            Ok(Fetched { matched_tokens, bytes }) => {
                let worker = &self.subject.worker;
                self.metrics.done(worker, Action::Restore, matched_tokens, bytes, begun.elapsed());
                asked.answer(matched_tokens);
            }
            Err(refusal) => {
                self.refuse(Action::Restore, &refusal);
                asked.answer(0);
            }
        }
    }

    async fn restore(&mut self, asked: &Asked) -> Result<Fetched, Refusal> {
        let slots = self.engine.slots(asked.left()?).await?;
        let slot = self.memory.to_fill(&slots, self.now()).ok_or(Refusal::NoSlot)?;
        let (name, file) = self.file();
        let (fetched, file) = self.fetch(asked, slot.context_tokens, file).await?;
        // A request may have come meanwhile, and its slot is the last one to take.
        let slots = self.engine.slots(asked.left()?).await?;
        let slot = *self.memory.to_fill(&slots, self.now()).ok_or(Refusal::NoSlot)?;
        let left = asked.left()?;
        let engine = self.engine.clone();
        // An engine that is asked does it some time; the file stays until then.
        let restoring = tokio::spawn(async move {
            let restored = engine.restore(slot.id, &name, STATE_TIMEOUT).await;
            drop(file);
            restored
        });
        let restored = match timeout(left, restoring).await {
            Ok(Ok(restored)) => restored?,
            Ok(Err(_)) => return Err(EngineError::Gone.into()),
            Err(_) => return Err(Refusal::Late),
        };
        let until = self.now() + PROMPT_ON_ITS_WAY;
        self.memory.fill(&slot, restored, until);
        Ok(fetched)
    }

    async fn fetch(
        &self,
        asked: &Asked,
        context_tokens: u32,
        file: SlotFile,
    ) -> Result<(Fetched, SlotFile), Refusal> {
        let wish = Wish {
            names: asked.wish.digests.clone(),
            blocks_min: asked.wish.blocks_min.max(1) as usize,
            deadline: asked.deadline,
            context_tokens,
            bytes_max: self.settings.bytes_max,
        };
        let (line, naming) = (Arc::clone(&self.to_fetch), self.naming.clone());
        let fetching = spawn_blocking(move || {
            daemon::fetch(&line, &naming, &wish, &file.path).map(|fetched| (fetched, file))
        });
        match timeout(asked.left()?, fetching).await {
            Ok(Ok(fetched)) => Ok(fetched?),
            Ok(Err(_)) => Err(StoreError::Busy.into()),
            Err(_) => Err(Refusal::Late),
        }
    }

    fn refuse(&self, action: Action, refusal: &Refusal) {
        let (worker, reason) = (&self.subject.worker, refusal.reason());
        self.metrics.refused(worker, action, reason);
        tracing::debug!(worker, ?action, reason, %refusal, "a slot was left as it is");
    }

    /// Removes files that an engine wrote after nobody waited for them any more.
    fn sweep(&mut self) {
        if self.now() < self.swept + FILE_AGE_MAX {
            return;
        }
        self.swept = self.now();
        remove_older(&self.folder, FILE_AGE_MAX);
    }
}

fn remove_older(folder: &Path, age: Duration) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let is_old = modified.is_ok_and(|at| at.elapsed().is_ok_and(|elapsed| elapsed > age));
        if is_old {
            drop(SlotFile { path: entry.path() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_files_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("1-1.slot"), folder.path().join("1-2.slot"));
        std::fs::write(&old, "x").unwrap();
        std::fs::write(&new, "x").unwrap();
        let file = std::fs::File::options().write(true).open(&old).unwrap();
        file.set_modified(std::time::SystemTime::now() - FILE_AGE_MAX * 2).unwrap();
        remove_older(folder.path(), FILE_AGE_MAX);
        assert!(!old.exists() && new.exists());
    }
}
