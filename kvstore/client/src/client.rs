//! A connection to one namespace of the daemon, for callers that may wait.
//!
//! A client may be shared by threads: their requests go one after the other. Who wants two at once
//! connects twice. Lists of any length are cut into frames of `dataplane::kv::BATCH_MAX` blocks.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use dataplane::kv::{
    Answer, BATCH_MAX, FRAME_BYTES_MAX, Fault, Got, LABEL_BYTES_MAX, Listed, NAMESPACE_BYTES_MAX,
    Name, Request, Staged, Tier, VERSION,
};

use crate::error::Error;
use crate::lease::{Found, Lease, Releases};
use crate::line::Line;
use crate::mapping::Arena;
use crate::polling::Polling;
use crate::staging::{Draft, Staging, Written};

/// Bytes of a frame that a block with its parent takes, beside its label.
const STAGED_BYTES: usize = 85;

/// What to ask for at connect.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the client in the daemon's log.
    pub client: String,
    /// Length of the staging memory; 0 is none, for a client that only reads. It takes memory only as
    /// far as blocks were put at once.
    pub staging_bytes: u64,
    /// Longest wait for an answer; after it the connection is lost.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            client: "kvclient".to_owned(),
            staging_bytes: 256 << 20,
            timeout: Duration::from_secs(30),
        }
    }
}

/// What the daemon said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest block in bytes.
    pub block_bytes_max: u64,
    /// Most leases at once.
    pub leases_max: u32,
}

/// A block to be put, wherever its bytes are now.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// Its name.
    pub name: Name,
    /// The block before it, which must be there or come earlier in the same put.
    pub parent: Option<Name>,
    /// Its bytes, at least one.
    pub bytes: &'a [u8],
    /// The client's own words for it, up to 1,024 bytes.
    pub label: &'a [u8],
}

/// What leases, drafts and the client hold together: the last of them hangs up.
pub(crate) struct Shared {
    line: Mutex<Line>,
    pub(crate) arena: Arena,
    pub(crate) staging: Option<Staging>,
    pub(crate) releases: Releases,
    pub(crate) timeout: Duration,
    limits: Limits,
}

impl Shared {
    fn line(&self) -> MutexGuard<'_, Line> {
        // Whoever panicked in the middle of a frame leaves a line whose ids do not fit: it is lost then.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ask(&self, request: &Request) -> Result<Answer, Error> {
        let mut line = self.line();
        line.ask(self.releases.take(), request)
    }

    pub(crate) fn tell(&self, request: Option<&Request>) -> Result<(), Error> {
        let mut line = self.line();
        line.tell(self.releases.take(), request)
    }

    /// Tells the daemon which leases are over, unless another thread is asking something: what is left
    /// then goes with the next request. A line that is lost has none to tell.
    pub(crate) fn flush_releases(&self) {
        let mut line = match self.line.try_lock() {
            Ok(line) => line,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let _ = line.tell(self.releases.take(), None);
    }

    /// Tells the daemon now that these leases are over.
    pub(crate) fn release(&self, leases: &[u64]) -> Result<(), Error> {
        let mut over = self.releases.take();
        over.extend_from_slice(leases);
        self.line().tell(over, None)
    }

    /// GET of one frame's blocks; what is leased lies in the arena.
    pub(crate) fn grants(&self, names: &[Name], deadline_ms: u32) -> Result<Vec<Got>, Error> {
        let blocks = match self.ask(&Request::Get { names: names.to_vec(), deadline_ms })? {
            Answer::Get { blocks } if blocks.len() == names.len() => blocks,
            _ => return Err(unexpected()),
        };
        let is_inside = |got: &Got| match *got {
            Got::Leased { offset, len, .. } => self.arena.leased(offset, len).is_some(),
            _ => true,
        };
        if blocks.iter().all(is_inside) { Ok(blocks) } else { Err(unexpected()) }
    }
}

/// A connection to the daemon.
pub struct Client {
    shared: Arc<Shared>,
    ring: Mutex<Option<(OwnedFd, u64)>>,
}

