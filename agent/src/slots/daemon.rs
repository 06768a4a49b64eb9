//! A state into the KV daemon and out of it again, over its native door. Everything here blocks: callers
//! give it a thread ([`super::keeper`]).
//!
//! Nothing it finds is believed: a value that is not ours is a miss, and a state that was fetched is held
//! against the prompt's digests before an engine gets it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, TryLockError};
use std::time::{Duration, Instant};

use dataplane::digest::{self, Digest, Unit};
use dataplane::kv::{BATCH_MAX, Fault, Name};
use kvclient::{Block, Client, Options, Written};

use super::file::{self, FileError};
use super::value::{Manifest, PARTS_MAX, Part, Pointer, Value};

/// Longest part of a state: it goes through the client's staging memory in one piece. A daemon that takes
/// less gets less.
const PART_BYTES_MAX: u64 = 64 << 20;
/// A daemon that answers nothing for so long is gone. Longer than a put of one part takes, and shorter
/// than a person waits.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Blocks asked of the whole cluster beyond what the node has, evenly spread over the rest of the prompt: a
/// lookup knows the node alone, a GET asks peers. With so many a match is known to a sixteenth.
const PROBES: usize = 16;
/// Read at once where a file is hashed.
const HASH_BYTES: usize = 1 << 20;

/// Why a state was not stored or not had, by what it is counted as.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The daemon is away, or the line to it broke.
    #[error(transparent)]
    Daemon(#[from] kvclient::Error),
    /// The daemon would not take or give a block.
    #[error("the daemon: {0}")]
    Refused(Fault),
    /// What was stored first was evicted before the last of it came: older blocks are worth more to the
    /// daemon.
    #[error("the daemon has no room for a state that nobody has used yet; see kv.ram_gib")]
    Full,
    /// The engine's file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The slot folder.
    #[error("the slot folder: {0}")]
    Io(#[from] io::Error),
    /// Over `[agent] kv_state_mib_max`.
    #[error("a state of {0} bytes is over [agent] kv_state_mib_max")]
    TooLarge(u64),
    /// Not one whole block.
    #[error("the state is shorter than a block")]
    Short,
    /// The daemon has nothing that begins like the prompt, or too little.
    #[error("no state in the daemon has enough in common with the prompt")]
    Nothing,
    /// Most of the state found is of something else: the engine would rather begin anew.
    #[error("the state found is mostly of another prompt")]
    Foreign,
    /// More tokens than a slot has room for.
    #[error("the state is longer than the slot")]
    Fit,
    /// It was named, and is not there any more, or what lies there is not it.
    #[error("the state is gone, or is not what its name says")]
    Gone,
    /// The deadline passed.
    #[error("too late")]
    Late,
    /// What was asked before is not over, although nobody waits for it any more.
    #[error("the line to the daemon is busy with what was asked before")]
    Busy,
}

impl StoreError {
    /// For metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            StoreError::Daemon(_) | StoreError::Refused(_) => "daemon",
            StoreError::Full => "full",
            StoreError::File(_) | StoreError::Io(_) => "file",
            StoreError::TooLarge(_) => "too_large",
            StoreError::Short => "short",
            StoreError::Nothing => "nothing",
            StoreError::Foreign => "foreign",
            StoreError::Fit => "does_not_fit",
            StoreError::Gone => "gone",
            StoreError::Late => "late",
            StoreError::Busy => "busy",
        }
    }
}

/// How tokens become names.
#[derive(Clone, Debug)]
pub struct Naming {
    /// The name clients ask for.
    pub model: String,
    /// Tokens in a block.
    pub block_tokens: u32,
}

impl Naming {
    /// The digests of all whole blocks, as a router makes them of a prompt without a cache salt.
    fn names(&self, tokens: &[u32]) -> Vec<Digest> {
        let seed = digest::seed(Unit::Tokens, &self.model, "", "");
        digest::of_tokens(&seed, tokens, self.block_tokens as usize)
    }
}

/// A connection to one namespace of the daemon, made when it is needed and again after it broke.
#[derive(Debug)]
pub struct Line {
    socket: PathBuf,
    namespace: String,
    staging_bytes: u64,
    client: Mutex<Option<Client>>,
}

impl Line {
    /// For states that are stored.
    pub fn to_store(socket: &Path, namespace: &str) -> Self {
        Line::new(socket, namespace, PART_BYTES_MAX)
    }

    /// For states that are had.
    pub fn to_fetch(socket: &Path, namespace: &str) -> Self {
        Line::new(socket, namespace, 0)
    }

