//! Start and end of the process: listeners, one thread per core, and the house thread.
//!
//! Each data thread has its own ring, its own listener on the shared port (`SO_REUSEPORT`) and its own
//! shard. The house thread does what no request waits for: probes, control, the admin listener.

use std::cell::{Cell, RefCell};
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::{Duration, Instant};

use dataplane::wire::Snapshot;
use monoio::io::Canceller;
use monoio::time::TimeDriver;
use monoio::{FusionDriver, FusionRuntime, IoUringDriver, LegacyDriver, RuntimeBuilder};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ring::rand::{SecureRandom, SystemRandom};
use socket2::{Domain, Socket, Type};

use crate::access::log::{AccessBuffer, AccessLog, LineCounts};
use crate::cluster::Cluster;
use crate::config::{Config, Router};
use crate::decisions::log::{DecisionLog, DecisionSender};
use crate::front::Front;
use crate::hall::{BellEnd, Bells};
use crate::handover::{self, Listeners, Predecessor};
use crate::identity::{Identity, ReloadError};
use crate::record::Recorder;
use crate::reload;
use crate::shard::Shard;
use crate::shard::Shared;
use crate::stats::Stats;
use crate::tls::files::TlsFileError;
use crate::tokenizer::files::FilesError;
use crate::tokenizer::shelf::Shelf;
use crate::trace::context::{Ids, Sampler};
use crate::trace::outbox::Outbox;
use crate::watch::TICK;
use crate::{connection, house};

/// Connections the kernel may hold before we accept them.
const BACKLOG: i32 = 4_096;
/// The disk gets so long for the last lines of each log.
const LOG_CLOSE_MAX: Duration = Duration::from_secs(2);
/// When the time to drain is over, clients whose streams are ended are told so within this time.
const TELL_MAX: Duration = Duration::from_secs(2);

/// Between two looks for connections to engines that have been idle for too long: a second.
const PRUNE_TICKS: u32 = 20;
/// Pause after a failed accept (no file descriptors left), so that it is no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// A process that takes over waits so long for an engine that is healthy, before it serves all the same:
/// until then its predecessor does.
const ENGINE_WAIT: Duration = Duration::from_secs(10);

/// At the end of a drain a connection that was idle for less is left alone: it was accepted a moment ago,
/// and its request is on its way.
const FRESH: Duration = Duration::from_secs(1);

