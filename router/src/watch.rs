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
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Waker;
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
    /// For a place at an engine.
    Queue,
    /// For the first byte of an engine's answer.
    EngineFirst,
    /// For the engine's next bytes.
    EngineNext,
}

impl Phase {
    fn is_for_the_client(self) -> bool {
        matches!(self, Phase::Queue | Phase::EngineFirst | Phase::EngineNext)
    }
}

/// Why a socket was shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The client hung up while the engine worked.
    ClientGone,
    /// A client took too long, with or without a request begun.
    ClientSlow,
    /// The engine said nothing for too long, before its first byte.
    FirstByteLate,
    /// The engine said nothing for too long in the middle of its answer.
    EngineStalled,
    /// The request as a whole took too long.
    TooLong,
    /// The worker drains for too long: the request goes on elsewhere where that can be done.
    Drained,
    /// The router itself stops, and its time to drain is over.
    RouterStops,
}

/// What stands at the client's end of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientEnd {
    /// A connection of its own.
    Plain(RawFd),
    /// A connection of its own, under TLS.
    Tls(RawFd),
    /// One stream of an HTTP/2 connection: its task says when it is gone.
    Stream,
}

/// An engine's socket, and the flag by which its worker is given up.
type Engine = (RawFd, Arc<AtomicBool>);

/// One connection (or one stream of HTTP/2) under watch.
pub struct Watch {
    client: ClientEnd,
    engines: RefCell<[Option<Engine>; 2]>,
    phase: Cell<Phase>,
    since: Cell<u64>,
    begun: Cell<Option<u64>>,
    verdict: Cell<Option<Verdict>>,
    waker: RefCell<Option<Waker>>,
    place: Cell<usize>,
    ticks: Rc<Cell<u64>>,
}

impl Watch {
    /// Enters a phase, or begins the same one anew.
    pub fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(self.ticks.get());
    }

    /// Enters a phase that lasts over several waits: its time goes on where it is entered already.
    pub fn stay(&self, phase: Phase) {
        if self.phase.get() != phase {
            self.enter(phase);
        }
    }

    /// A request begins: its total time counts from here, and what was said of the last one on this
    /// connection does not hold for it.
    pub fn begin(&self) {
        self.begun.set(Some(self.ticks.get()));
        self.verdict.set(None);
    }

    /// The request is over.
    pub fn end(&self) {
        self.begun.set(None);
    }

    /// Names the engine's socket, and the flag by which its worker is given up; `None` before that socket is closed or given away.
    /// Two lanes, since a first token may be asked of two workers.
    pub fn set_engine(&self, lane: usize, engine: Option<Engine>) {
        self.engines.borrow_mut()[lane] = engine;
    }

    /// Whether a worker it waits for drains for too long.
    fn is_given_up(&self) -> bool {
        let given_up = |(_, flag): &Engine| flag.load(Relaxed);
        self.engines.borrow().iter().flatten().any(given_up)
    }

    /// Whether nobody is left to answer.
    pub fn is_client_lost(&self) -> bool {
        matches!(self.verdict(), Some(Verdict::ClientGone | Verdict::ClientSlow))
    }

    /// What the watchdog did to this connection, if anything.
    pub fn verdict(&self) -> Option<Verdict> {
        self.verdict.get()
    }

    /// A verdict on an engine is spent once the request goes on with another one.
    pub fn forgive_engine(&self) {
        if matches!(
            self.verdict.get(),
            Some(Verdict::FirstByteLate | Verdict::EngineStalled | Verdict::Drained)
        ) {
            self.verdict.set(None);
        }
    }

    /// The request is given up and only the client is still to be told: from here on only its own
    /// slowness is looked for.
    pub fn forgive_all(&self) {
        self.begun.set(None);
        self.verdict.set(None);
    }

    /// Whoever waits for something that is no socket is woken by a verdict.
    pub fn wake_by_verdict(&self, waker: &Waker) {
        let mut kept = self.waker.borrow_mut();
        match kept.as_mut() {
            Some(old) => old.clone_from(waker),
            None => *kept = Some(waker.clone()),
        }
    }

    /// Notes `verdict` and ends what the task waits on.
    pub fn condemn(&self, verdict: Verdict) {
        if self.verdict.get().is_some() {
            return;
        }
        self.verdict.set(Some(verdict));
        // Already closed by the other side: then the read ends without our help.
        let end = |socket| {
            let _ = shutdown(socket, Shutdown::Both);
        };
        match (verdict, self.client) {
            (Verdict::ClientSlow, ClientEnd::Plain(socket) | ClientEnd::Tls(socket)) => end(socket),
            (Verdict::ClientSlow, ClientEnd::Stream) => {}
            _ => self.engines.borrow().iter().flatten().for_each(|(socket, _)| end(*socket)),
        }
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    fn judge(&self, now: u64, limits: &TickLimits) -> Option<Verdict> {
        // A phase entered since the last tick has waited 0 whole ticks.
        let waited = now.saturating_sub(self.since.get()).saturating_sub(1);
        let phase = self.phase.get();
        let late = match phase {
            Phase::Busy | Phase::Queue => None,
            Phase::ClientIdle => (waited > limits.client_idle).then_some(Verdict::ClientSlow),
            Phase::Client => (waited > limits.client).then_some(Verdict::ClientSlow),
            Phase::EngineFirst => (waited > limits.first_byte).then_some(Verdict::FirstByteLate),
            Phase::EngineNext => (waited > limits.next_byte).then_some(Verdict::EngineStalled),
        };
        let begun = self.begun.get();
        let too_long = begun.is_some_and(|begun| now.saturating_sub(begun) > limits.request);
        if late.is_some() {
            late
        } else if phase.is_for_the_client() && waited > 0 && has_hung_up(self.client) {
            Some(Verdict::ClientGone)
        } else if phase.is_for_the_client() && too_long {
            Some(Verdict::TooLong)
        } else if phase.is_for_the_client() && waited > 0 && self.is_given_up() {
            Some(Verdict::Drained)
        } else {
            None
        }
    }
}

