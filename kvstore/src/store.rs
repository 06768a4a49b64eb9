//! The store as doors see it: one handle a thread, whatever shard a block belongs to.
//!
//! On a shard's own thread its own keys are served without a message; every other key costs one
//! hand-over there and back. A thread without a shard (the peers') asks the same way.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::arena::Slot;
use crate::block::Lease;
use crate::key::{Key, NamespaceId};
use crate::mesh::{Reply, reply};
use crate::namespace::{Namespace, NamespaceError};
use crate::request::Request;
use crate::shard::{House, Reach, Shard};

/// Blocks that one prefetch brings side by side: enough for a disk's or a peer's whole bandwidth.
const PREFETCHES_AT_ONCE: usize = 32;

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// RAM of this daemon.
    Ram,
    /// A disk of this daemon.
    Disk,
}

/// What a block that comes may take the place of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Somebody asked for it: of whatever is the next to go, and it waits for room.
    Asked,
    /// A peer offered it: of what has outlived its head start in the order of eviction, and at once.
    Offered,
}

/// What a client says of a block it stores.
#[derive(Clone, Debug)]
pub struct About {
    /// Its name.
    pub key: Key,
    /// The block before it, without which it would not be found.
    pub parent: Option<Key>,
    /// The client's own name for it; may be empty.
    pub label: Box<[u8]>,
    /// Answer only when it is on disk.
    pub is_durable: bool,
    /// BLAKE3 of its bytes, if who stores it has computed it.
    pub hash: Option<[u8; 32]>,
}

/// A block, as `cgnctl kv ls` shows it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its name.
    pub key: Key,
    /// The fastest tier that has it.
    pub tier: Tier,
    /// Its bytes.
    pub bytes: u64,
    /// What its client calls it.
    pub label: Box<[u8]>,
    /// Whether it stays in RAM.
    pub is_pinned: bool,
}

/// Why the store did not do what was asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StoreError {
    /// All memory is leased or pinned, or the shard is behind.
    #[error("no memory is free: all of it is leased, pinned or being written; try again")]
    Busy,
    /// The block is larger than a block may be.
    #[error("a block of {len} bytes is larger than the {max} that kv.limits.block_mib_max allows")]
    TooLarge {
        /// Bytes asked for.
        len: u64,
        /// Bytes allowed.
        max: u64,
    },
    /// The namespace's quota is smaller than the block.
    #[error("the namespace's quota has no room for this block; raise its quota_gib")]
    QuotaExceeded,
    /// The block before it is not stored, so nobody would find this one.
    #[error("the parent block is not stored; store a prefix from its beginning")]
    ParentMissing,
    /// No client opened the namespace.
    #[error("the namespace was not opened")]
    UnknownNamespace,
    /// The namespace could not be opened.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// Durability was asked for, and there is no disk.
    #[error("there is no disk to keep the block on; set kv.ssd_dir, or do not ask for durability")]
    NoDisk,
    /// The disk did not keep the block, or not forget it.
    #[error("the disk failed: {0}")]
    Disk(String),
    /// The daemon is stopping.
    #[error("the daemon is draining and takes no more blocks")]
    Draining,
}

/// The store, from one thread.
#[derive(Clone)]
pub struct Store {
    house: House,
    local: Option<Rc<Shard>>,
}

impl Store {
    /// The store from the thread of `shard`.
    pub fn of_shard(shard: Rc<Shard>) -> Store {
        Store { house: shard.house().clone(), local: Some(shard) }
    }

    /// The store from a thread that has no shard.
    pub fn remote(house: House) -> Store {
        Store { house, local: None }
    }

    /// What all shards share.
    pub fn house(&self) -> &House {
        &self.house
    }

    /// The namespace called `name`.
    ///
    /// # Errors
    /// [`StoreError::Namespace`].
    pub fn namespace(&self, name: &str) -> Result<Arc<Namespace>, StoreError> {
        Ok(self.house.namespaces.open(name)?)
    }

