//! Start and end of the process: listeners, one thread per core, and the house thread.
//!
//! Each data thread has its own ring, its own listener on the shared port (`SO_REUSEPORT`) and its own
//! shard. The house thread does what no request waits for: probes, control, the admin listener.

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use dataplane::wire::Snapshot;
use monoio::time::TimeDriver;
use monoio::{FusionDriver, FusionRuntime, IoUringDriver, LegacyDriver, RuntimeBuilder};
use socket2::{Domain, Socket, Type};

use crate::cluster::Cluster;
use crate::config::{Config, Router};
use crate::shard::Shard;
use crate::stats::Stats;
use crate::watch::TICK;
use crate::{connection, follow, probe};

/// Connections the kernel may hold before we accept them.
const BACKLOG: i32 = 4_096;
/// Pause after a failed accept (no file descriptors left), so that it is no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

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
    /// Metrics could not be declared.
    #[error("metrics: {0}")]
    Stats(#[from] prometheus::Error),
}

/// A running router.
pub struct Server {
    cluster: Arc<Cluster>,
    threads: Vec<std::thread::JoinHandle<()>>,
    stop: Arc<AtomicBool>,
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
        let cores = match router.cores {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            cores => cores,
        };
        let (http, listeners) = bind_shared(router.listen_http, "listen_http", cores)?;
        let (admin, mut admin_listeners) = bind_shared(router.listen_admin, "listen_admin", 1)?;
        // One trial on this thread: an error here is a line for a person, in a thread it is not.
        drop(runtime().map_err(StartError::Runtime)?);
        let stats = Arc::new(Stats::new()?);
        let cluster = Arc::new(Cluster::new(&router));
        let workers = config.workers.iter().map(|worker| worker.to_worker()).collect();
        cluster.apply(Snapshot { version: 0, workers, weights: None }, false);
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::with_capacity(cores + 1);
        let seed_base = u64::from(std::process::id()) << 32;
        let plan = listeners
            .into_iter()
            .enumerate()
            .map(|(core, listener)| (Role::Data { core }, listener))
            .chain(admin_listeners.pop().map(|listener| (Role::House, listener)));
        for (at, (role, listener)) in plan.enumerate() {
            let (router, cluster) = (Arc::clone(&router), Arc::clone(&cluster));
            let (stats, stop) = (Arc::clone(&stats), Arc::clone(&stop));
            let seed = seed_base.wrapping_add((at as u64) << 56);
            let thread = std::thread::Builder::new()
                .name(role.thread_name())
                .spawn(move || run_thread(role, listener, router, cluster, stats, seed, &stop))
                .map_err(StartError::Thread)?;
            threads.push(thread);
        }
        let drain = Duration::from_secs(router.limits.drain_s_max);
        Ok(Server { cluster, threads, stop, drain, http, admin })
    }

    /// Stops accepting, lets requests in flight finish within `drain_s_max`, then ends the threads.
    pub fn stop(self) {
        self.cluster.draining.store(true, Relaxed);
        let deadline = Instant::now() + self.drain;
        while self.cluster.inflight.load(Relaxed) > 0 && Instant::now() < deadline {
            std::thread::sleep(TICK);
        }
        self.stop.store(true, Relaxed);
        for thread in self.threads {
            // A thread that panicked has ended the process already.
            let _ = thread.join();
        }
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

/// Binds `count` listeners to one address that nobody else holds.
///
/// With `SO_REUSEPORT` alone a second router of the same user would silently take half of the
/// connections. So the first socket binds without it, which fails if anybody is there, and allows
/// sharing only afterwards.
fn bind_shared(
    address: SocketAddr,
    key: &'static str,
    count: usize,
) -> Result<(SocketAddr, Vec<TcpListener>), StartError> {
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
    Ok((address, listeners))
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

fn run_thread(
    role: Role,
    listener: TcpListener,
    config: Arc<Router>,
    cluster: Arc<Cluster>,
    stats: Arc<Stats>,
    seed: u64,
    stop: &AtomicBool,
) {
    if let Role::Data { core } = role
        && config.pin_cores
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
        let shard = Shard::new(config, cluster, stats, seed);
        if let Role::House = role {
            monoio::spawn(probe::run(Rc::clone(&shard)));
            if let Some(path) = shard.config.control_socket.clone() {
                let shard = Rc::clone(&shard);
                monoio::spawn(async move { follow::run(shard, &path).await });
            }
        }
        match monoio::net::TcpListener::from_std(listener) {
            Ok(listener) => {
                monoio::spawn(accept(Rc::clone(&shard), listener));
            }
            Err(error) => tracing::error!(%error, "a listener cannot be used"),
        }
        tick(&shard, stop).await;
    });
}

fn pin(core: usize) -> nix::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(core)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
}

/// Accepts for ever; not while draining, and not above the limit of connections.
async fn accept(shard: Rc<Shard>, listener: monoio::net::TcpListener) {
    loop {
        let full = shard.watchdog.len() >= shard.config.limits.connections_per_core_max;
        if full || shard.cluster.draining.load(Relaxed) {
            monoio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        }
        match listener.accept().await {
            Ok((stream, peer)) => {
                monoio::spawn(connection::serve(Rc::clone(&shard), stream, peer));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                monoio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The thread's clock: the watchdog's look, and the order to stop.
async fn tick(shard: &Rc<Shard>, stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        monoio::time::sleep(TICK).await;
        shard.watchdog.tick();
        if shard.cluster.draining.load(Relaxed) {
            shard.watchdog.close_idle();
        }
    }
}
