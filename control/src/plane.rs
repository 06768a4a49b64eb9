//! The data planes of this node, as control knows them: who is connected, and which questions are
//! open with whom.
//!
//! A data plane gets the newest snapshot on connecting and after each change. It is never waited
//! for: a slow one skips what is outdated, a stuck one is hung up on. A router that says what it used
//! of its tenants' limits is told what the others used (`plane/usage.rs`). `plane/listen.rs` owns the
//! socket file, `plane/connection.rs` moves the bytes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dataplane::wire::{Explanation, FromPlane, ScoreWeights, ToPlane};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::clock::Clock;
use crate::error::ControlError;
use usage::{Told, Usages};

pub mod connection;
pub mod listen;
pub mod usage;

/// Questions open with one router.
pub const QUESTIONS_MAX: usize = 16;
/// The data plane that can be asked why.
const ROUTER: &str = "cgn-router";

/// What a router can be asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// The request's path.
    pub path: String,
    /// The request's body.
    pub body: String,
    /// Weights other than those in force.
    pub weights: Option<ScoreWeights>,
    /// A temperature other than the one in force.
    pub temperature: Option<f64>,
}

type Reply = Result<Explanation, String>;

/// All connections of data planes.
pub struct Planes {
    connected: Mutex<Connected>,
    clock: Clock,
    explain_timeout: Duration,
}

#[derive(Default)]
struct Connected {
    planes: BTreeMap<u64, Plane>,
    usages: Usages,
    next_plane: u64,
    next_question: u64,
}

struct Plane {
    process: String,
    ask: mpsc::Sender<ToPlane>,
    usage_wanted: Arc<Notify>,
    /// Dropping an entry tells its asker that the router is gone.
    open: HashMap<u64, oneshot::Sender<Reply>>,
}

/// A connection's place among the others; leaving it ends its open questions.
pub struct Seat<'a> {
    planes: &'a Planes,
    id: u64,
    /// What this connection should ask its data plane.
    pub questions: mpsc::Receiver<ToPlane>,
    /// Wakes when the data plane wants to know what the others used. It holds one call, so many
    /// questions of one that does not read get one answer: the newest.
    pub usage_wanted: Arc<Notify>,
}

impl Planes {
    /// None connected yet.
    pub fn new(explain_timeout: Duration) -> Planes {
        Planes { connected: Mutex::default(), clock: Clock::start(), explain_timeout }
    }

    /// Takes a data plane in that has said who it is.
    pub fn join(&self, process: String) -> Seat<'_> {
        let (ask, questions) = mpsc::channel(QUESTIONS_MAX);
        let usage_wanted = Arc::new(Notify::new());
        let wanted = Arc::clone(&usage_wanted);
        let mut connected = self.connected();
        connected.next_plane += 1;
        let id = connected.next_plane;
        let plane = Plane { process, ask, usage_wanted: wanted, open: HashMap::new() };
        connected.planes.insert(id, plane);
        Seat { planes: self, id, questions, usage_wanted }
    }

    /// Asks the router that has been attached for the longest why a request goes where it goes.
    ///
    /// # Errors
    /// [`ControlError::NoRouter`], `RouterBusy`, `RouterGone`, `RouterSlow`, `RouterRefused`.
    pub async fn explain(&self, question: Question) -> Result<Explanation, ControlError> {
        let (plane, id, answer) = self.ask(question)?;
        let waited = tokio::time::timeout(self.explain_timeout, answer).await;
        if let Some(plane) = self.connected().planes.get_mut(&plane) {
            plane.open.remove(&id);
        }
        match waited {
            Ok(Ok(Ok(explanation))) => Ok(explanation),
            Ok(Ok(Err(reason))) => Err(ControlError::RouterRefused(reason)),
            Ok(Err(_)) => Err(ControlError::RouterGone),
            Err(_) => Err(ControlError::RouterSlow(self.explain_timeout.as_secs())),
        }
    }

    /// Takes what the data plane of that seat said. An answer nobody waits for any more is dropped.
    pub fn answer(&self, seat: u64, message: FromPlane) {
        let mut connected = self.connected();
        match message {
            FromPlane::Hello { .. } => {}
            FromPlane::Explained { id, result } => {
                let plane = connected.planes.get_mut(&seat);
                if let Some(reply) = plane.and_then(|one| one.open.remove(&id)) {
                    // The asker may have given up in this very moment.
                    let _ = reply.send(result);
                }
            }
            FromPlane::Usage { life, minute, day, tenants } => {
                let told = Told { minute, day, tenants };
                connected.usages.told(seat, life, told, self.clock.now_ms());
                if let Some(plane) = connected.planes.get(&seat) {
                    plane.usage_wanted.notify_one();
                }
            }
        }
    }

    /// What routers other than that seat's used, in the windows it asked for last. `None` if it
    /// asked for none.
    fn usage_of_others(&self, seat: u64) -> Option<ToPlane> {
        let others = self.connected().usages.others(seat, self.clock.now_ms())?;
        Some(ToPlane::Usage { routers: others.routers, others: others.tenants })
    }

    fn ask(
        &self,
        question: Question,
    ) -> Result<(u64, u64, oneshot::Receiver<Reply>), ControlError> {
        let mut connected = self.connected();
        connected.next_question += 1;
        let id = connected.next_question;
        let mut routers = connected.planes.iter_mut().filter(|(_, one)| one.process == ROUTER);
        let (plane_id, plane) = routers.next().ok_or(ControlError::NoRouter)?;
        if plane.open.len() >= QUESTIONS_MAX {
            return Err(ControlError::RouterBusy(QUESTIONS_MAX));
        }
        let Question { path, body, weights, temperature } = question;
        let question = ToPlane::Explain { id, path, body, weights, temperature };
        match plane.ask.try_send(question) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                return Err(ControlError::RouterBusy(QUESTIONS_MAX));
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(ControlError::RouterGone),
        }
        let (reply, answer) = oneshot::channel();
        plane.open.insert(id, reply);
        Ok((*plane_id, id, answer))
    }

    fn connected(&self) -> MutexGuard<'_, Connected> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat<'_> {
    /// Names the seat to [`Planes::answer`].
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut connected = self.planes.connected();
        connected.planes.remove(&self.id);
        connected.usages.left(self.id, self.planes.clock.now_ms());
    }
}