impl Client {
    /// Connects to the daemon at `path`, for the blocks of `namespace`.
    ///
    /// # Errors
    /// [`Error::Connect`] without a daemon; [`Error::Refused`] where it wants no more clients or
    /// namespaces.
    pub fn connect(path: &Path, namespace: &str, options: &Options) -> Result<Client, Error> {
        Client::dial(path, namespace, options, false)
    }

    /// As [`Client::connect`], with a ring for [`Client::polling`].
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_to_poll(
        path: &Path,
        namespace: &str,
        options: &Options,
    ) -> Result<Client, Error> {
        Client::dial(path, namespace, options, true)
    }

    fn dial(path: &Path, namespace: &str, options: &Options, ring: bool) -> Result<Client, Error> {
        if namespace.is_empty() || namespace.len() > NAMESPACE_BYTES_MAX {
            return Err(Error::Invalid("a namespace has a name of 1 to 256 bytes"));
        }
        let (staging, staging_fd, staging_bytes) = match options.staging_bytes {
            0 => (None, None, 0),
            bytes => {
                let (staging, fd, bytes) = Staging::new(bytes)?;
                (Some(staging), Some(fd), bytes)
            }
        };
        let mut line = Line::dial(path, options.timeout)?;
        let hello = Request::Hello {
            version: VERSION,
            namespace: namespace.to_owned(),
            client: options.client.clone(),
            staging_bytes,
            ring,
        };
        let (answer, fds) = line.greet(&hello, staging_fd.as_ref().map(AsFd::as_fd))?;
        let (arena_bytes, ring_bytes, limits) = match answer {
            Answer::Hello {
                version: VERSION,
                arena_bytes,
                block_bytes_max,
                leases_max,
                ring_bytes,
                ..
            } => (arena_bytes, ring_bytes, Limits { block_bytes_max, leases_max }),
            Answer::Refused { fault, text } => return Err(Error::Refused { fault, text }),
            _ => return Err(unexpected()),
        };
        let mut fds = fds.into_iter();
        let arena = fds.next().ok_or_else(unexpected)?;
        let arena = Arena::new(arena.as_fd(), arena_bytes)?;
        let ring = fds.next().filter(|_| ring_bytes > 0).map(|fd| (fd, ring_bytes));
        let (line, releases) = (Mutex::new(line), Releases::default());
        let timeout = options.timeout;
        let shared = Arc::new(Shared { line, arena, staging, releases, timeout, limits });
        Ok(Client { shared, ring: Mutex::new(ring) })
    }

    /// What the daemon takes.
    pub fn limits(&self) -> Limits {
        self.shared.limits
    }

    /// Where the leading blocks are: as many tiers as blocks of the prefix are on the node.
    ///
    /// # Errors
    /// Any [`Error`]
    pub fn lookup(&self, names: &[Name]) -> Result<Vec<Tier>, Error> {
        let mut all = Vec::new();
        for names in names.chunks(BATCH_MAX) {
            let tiers = match self.shared.ask(&Request::Lookup { names: names.to_vec() })? {
                Answer::Lookup { tiers } if tiers.len() <= names.len() => tiers,
                _ => return Err(unexpected()),
            };
            let is_whole = tiers.len() == names.len();
            all.extend(tiers);
            if !is_whole {
                break;
            }
        }
        Ok(all)
    }

    /// Leases on blocks, fetched from disk or peers where need be, within `deadline` or the daemon's own
    /// limit. One answer for each name.
    ///
    /// # Errors
    /// Any [`Error`]; what can be said of one block alone is in its [`Found`].
    pub fn get(&self, names: &[Name], deadline: Option<Duration>) -> Result<Vec<Found>, Error> {
        let mut all = Vec::with_capacity(names.len());
        for names in names.chunks(BATCH_MAX) {
            let blocks = self.shared.grants(names, milliseconds(deadline))?;
            all.extend(blocks.into_iter().map(|got| match got {
                Got::Leased { lease, offset, len } => {
                    Found::Lease(Lease::new(&self.shared, lease, offset, len))
                }
                Got::Missing => Found::Missing,
                Got::Failed(fault) => Found::Failed(fault),
            }));
        }
        Ok(all)
    }