/// Why the router did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port belongs to another process.
    #[error("{address} is taken; stop the process that listens there or change [router] {key}")]
    PortTaken {
        /// The address asked for.
        address: SocketAddr,
        /// The configuration key.
        key: &'static str,
    },
    /// The listener could not be made.
    #[error("cannot listen on {address}: {source}; change [router] {key}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// The configuration key.
        key: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// No runtime could be built.
    #[error("neither io_uring nor epoll can be set up: {0}")]
    Runtime(std::io::Error),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// The sockets could not be taken over or offered.
    #[error("[router] handover_socket: {0}")]
    Handover(std::io::Error),
    /// Certificate or key cannot be served.
    #[error("{0}")]
    Tls(#[from] TlsFileError),
    /// Keys or tenants cannot be used.
    #[error("{0}")]
    Identity(#[from] ReloadError),
    /// A model's files cannot be used.
    #[error("[[models]] files: {0}")]
    Models(#[from] FilesError),
    /// The access log cannot be opened.
    #[error("[router.access_log] path: {0}")]
    AccessLog(std::io::Error),
    /// The decision log cannot be opened.
    #[error("[router.decision_log] file: {0}")]
    DecisionLog(std::io::Error),
    /// Metrics could not be declared.
    #[error("metrics: {0}")]
    Stats(#[from] prometheus::Error),
}

/// How the process ends: nobody is accepted any more, every thread has seen to that, every thread ends.
#[derive(Default)]
struct End {
    leave: AtomicBool,
    have_left: AtomicUsize,
    stop: AtomicBool,
}

/// A running router.
pub struct Server {
    cluster: Arc<Cluster>,
    stats: Arc<Stats>,
    access: Option<AccessLog>,
    decisions: Option<DecisionLog>,
    threads: Vec<std::thread::JoinHandle<()>>,
    end: Arc<End>,
    drain: Duration,
    /// Where clients come in; the port is chosen if the configuration said 0.
    pub http: SocketAddr,
    /// Where metrics are served.
    pub admin: SocketAddr,
}

impl Server {
    /// Binds everything, then starts the threads. Nothing runs if an error is returned.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: Config) -> Result<Self, StartError> {
        let router = Arc::new(config.router);
        // Before the port is taken: whoever waits for it waits for a router that is ready.
        let shelf = Arc::new(Shelf::open(&config.models, router.kv.tokenizer_cache_bytes_max)?);
        let cores = match router.cores {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            cores => cores,
        }
        .min(handover::LISTENERS_MAX - 1);
        let (listeners, predecessor) = listen(&router, cores)?;
        let http = local_address(&listeners.http, router.listen_http, "listen_http")?;
        let admin = local_address(&listeners.admin, router.listen_admin, "listen_admin")?;
        let offered = listeners.try_clone().map_err(StartError::Handover)?;
        // One trial on this thread: an error here is a line for a person, in a thread it is not.
        drop(runtime().map_err(StartError::Runtime)?);
        let stats = Arc::new(Stats::new()?);
        let identity = Arc::new(Identity::open(&router.identity, &config.tenants)?);
        let access = AccessLog::start(&router.access_log).map_err(StartError::AccessLog)?;
        let decisions =
            DecisionLog::start(&router.decision_log).map_err(StartError::DecisionLog)?;
        let outbox = Arc::new(Outbox::new(router.trace.queue_spans_max));
        let (bells, bell_ends) = Bells::new(cores).map_err(StartError::Runtime)?;
        let clients = Arc::new(Front::clients());
        if router.tls.is_on() {
            let loaded = router.tls.load()?;
            stats.tls_certificate_expiry.set(loaded.expires_unix_s.try_into().unwrap_or(i64::MAX));
            clients.serve_with(loaded.config);
        }
        let cluster = Arc::new(Cluster::new(&router, Arc::new(bells)));
        let workers = config.workers.iter().map(|worker| worker.to_worker()).collect();
        cluster.apply(Snapshot { version: 0, workers, weights: None }, false);
        let end = Arc::new(End::default());
        let serves = Arc::new(AtomicBool::new(predecessor.is_none()));
        let mut threads = Vec::with_capacity(cores + 1);
        let seed_base = u64::from(std::process::id()) << 32;
        let mut shares: Vec<Vec<TcpListener>> = (0..cores).map(|_| Vec::new()).collect();
        for (at, listener) in listeners.http.into_iter().enumerate() {
            shares[at % cores].push(listener);
        }
        let plan = shares
            .into_iter()
            .enumerate()
            .map(|(core, listeners)| (Role::Data { core }, listeners))
            .chain([(Role::House, listeners.admin)]);
        let shared = Shared {
            config: Arc::clone(&router),
            cluster: Arc::clone(&cluster),
            stats: Arc::clone(&stats),
            identity,
            shelf,
        };
        let mut bell_ends = bell_ends.into_iter();
        for (at, (role, listeners)) in plan.enumerate() {
            let (shared, end) = (shared.clone(), Arc::clone(&end));
            let bell = bell_ends.next();
            let tracing = Tracing {
                outbox: Arc::clone(&outbox),
                access: access.as_ref().map(AccessLog::buffer),
                decisions: decisions.as_ref().map(DecisionLog::sender),
                lines: access.as_ref().map(AccessLog::counts),
                seed: random_seed().map_err(StartError::Runtime)?,
                address: http,
            };
            let front = match role {
                Role::Data { .. } => Arc::clone(&clients),
                Role::House => Arc::new(Front::admin()),
            };
            let (clients, serves) = (Arc::clone(&clients), Arc::clone(&serves));
            let seed = seed_base.wrapping_add((at as u64) << 56);
            let thread = std::thread::Builder::new()
                .name(role.thread_name())
                .spawn(move || {
                    let part =
                        Part { role, listeners, front, clients, bell, tracing, seed, serves };
                    run_thread(part, shared, &end);
                })
                .map_err(StartError::Thread)?;
            threads.push(thread);
        }
        let drain = Duration::from_secs(router.limits.drain_s_max);
        if let Some(predecessor) = predecessor {
            wait_for_an_engine(&cluster);
            serves.store(true, Relaxed);
            predecessor.release();
        }
        if let Some(path) = &router.handover_socket {
            // As an operator would do it; `main` waits for this signal.
            let leave = || {
                let _ = kill(Pid::this(), Signal::SIGTERM);
            };
            handover::offer(path, offered, leave).map_err(StartError::Handover)?;
        }
        Ok(Server { cluster, stats, access, decisions, threads, end, drain, http, admin })
    }

    /// The file was read again: takes over what may change while the router runs, and says in the log
    /// what may not. `None`: the file was refused, and nothing changes.
    pub fn reload(&self, running: &mut Config, fresh: Option<&Config>) {
        let result = if fresh.is_some() { "taken" } else { "refused" };
        self.stats.config_reloads.with_label_values(&[result]).inc();
        let Some(fresh) = fresh else { return };
        let reloaded = reload::take(&self.cluster, running, fresh);
        let preset = self.cluster.preset();
        tracing::info!(
            weights = %preset.weights,
            temperature = preset.temperature,
            session_affinity = preset.affinity,
            has_changed = reloaded.has_changed,
            "the configuration was read again"
        );
        if !reloaded.need_restart.is_empty() {
            let keys = reloaded.need_restart.join(", ");
            tracing::warn!(keys, "changed in the file; a restart is needed for these");
        }
    }

    /// Stops accepting, lets requests in flight finish within `drain_s_max`, then ends the threads.
    pub fn stop(self) {
        self.cluster.draining.store(true, Relaxed);
        let deadline = Instant::now() + self.drain;
        // Connections without a request end by `drain_idle_ms_max`; only requests are waited for longer.
        let wait_until = |deadline: Instant, is_done: &dyn Fn() -> bool| {
            while !is_done() && Instant::now() < deadline {
                std::thread::sleep(TICK);
            }
        };
        let is_empty = || self.stats.connections.get() == 0;
        wait_until(deadline, &is_empty);
        if !is_empty() {
            self.cluster.stops.store(true, Relaxed);
            wait_until(Instant::now() + TELL_MAX, &is_empty);
        }
        // A successor may share the listening sockets: whoever was accepted here is served here.
        self.end.leave.store(true, Relaxed);
        let last = deadline.max(Instant::now() + TELL_MAX);
        wait_until(last, &|| self.end.have_left.load(Acquire) == self.threads.len());
        wait_until(last, &is_empty);
        self.end.stop.store(true, Relaxed);
        for thread in self.threads {
            // A thread that panicked has ended the process already.
            let _ = thread.join();
        }
        if let Some(access) = self.access
            && !access.close(LOG_CLOSE_MAX)
        {
            tracing::warn!("the last lines of the access log may be lost");
        }
        if let Some(decisions) = self.decisions
            && !decisions.close(LOG_CLOSE_MAX)
        {
            tracing::warn!("the last lines of the decision log may be lost");
        }
    }
}

/// Nobody may be refused for the reason alone that this process has not yet looked for engines.
fn wait_for_an_engine(cluster: &Cluster) {
    let deadline = Instant::now() + ENGINE_WAIT;
    let is_up = || cluster.view().workers().any(|worker| worker.life.healthy.load(Relaxed));
    while !is_up() && Instant::now() < deadline {
        std::thread::sleep(TICK);
    }
}

#[derive(Clone, Copy)]
enum Role {
    Data { core: usize },
    House,
}

impl Role {
    fn thread_name(self) -> String {
        match self {
            Role::Data { core } => format!("core-{core}"),
            Role::House => "house".to_owned(),
        }
    }
}

/// The sockets of a running router, if there is one to take over from, else fresh ones.
fn listen(router: &Router, cores: usize) -> Result<(Listeners, Option<Predecessor>), StartError> {
    if let Some(path) = &router.handover_socket
        && let Some((listeners, predecessor)) = handover::ask(path).map_err(StartError::Handover)?
    {
        tracing::info!(socket = %path.display(), "taking over");
        return Ok((listeners, Some(predecessor)));
    }
    let http = bind_shared(router.listen_http, "listen_http", cores)?;
    let admin = bind_shared(router.listen_admin, "listen_admin", 1)?;
    Ok((Listeners { http, admin }, None))
}

fn local_address(
    listeners: &[TcpListener],
    configured: SocketAddr,
    key: &'static str,
) -> Result<SocketAddr, StartError> {
    let first = listeners.first().map_or(Ok(configured), TcpListener::local_addr);
    first.map_err(|source| StartError::Listen { address: configured, key, source })
}

/// Binds `count` listeners to one address that nobody else holds.
///
/// With `SO_REUSEPORT` alone a second router of the same user would silently take half of the
/// connections. So the first socket binds without it, which fails if anybody is there, and allows
/// sharing only afterwards.
fn bind_shared(
    address: SocketAddr,
    key: &'static str,
    count: usize,
) -> Result<Vec<TcpListener>, StartError> {
    let refuse = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AddrInUse => StartError::PortTaken { address, key },
        _ => StartError::Listen { address, key, source },
    };
    let bind = |address: SocketAddr, shared: bool| -> std::io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.set_reuse_port(true)?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    let mut listeners = vec![bind(address, false).map_err(refuse)?];
    let address = listeners[0].local_addr().map_err(refuse)?;
    for _ in 1..count {
        listeners.push(bind(address, true).map_err(refuse)?);
    }
    Ok(listeners)
}

type Runtime = FusionRuntime<TimeDriver<IoUringDriver>, TimeDriver<LegacyDriver>>;

/// io_uring with the flags that halve its cost for one thread per ring (Linux 6.0), else without
/// them, else epoll.
fn runtime() -> std::io::Result<Runtime> {
    let mut flags = io_uring::IoUring::builder();
    flags.setup_coop_taskrun().setup_single_issuer();
    RuntimeBuilder::<FusionDriver>::new()
        .uring_builder(flags)
        .enable_timer()
        .build()
        .or_else(|_| RuntimeBuilder::<FusionDriver>::new().enable_timer().build())
}

/// What one thread has of its own.
struct Part {
    role: Role,
    /// As many sockets as there are cores; another process may have left more or fewer.
    listeners: Vec<TcpListener>,
    /// What its listener speaks.
    front: Arc<Front>,
    /// What the clients' listeners speak; the house thread keeps it fresh.
    clients: Arc<Front>,
    /// Its end of the doorbell; the house thread has none, since nobody waits there.
    bell: Option<BellEnd>,
    tracing: Tracing,
    seed: u64,
    /// Clients are accepted from here on; a process that takes over looks for engines first.
    serves: Arc<AtomicBool>,
}

/// What a recorder is made of, on the thread that uses it.
struct Tracing {
    outbox: Arc<Outbox>,
    access: Option<AccessBuffer>,
    decisions: Option<DecisionSender>,
    lines: Option<Arc<LineCounts>>,
    seed: [u64; 2],
    address: SocketAddr,
}

impl Tracing {
    fn recorder(self, config: &Router) -> Recorder {
        Recorder {
            ids: Ids::new(self.seed),
            sampler: Sampler::new(config.trace.sample_ratio),
            exports: config.trace.otlp_url.is_some(),
            outbox: self.outbox,
            access: self.access,
            decisions: self.decisions,
            lines: self.lines,
            address: self.address.ip().to_string(),
            port: self.address.port(),
        }
    }
}

/// Trace ids must not meet those of another process.
fn random_seed() -> std::io::Result<[u64; 2]> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| std::io::Error::other("no randomness"))?;
    let number = u128::from_le_bytes(bytes);
    Ok([(number >> 64) as u64, number as u64])
}