    /// Where each of `keys` lies.
    ///
    /// # Errors
    /// [`StoreError::Busy`] and [`StoreError::Draining`].
    pub async fn lookup(&self, keys: &[Key]) -> Result<Vec<Option<Tier>>, StoreError> {
        let shards = self.house.inboxes.len();
        if let (1, Some(shard)) = (shards, &self.local) {
            let mut tiers = Vec::with_capacity(keys.len());
            shard.lookup(keys, &mut tiers);
            return Ok(tiers);
        }
        let owners: Vec<usize> = keys.iter().map(|key| key.shard(shards)).collect();
        let mut parts = vec![Vec::new(); shards];
        for (&key, &owner) in keys.iter().zip(&owners) {
            parts[owner].push(key);
        }
        let mut asked = Vec::with_capacity(shards);
        for (number, keys) in parts.into_iter().enumerate() {
            if keys.is_empty() {
                asked.push(None);
                continue;
            }
            let (reply, waiting) = reply();
            self.send(number, Request::Lookup { keys, reply })?;
            asked.push(Some(waiting));
        }
        let mut answers = Vec::with_capacity(shards);
        for waiting in asked {
            answers.push(match waiting {
                Some(waiting) => waiting.answer().await.ok_or(StoreError::Draining)?.into_iter(),
                None => Vec::new().into_iter(),
            });
        }
        Ok(owners.iter().map(|&owner| answers[owner].next().flatten()).collect())
    }

