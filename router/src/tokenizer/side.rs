//! A few threads beside the cores: a long text would hold up every stream of the core that tokenizes it.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Threads. Long new texts are rare: each is a prompt nobody sent before.
const THREADS: usize = 2;
/// Texts that wait for one; the next request is not tokenized here.
const WAITING_MAX: usize = 64;
/// Between two looks whether a text is done. Those handed over take several of it; a wake-up across
/// threads would need a socket for each.
const LOOK: Duration = Duration::from_millis(1);

type Job = Box<dyn FnOnce() + Send>;

/// Why a text came back undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SideError {
    /// Too many wait.
    #[error("too many long prompts wait to be tokenized")]
    Busy,
    /// It takes longer than the caller waits. It is finished all the same, and kept.
    #[error("the prompt takes too long to tokenize")]
    Late,
}

impl SideError {
    /// For metrics.
    pub fn reason(self) -> &'static str {
        match self {
            SideError::Busy => "busy",
            SideError::Late => "late",
        }
    }
}

/// The threads, for as long as somebody holds this.
pub struct Side {
    jobs: SyncSender<Job>,
}

impl Side {
    /// Starts the threads. With none of them every job is refused.
    pub fn start() -> Self {
        let (jobs, waiting) = sync_channel::<Job>(WAITING_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..THREADS {
            let waiting = Arc::clone(&waiting);
            let work = move || {
                while let Some(job) = next(&waiting) {
                    job()
                }
            };
            let thread = std::thread::Builder::new().name("tokenizer".to_owned()).spawn(work);
            if let Err(error) = thread {
                tracing::warn!(%error, "no thread for long prompts");
            }
        }
        Side { jobs }
    }

    /// Runs `job` beside the core, and waits for at most `limit`.
    ///
    /// # Errors
    /// [`SideError`].
    pub async fn run<T: Send + Sync + 'static>(
        &self,
        limit: Duration,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, SideError> {
        let result = Arc::new(OnceLock::new());
        let slot = Arc::clone(&result);
        let job: Job = Box::new(move || {
            let _ = slot.set(job());
        });
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => SideError::Busy,
        })?;
        let deadline = Instant::now() + limit;
        let mut result = result;
        loop {
            monoio::time::sleep(LOOK).await;
            // The job's own handle is gone when it is done.
            result = match Arc::try_unwrap(result) {
                Ok(slot) => return slot.into_inner().ok_or(SideError::Busy),
                Err(shared) => shared,
            };
            if Instant::now() >= deadline {
                return Err(SideError::Late);
            }
        }
    }
}

fn next(waiting: &Mutex<Receiver<Job>>) -> Option<Job> {
    waiting.lock().unwrap_or_else(|poison| poison.into_inner()).recv().ok()
}
