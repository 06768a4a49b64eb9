//! Where requests wait for a place at an engine: one waiting room per model, shared by the cores.
//!
//! `queue.rs` decides who goes next. Here is who holds a place, who is told, and how one core tells
//! another: each core has a doorbell, a socket pair whose far end any core may write a byte to, and a
//! box for the news. While a model is not full, a request takes its place with one atomic and touches
//! neither lock nor bell.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Write;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use monoio::net::UnixStream;

use crate::forecast::{Forecast, Load};
use crate::hedge::TtftStats;
use crate::queue::{Full, QueueConfig, Waiting, WaitingRoom};
use crate::socket::read_more;
use crate::watch::{Phase, Watch};

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Called {
    /// There is a place, and it is taken.
    Granted,
    /// The deadline passed.
    Expired,
}

/// What this router knows of one model; lives as long as the model is listed.
pub struct ModelLife {
    /// Requests that hold a place.
    running: AtomicU32,
    /// Places, as of the last look at the workers.
    places: AtomicU32,
    /// How many wait; changed under the room's lock.
    waiting: AtomicU32,
    room: Mutex<WaitingRoom>,
    /// When first tokens come.
    pub forecast: Forecast,
    /// How they are spread.
    pub ttft: TtftStats,
}

impl ModelLife {
    /// Nobody waits, nothing is known.
    pub fn new(config: &QueueConfig) -> Self {
        ModelLife {
            running: AtomicU32::new(0),
            places: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            room: Mutex::new(WaitingRoom::new(config.clone())),
            forecast: Forecast::new(),
            ttft: TtftStats::new(),
        }
    }

    /// Takes a place if nobody waits and one is free. `places` is what the workers offer now.
    pub fn try_enter(&self, places: u32) -> bool {
        self.note_places(places);
        self.waiting.load(SeqCst) == 0 && self.take_place()
    }

    /// What the workers offer now.
    pub fn note_places(&self, places: u32) {
        self.places.store(places, SeqCst);
    }

    fn take_place(&self) -> bool {
        let places = self.places.load(SeqCst);
        let taken = self.running.fetch_add(1, SeqCst) < places;
        if !taken {
            self.running.fetch_sub(1, SeqCst);
        }
        taken
    }

    /// How busy the model is.
    pub fn load(&self) -> Load {
        Load {
            tokens_ahead: 0,
            places: self.places.load(SeqCst),
            running: self.running.load(SeqCst),
        }
    }

    /// The same, seen by one who would wait.
    pub fn load_ahead_of(&self, entry: &Waiting) -> Load {
        let tokens_ahead = match self.waiting.load(SeqCst) {
            0 => 0,
            _ => self.room().tokens_ahead_of(entry),
        };
        Load { tokens_ahead, ..self.load() }
    }

    /// The same, for one who would come when all that wait are gone.
    pub fn load_of_all(&self) -> Load {
        Load { tokens_ahead: self.room().tokens(), ..self.load() }
    }

    /// How many wait.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(SeqCst)
    }

    /// Gives a place back, and calls whoever is next.
    pub fn leave(&self, bells: &Bells, now_ms: u64) {
        self.running.fetch_sub(1, SeqCst);
        if self.waiting.load(SeqCst) > 0 {
            self.call(bells, now_ms);
        }
    }

    /// Calls as many as there are places for, and those whose deadline has passed. Also called now
    /// and then by the house thread, since workers become ready without anybody leaving.
    pub fn call(&self, bells: &Bells, now_ms: u64) {
        let mut room = self.room();
        let expired = room.expire(now_ms);
        // Before each bell: who is called may be answered, and ask how many wait, while this thread rings.
        self.note_length(&room);
        for expired in expired {
            bells.ring(expired.core, expired.id, Called::Expired);
        }
        while !room.is_empty() && self.take_place() {
            let Some(next) = room.next(now_ms) else {
                self.running.fetch_sub(1, SeqCst);
                break;
            };
            self.note_length(&room);
            bells.ring(next.core, next.id, Called::Granted);
        }
    }

    /// The house thread's look: what the workers offer may have changed.
    pub fn look(&self, places: u32, bells: &Bells, now_ms: u64) {
        self.note_places(places);
        if self.waiting.load(SeqCst) > 0 {
            self.call(bells, now_ms);
        }
    }

    fn room(&self) -> MutexGuard<'_, WaitingRoom> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_length(&self, room: &WaitingRoom) {
        self.waiting.store(room.len().try_into().unwrap_or(u32::MAX), SeqCst);
    }
}

/// The doorbells of all cores.
#[derive(Default)]
pub struct Bells(Vec<Bell>);