/// Bytes of a TLS 1.3 record that holds an alert and nothing else: type 23, version 3.3, length 19 (two
/// bytes of alert, one of type, 16 of tag). Nothing that a client may send while it waits looks so.
const TLS_ALERT_RECORD: [u8; 5] = [23, 3, 3, 0, 19];

/// Whether the other side closed: a peek that finds the end of the stream, or under TLS the notice of
/// it. A client that ends only its sending side counts as gone too, as with nginx.
fn has_hung_up(client: ClientEnd) -> bool {
    let (ClientEnd::Plain(socket) | ClientEnd::Tls(socket)) = client else { return false };
    let mut seen = [0; TLS_ALERT_RECORD.len()];
    match recv(socket, &mut seen, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Ok(0) => true,
        Ok(_) => matches!(client, ClientEnd::Tls(_)) && seen == TLS_ALERT_RECORD,
        Err(Errno::EAGAIN | Errno::EINTR) => false,
        Err(_) => true,
    }
}

/// The limits, in ticks.
#[derive(Debug)]
struct TickLimits {
    client_idle: u64,
    client: u64,
    first_byte: u64,
    next_byte: u64,
    request: u64,
}

/// All connections of one core.
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
                first_byte: ticks(limits.first_byte_s_max),
                next_byte: ticks(limits.inter_token_s_max),
                request: ticks(limits.request_s_max),
            },
        }
    }

    /// Registers a client; drop the registration before its socket is closed.
    pub fn register(self: &Rc<Self>, client: ClientEnd) -> Registration {
        let mut watches = self.watches.borrow_mut();
        let watch = Rc::new(Watch {
            client,
            engines: RefCell::default(),
            phase: Cell::new(Phase::ClientIdle),
            since: Cell::new(self.ticks.get()),
            begun: Cell::new(None),
            waker: RefCell::default(),
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
            if watch.verdict.get().is_none()
                && let Some(verdict) = watch.judge(now, &self.limits)
            {
                watch.condemn(verdict);
            }
        }
    }

    /// Ends every connection that has waited for its next request for `idle_min` or longer, as at the
    /// end of a drain. Only the receiving side: a request that is here already is read and answered.
    pub fn close_idle(&self, idle_min: Duration) {
        let idle_min = (idle_min.as_millis() / TICK.as_millis()) as u64;
        let now = self.ticks.get();
        for watch in self.watches.borrow().iter() {
            let is_idle = watch.phase.get() == Phase::ClientIdle;
            if is_idle
                && now.saturating_sub(watch.since.get()) >= idle_min
                && let ClientEnd::Plain(socket) | ClientEnd::Tls(socket) = watch.client
            {
                let _ = shutdown(socket, Shutdown::Read);
            }
        }
    }

    /// Takes every running request from its engine, as when the router's time to drain is over.
    pub fn give_up_engines(&self) {
        self.condemn_where(Verdict::RouterStops, Phase::is_for_the_client);
    }

    fn condemn_where(&self, verdict: Verdict, chosen: impl Fn(Phase) -> bool) {
        for watch in self.watches.borrow().iter() {
            if chosen(watch.phase.get()) {
                watch.condemn(verdict);
            }
        }
    }
}

