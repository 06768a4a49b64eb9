//! The daemon put together: arena, shards, doors; and how it stops.
//!
//! It owns the threads. Each shard is one executor of monoio's, on which its part of the doors runs, and
//! has one of glommio's for its disk.

mod disk;
mod reload;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use socket2::Socket;

use disk::{DiskStartError, Restored};

use crate::admin;
use crate::arena::{Arena, ArenaError, HUGE_PAGE_BYTES, Memory, Pages};
use crate::config::{Config, HugePages};
use crate::disk::client::DiskClient;
use crate::disk::index::IndexThread;
use crate::disk::thread::DiskThread;
use crate::executor::{Executor, spawn};
use crate::mesh::{INBOX_REQUESTS_MAX, Inbox};
use crate::namespace::Namespaces;
use crate::native::door::{self, Door, DoorError, DoorLimits, Hall};
use crate::numa;
use crate::peer::stats::PeerStats;
use crate::peer::{Peers, PeersError, PeersThread};
use crate::resp;
use crate::shard::{House, Shard};
use crate::socket::{adopt_tcp, bind_tcp};
use crate::stats::Stats;
use crate::store::Store;

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No memory.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// Too few huge pages, and they were required.
    #[error(
        "kv.huge_pages is `require`, but {free} huge pages of 2 MiB are free and {wanted} are needed; \
         raise vm.nr_hugepages or say `auto`"
    )]
    HugePages {
        /// How many are free.
        free: u64,
        /// How many are needed.
        wanted: u64,
    },
    /// The machine has less memory than was promised.
    #[error("kv.ram_gib asks for {wanted} bytes, but the machine has {total}; lower it")]
    Memory {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes there are.
        total: u64,
    },
    /// An address could not be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskStartError),
    /// The peers' thread did not start.
    #[error(transparent)]
    Peers(#[from] PeersError),
    /// The native door could not be opened.
    #[error(transparent)]
    Native(#[from] DoorError),
    /// A shard's thread could not begin.
    #[error("shard {shard} could not start: {reason}")]
    Shard {
        /// Which.
        shard: usize,
        /// Why.
        reason: String,
    },
    /// The RESP door's users or certificates.
    #[error(transparent)]
    Resp(#[from] resp::DoorError),
    /// Two metrics have one name.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// A running daemon.
pub struct Server {
    /// Where metrics are served.
    pub metrics: SocketAddr,
    native: Option<Door>,
    /// What its shards share: a thread without a shard asks them by [`Store::remote`].
    pub house: House,
    /// Where RESP clients come in, if anywhere.
    pub resp: Option<SocketAddr>,
    resp_door: Option<Arc<resp::Door>>,
    /// Where each shard is told to stop.
    stops: Arc<[Inbox<()>]>,
    shards: Vec<JoinHandle<bool>>,
    disk_threads: Vec<DiskThread>,
    disk_index: Option<IndexThread>,
    peers: Option<PeersThread>,
    /// The configuration as it holds now.
    config: Mutex<Config>,
}

/// What every shard's thread begins with.
struct Birth {
    number: usize,
    house: House,
    memory: Memory,
    config: Arc<Config>,
    metrics: Option<Socket>,
    native: Option<Arc<Hall>>,
    disk: Option<(DiskClient, Vec<Restored>)>,
    resp: Option<(Arc<resp::Door>, Socket)>,
    stops: Arc<[Inbox<()>]>,
}

impl Server {
    /// Takes the memory, opens the doors and starts the shards.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: Config) -> Result<Server, StartError> {
        let nodes = std::fs::read_to_string(numa::ONLINE).unwrap_or_default();
        if let Some(warning) = numa::warning(&nodes, &config.cpus) {
            tracing::warn!("{warning}");
        }
        let pages = pages(&config)?;
        let memories =
            Arena::map(config.cores, config.shard_bytes(), config.block_bytes_max(), pages)?;
        let house = house(&config)?;
        let mut metrics_sockets = bind(config.metrics_listen, 1)?;
        let metrics = address(&metrics_sockets, config.metrics_listen);
        let native = native(&config, &memories)?;
        let (shares, disk_index) = match disk::recover(&config, &house)? {
            Some(recovered) => {
                house.stats.watch_disk(recovered.tier().clone());
                let (shares, index) = recovered.split(&config);
                (shares, Some(index))
            }
            None => (Vec::new(), None),
        };
        let (mut disks, mut disk_threads) = (Vec::new(), Vec::new());
        for share in shares {
            let (client, thread) = share.start(&house)?;
            disks.push((client, share.restored));
            disk_threads.push(thread);
        }
        let mut disks = disks.into_iter();
        // Before the shards, which tell the peers what they find on disk.
        let peers = start_peers(&config, &house)?;
        let (resp_door, mut resp_sockets) = open_resp(&config)?;
        let resp = config.resp_listen.map(|asked| address(&resp_sockets, asked));
        let stops: Arc<[Inbox<()>]> = (0..config.cores).map(|_| Inbox::new(1)).collect();
        let config = Arc::new(config);
        let mut shards = Vec::with_capacity(memories.len());
        for (number, memory) in memories.into_iter().enumerate() {
            shards.push(start_shard(Birth {
                number,
                house: house.clone(),
                memory,
                config: config.clone(),
                metrics: metrics_sockets.pop(),
                native: native.as_ref().map(Door::hall),
                disk: disks.next(),
                resp: resp_door.clone().zip(resp_sockets.pop()),
                stops: stops.clone(),
            })?);
        }
        let config = Mutex::new(config.as_ref().clone());
        Ok(Server {
            metrics,
            native,
            house,
            resp,
            resp_door,
            stops,
            shards,
            disk_threads,
            disk_index,
            peers,
            config,
        })
    }

    /// Where other daemons come in, if there are to be any.
    pub fn quic(&self) -> Option<SocketAddr> {
        self.peers.as_ref().map(|peers| peers.address)
    }

    /// Takes no more blocks, lets what is being written be written, and ends the threads.
    pub fn stop(self) {
        if let Some(native) = self.native {
            native.close();
        }
        if let Some(peers) = self.peers {
            peers.stop();
        }
        for stop in self.stops.iter() {
            // Full means that it was told already.
            let _ = stop.send(());
        }
        let mut is_disk_closed = true;
        for shard in self.shards {
            // A panic ends the process, so a thread that ended has ended well.
            is_disk_closed &= shard.join().unwrap_or(true);
        }
        self.house.stats.forget_disk();
        match self.disk_index {
            Some(index) if is_disk_closed => {
                // They have let the tier go; the index ends when the last of them has.
                self.disk_threads.into_iter().for_each(DiskThread::join);
                index.join();
            }
            Some(_) => {
                tracing::warn!("the disk is still at work; the next start will look it through")
            }
            None => {}
        }
    }
}

/// Starts the peers' thread, where certificates are configured.
fn start_peers(config: &Config, house: &House) -> Result<Option<PeersThread>, StartError> {
    // What is wrong with it was said when the file was read.
    let Ok(Some(files)) = config.peers.checked() else { return Ok(None) };
    let stats = PeerStats::new(house.stats.registry())?;
    let seen = house.clone();
    let blocks = move || Store::remote(seen);
    let (peers, thread) =
        Peers::start(config.quic_listen, config.peers.clone(), &files, stats, blocks)?;
    let _ = house.peers.set(peers);
    Ok(Some(thread))
}

/// Opens the native door, where one is configured.
fn native(config: &Config, memories: &[Memory]) -> Result<Option<Door>, DoorError> {
    let (Some(path), Some(memory)) = (&config.uds, memories.first()) else { return Ok(None) };
    let limits = DoorLimits {
        clients_max: config.limits.clients_max,
        leases_per_client_max: config.limits.leases_per_client_max,
        block_bytes_max: config.block_bytes_max(),
    };
    let arena = memory.arena().clone();
    Door::open(path, config.uds_mode, limits, arena, memories.len()).map(Some)
}

fn house(config: &Config) -> Result<House, StartError> {
    let (rules, standard) = config.rules();
    let stats = Stats::new()?;
    let budget = config.shard_bytes().saturating_mul(config.cores as u64);
    stats.budget_bytes.set(budget.try_into().unwrap_or(i64::MAX));
    Ok(House {
        inboxes: (0..config.cores).map(|_| Inbox::new(INBOX_REQUESTS_MAX)).collect(),
        namespaces: Arc::new(Namespaces::new(rules, standard, config.limits.namespaces_max)),
        stats: Arc::new(stats),
        peers: Arc::default(),
        limits: config.limits,
    })
}

fn start_shard(birth: Birth) -> Result<JoinHandle<bool>, StartError> {
    let shard = birth.number;
    let failed = move |reason: String| StartError::Shard { shard, reason };
    let (started, start) = std::sync::mpsc::sync_channel(1);
    let work = move || {
        let cpu = birth.config.cpus.get(shard);
        let pinned = cpu.map_or(Ok(()), |&cpu| pin(cpu));
        match pinned.and_then(|()| Executor::new()) {
            Ok(executor) => {
                let _ = started.send(Ok(()));
                executor.run(live(birth)).unwrap_or_else(|error| {
                    tracing::error!(shard, %error, "a shard's executor does not run");
                    std::process::exit(1);
                })
            }
            Err(error) => {
                let _ = started.send(Err(error.to_string()));
                true
            }
        }
    };
    let thread = std::thread::Builder::new()
        .name(format!("shard-{shard}"))
        .spawn(work)
        .map_err(|error| failed(error.to_string()))?;
    match start.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(reason)) => Err(failed(reason)),
        Err(_) => Err(failed("its thread ended".to_owned())),
    }
}

