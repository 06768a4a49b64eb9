//! What a client of the native door may ask for, and what becomes of it: one function for each request.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::kv::{self, Answer, Fault, Got, LIST_MAX, Request, STATS_MAX, Staged};

use super::gather::gather;
use super::leases::Leases;
use super::staging::Staging;
use crate::block::Lease;
use crate::executor::{sleep, spawn};
use crate::key::{Key, Name};
use crate::namespace::Namespace;
use crate::store::{About, Store, StoreError, Tier};

/// Blocks of one request that wait for slower tiers at once: a few devices' queues full.
const WAITING_MAX: usize = 64;

/// Between the answer to a drain and the end.
const DRAIN_PAUSE: Duration = Duration::from_millis(50);

/// One client, as long as its connection lives or something is under way for it.
pub struct Client {
    /// The store, from this thread.
    pub store: Store,
    /// Whose blocks it asks for.
    pub namespace: Arc<Namespace>,
    /// What it holds.
    pub leases: RefCell<Leases<Lease>>,
    /// Where it puts blocks for us to take.
    pub staging: Option<Staging>,
    /// Whether it is of the daemon's own user, or root.
    pub is_admin: bool,
}

impl Client {
    fn key(&self, name: kv::Name) -> Key {
        Key::new(self.namespace.id, Name(name))
    }

    /// Takes its leases back; it gets no more.
    pub fn leave(&self) {
        let held = self.leases.replace(Leases::new(0));
        // The table is not borrowed while blocks are dropped.
        drop(held);
    }

    /// Takes back one lease.
    pub fn release(&self, lease: u64) {
        // The table is not borrowed while the block is dropped.
        let taken = self.leases.borrow_mut().take(lease);
        drop(taken);
    }

    /// One block by whatever tier has it, on lease.
    pub async fn get(&self, name: kv::Name, deadline: Option<Instant>) -> Got {
        match self.store.get(self.key(name), deadline).await {
            Ok(Some(lease)) => self.grant(lease),
            Ok(None) => Got::Missing,
            Err(error) => Got::Failed(fault(&error)),
        }
    }

    fn grant(&self, lease: Lease) -> Got {
        let (offset, len) = (lease.offset(), lease.len() as u64);
        match self.leases.borrow_mut().insert(lease) {
            Ok(lease) => Got::Leased { lease, offset, len },
            Err(_) => Got::Failed(Fault::TooManyLeases),
        }
    }

    /// Where one block lies.
    pub async fn tier(&self, name: kv::Name) -> Result<Option<kv::Tier>, Fault> {
        let tiers = self.store.lookup(&[self.key(name)]).await.map_err(|error| fault(&error))?;
        Ok(tiers.into_iter().flatten().next().map(on_wire))
    }

    async fn put(&self, block: Staged, is_durable: bool) -> Result<bool, Fault> {
        let staging = self.staging.as_ref().ok_or(Fault::NoStaging)?;
        let len = usize::try_from(block.len).ok().filter(|len| *len > 0);
        let len = len.filter(|_| staging.contains(block.offset, block.len));
        let len = len.ok_or(Fault::OutsideStaging)?;
        if block.parent == Some(block.name) {
            return Err(Fault::ParentMissing);
        }
        let key = self.key(block.name);
        let mut slot = self.store.reserve(key, len).await.map_err(|error| fault(&error))?;
        staging.copy(block.offset, &mut slot).await?;
        let parent = block.parent.map(|name| self.key(name));
        let about = About { key, parent, label: block.label.into(), is_durable, hash: None };
        self.store.commit(slot, about).await.map_err(|error| fault(&error))?;
        Ok(true)
    }
}

/// Does what was asked. Only requests that have an answer come here.
pub async fn answer(client: Rc<Client>, request: Request) -> Answer {
    let done = match request {
        Request::Lookup { names } => lookup(&client, &names).await,
        Request::Get { names, deadline_ms } => Ok(get(&client, &names, deadline_ms).await),
        Request::Put { durable, blocks } => Ok(put(&client, blocks, durable).await),
        Request::Pin { names, pinned } => {
            let pin = |name| client.store.pin(client.key(name), pinned);
            Ok(each(&names, pin).await)
        }
        Request::Remove { names } => {
            let remove = |name| client.store.remove(client.key(name));
            Ok(each(&names, remove).await)
        }
        Request::Prefetch { names, deadline_ms } => prefetch(&client, &names, deadline_ms).await,
        Request::Stats => Ok(stats(&client).await),
        Request::List { everywhere, cursor, blocks_max } => {
            list(&client, everywhere, cursor, blocks_max).await
        }
        Request::Verify { everywhere, cursor, blocks_max } => {
            sweep(&client, everywhere, cursor, blocks_max, Sweep::Verify).await
        }
        Request::Evict { everywhere, cursor, blocks_max } => {
            sweep(&client, everywhere, cursor, blocks_max, Sweep::Evict).await
        }
        Request::Drain => drain(&client).await,
        Request::Hello { .. } | Request::Release { .. } | Request::Wake => Err(Fault::BadRequest),
    };
    done.unwrap_or_else(|fault| Answer::Refused { fault, text: fault.to_string() })
}

async fn lookup(client: &Client, names: &[kv::Name]) -> Result<Answer, Fault> {
    let keys: Vec<Key> = names.iter().map(|name| client.key(*name)).collect();
    let tiers = client.store.lookup(&keys).await.map_err(|error| fault(&error))?;
    let leading = tiers.into_iter().map_while(|tier| tier.map(on_wire));
    Ok(Answer::Lookup { tiers: leading.collect() })
}