/// A watch for as long as its connection lives.
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
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn limits() -> Limits {
        Limits {
            client_idle_s_max: 1,
            client_stall_s_max: 2,
            first_byte_s_max: 3,
            inter_token_s_max: 4,
            request_s_max: 5,
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
            (Phase::EngineFirst, 60, Verdict::FirstByteLate),
            (Phase::EngineNext, 80, Verdict::EngineStalled),
        ] {
            let (client, _far_client) = UnixStream::pair().unwrap();
            let (engine, _far_engine) = UnixStream::pair().unwrap();
            let watchdog = Rc::new(Watchdog::new(&limits()));
            let watch = watchdog.register(ClientEnd::Plain(client.as_raw_fd()));
            watch.set_engine(0, Some((engine.as_raw_fd(), Arc::default())));
            watch.enter(phase);
            ticks(&watchdog, limit + 1);
            assert_eq!(watch.verdict(), None, "{phase:?}");
            ticks(&watchdog, 1);
            assert_eq!(watch.verdict(), Some(verdict), "{phase:?}");
            let mut shut = if phase.is_for_the_client() { &engine } else { &client };
            assert_eq!(shut.read(&mut [0; 8]).unwrap(), 0, "the waiting read ends");
        }
    }

    #[test]
    fn a_client_that_hangs_up_stops_its_engine() {
        let (client, far_client) = UnixStream::pair().unwrap();
        let (engine, mut far_engine) = UnixStream::pair().unwrap();
        let watchdog = Rc::new(Watchdog::new(&limits()));
        let watch = watchdog.register(ClientEnd::Plain(client.as_raw_fd()));
        watch.set_engine(0, Some((engine.as_raw_fd(), Arc::default())));
        watch.enter(Phase::EngineNext);
        ticks(&watchdog, 5);
        assert_eq!(watch.verdict(), None);
        drop(far_client);
        ticks(&watchdog, 2);
        assert_eq!(watch.verdict(), Some(Verdict::ClientGone));
        assert_eq!(far_engine.read(&mut [0; 8]).unwrap(), 0, "the engine sees the end");
    }

    #[test]
    fn under_tls_the_notice_of_the_end_is_enough() {
        let (client, mut far_client) = UnixStream::pair().unwrap();
        let watchdog = Rc::new(Watchdog::new(&limits()));
        let watch = watchdog.register(ClientEnd::Tls(client.as_raw_fd()));
        watch.enter(Phase::EngineFirst);
        far_client.write_all(&[23, 3, 3, 0]).unwrap();
        ticks(&watchdog, 5);
        assert_eq!(watch.verdict(), None, "the beginning of some record");
        far_client.write_all(&[19, 1, 2, 3]).unwrap();
        ticks(&watchdog, 1);
        assert_eq!(watch.verdict(), Some(Verdict::ClientGone));
    }

    #[test]
    fn a_request_as_a_whole_has_a_limit_too() {
        let (client, _far_client) = UnixStream::pair().unwrap();
        let watchdog = Rc::new(Watchdog::new(&limits()));
        let watch = watchdog.register(ClientEnd::Plain(client.as_raw_fd()));
        watch.begin();
        for _ in 0..100 {
            watch.enter(Phase::EngineNext);
            ticks(&watchdog, 1);
            assert_eq!(watch.verdict(), None);
        }
        watch.enter(Phase::EngineNext);
        ticks(&watchdog, 1);
        assert_eq!(watch.verdict(), Some(Verdict::TooLong));
    }

    #[test]
    fn a_verdict_ends_with_its_request() {
        let (client, far_client) = UnixStream::pair().unwrap();
        let watchdog = Rc::new(Watchdog::new(&limits()));
        let watch = watchdog.register(ClientEnd::Plain(client.as_raw_fd()));
        watch.begin();
        watch.enter(Phase::EngineFirst);
        ticks(&watchdog, 62);
        assert_eq!(watch.verdict(), Some(Verdict::FirstByteLate));
        watch.end();
        watch.begin();
        assert_eq!(watch.verdict(), None);
        watch.enter(Phase::EngineFirst);
        drop(far_client);
        ticks(&watchdog, 2);
        assert_eq!(watch.verdict(), Some(Verdict::ClientGone), "the next request is watched too");
    }

    #[test]
    fn a_phase_of_several_waits_is_one_wait() {
        let (client, far_client) = UnixStream::pair().unwrap();
        let watchdog = Rc::new(Watchdog::new(&limits()));
        let watch = watchdog.register(ClientEnd::Plain(client.as_raw_fd()));
        drop(far_client);
        for _ in 0..2 {
            watch.stay(Phase::Queue);
            assert_eq!(watch.verdict(), None);
            ticks(&watchdog, 1);
        }
        assert_eq!(watch.verdict(), Some(Verdict::ClientGone));
    }

    #[test]
    fn registrations_come_and_go_in_any_order() {
        let (client, _far) = UnixStream::pair().unwrap();
        let watchdog = Rc::new(Watchdog::new(&limits()));
        let mut all: Vec<_> =
            (0..5).map(|_| watchdog.register(ClientEnd::Plain(client.as_raw_fd()))).collect();
        for at in [1, 3, 0, 1, 0] {
            drop(all.remove(at));
        }
        assert!(watchdog.is_empty());
    }
}
