//! The disk at the daemon's start and end: what is on it goes to the shards that own it.
//!
//! Devices are opened and recovered once, before any shard begins; then each shard has a thread that
//! reads and writes them for it, by a ring of its own.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;
use std::time::Instant;

use futures_lite::future::yield_now;
use glommio::{LocalExecutorBuilder, Placement};

use crate::config::Config;
use crate::disk::client::DiskClient;
use crate::disk::file::{DiskFile, OpenError};
use crate::disk::index::IndexThread;
use crate::disk::key_file::{self, KeyFileError};
use crate::disk::place::Place;
use crate::disk::record::Secret;
use crate::disk::recovery::Found;
use crate::disk::ring::{Ring, RingDevice};
use crate::disk::start::{self, Started};
use crate::disk::thread::{DiskThread, RING_BYTES};
use crate::disk::tier::Tier;
use crate::disk::{Disk, Event, Limits};
use crate::key::Key;
use crate::request::Request;
use crate::shard::House;

/// Why the disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskStartError {
    /// A file or device cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is no key to encrypt with.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// It was opened, and does not work.
    #[error(transparent)]
    Start(#[from] start::StartError),
    /// The system gives no ring.
    #[error("the system gives no io_uring for the disk: {0}")]
    Ring(std::io::Error),
    /// glommio does not start.
    #[error("the disk could not be looked at: {0}")]
    Executor(String),
    /// There is no randomness.
    #[error("/dev/urandom cannot be read: {0}")]
    Secret(std::io::Error),
}

/// A block found on disk, as its shard is told.
#[derive(Clone, Copy, Debug)]
pub struct Restored {
    /// Its key.
    pub key: Key,
    /// The block before it.
    pub parent: Option<Key>,
    /// Where it is.
    pub place: Place,
    /// How many blocks on disk follow it.
    pub children: u32,
}

/// The disk, recovered, before the shards have it.
pub struct Recovered {
    tier: Arc<Tier>,
    files: Arc<[DiskFile]>,
    index: IndexThread,
    restored: Vec<Vec<Restored>>,
}

/// What one shard gets of it.
pub struct Share {
    tier: Arc<Tier>,
    files: Arc<[DiskFile]>,
    limits: Limits,
    /// Its blocks.
    pub restored: Vec<Restored>,
}

/// Opens and recovers what the configuration names; none if it names nothing.
///
/// # Errors
/// [`DiskStartError`].
pub fn recover(config: &Config, house: &House) -> Result<Option<Recovered>, DiskStartError> {
    let bytes_each = match config.ssd_bytes_each() {
        Some(bytes) => bytes,
        None => return Ok(None),
    };
    let files = config.ssd_dir.iter().map(|path| DiskFile::open(path, bytes_each));
    let files: Arc<[DiskFile]> = files.collect::<Result<_, _>>()?;
    let mut secrets = Vec::new();
    for _ in files.iter() {
        secrets.push(secret().map_err(DiskStartError::Secret)?);
    }
    let key = config.disk_key_file.as_deref().map(key_file::read).transpose()?;
    let executor = LocalExecutorBuilder::new(Placement::Unbound).io_memory(RING_BYTES).make();
    let executor = executor.map_err(|error| DiskStartError::Executor(error.to_string()))?;
    let started = executor.run(async {
        let devices = devices(&files).map_err(DiskStartError::Ring)?;
        let index_dir = config.index_dir();
        let secret = || secrets.pop().unwrap_or_default();
        Ok::<_, DiskStartError>(
            start::start(&devices, &index_dir, config.segment_bytes(), key.as_ref(), secret)
                .await?,
        )
    })?;
    let Started { tier, index, found, report } = started;
    tracing::info!(?report, blocks = found.len(), "the disk is recovered");
    let restored = hand_out(found, house, config.cores);
    Ok(Some(Recovered { tier, files, index, restored }))
}

impl Recovered {
    /// The shares of the shards, and what is joined when they are gone.
    pub fn split(self, config: &Config) -> (Vec<Share>, IndexThread) {
        let shards = config.cores;
        let shares = self.restored.into_iter().enumerate().map(|(shard, restored)| Share {
            tier: self.tier.clone(),
            files: self.files.clone(),
            limits: Limits {
                shard,
                shards,
                free_segments_min: shards + 1,
                write_bytes_per_s: config
                    .limits
                    .ssd_write_bytes_per_s()
                    .map(|all| all / shards as u64),
            },
            restored,
        });
        (shares.collect(), self.index)
    }

    /// Counters of the tier.
    pub fn tier(&self) -> &Arc<Tier> {
        &self.tier
    }
}

impl Share {
    /// The shard's end of its disk, and the thread at the other end. On the daemon's first thread: a
    /// shard may be pinned, and what it starts would be pinned with it.
    ///
    /// # Errors
    /// The system gives no thread, or no ring.
    pub fn start(&self, house: &House) -> Result<(DiskClient, DiskThread), DiskStartError> {
        let (tier, files, limits) = (self.tier.clone(), self.files.clone(), self.limits);
        let told = house.clone();
        let open = move || {
            let events = move |event| {
                let (Event::Dropped { key, .. } | Event::Moved { key, .. }) = event;
                let Err(request) = told.inbox(&key).send(Request::Disk(event)) else { return };
                let told = told.clone();
                let send = async move { told.inbox(&key).send_when_room(request, yield_now).await };
                glommio::spawn_local(send).detach();
            };
            Ok(Disk::new(tier, devices(&files)?, limits, events))
        };
        let thread = DiskThread::start(&format!("disk-{}", self.limits.shard), open);
        let thread = thread.map_err(DiskStartError::Ring)?;
        let orders = thread.orders.clone();
        let client = DiskClient::new(orders, self.tier.clone(), &self.limits, Instant::now());
        Ok((client, thread))
    }
}

/// This thread's handles on the files, with a task that drives them.
fn devices(files: &[DiskFile]) -> std::io::Result<Vec<RingDevice>> {
    let ring = Ring::new()?;
    let driven = ring.clone();
    glommio::spawn_local(async move {
        if let Err(error) = driven.drive().await {
            tracing::error!(%error, "the disk's ring broke; its operations will not end");
        }
    })
    .detach();
    Ok(files.iter().map(|file| RingDevice::new(ring.clone(), file)).collect())
}

/// Sorts what was found by shard, and counts each block's children.
fn hand_out(found: Vec<Found>, house: &House, shards: usize) -> Vec<Vec<Restored>> {
    let mut children: HashMap<Key, u32> = HashMap::new();
    for parent in found.iter().filter_map(|found| found.entry.about.parent) {
        *children.entry(parent).or_default() += 1;
    }
    let mut restored: Vec<Vec<Restored>> = vec![Vec::new(); shards];
    let mut strange = 0u64;
    for Found { key, entry } in found {
        // Where there are too many namespaces, these blocks cannot be asked for either.
        if house.namespaces.open(&entry.about.namespace).is_err() {
            strange += 1;
            continue;
        }
        restored[key.shard(shards)].push(Restored {
            key,
            parent: entry.about.parent,
            place: entry.place,
            children: children.get(&key).copied().unwrap_or(0),
        });
    }
    if strange > 0 {
        tracing::warn!(strange, "blocks on disk are of more namespaces than namespaces_max allows");
    }
    restored
}

fn secret() -> std::io::Result<Secret> {
    let mut secret = Secret::default();
    std::fs::File::open("/dev/urandom")?.read_exact(&mut secret)?;
    Ok(secret)
}
