//! One watchdog per core: time limits and gone clients, at no cost to a request that goes well.
//!
//! Each connection registers a [`Watch`] once and moves it between phases by setting cells. Every
//! [`TICK`] the watchdog looks at those that have been in one phase for long; where a limit passed or
//! the client has hung up, it notes the verdict and shuts the socket down that the task is waiting on.
//! The task's read then ends and it asks for the verdict. So no request pays for timers or for a
//! second pending operation, and a gone client stops its engine within two ticks.

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};

use crate::config::Limits;

/// Time between two looks.
pub const TICK: Duration = Duration::from_millis(50);

/// What a connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// For nothing outside, or for something with a timer of its own.
    Busy,
    /// For the next request.
    ClientIdle,
    /// For the client to send or to take bytes.
    Client,
    /// For the engine to send bytes.
    Engine,
}

/// Why a socket was shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The client hung up while the engine worked.
    ClientGone,
    /// A client took too long, with or without a request begun.
    ClientSlow,
    /// The engine said nothing for too long.
    EngineSilent,
}

/// One connection under watch.
#[derive(Debug)]
pub struct Watch {
    client: RawFd,
    engine: Cell<Option<RawFd>>,
    phase: Cell<Phase>,
    since: Cell<u64>,
    verdict: Cell<Option<Verdict>>,
    place: Cell<usize>,
    ticks: Rc<Cell<u64>>,
}

impl Watch {
    /// Enters a phase, or begins the same one anew.
    pub fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(self.ticks.get());
    }

    /// Names the engine's socket; `None` before that socket is closed or given away.
    pub fn set_engine(&self, engine: Option<RawFd>) {
        self.engine.set(engine);
    }

    /// What the watchdog did to this connection, if anything.
    pub fn verdict(&self) -> Option<Verdict> {
        self.verdict.get()
    }

    fn judge(&self, waited: u64, limits: &TickLimits) {
        let verdict = match self.phase.get() {
            Phase::Busy => None,
            Phase::ClientIdle => (waited > limits.client_idle).then_some(Verdict::ClientSlow),
            Phase::Client => (waited > limits.client).then_some(Verdict::ClientSlow),
            Phase::Engine if waited > limits.engine => Some(Verdict::EngineSilent),
            Phase::Engine if waited > 0 && has_hung_up(self.client) => Some(Verdict::ClientGone),
            Phase::Engine => None,
        };
        let Some(verdict) = verdict else { return };
        self.verdict.set(Some(verdict));
        let socket = match verdict {
            Verdict::ClientSlow => Some(self.client),
            Verdict::ClientGone | Verdict::EngineSilent => self.engine.get(),
        };
        if let Some(socket) = socket {
            // Already closed by the other side: then the read ends without our help.
            let _ = shutdown(socket, Shutdown::Both);
        }
    }
}

/// Whether the other side closed: a peek that finds the end of the stream.
fn has_hung_up(socket: RawFd) -> bool {
    match recv(socket, &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Ok(bytes) => bytes == 0,
        Err(Errno::EAGAIN | Errno::EINTR) => false,
        Err(_) => true,
    }
}

/// The limits, in ticks.
#[derive(Debug)]
struct TickLimits {
    client_idle: u64,
    client: u64,
    engine: u64,
}

/// All connections of one core.
#[derive(Debug)]
pub struct Watchdog {
    ticks: Rc<Cell<u64>>,
    watches: RefCell<Vec<Rc<Watch>>>,
    limits: TickLimits,
}

impl Watchdog {
    /// A watchdog that enforces the time limits of `limits`.
    pub fn new(limits: &Limits) -> Self {
        let ticks = |seconds: u64| seconds * 1_000 / TICK.as_millis() as u64;
        Watchdog {
            ticks: Rc::default(),
            watches: RefCell::default(),
            limits: TickLimits {
                client_idle: ticks(limits.client_idle_s_max),
                client: ticks(limits.client_stall_s_max),
                engine: ticks(limits.engine_silence_s_max),
            },
        }
    }

    /// Registers a client's socket; drop the registration before the socket is closed.
    pub fn register(self: &Rc<Self>, client: RawFd) -> Registration {
        let mut watches = self.watches.borrow_mut();
        let watch = Rc::new(Watch {
            client,
            engine: Cell::new(None),
            phase: Cell::new(Phase::ClientIdle),
            since: Cell::new(self.ticks.get()),
            verdict: Cell::new(None),
            place: Cell::new(watches.len()),
            ticks: Rc::clone(&self.ticks),
        });
        watches.push(Rc::clone(&watch));
        Registration { watch, watchdog: Rc::clone(self) }
    }