async fn get(client: &Client, names: &[kv::Name], deadline_ms: u32) -> Answer {
    let deadline = (deadline_ms > 0).then(|| deadline(deadline_ms));
    let asked = names.iter().map(|name| client.get(*name, deadline));
    Answer::Get { blocks: gather(asked, WAITING_MAX).await }
}

/// One after the other: a child may follow its parent.
async fn put(client: &Client, blocks: Vec<Staged>, is_durable: bool) -> Answer {
    let mut results = Vec::with_capacity(blocks.len());
    for block in blocks {
        results.push(client.put(block, is_durable).await);
    }
    Answer::Blocks { results }
}

async fn each<F: Future<Output = Result<bool, StoreError>>>(
    names: &[kv::Name],
    ask: impl Fn(kv::Name) -> F,
) -> Answer {
    let asked = names.iter().map(|name| {
        let asked = ask(*name);
        async move { asked.await.map_err(|error| fault(&error)) }
    });
    Answer::Blocks { results: gather(asked, WAITING_MAX).await }
}

async fn prefetch(client: &Client, names: &[kv::Name], deadline_ms: u32) -> Result<Answer, Fault> {
    let keys: Vec<Key> = names.iter().map(|name| client.key(*name)).collect();
    let count = client.store.prefetch(&keys, deadline(deadline_ms)).await;
    Ok(Answer::Count { blocks: count.map_err(|error| fault(&error))? as u64 })
}

async fn stats(client: &Client) -> Answer {
    client.store.measure().await;
    let exposition = client.store.house().stats.exposition();
    let text = String::from_utf8_lossy(&exposition);
    let lines = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        let value = value.parse::<f64>().ok().filter(|value| *value >= 0.0)?;
        (name.len() <= kv::TEXT_BYTES_MAX).then(|| (name.to_owned(), value as u64))
    });
    Answer::Stats { lines: lines.take(STATS_MAX).collect() }
}

async fn list(
    client: &Client,
    everywhere: bool,
    cursor: u64,
    blocks_max: u32,
) -> Result<Answer, Fault> {
    if everywhere && !client.is_admin {
        return Err(Fault::NotAllowed);
    }
    let namespace = (!everywhere).then_some(client.namespace.id);
    let max = (blocks_max as usize).min(LIST_MAX);
    let page = client.store.list(namespace, cursor, max).await;
    let (page, next) = page.map_err(|error| fault(&error))?;
    let line = |listed: crate::store::Listed| kv::Listed {
        place: (listed.key.namespace.0, listed.key.name.0),
        tier: on_wire(listed.tier),
        pinned: listed.is_pinned,
        len: listed.bytes,
        label: listed.label.into(),
    };
    Ok(Answer::List { blocks: page.into_iter().map(line).collect(), next })
}

#[derive(Clone, Copy)]
enum Sweep {
    Verify,
    Evict,
}

async fn sweep(
    client: &Client,
    everywhere: bool,
    cursor: u64,
    blocks_max: u32,
    what: Sweep,
) -> Result<Answer, Fault> {
    if !client.is_admin {
        return Err(Fault::NotAllowed);
    }
    let namespace = (!everywhere).then_some(client.namespace.id);
    let max = (blocks_max as usize).min(LIST_MAX);
    let page = client.store.list(namespace, cursor, max).await;
    let (page, next) = page.map_err(|error| fault(&error))?;
    let (mut seen, mut dropped) = (0, 0);
    for listed in page {
        seen += 1;
        let done = match what {
            Sweep::Evict => client.store.remove(listed.key).await,
            Sweep::Verify => {
                client.store.verify(listed.key).await.map(|right| right == Some(false))
            }
        };
        dropped += u64::from(done.map_err(|error| fault(&error))?);
    }
    Ok(Answer::Swept { seen, dropped, next })
}

/// Takes no more blocks, and ends the daemon as SIGTERM does.
async fn drain(client: &Client) -> Result<Answer, Fault> {
    if !client.is_admin {
        return Err(Fault::NotAllowed);
    }
    client.store.drain().await;
    spawn(async {
        // The answer goes first.
        sleep(DRAIN_PAUSE).await;
        let own = nix::unistd::Pid::this();
        if let Err(error) = nix::sys::signal::kill(own, nix::sys::signal::Signal::SIGTERM) {
            tracing::error!(%error, "drained, but cannot end; send SIGTERM");
        }
    });
    Ok(Answer::Draining)
}

fn deadline(ms: u32) -> Instant {
    Instant::now() + Duration::from_millis(u64::from(ms))
}

fn on_wire(tier: Tier) -> kv::Tier {
    match tier {
        Tier::Ram => kv::Tier::Ram,
        Tier::Disk => kv::Tier::Disk,
    }
}

/// The store's reason as the wire's.
fn fault(error: &StoreError) -> Fault {
    use crate::namespace::NamespaceError;
    match error {
        StoreError::Busy => Fault::Busy,
        StoreError::TooLarge { .. } => Fault::TooLarge,
        StoreError::QuotaExceeded => Fault::QuotaExceeded,
        StoreError::ParentMissing => Fault::ParentMissing,
        StoreError::NoDisk => Fault::NoDisk,
        StoreError::Disk(_) => Fault::Disk,
        StoreError::Draining => Fault::Draining,
        StoreError::Namespace(NamespaceError::TooMany(_)) => Fault::TooManyNamespaces,
        StoreError::Namespace(NamespaceError::Name(_)) => Fault::BadRequest,
        StoreError::UnknownNamespace => Fault::Internal,
    }
}