    fn new(socket: &Path, namespace: &str, staging_bytes: u64) -> Self {
        let (socket, namespace) = (socket.to_owned(), namespace.to_owned());
        Line { socket, namespace, staging_bytes, client: Mutex::new(None) }
    }

    /// Whether the daemon answers.
    ///
    /// # Errors
    /// [`StoreError::Daemon`], [`StoreError::Busy`].
    pub fn greet(&self) -> Result<(), StoreError> {
        self.ask(|client| Ok(client.lookup(&[Name::default()]).map(drop)?))
    }

    /// Asks over the connection. One that was kept may be to a daemon that is gone: then once more, over
    /// a new one.
    fn ask<T>(&self, ask: impl Fn(&Client) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut kept = match self.client.try_lock() {
            Ok(kept) => kept,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(StoreError::Busy),
        };
        if let Some(client) = kept.take() {
            match ask(&client) {
                Err(StoreError::Daemon(kvclient::Error::Lost(_))) => {}
                other => {
                    *kept = is_usable(&other).then_some(client);
                    return other;
                }
            }
        }
        let options = Options {
            client: "cgn-agent".to_owned(),
            staging_bytes: self.staging_bytes,
            timeout: TIMEOUT,
        };
        let client = Client::connect(&self.socket, &self.namespace, &options)?;
        let asked = ask(&client);
        *kept = is_usable(&asked).then_some(client);
        asked
    }
}

fn is_usable<T>(asked: &Result<T, StoreError>) -> bool {
    !matches!(
        asked,
        Err(StoreError::Daemon(
            kvclient::Error::Lost(_) | kvclient::Error::TimedOut(_) | kvclient::Error::Wire(_)
        ))
    )
}

/// What was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Tokens of the state.
    pub tokens: u32,
    /// Bytes of it.
    pub bytes: u64,
}

/// Stores the slot file at `path`.
///
/// # Errors
/// Any [`StoreError`]; what was stored by then is found by nobody, and is evicted in time.
pub fn store(
    line: &Line,
    naming: &Naming,
    path: &Path,
    bytes_max: u64,
) -> Result<Stored, StoreError> {
    let mut slot_file = File::open(path)?;
    let bytes = slot_file.metadata()?.len();
    if bytes > bytes_max {
        return Err(StoreError::TooLarge(bytes));
    }
    let tokens = file::tokens(&mut slot_file, bytes)?;
    let names = naming.names(&tokens);
    let Some((state, before)) = names.split_last() else { return Err(StoreError::Short) };
    let tokens = u32::try_from(tokens.len()).map_err(|_| FileError::Torn)?;
    line.ask(|client| {
        let part_bytes = client.limits().block_bytes_max.clamp(1, PART_BYTES_MAX);
        let parts = parts(File::open(path)?, bytes, part_bytes)?;
        let manifest = Manifest { tokens, parts };
        let replaced = replaced(client, &names, &manifest)?;
        put_chain(client, before, state, &manifest)?;
        put_parts(client, &state.0, &manifest, File::open(path)?)?;
        if !replaced.is_empty() {
            // The room they take is all that is at stake.
            client.remove(&replaced)?;
        }
        Ok(Stored { tokens, bytes })
    })
}

/// The file cut into parts, each named by its bytes.
fn parts(mut from: File, bytes: u64, part_bytes: u64) -> Result<Vec<Part>, StoreError> {
    if bytes.div_ceil(part_bytes) > PARTS_MAX as u64 {
        return Err(StoreError::TooLarge(bytes));
    }
    let mut buffer = vec![0; HASH_BYTES];
    let (mut parts, mut left) = (Vec::new(), bytes);
    while left > 0 {
        let len = left.min(part_bytes);
        let (mut hasher, mut rest) = (blake3::Hasher::new(), len);
        while rest > 0 {
            let piece = &mut buffer[..rest.min(HASH_BYTES as u64) as usize];
            from.read_exact(piece)?;
            hasher.update(piece);
            rest -= piece.len() as u64;
        }
        parts.push(Part { name: *hasher.finalize().as_bytes(), len });
        left -= len;
    }
    Ok(parts)
}

