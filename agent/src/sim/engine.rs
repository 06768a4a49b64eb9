//! The one task that owns the scheduler.
//!
//! HTTP speaks to it through a bounded channel and hears from it through one bounded channel per
//! request, sized so that a whole answer fits: a client that reads slowly never holds the engine
//! up. A client that went away is noticed before each step, and its blocks are freed.
//!
//! It keeps the time: the scheduler is told what the clock says and slept for in between. A wake-up
//! that comes late is caught up step by step, each begun when the one before ended, so the speed of
//! the model does not depend on the timer.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::kv_events::KvEvent;
use super::narration::Progress;
use super::scheduler::{NotTaken, Outcome, Scheduler, Stats, Submission, Ticket, Turn};

/// Commands that wait for the engine; a sender waits when it is full.
const COMMANDS_MAX: usize = 1024;
/// Commands taken between two steps, so that neither starves the other.
const COMMANDS_PER_STEP_MAX: usize = 256;

/// Where a request hears of its sequences: (index of the choice, what happened).
pub type Reports = mpsc::Sender<(usize, Progress)>;

/// What the engine can be asked. Each answer goes to its own channel.
#[derive(Debug)]
enum Command {
    Submit {
        submissions: Vec<Submission>,
        reports: Reports,
        taken: oneshot::Sender<Result<(), NotTaken>>,
    },
    Look(oneshot::Sender<Look>),
    ClearCache(oneshot::Sender<bool>),
}

/// A look at the engine.
#[derive(Clone, Debug)]
pub struct Look {
    /// Its numbers.
    pub stats: Stats,
    /// The sequences that run.
    pub running: Vec<Ticket>,
}

/// The engine has ended; there will be no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine has ended")]
pub struct Ended;

/// How others speak to the engine.
#[derive(Clone, Debug)]
pub struct EngineDoor {
    commands: mpsc::Sender<Command>,
}

impl EngineDoor {
    /// Hands sequences in. What happens to them comes out of the receiver; dropping it cancels
    /// them.
    ///
    /// # Errors
    /// [`Ended`]; inside, [`NotTaken`] when the scheduler refused.
    pub async fn submit(
        &self,
        submissions: Vec<Submission>,
    ) -> Result<Result<mpsc::Receiver<(usize, Progress)>, NotTaken>, Ended> {
        let reports_max = submissions.iter().map(|one| one.script.len() + 1).sum();
        let (reports, receiver) = mpsc::channel(reports_max);
        let (taken, answer) = oneshot::channel();
        self.send(Command::Submit { submissions, reports, taken }).await?;
        Ok(answer.await.map_err(|_| Ended)?.map(|()| receiver))
    }

    /// The engine's numbers.
    ///
    /// # Errors
    /// [`Ended`]
    pub async fn look(&self) -> Result<Look, Ended> {
        let (sender, answer) = oneshot::channel();
        self.send(Command::Look(sender)).await?;
        answer.await.map_err(|_| Ended)
    }

    /// Forgets all cached blocks; false when some are in use.
    ///
    /// # Errors
    /// [`Ended`]
    pub async fn clear_cache(&self) -> Result<bool, Ended> {
        let (sender, answer) = oneshot::channel();
        self.send(Command::ClearCache(sender)).await?;
        answer.await.map_err(|_| Ended)
    }

    async fn send(&self, command: Command) -> Result<(), Ended> {
        self.commands.send(command).await.map_err(|_| Ended)
    }
}

/// Starts the engine on the current runtime. `events`, where given, gets each step's KV events;
/// when it is full the engine waits, as vLLM's does.
pub fn start(scheduler: Scheduler, events: Option<mpsc::Sender<Vec<KvEvent>>>) -> EngineDoor {
    let (sender, commands) = mpsc::channel(COMMANDS_MAX);
    let engine = Engine { scheduler, events, listeners: HashMap::new(), started: Instant::now() };
    tokio::spawn(engine.run(commands));
    EngineDoor { commands: sender }
}

struct Engine {
    scheduler: Scheduler,
    events: Option<mpsc::Sender<Vec<KvEvent>>>,
    /// Who hears of which sequence. Bounded as sequences are.
    listeners: HashMap<Ticket, (usize, Reports)>,
    started: Instant,
}

impl Engine {
    /// Until the last door is gone.
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            for _ in 0..COMMANDS_PER_STEP_MAX {
                match commands.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => break,
                }
            }
            self.cancel_the_gone();
            let turn = self.scheduler.step(self.now_us());
            self.deliver(turn).await;
            let next = match self.scheduler.next_wake_us() {
                Some(wake_us) if wake_us <= self.now_us() => {
                    // Let the connections write what they got before the next step.
                    tokio::task::yield_now().await;
                    continue;
                }
                Some(wake_us) => {
                    let wake = self.started + Duration::from_micros(wake_us);
                    tokio::select! {
                        command = commands.recv() => command,
                        () = tokio::time::sleep_until(wake) => continue,
                    }
                }
                None => commands.recv().await,
            };
            match next {
                Some(command) => self.obey(command),
                None => return,
            }
        }
    }

    fn obey(&mut self, command: Command) {
        // Each `send` fails only when the asker is gone, and then nobody misses the answer.
        match command {
            Command::Submit { submissions, reports, taken } => {
                let count = submissions.len();
                let answer = self.scheduler.submit(submissions, self.now_us()).map(|first| {
                    for choice in 0..count {
                        self.listeners.insert(first + choice as u64, (choice, reports.clone()));
                    }
                });
                let _ = taken.send(answer);
            }
            Command::Look(asker) => {
                let running = self.scheduler.running_tickets().collect();
                let _ = asker.send(Look { stats: self.scheduler.stats(), running });
            }
            Command::ClearCache(asker) => {
                let _ = asker.send(self.scheduler.clear_cache());
            }
        }
    }

    fn cancel_the_gone(&mut self) {
        let scheduler = &mut self.scheduler;
        // In the order of tickets, so that the cache's order does not depend on the map's.
        let mut gone: Vec<_> = self
            .listeners
            .iter()
            .filter(|(_, (_, reports))| reports.is_closed())
            .map(|(&ticket, _)| ticket)
            .collect();
        gone.sort_unstable();
        for ticket in gone {
            self.listeners.remove(&ticket);
            scheduler.cancel(ticket);
        }
    }

    async fn deliver(&mut self, turn: Turn) {
        for outcome in turn.outcomes {
            let (ticket, progress) = match outcome {
                Outcome::Token { ticket, index } => (ticket, Progress::Token(index)),
                Outcome::Finished { ticket, report } => (ticket, Progress::Finished(report)),
            };
            let Some((choice, reports)) = self.listeners.get(&ticket) else {
                continue;
            };
            // The channel holds a whole answer, so only a gone client makes this fail.
            let _ = reports.try_send((*choice, progress));
            if matches!(progress, Progress::Finished(_)) {
                self.listeners.remove(&ticket);
            }
        }
        if let Some(events) = &self.events
            && !turn.events.is_empty()
            && events.send(turn.events).await.is_err()
        {
            tracing::error!("the KV event publisher has ended; events are no longer published");
            self.events = None;
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}