    /// A lease on the block's bytes, from whatever tier has it; none if none does.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get(
        &self,
        key: Key,
        deadline: Option<Instant>,
    ) -> Result<Option<Lease>, StoreError> {
        self.get_within(key, Reach::Peers, deadline).await
    }

    /// As [`Store::get`], but no peer is asked: for one that asks, or two could ask each other for ever.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get_here(&self, key: Key) -> Result<Option<Lease>, StoreError> {
        self.get_within(key, Reach::Here, None).await
    }

    async fn get_within(
        &self,
        key: Key,
        reach: Reach,
        deadline: Option<Instant>,
    ) -> Result<Option<Lease>, StoreError> {
        match self.own(key) {
            Some(shard) => shard.get(key, reach, deadline).await,
            None => self.ask(key, |reply| Request::Get { key, reach, deadline, reply }).await?,
        }
    }

    /// Memory to write a block of `len` bytes to.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn reserve(&self, key: Key, len: usize) -> Result<Slot, StoreError> {
        match self.own(key) {
            Some(shard) => shard.reserve(key, len).await,
            None => {
                let claim = Claim::Asked;
                self.ask(key, |reply| Request::Reserve { key, len, claim, reply }).await?
            }
        }
    }

    /// Memory for a block that nobody here asked for, where it takes none from a better one.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::Busy`] if all that is here is worth more.
    pub async fn reserve_offered(&self, key: Key, len: usize) -> Result<Slot, StoreError> {
        let claim = Claim::Offered;
        self.ask(key, |reply| Request::Reserve { key, len, claim, reply }).await?
    }

    /// Whether [`Store::reserve_offered`] would find memory now, as far as can be seen without making it.
    ///
    /// # Errors
    /// [`StoreError::Busy`] and [`StoreError::Draining`].
    pub async fn welcomes(&self, key: Key, len: usize) -> Result<bool, StoreError> {
        self.ask(key, |reply| Request::Welcome { key, len, reply }).await
    }

    /// Stores the block written to `slot`, which was reserved for the same key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn commit(&self, slot: Slot, about: About) -> Result<(), StoreError> {
        let key = about.key;
        match self.own(key) {
            Some(shard) => shard.commit(slot, about).await,
            None => self.ask(key, |reply| Request::Commit { slot, about, reply }).await?,
        }
    }

    /// Takes the block out of every tier. False if none had it.
    ///
    /// # Errors
    /// [`StoreError::Busy`] and [`StoreError::Draining`].
    pub async fn remove(&self, key: Key) -> Result<bool, StoreError> {
        match self.own(key) {
            Some(shard) => shard.remove(key).await,
            None => self.ask(key, |reply| Request::Remove { key, reply }).await?,
        }
    }

    /// Keeps the block in RAM, or lets it go again. False if RAM does not hold it.
    ///
    /// # Errors
    /// [`StoreError::Busy`] and [`StoreError::Draining`].
    pub async fn pin(&self, key: Key, is_pinned: bool) -> Result<bool, StoreError> {
        match self.own(key) {
            Some(shard) => Ok(shard.pin(key, is_pinned)),
            None => self.ask(key, |reply| Request::Pin { key, is_pinned, reply }).await,
        }
    }

    /// Brings blocks into RAM, those that come before `deadline`. Says how many are there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn prefetch(&self, keys: &[Key], deadline: Instant) -> Result<usize, StoreError> {
        let shards = self.house.inboxes.len();
        let mut count = 0;
        for batch in keys.chunks(PREFETCHES_AT_ONCE) {
            if Instant::now() >= deadline {
                break;
            }
            let mut asked = Vec::with_capacity(batch.len());
            for &key in batch {
                let (reply, waiting) = reply();
                let deadline = Some(deadline);
                let get = Request::Get { key, reach: Reach::Peers, deadline, reply };
                self.send(key.shard(shards), get)?;
                asked.push(waiting);
            }
            for waiting in asked {
                let got = waiting.answer().await.ok_or(StoreError::Draining)??;
                count += usize::from(got.is_some());
            }
        }
        Ok(count)
    }

    /// Up to `max` blocks, and a cursor to go on with; a cursor of 0 begins and ends.
    ///
    /// # Errors
    /// [`StoreError::Busy`] and [`StoreError::Draining`].
    pub async fn list(
        &self,
        namespace: Option<NamespaceId>,
        cursor: u64,
        max: usize,
    ) -> Result<(Vec<Listed>, u64), StoreError> {
        let shards = self.house.inboxes.len();
        let (mut number, mut at) = ((cursor >> 32) as usize, cursor as u32);
        let mut listed = Vec::new();
        while number < shards {
            let (reply, waiting) = reply();
            let max = max.max(1).saturating_sub(listed.len());
            self.send(number, Request::List { namespace, cursor: at, max, reply })?;
            let (page, next) = waiting.answer().await.ok_or(StoreError::Draining)?;
            listed.extend(page);
            match next {
                Some(next) => return Ok((listed, (number as u64) << 32 | u64::from(next))),
                None => (number, at) = (number + 1, 0),
            }
        }
        Ok((listed, 0))
    }

    /// Whether the block's bytes are still as they were stored, in RAM and on disk; what is wrong is
    /// dropped. None if no tier has it. It is not brought into RAM.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn verify(&self, key: Key) -> Result<Option<bool>, StoreError> {
        // A task of the shard's own, on whatever thread: a read of the disk is not dropped half way.
        self.ask(key, |reply| Request::Verify { key, reply }).await?
    }

    /// Writes down what every shard and namespace holds.
    pub async fn measure(&self) {
        for namespace in self.house.namespaces.all() {
            self.house.stats.namespace(&namespace.name, namespace.used_bytes());
        }
        self.ask_all(|reply| Request::Measure { reply }).await;
    }

    /// Tells every shard to take no more blocks.
    pub async fn drain(&self) {
        self.ask_all(|reply| Request::Drain { reply }).await;
    }

    /// Asks one shard after the other. One that takes no request is left out.
    async fn ask_all(&self, request: impl Fn(Reply<()>) -> Request) {
        for number in 0..self.house.inboxes.len() {
            let (reply, waiting) = reply();
            if self.send(number, request(reply)).is_ok() {
                waiting.answer().await;
            }
        }
    }

    fn own(&self, key: Key) -> Option<&Rc<Shard>> {
        let owner = key.shard(self.house.inboxes.len());
        self.local.as_ref().filter(|shard| shard.number() == owner)
    }

    fn send(&self, shard: usize, request: Request) -> Result<(), StoreError> {
        self.house.inboxes[shard].send(request).map_err(|_| StoreError::Busy)
    }

    async fn ask<T>(
        &self,
        key: Key,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, StoreError> {
        let (reply, waiting) = reply();
        self.send(key.shard(self.house.inboxes.len()), request(reply))?;
        waiting.answer().await.ok_or(StoreError::Draining)
    }
}