fn run_thread(part: Part, shared: Shared, end: &End) {
    let Part { role, listeners, front, clients, bell, tracing, seed, serves } = part;
    let core = match role {
        Role::Data { core } => core,
        Role::House => usize::MAX,
    };
    if let Role::Data { core } = role
        && shared.config.pin_cores
        && let Err(error) = pin(core)
    {
        tracing::warn!(core, %error, "cannot pin the thread; it runs unpinned");
    }
    // `Server::start` built one on trial, so this fails only when the machine ran out in between.
    let mut runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "a thread has no runtime");
            std::process::exit(1);
        }
    };
    runtime.block_on(async move {
        let recorder = tracing.recorder(&shared.config);
        let shard = Shard::new(shared, front, recorder, core, seed);
        if let Role::House = role {
            house::start(&shard, clients);
        }
        if let Some(bell) = bell {
            let clock = Rc::clone(&shard);
            let listen = Rc::clone(&shard.waiters).listen(bell, move || clock.cluster.now_ms());
            monoio::spawn(listen);
        }
        let leaving = Rc::new(RefCell::new(Canceller::new()));
        let accepting = Rc::new(Cell::new(0));
        while matches!(role, Role::Data { .. }) && !serves.load(Relaxed) {
            monoio::time::sleep(TICK).await;
        }
        for listener in listeners {
            match monoio::net::TcpListener::from_std(listener) {
                Ok(listener) => {
                    let accept = accept(Rc::clone(&shard), listener, Rc::clone(&leaving));
                    let accepting = Rc::clone(&accepting);
                    accepting.set(accepting.get() + 1);
                    monoio::spawn(async move {
                        accept.await;
                        accepting.set(accepting.get() - 1);
                    });
                }
                Err(error) => tracing::error!(%error, "a listener cannot be used"),
            }
        }
        tick(&shard, &leaving, &accepting, end).await;
    });
}

