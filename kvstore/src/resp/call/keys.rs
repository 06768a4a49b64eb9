//! Commands on blocks.

use std::io;
use std::time::{Duration, Instant};

use super::super::client::{Refusal, store_refusal};
use super::super::connection::Value;
use super::super::pattern::fits;
use super::Call;
use crate::arena::Slot;
use crate::block::Lease;
use crate::key::Key;
use crate::store::{About, StoreError};

/// What every command about time is answered.
pub(super) const NO_EXPIRY: &str =
    "ERR expiry is not supported: blocks leave by eviction; use SET without EX, PX, EXAT or PXAT";
/// What a GET is answered whose block was evicted after EXISTS found it. Longer than any header a client
/// may be waiting for.
const BROKEN_PROMISE: &str = "ERR the block was evicted after EXISTS found it; ask again";
/// How long an EXISTS waits for a block that only a peer has: LMCache gives up a lookup after 3 s.
const EXISTS_PEERS_MAX: Duration = Duration::from_secs(1);
/// Blocks one SCAN looks at when it does not say how many, as in redis.
const SCAN_COUNT: usize = 10;
/// Blocks one SCAN looks at at most: its reply is whole in memory.
const SCAN_COUNT_MAX: usize = 1024;
/// Blocks listed at a time where all are walked through.
const PAGE_BLOCKS: usize = 1024;

/// When a SET stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum If {
    Always,
    /// NX
    Absent,
    /// XX
    Present,
}

fn refuse(error: StoreError) -> Refusal {
    store_refusal(&error)
}