    /// A part of the staging memory to make a block of `len` bytes in.
    ///
    /// # Errors
    /// [`Error::StagingFull`] when other drafts have it.
    pub fn reserve(&self, len: usize) -> Result<Draft, Error> {
        Draft::new(&self.shared, len)
    }

    /// Puts blocks that were made in place. With `durable` the answer waits for the disk.
    ///
    /// # Errors
    /// Any [`Error`]; what can be said of one block alone is in its result.
    pub fn commit(
        &self,
        blocks: Vec<Written>,
        durable: bool,
    ) -> Result<Vec<Result<(), Fault>>, Error> {
        if blocks.iter().any(|block| !block.draft.is_of(&self.shared)) {
            return Err(Error::Invalid("a draft goes to the client that made it"));
        }
        if blocks.iter().any(|block| block.label.len() > LABEL_BYTES_MAX) {
            return Err(Error::Invalid("a label has at most 1,024 bytes"));
        }
        let mut all = Vec::with_capacity(blocks.len());
        let mut rest = blocks.as_slice();
        while !rest.is_empty() {
            let (blocks, behind) = rest.split_at(frame_of(rest));
            rest = behind;
            let staged = blocks.iter().map(|block| Staged {
                name: block.name,
                parent: block.parent,
                offset: block.draft.offset(),
                len: block.draft.len() as u64,
                label: block.label.clone(),
            });
            let request = Request::Put { durable, blocks: staged.collect() };
            let results = self.blocks(&request, blocks.len())?;
            all.extend(results.into_iter().map(|result| result.map(|_| ())));
        }
        Ok(all)
    }