struct Bell {
    news: Mutex<Vec<(u64, Called)>>,
    button: Mutex<std::os::unix::net::UnixStream>,
}

/// The core's end of its doorbell.
pub type BellEnd = std::os::unix::net::UnixStream;

impl Bells {
    /// One bell for each of `cores`.
    ///
    /// # Errors
    /// The system's.
    pub fn new(cores: usize) -> std::io::Result<(Self, Vec<BellEnd>)> {
        let mut bells = Vec::with_capacity(cores);
        let mut ends = Vec::with_capacity(cores);
        for _ in 0..cores {
            let (near, far) = std::os::unix::net::UnixStream::pair()?;
            far.set_nonblocking(true)?;
            near.set_nonblocking(true)?;
            bells.push(Bell { news: Mutex::default(), button: Mutex::new(far) });
            ends.push(near);
        }
        Ok((Bells(bells), ends))
    }

    fn ring(&self, core: usize, id: u64, called: Called) {
        let Some(bell) = self.0.get(core) else { return };
        bell.news.lock().unwrap_or_else(PoisonError::into_inner).push((id, called));
        // A full socket holds rings that were not heard yet: one more would say nothing new.
        let _ = bell.button.lock().unwrap_or_else(PoisonError::into_inner).write(&[1]);
    }