    /// Connections registered.
    pub fn len(&self) -> usize {
        self.watches.borrow().len()
    }

    /// Whether no connection is registered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One look at everything; call it every [`TICK`].
    pub fn tick(&self) {
        let now = self.ticks.get() + 1;
        self.ticks.set(now);
        for watch in self.watches.borrow().iter() {
            if watch.verdict.get().is_none() {
                // A phase entered since the last tick has waited 0 whole ticks.
                watch.judge((now - watch.since.get()).saturating_sub(1), &self.limits);
            }
        }
    }

    /// Ends every connection that waits for its next request, as at the end of a drain.
    pub fn close_idle(&self) {
        for watch in self.watches.borrow().iter() {
            if watch.phase.get() == Phase::ClientIdle {
                watch.verdict.set(Some(Verdict::ClientSlow));
                let _ = shutdown(watch.client, Shutdown::Both);
            }
        }
    }
}

/// A watch for as long as its connection lives.
#[derive(Debug)]
pub struct Registration {
    watch: Rc<Watch>,
    watchdog: Rc<Watchdog>,
}

impl Registration {
    /// A handle for those who wait on behalf of the connection.
    pub fn handle(&self) -> Rc<Watch> {
        Rc::clone(&self.watch)
    }
}

impl std::ops::Deref for Registration {
    type Target = Watch;

    fn deref(&self) -> &Watch {
        &self.watch
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut watches = self.watchdog.watches.borrow_mut();
        let place = self.watch.place.get();
        assert!(Rc::ptr_eq(&watches[place], &self.watch), "a watch knows its place");
        watches.swap_remove(place);
        if let Some(moved) = watches.get(place) {
            moved.place.set(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn limits() -> Limits {
        Limits {
            client_idle_s_max: 1,
            client_stall_s_max: 2,
            engine_silence_s_max: 3,
            ..Limits::default()
        }
    }

    fn ticks(watchdog: &Watchdog, count: usize) {
        for _ in 0..count {
            watchdog.tick();
        }
    }

    #[test]
    fn each_phase_has_its_limit_and_its_socket() {
        for (phase, limit, verdict) in [
            (Phase::ClientIdle, 20, Verdict::ClientSlow),
            (Phase::Client, 40, Verdict::ClientSlow),
            (Phase::Engine, 60, Verdict::EngineSilent),
        ] {
            let (client, _far_client) = UnixStream::pair().unwrap();
            let (engine, _far_engine) = UnixStream::pair().unwrap();
            let watchdog = Rc::new(Watchdog::new(&limits()));
            let watch = watchdog.register(client.as_raw_fd());
            watch.set_engine(Some(engine.as_raw_fd()));
            watch.enter(phase);
            ticks(&watchdog, limit + 1);
            assert_eq!(watch.verdict(), None, "{phase:?}");
            ticks(&watchdog, 1);
            assert_eq!(watch.verdict(), Some(verdict), "{phase:?}");
            let mut shut = if phase == Phase::Engine { &engine } else { &client };
            assert_eq!(shut.read(&mut [0; 8]).unwrap(), 0, "the waiting read ends");
        }
    }

    #[test]
    fn a_client_that_hangs_up_stops_its_engine() {
        let (client, far_client) = UnixStream::pair().unwrap();
        let (engine, mut far_engine) = UnixStream::pair().unwrap();
        let watchdog = Rc::new(Watchdog::new(&limits()));
        let watch = watchdog.register(client.as_raw_fd());
        watch.set_engine(Some(engine.as_raw_fd()));
        watch.enter(Phase::Engine);
        ticks(&watchdog, 5);
        assert_eq!(watch.verdict(), None);
        drop(far_client);
        ticks(&watchdog, 2);
        assert_eq!(watch.verdict(), Some(Verdict::ClientGone));
        assert_eq!(far_engine.read(&mut [0; 8]).unwrap(), 0, "the engine sees the end");
    }

    #[test]
    fn registrations_come_and_go_in_any_order() {
        let (client, _far) = UnixStream::pair().unwrap();
        let watchdog = Rc::new(Watchdog::new(&limits()));
        let mut all: Vec<_> = (0..5).map(|_| watchdog.register(client.as_raw_fd())).collect();
        for at in [1, 3, 0, 1, 0] {
            drop(all.remove(at));
        }
        assert!(watchdog.is_empty());
    }
}