/// Parts of states that end within this one: the same conversation some turns ago. Nobody will find them
/// once the chain is written anew.
fn replaced(client: &Client, names: &[Digest], new: &Manifest) -> Result<Vec<Name>, StoreError> {
    let names: Vec<Name> = names.iter().map(|name| name.0).collect();
    let depth = client.lookup(&names)?.len().min(names.len());
    let is_kept = |part: &Part| new.parts.iter().any(|new| new.name == part.name);
    let mut replaced = Vec::new();
    for names in names[..depth].chunks(BATCH_MAX) {
        let leases = client.get(names, None)?.into_iter().filter_map(kvclient::Found::lease);
        for value in leases.filter_map(|lease| Value::decode(&lease)) {
            if let Value::Manifest(old) = value {
                let parts = old.parts.iter().filter(|part| !is_kept(part));
                replaced.extend(parts.map(|part| part.name));
            }
        }
    }
    Ok(replaced)
}

/// Writes pointers and manifest, each block with the one before it as its parent.
fn put_chain(
    client: &Client,
    before: &[Digest],
    state: &Digest,
    manifest: &Manifest,
) -> Result<(), StoreError> {
    let pointer = Value::Pointer(Pointer { state: state.0, tokens: manifest.tokens }).encode();
    let manifest = Value::Manifest(manifest.clone()).encode();
    let names = before.iter().chain([state]);
    let parents = [None].into_iter().chain(before.iter().map(|name| Some(name.0)));
    let last = before.len();
    let blocks: Vec<Block<'_>> = names
        .zip(parents)
        .enumerate()
        .map(|(at, (name, parent))| Block {
            name: name.0,
            parent,
            bytes: if at == last { &manifest } else { &pointer },
            label: if at == last { b"slot state" } else { b"slot prefix" },
        })
        .collect();
    all_fine(client.put(&blocks, false)?)
}

/// Copies the file's parts, one at a time: the first has the manifest as its parent, each other the one before
/// it, so that a state goes from its end as well.
fn put_parts(
    client: &Client,
    state: &Name,
    manifest: &Manifest,
    mut from: File,
) -> Result<(), StoreError> {
    let mut parent = *state;
    for part in &manifest.parts {
        let len = usize::try_from(part.len).map_err(|_| StoreError::TooLarge(part.len))?;
        let mut draft = client.reserve(len)?;
        from.read_exact(&mut draft)?;
        let label = b"slot part".to_vec();
        let written = Written { name: part.name, parent: Some(parent), label, draft };
        all_fine(client.commit(vec![written], false)?)?;
        parent = part.name;
    }
    Ok(())
}

fn all_fine(results: Vec<Result<(), Fault>>) -> Result<(), StoreError> {
    results.into_iter().try_for_each(|result| match result {
        Ok(()) => Ok(()),
        Err(Fault::ParentMissing | Fault::Busy | Fault::QuotaExceeded) => Err(StoreError::Full),
        Err(fault) => Err(StoreError::Refused(fault)),
    })
}

/// A prompt, and what of a state it can use.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Its blocks.
    pub names: Vec<Digest>,
    /// A state with fewer of them is not worth it.
    pub blocks_min: usize,
    /// After this it is of no use.
    pub deadline: Instant,
    /// Tokens that a slot has room for.
    pub context_tokens: u32,
    /// Bytes a state may have.
    pub bytes_max: u64,
}

impl Wish {
    fn left(&self) -> Result<Duration, StoreError> {
        let left = self.deadline.checked_duration_since(Instant::now());
        left.filter(|left| !left.is_zero()).ok_or(StoreError::Late)
    }
}

/// A state that was had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Tokens it has in common with the prompt, in whole blocks.
    pub matched_tokens: u32,
    /// Bytes of it.
    pub bytes: u64,
}

/// Writes the state that has most in common with the prompt to `path`.
///
/// # Errors
/// Any [`StoreError`]; the file may be there in part.
pub fn fetch(
    line: &Line,
    naming: &Naming,
    wish: &Wish,
    path: &Path,
) -> Result<Fetched, StoreError> {
    line.ask(|client| {
        let (matched, manifest) = deepest(client, wish)?;
        if matched < wish.blocks_min {
            return Err(StoreError::Nothing);
        }
        // An engine that would keep less than half of a slot's content throws all of it away.
        if matched as u64 * 2 * u64::from(naming.block_tokens) < u64::from(manifest.tokens) {
            return Err(StoreError::Foreign);
        }
        if manifest.tokens > wish.context_tokens {
            return Err(StoreError::Fit);
        }
        let bytes = manifest.bytes();
        if bytes > wish.bytes_max {
            return Err(StoreError::TooLarge(bytes));
        }
        write_parts(client, wish, &manifest, path)?;
        let tokens = file::tokens(File::open(path)?, bytes)?;
        let names = naming.names(&tokens);
        let common = names.iter().zip(&wish.names).take_while(|(a, b)| a == b).count();
        if common < matched || tokens.len() as u64 != u64::from(manifest.tokens) {
            return Err(StoreError::Gone);
        }
        let matched_tokens =
            u32::try_from(common).unwrap_or(u32::MAX).saturating_mul(naming.block_tokens);
        Ok(Fetched { matched_tokens, bytes })
    })
}