    fn news(&self, core: usize) -> Vec<(u64, Called)> {
        let Some(bell) = self.0.get(core) else { return Vec::new() };
        std::mem::take(&mut *bell.news.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Seat {
    model: Arc<ModelLife>,
    called: Option<Called>,
    waker: Option<Waker>,
}

/// Those of one core who wait.
pub struct Waiters {
    core: usize,
    bells: Arc<Bells>,
    seats: RefCell<HashMap<u64, Seat>>,
}

impl Waiters {
    /// Nobody.
    pub fn new(core: usize, bells: Arc<Bells>) -> Self {
        Waiters { core, bells, seats: RefCell::default() }
    }

    /// The doorbells.
    pub fn bells(&self) -> &Bells {
        &self.bells
    }

    /// Which core this is.
    pub fn core(&self) -> usize {
        self.core
    }

    /// Hears the doorbell for ever.
    pub async fn listen(self: Rc<Self>, end: BellEnd, now_ms: impl Fn() -> u64) {
        let Ok(mut end) = UnixStream::from_std(end) else { return };
        let mut rings = Vec::new();
        loop {
            rings.clear();
            match read_more(&mut end, &mut rings, 64).await {
                Ok(read) if read > 0 => {}
                _ => return,
            }
            for (id, called) in self.bells.news(self.core) {
                self.deliver(id, called, now_ms());
            }
        }
    }

    fn deliver(&self, id: u64, called: Called, now_ms: u64) {
        let mut seats = self.seats.borrow_mut();
        let Some(seat) = seats.get_mut(&id) else { return };
        match (&mut seat.waker, called) {
            // It gave up while the call was under way: the place goes to the next one.
            (None, Called::Granted) => {
                let model = Arc::clone(&seat.model);
                seats.remove(&id);
                drop(seats);
                model.leave(&self.bells, now_ms);
            }
            (None, Called::Expired) => {
                seats.remove(&id);
            }
            (Some(waker), called) => {
                seat.called = Some(called);
                waker.wake_by_ref();
            }
        }
    }

    /// Waits for a place. `Ok(None)`: the watchdog gave the request up.
    ///
    /// # Errors
    /// [`Full`].
    pub async fn wait(
        &self,
        model: &Arc<ModelLife>,
        entry: Waiting,
        watch: &Watch,
    ) -> Result<Option<Called>, Full> {
        let id = entry.id;
        let now_ms = entry.arrived_ms;
        {
            let mut room = model.room();
            room.push(entry)?;
            model.note_length(&room);
        }
        let mut waiter = Waiter { waiters: self, model, id, now_ms, is_served: false };
        let seat =
            Seat { model: Arc::clone(model), called: None, waker: Some(Waker::noop().clone()) };
        self.seats.borrow_mut().insert(id, seat);
        // Somebody may have left between the look at the places and the push.
        model.call(&self.bells, now_ms);
        watch.enter(Phase::Queue);
        let called = std::future::poll_fn(|cx| {
            watch.wake_by_verdict(cx.waker());
            let mut seats = self.seats.borrow_mut();
            let Some(seat) = seats.get_mut(&id) else { return Poll::Ready(None) };
            if seat.called.is_some() {
                return Poll::Ready(seat.called);
            }
            seat.waker = Some(cx.waker().clone());
            match watch.verdict() {
                Some(_) => Poll::Ready(None),
                None => Poll::Pending,
            }
        })
        .await;
        waiter.is_served = called.is_some();
        watch.enter(Phase::Busy);
        Ok(called)
    }
}

/// Takes a request out of the room again when it stops waiting, for whatever reason.
struct Waiter<'a> {
    waiters: &'a Waiters,
    model: &'a Arc<ModelLife>,
    id: u64,
    now_ms: u64,
    is_served: bool,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut seats = self.waiters.seats.borrow_mut();
        if self.is_served {
            seats.remove(&self.id);
            return;
        }
        let mut room = self.model.room();
        let still_waits = room.remove(self.id);
        self.model.note_length(&room);
        drop(room);
        match seats.get_mut(&self.id) {
            // The call is under way: whoever delivers it finds nobody here and passes it on.
            Some(seat) if !still_waits && seat.called.is_none() => seat.waker = None,
            Some(seat) if seat.called == Some(Called::Granted) => {
                seats.remove(&self.id);
                drop(seats);
                // Granted and given up in one moment.
                self.model.leave(&self.waiters.bells, self.now_ms);
            }
            _ => {
                seats.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;
    use crate::watch::{ClientEnd, Verdict, Watchdog};

    fn entry(id: u64, core: usize) -> Waiting {
        Waiting {
            id,
            tenant: "t".into(),
            weight: 1,
            priority: 0.0,
            deadline_ms: None,
            uncached_tokens: 1,
            arrived_ms: 0,
            core,
        }
    }

    /// Runs `test` on a runtime with the waiters of core 0, whose bell is heard.
    fn with_core<F: Future>(test: impl FnOnce(Rc<Waiters>, Arc<ModelLife>) -> F) -> F::Output {
        let mut runtime =
            monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().enable_timer().build().unwrap();
        runtime.block_on(async {
            let (bells, mut ends) = Bells::new(1).unwrap();
            let waiters = Rc::new(Waiters::new(0, Arc::new(bells)));
            monoio::spawn(Rc::clone(&waiters).listen(ends.remove(0), || 0));
            test(waiters, Arc::new(ModelLife::new(&QueueConfig::default()))).await
        })
    }

    fn watch() -> crate::watch::Registration {
        Rc::new(Watchdog::new(&Limits::default())).register(ClientEnd::Stream)
    }

    #[test]
    fn a_place_that_is_left_goes_to_the_one_who_waits() {
        with_core(|waiters, model| async move {
            assert!(model.try_enter(1));
            assert!(!model.try_enter(1));
            let (waiting, life) = (Rc::clone(&waiters), Arc::clone(&model));
            let waited =
                monoio::spawn(
                    async move { waiting.wait(&life, entry(7, 0), &watch()).await.unwrap() },
                );
            while model.waiting() == 0 {
                monoio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            assert!(!model.try_enter(1), "nobody overtakes");
            model.leave(waiters.bells(), 0);
            assert_eq!(waited.await, Some(Called::Granted));
            assert_eq!(model.load().running, 1);
            assert!(waiters.seats.borrow().is_empty());
        });
    }

    #[test]
    fn one_that_gives_up_leaves_no_place_taken() {
        with_core(|waiters, model| async move {
            assert!(model.try_enter(1));
            let watched = watch();
            let handle = watched.handle();
            let (waiting, life) = (Rc::clone(&waiters), Arc::clone(&model));
            let waited =
                monoio::spawn(
                    async move { waiting.wait(&life, entry(7, 0), &watched).await.unwrap() },
                );
            while model.waiting() == 0 {
                monoio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            // Called and gone in one moment: the call finds nobody and is passed on.
            handle.condemn(Verdict::ClientGone);
            model.leave(waiters.bells(), 0);
            let _ = waited.await;
            monoio::time::sleep(std::time::Duration::from_millis(20)).await;
            assert_eq!((model.load().running, model.waiting()), (0, 0));
            assert!(waiters.seats.borrow().is_empty());
        });
    }

    #[test]
    fn a_deadline_that_passes_is_told() {
        with_core(|waiters, model| async move {
            assert!(model.try_enter(1));
            let (waiting, life) = (Rc::clone(&waiters), Arc::clone(&model));
            let waited = monoio::spawn(async move {
                let entry = Waiting { deadline_ms: Some(10), ..entry(7, 0) };
                waiting.wait(&life, entry, &watch()).await.unwrap()
            });
            while model.waiting() == 0 {
                monoio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            model.look(1, waiters.bells(), 11);
            assert_eq!(waited.await, Some(Called::Expired));
            assert_eq!((model.load().running, model.waiting()), (1, 0));
        });
    }
}