fn pin(core: usize) -> nix::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(core)?;
    nix::sched::sched_setaffinity(Pid::from_raw(0), &set)
}

/// Accepts until `leaving` is cancelled; pauses above the limit of connections. While the router drains,
/// whoever comes is answered and told to close, so that nobody is refused before the load balancer in
/// front has noticed.
async fn accept(
    shard: Rc<Shard>,
    listener: monoio::net::TcpListener,
    leaving: Rc<RefCell<Canceller>>,
) {
    loop {
        if shard.has_left.get() {
            return;
        }
        if shard.watchdog.len() >= shard.config.limits.connections_per_core_max {
            monoio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        }
        // Cancelled, not dropped: a connection accepted in that moment would be lost.
        let handle = leaving.borrow().handle();
        match listener.cancelable_accept(handle).await {
            Ok((stream, peer)) => {
                monoio::spawn(connection::serve(Rc::clone(&shard), stream, peer));
            }
            Err(_) if shard.has_left.get() => return,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                monoio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The thread's clock: the watchdog's look, and the order to leave and to stop.
async fn tick(shard: &Rc<Shard>, leaving: &RefCell<Canceller>, accepting: &Cell<usize>, end: &End) {
    let idle_max = Duration::from_millis(shard.config.limits.drain_idle_ms_max);
    let mut ticks: u32 = 0;
    let mut draining_since = None;
    let mut has_said_so = false;
    while !end.stop.load(Relaxed) {
        let slept = Instant::now();
        monoio::time::sleep(TICK).await;
        let stall = slept.elapsed().saturating_sub(TICK);
        shard.stats.loop_stall.observe(stall.as_secs_f64());
        shard.strike(Instant::now());
        if shard.cluster.stops.load(Relaxed) {
            shard.watchdog.give_up_engines();
        }
        shard.watchdog.tick();
        shard.flush_records();
        ticks = ticks.wrapping_add(1);
        if ticks.is_multiple_of(PRUNE_TICKS) {
            // Connections to engines that are gone would be kept for ever: nobody asks for them again.
            shard.pool.prune(&shard.config.limits);
        }
        if !shard.is_draining() {
            continue;
        }
        let since = *draining_since.get_or_insert_with(Instant::now);
        let is_over = since.elapsed() >= idle_max;
        if is_over || shard.front.is_admin {
            shard.watchdog.close_idle(FRESH);
        }
        if (is_over || end.leave.load(Relaxed)) && !shard.has_left.replace(true) {
            let fresh = std::mem::take(&mut *leaving.borrow_mut()).cancel();
            *leaving.borrow_mut() = fresh;
        }
        if shard.has_left.get() && accepting.get() == 0 && !has_said_so {
            has_said_so = true;
            end.have_left.fetch_add(1, Release);
        }
    }
}