    /// Puts blocks from wherever they are, by a copy into the staging memory; as many at once as fit.
    ///
    /// # Errors
    /// [`Error::StagingFull`] when one block alone does not fit.
    pub fn put(
        &self,
        blocks: &[Block<'_>],
        durable: bool,
    ) -> Result<Vec<Result<(), Fault>>, Error> {
        let mut all = Vec::with_capacity(blocks.len());
        let mut gathered: Vec<Written> = Vec::new();
        for block in blocks {
            let draft = match self.reserve(block.bytes.len()) {
                Err(Error::StagingFull { .. }) if !gathered.is_empty() => {
                    all.extend(self.commit(std::mem::take(&mut gathered), durable)?);
                    self.reserve(block.bytes.len())
                }
                other => other,
            };
            let mut draft = draft?;
            draft.copy_from_slice(block.bytes);
            let (name, parent, label) = (block.name, block.parent, block.label.to_vec());
            gathered.push(Written { name, parent, label, draft });
        }
        all.extend(self.commit(gathered, durable)?);
        Ok(all)
    }

    /// Keeps blocks from eviction, or lets them go again. `Ok(false)`: there is no such block.
    ///
    /// # Errors
    /// Any [`Error`]
    pub fn pin(&self, names: &[Name], pinned: bool) -> Result<Vec<Result<bool, Fault>>, Error> {
        self.each(names, |names| Request::Pin { names, pinned })
    }

    /// Forgets blocks. `Ok(false)`: there was no such block.
    ///
    /// # Errors
    /// Any [`Error`]
    pub fn remove(&self, names: &[Name]) -> Result<Vec<Result<bool, Fault>>, Error> {
        self.each(names, |names| Request::Remove { names })
    }

    /// Brings blocks into memory; after `deadline` that is of no use any more. How many are there or on
    /// their way.
    ///
    /// # Errors
    /// Any [`Error`]
    pub fn prefetch(&self, names: &[Name], deadline: Duration) -> Result<u64, Error> {
        let (mut sum, deadline_ms) = (0, milliseconds(Some(deadline)));
        for names in names.chunks(BATCH_MAX) {
            match self.shared.ask(&Request::Prefetch { names: names.to_vec(), deadline_ms })? {
                Answer::Count { blocks } => sum += blocks,
                _ => return Err(unexpected()),
            }
        }
        Ok(sum)
    }

    /// The daemon's counters.
    ///
    /// # Errors
    /// Any [`Error`]
    pub fn stats(&self) -> Result<Vec<(String, u64)>, Error> {
        match self.shared.ask(&Request::Stats)? {
            Answer::Stats { lines } => Ok(lines),
            _ => Err(unexpected()),
        }
    }

    /// Some blocks, at most `blocks_max`, and the cursor to go on with; 0 begins and ends. `everywhere` asks
    /// for those of all namespaces, which only the daemon's own user or root may.
    ///
    /// # Errors
    /// Any [`Error`]
    pub fn list(
        &self,
        everywhere: bool,
        cursor: u64,
        blocks_max: u32,
    ) -> Result<(Vec<Listed>, u64), Error> {
        match self.shared.ask(&Request::List { everywhere, cursor, blocks_max })? {
            Answer::List { blocks, next } => Ok((blocks, next)),
            _ => Err(unexpected()),
        }
    }

    /// Compares some blocks with their digests, and throws away those that differ: how many were looked at,
    /// how many were wrong, and the cursor to go on with. For the daemon's own user or root.
    ///
    /// # Errors
    /// Any [`Error`]
    pub fn verify(
        &self,
        everywhere: bool,
        cursor: u64,
        blocks_max: u32,
    ) -> Result<(u64, u64, u64), Error> {
        self.sweep(&Request::Verify { everywhere, cursor, blocks_max })
    }

    /// Forgets some blocks: how many were looked at, how many were forgotten, and the cursor to go on with.
    /// For the daemon's own user or root.
    ///
    /// # Errors
    /// Any [`Error`]
    pub fn evict(
        &self,
        everywhere: bool,
        cursor: u64,
        blocks_max: u32,
    ) -> Result<(u64, u64, u64), Error> {
        self.sweep(&Request::Evict { everywhere, cursor, blocks_max })
    }

    /// Tells the daemon to take nothing new. For its own user or root.
    ///
    /// # Errors
    /// Any [`Error`]
    pub fn drain(&self) -> Result<(), Error> {
        match self.shared.ask(&Request::Drain)? {
            Answer::Draining => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Another handle of the same connection that asks through shared memory.
    ///
    /// # Errors
    /// [`Error::Invalid`] when this client was not made by [`Client::connect_to_poll`], or there is one
    /// already.
    pub fn polling(&self) -> Result<Polling, Error> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (fd, bytes) = ring.ok_or(Error::Invalid(
            "one polling handle for each client made by connect_to_poll; the daemon may give no ring",
        ))?;
        Polling::new(Arc::clone(&self.shared), fd.as_fd(), bytes)
    }

    /// What requests and leases share.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn each(
        &self,
        names: &[Name],
        request: impl Fn(Vec<Name>) -> Request,
    ) -> Result<Vec<Result<bool, Fault>>, Error> {
        let mut all = Vec::with_capacity(names.len());
        for names in names.chunks(BATCH_MAX) {
            all.extend(self.blocks(&request(names.to_vec()), names.len())?);
        }
        Ok(all)
    }

    fn sweep(&self, request: &Request) -> Result<(u64, u64, u64), Error> {
        match self.shared.ask(request)? {
            Answer::Swept { seen, dropped, next } => Ok((seen, dropped, next)),
            _ => Err(unexpected()),
        }
    }

    fn blocks(&self, request: &Request, count: usize) -> Result<Vec<Result<bool, Fault>>, Error> {
        match self.shared.ask(request)? {
            Answer::Blocks { results } if results.len() == count => Ok(results),
            _ => Err(unexpected()),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("limits", &self.shared.limits).finish_non_exhaustive()
    }
}

/// How many of these, at least one, fit into one frame.
fn frame_of(blocks: &[Written]) -> usize {
    let mut bytes = 16;
    let fit = blocks.iter().take(BATCH_MAX).take_while(|block| {
        bytes += STAGED_BYTES + block.label.len();
        bytes <= FRAME_BYTES_MAX
    });
    fit.count().max(1)
}

/// For the wire; 0, which is no deadline of one's own, only for none.
fn milliseconds(deadline: Option<Duration>) -> u32 {
    deadline.map_or(0, |deadline| u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX).max(1))
}

fn unexpected() -> Error {
    Error::Lost("the daemon answered something else than was asked".to_owned())
}