impl Call<'_> {
    pub(super) async fn get(&mut self) -> Result<(), Refusal> {
        let key = self.client.key(self.argument(1))?;
        match self.client.store.get(key, None).await.map_err(refuse)? {
            Some(block) => self.output.block(block),
            None if self.client.was_promised(&key) => self.output.error(BROKEN_PROMISE),
            None => self.output.nil(),
        }
        Ok(())
    }

    /// Many blocks in one reply. What is full is sent before the next is fetched.
    pub(super) async fn mget(&mut self) -> io::Result<()> {
        let arguments = self.arguments;
        self.output.array(arguments.len() - 1);
        for label in arguments.from(1) {
            let found = match self.client.key(label) {
                Ok(key) => self.client.store.get(key, None).await,
                Err(_) => Ok(None),
            };
            match found {
                Ok(Some(block)) => self.output.block(block),
                // Within an array there is no place for an error that RESP2 clients understand.
                Ok(None) | Err(_) => self.output.nil(),
            }
            if self.output.is_full() {
                self.wire.write(self.output).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn set(&mut self) -> Result<(), Refusal> {
        let when = set_options(self)?;
        match self.store_value(when).await? {
            true => self.output.simple("OK"),
            false => self.output.nil(),
        }
        Ok(())
    }

    pub(super) async fn set_nx(&mut self) -> Result<(), Refusal> {
        let is_stored = self.store_value(If::Absent).await?;
        self.output.integer(u64::from(is_stored));
        Ok(())
    }

    /// Stores the value of a SET. False if there is, or is not, such a block already.
    async fn store_value(&mut self, when: If) -> Result<bool, Refusal> {
        let label = self.argument(1);
        let key = self.client.key(label)?;
        if when != If::Always && self.is_present(key).await? != (when == If::Present) {
            return Ok(false);
        }
        let slot = self.take_value(key, 2).await?;
        self.commit(slot, key, label).await?;
        Ok(true)
    }

    /// The value that was taken off the wire, or, of an inline command, the argument at `index`.
    async fn take_value(&mut self, key: Key, index: usize) -> Result<Slot, Refusal> {
        if !self.values.is_empty() {
            return match self.values.remove(0) {
                Value::Slot(slot) => Ok(slot),
                Value::Refused(refusal) => Err(refusal),
            };
        }
        let bytes = self.argument(index);
        let mut slot = self.client.store.reserve(key, bytes.len()).await.map_err(refuse)?;
        slot.bytes_mut().copy_from_slice(bytes);
        Ok(slot)
    }

    async fn commit(&mut self, slot: Slot, key: Key, label: &[u8]) -> Result<(), Refusal> {
        let about = About { key, parent: None, label: label.into(), is_durable: false, hash: None };
        self.client.store.commit(slot, about).await.map_err(refuse)
    }

    /// Stores all or, as far as one can know beforehand, nothing.
    pub(super) async fn mset(&mut self) -> Result<(), Refusal> {
        if self.arguments.len().is_multiple_of(2) {
            return Err("ERR wrong number of arguments for 'mset' command".to_owned());
        }
        let mut taken = Vec::with_capacity(self.arguments.len() / 2);
        for index in (1..self.arguments.len()).step_by(2) {
            let label = self.argument(index);
            let key = self.client.key(label)?;
            taken.push((self.take_value(key, index + 1).await?, key, label));
        }
        for (slot, key, label) in taken {
            self.commit(slot, key, label).await?;
        }
        self.output.simple("OK");
        Ok(())
    }

    /// Counts those there are; a key named twice counts twice, as in redis.
    pub(super) async fn exists(&mut self) -> Result<(), Refusal> {
        let keys = self.keys()?;
        let tiers = self.client.store.lookup(&keys).await.map_err(refuse)?;
        let mut count = 0;
        for (key, tier) in keys.iter().zip(tiers) {
            if tier.is_some() || self.comes_from_peer(*key).await? {
                self.client.promise(key);
                count += 1;
            }
        }
        self.output.integer(count);
        Ok(())
    }

    /// Whether a peer had the block: then it is here now, as what EXISTS says must be.
    async fn comes_from_peer(&self, key: Key) -> Result<bool, Refusal> {
        let store = &self.client.store;
        if store.house().peers.get().is_none() {
            return Ok(false);
        }
        let deadline = Instant::now() + EXISTS_PEERS_MAX;
        Ok(store.get(key, Some(deadline)).await.map_err(refuse)?.is_some())
    }

    pub(super) async fn del(&mut self) -> Result<(), Refusal> {
        let mut count = 0;
        for key in self.keys()? {
            count += u64::from(self.client.store.remove(key).await.map_err(refuse)?);
            self.client.forget(&key);
        }
        self.output.integer(count);
        Ok(())
    }

    fn keys(&self) -> Result<Vec<Key>, Refusal> {
        self.arguments.from(1).map(|label| self.client.key(label)).collect()
    }

    async fn is_present(&self, key: Key) -> Result<bool, Refusal> {
        let tiers = self.client.store.lookup(&[key]).await.map_err(refuse)?;
        Ok(tiers.first().is_some_and(Option::is_some))
    }

    async fn lease(&self, label: &[u8]) -> Result<Option<Lease>, Refusal> {
        let key = self.client.key(label)?;
        self.client.store.get(key, None).await.map_err(refuse)
    }

    pub(super) async fn strlen(&mut self) -> Result<(), Refusal> {
        let block = self.lease(self.argument(1)).await?;
        self.output.integer(block.map_or(0, |block| block.len() as u64));
        Ok(())
    }

    pub(super) async fn kind(&mut self) -> Result<(), Refusal> {
        let is_present = self.is_present(self.client.key(self.argument(1))?).await?;
        self.output.simple(if is_present { "string" } else { "none" });
        Ok(())
    }

    /// No block expires: -1. No block: -2.
    pub(super) async fn ttl(&mut self) -> Result<(), Refusal> {
        let is_present = self.is_present(self.client.key(self.argument(1))?).await?;
        self.output.negative(if is_present { 1 } else { 2 });
        Ok(())
    }

    /// MEMORY USAGE: what the block takes of the arena.
    pub(super) async fn memory(&mut self) -> Result<(), Refusal> {
        if !self.arguments.is(1, "USAGE") || self.arguments.len() < 3 {
            return Err("ERR of MEMORY only MEMORY USAGE key is known".to_owned());
        }
        match self.lease(self.argument(2)).await? {
            Some(block) => self.output.integer(block.charged_bytes()),
            None => self.output.nil(),
        }
        Ok(())
    }

    pub(super) async fn scan(&mut self) -> Result<(), Refusal> {
        let cursor = number(self.argument(1)).ok_or("ERR invalid cursor")?;
        let (mut pattern, mut count, mut is_string) = (&b"*"[..], SCAN_COUNT, true);
        for index in (2..self.arguments.len()).step_by(2) {
            let value = self.arguments.get(index + 1).ok_or("ERR syntax error")?;
            if self.arguments.is(index, "MATCH") {
                pattern = value;
            } else if self.arguments.is(index, "COUNT") {
                let asked = number(value).filter(|count| *count > 0).ok_or("ERR syntax error")?;
                count = usize::try_from(asked).unwrap_or(SCAN_COUNT_MAX).min(SCAN_COUNT_MAX);
            } else if self.arguments.is(index, "TYPE") {
                is_string = value.eq_ignore_ascii_case(b"string");
            } else {
                return Err("ERR syntax error".to_owned());
            }
        }
        let namespace = self.client.namespace()?.id;
        let listed = self.client.store.list(Some(namespace), cursor, count).await;
        let (listed, next) = listed.map_err(refuse)?;
        // A block that was named by a digest has no key that a redis client could use.
        let labels = listed.iter().map(|listed| &*listed.label);
        let labels: Vec<&[u8]> =
            labels.filter(|label| is_string && !label.is_empty() && fits(pattern, label)).collect();
        self.output.array(2);
        self.output.bulk(next.to_string().as_bytes());
        self.output.array(labels.len());
        labels.into_iter().for_each(|label| self.output.bulk(label));
        Ok(())
    }

    pub(super) async fn dbsize(&mut self) -> Result<(), Refusal> {
        let namespace = self.client.namespace()?.id;
        let (mut count, mut cursor) = (0, 0);
        loop {
            let listed = self.client.store.list(Some(namespace), cursor, PAGE_BLOCKS).await;
            let (listed, next) = listed.map_err(refuse)?;
            count += listed.len() as u64;
            if next == 0 {
                self.output.integer(count);
                return Ok(());
            }
            cursor = next;
        }
    }

    /// Takes out every block of the database; what is stored meanwhile may stay.
    pub(super) async fn flushdb(&mut self) -> Result<(), Refusal> {
        let namespace = self.client.namespace()?.id;
        let mut cursor = 0;
        loop {
            let listed = self.client.store.list(Some(namespace), cursor, PAGE_BLOCKS).await;
            let (listed, next) = listed.map_err(refuse)?;
            for listed in listed {
                self.client.store.remove(listed.key).await.map_err(refuse)?;
            }
            if next == 0 {
                self.output.simple("OK");
                return Ok(());
            }
            cursor = next;
        }
    }
}

/// The options after key and value.
fn set_options(call: &Call<'_>) -> Result<If, Refusal> {
    let mut when = If::Always;
    let arguments = call.arguments;
    let is = |index: usize, words: &[&str]| words.iter().any(|word| arguments.is(index, word));
    for index in 3..arguments.len() {
        if is(index, &["EX", "PX", "EXAT", "PXAT"]) {
            return Err(NO_EXPIRY.to_owned());
        }
        when = match when {
            If::Always if is(index, &["NX"]) => If::Absent,
            If::Always if is(index, &["XX"]) => If::Present,
            // There is no time to keep.
            _ if is(index, &["KEEPTTL"]) => when,
            _ => return Err("ERR syntax error".to_owned()),
        };
    }
    Ok(when)
}

/// A cursor or a count.
fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