/// Keeps this thread on one processor.
fn pin(cpu: usize) -> std::io::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

/// The life of a shard's thread. False if its disk was still at work at the end.
async fn live(birth: Birth) -> bool {
    let Birth { number, house, memory, metrics, native, resp, disk, stops, config: _ } = birth;
    let (disk, restored) = disk.unzip();
    let shard = Shard::new(number, house, memory, disk);
    for block in restored.into_iter().flatten() {
        shard.restore(block.key, block.parent, block.place, block.children);
    }
    let store = Store::of_shard(shard.clone());
    spawn(shard.clone().run());
    // A socket that listens already is adopted without asking the system anything.
    if let Some(listener) = metrics.and_then(|socket| adopt_tcp(socket).ok()) {
        spawn(admin::serve(listener, store.clone()));
    }
    if let Some(hall) = native {
        spawn(door::serve(hall, number, store.clone()));
    }
    if let Some((door, socket)) = resp
        && let Ok(listener) = adopt_tcp(socket)
    {
        spawn(resp::serve(door, listener, store));
    }
    stops[number].receive().await;
    shard.drain();
    let deadline = Instant::now() + Duration::from_secs(shard.limits().stop_s_max);
    let kept = shard.keep_warm(deadline).await;
    tracing::info!(number, kept, "blocks in RAM were written to disk");
    shard.close_disk(deadline.max(Instant::now() + CLOSE_TIME_MIN)).await
}