/// The deepest block of the prompt that has a value, and the state it belongs to.
fn deepest(client: &Client, wish: &Wish) -> Result<(usize, Manifest), StoreError> {
    let names: Vec<Name> = wish.names.iter().map(|name| name.0).collect();
    let near = client.lookup(&names)?.len().min(names.len());
    let far = probes(near, names.len());
    let mut found = None;
    if !far.is_empty() {
        let asked: Vec<Name> = far.iter().map(|depth| names[depth - 1]).collect();
        let got = client.get(&asked, Some(wish.left()?))?;
        let there = far.iter().zip(got).filter_map(|(depth, got)| Some((*depth, got.lease()?)));
        found = there.last().map(|(depth, lease)| (depth, Value::decode(&lease)));
    }
    let (depth, value_found) = match (found, near) {
        (Some(found), _) => found,
        (None, 0) => return Err(StoreError::Nothing),
        (None, near) => (near, value(client, &names[near - 1], Some(wish.left()?))?),
    };
    let state = match value_found {
        Some(Value::Manifest(manifest)) => return Ok((depth, manifest)),
        Some(Value::Pointer(pointer)) => pointer.state,
        None => return Err(StoreError::Gone),
    };
    match value(client, &state, Some(wish.left()?))? {
        Some(Value::Manifest(manifest)) => Ok((depth, manifest)),
        _ => Err(StoreError::Gone),
    }
}

/// Depths beyond `near`, up to all `count` blocks, evenly spread, the deepest among them.
fn probes(near: usize, count: usize) -> Vec<usize> {
    let beyond = count.saturating_sub(near);
    let probes = beyond.min(PROBES);
    (1..=probes).map(|probe| near + beyond * probe / probes).collect()
}

fn value(
    client: &Client,
    name: &Name,
    deadline: Option<Duration>,
) -> Result<Option<Value>, StoreError> {
    let got = client.get(&[*name], deadline)?.pop();
    Ok(got.and_then(kvclient::Found::lease).and_then(|lease| Value::decode(&lease)))
}

fn write_parts(
    client: &Client,
    wish: &Wish,
    manifest: &Manifest,
    path: &Path,
) -> Result<(), StoreError> {
    let names: Vec<Name> = manifest.parts.iter().map(|part| part.name).collect();
    // Those behind the first are on their way while it is written.
    client.prefetch(&names, wish.left()?)?;
    let mut file = File::create(path)?;
    for part in &manifest.parts {
        let got = client.get(&[part.name], Some(wish.left()?))?.pop();
        let lease = got.and_then(kvclient::Found::lease).ok_or(StoreError::Gone)?;
        if lease.len() as u64 != part.len {
            return Err(StoreError::Gone);
        }
        file.write_all(&lease)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_few_beyond_what_is_known_and_reach_the_end() {
        assert_eq!(probes(0, 0), Vec::<usize>::new());
        assert_eq!(probes(5, 5), Vec::<usize>::new());
        assert_eq!(probes(3, 5), [4, 5]);
        let many = probes(100, 4_096);
        assert_eq!((many.len(), many[0], *many.last().unwrap()), (PROBES, 349, 4_096));
        assert!(many.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn a_file_is_cut_into_parts_named_by_their_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, b"aaabbbc").unwrap();
        let cut = |part_bytes| parts(File::open(&path).unwrap(), 7, part_bytes);
        let named =
            |bytes: &[u8]| Part { name: *blake3::hash(bytes).as_bytes(), len: bytes.len() as u64 };
        assert_eq!(cut(3).unwrap(), [named(b"aaa"), named(b"bbb"), named(b"c")]);
        assert_eq!(cut(64).unwrap(), [named(b"aaabbbc")]);
        let torn = parts(File::open(&path).unwrap(), 8, 64);
        assert!(matches!(torn, Err(StoreError::Io(_))), "{torn:?}");
        let long = parts(File::open(&path).unwrap(), PARTS_MAX as u64 + 1, 1);
        assert!(matches!(long, Err(StoreError::TooLarge(_))), "{long:?}");
    }
}