/// What the disk of a shard that stops late still gets.
const CLOSE_TIME_MIN: Duration = Duration::from_millis(50);

/// The RESP door and a socket of it for each shard, if it is to be open.
fn open_resp(config: &Config) -> Result<(Option<Arc<resp::Door>>, Vec<Socket>), StartError> {
    let Some(asked) = config.resp_listen else { return Ok((None, Vec::new())) };
    let sockets = bind(asked, config.cores)?;
    let listen = address(&sockets, asked);
    let door = resp::Door::new(config.resp.clone(), listen, Instant::now())?;
    Ok((Some(door), sockets))
}

fn bind(address: SocketAddr, shards: usize) -> Result<Vec<Socket>, StartError> {
    bind_tcp(address, shards).map_err(|source| StartError::Listen { address, source })
}

/// Where the sockets listen, which is `asked` unless its port was 0.
fn address(sockets: &[Socket], asked: SocketAddr) -> SocketAddr {
    let bound = sockets.first().and_then(|socket| socket.local_addr().ok()?.as_socket());
    bound.unwrap_or(asked)
}

/// Decides what the arena is made of, and says so where it is not what it could be.
fn pages(config: &Config) -> Result<Pages, StartError> {
    let wanted_bytes = config.shard_bytes().saturating_mul(config.cores as u64);
    let facts = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo(&facts, "MemTotal:").map_or(u64::MAX, |kib| kib << 10);
    if wanted_bytes > total {
        return Err(StartError::Memory { wanted: wanted_bytes, total });
    }
    let size_kib = meminfo(&facts, "Hugepagesize:").unwrap_or(0);
    let is_size = size_kib << 10 == HUGE_PAGE_BYTES as u64;
    let free = if is_size { meminfo(&facts, "HugePages_Free:").unwrap_or(0) } else { 0 };
    let wanted = wanted_bytes / HUGE_PAGE_BYTES as u64;
    match config.huge_pages {
        HugePages::Never => Ok(Pages::Plain),
        _ if free >= wanted => Ok(Pages::Huge),
        HugePages::Require => Err(StartError::HugePages { free, wanted }),
        HugePages::Auto => {
            tracing::warn!(free, wanted, "too few huge pages of 2 MiB are free: plain pages it is");
            Ok(Pages::Plain)
        }
    }
}

/// The number after `name` in `/proc/meminfo`.
fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line[name.len()..].split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_in_meminfo_and_nothing_else_is() {
        let text = "MemTotal:       24 kB\nHugePages_Free:     3\nHugepagesize:    2048 kB\n";
        assert_eq!(meminfo(text, "MemTotal:"), Some(24));
        assert_eq!(meminfo(text, "HugePages_Free:"), Some(3));
        assert_eq!(meminfo(text, "Hugetlb:"), None);
    }
}
