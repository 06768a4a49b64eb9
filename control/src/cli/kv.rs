//! `cgnctl kv`: what the KV daemon of this machine holds, and putting it right. Speaks to the daemon's own
//! socket, so it runs on the machine itself; all but `stats` and `get` are for the daemon's user and root.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use dataplane::kv::{self, Answer, LIST_MAX, Listed, NAME_BYTES, Name, Request, STATS_MAX};
use serde::Serialize;

use super::output::{Table, print};
use super::{Failure, Global};
use crate::kv::{Daemon, DaemonError};

/// Blocks of one question of `verify`: few, because each is read whole before the answer comes.
const VERIFY_BLOCKS: u32 = 4;
/// Blocks of one question of `evict`: each may wait for a write to the disk.
const EVICT_BLOCKS: u32 = 128;
/// Most `verify` rests after a question; it rests as long as the daemon worked.
const VERIFY_REST_MAX: Duration = Duration::from_secs(5);
/// What all names of the daemon's metrics begin with.
const METRICS_PREFIX: &str = "cgn_kvcached_";
/// The gauge that has a line for each namespace.
const NAMESPACE_GAUGE: &str = "namespace_bytes{namespace=\"";

/// One of the commands, and where the daemon is.
#[derive(Debug, Args)]
pub(super) struct Kv {
    /// The daemon's socket, as kv.uds of its file says.
    #[arg(long, global = true, value_name = "PATH", default_value = "/run/cognitora/kv.sock")]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows what the daemon counts, and its namespaces.
    Stats,
    /// Lists blocks.
    Ls(Ls),
    /// Copies a block into a file.
    Get(Get),
    /// Forgets a block, or all blocks of a namespace, or all.
    Evict(Evict),
    /// Has the daemon read blocks and drop those that are not as they were stored. Rests half of the time.
    Verify {
        /// Only of this namespace.
        #[arg(long, value_name = "NAME")]
        namespace: Option<String>,
    },
    /// Has the daemon take no more blocks, write down what is warm, and end.
    Drain {
        /// How long to wait for its end.
        #[arg(long, value_name = "SECONDS", default_value_t = 120)]
        timeout_s: u64,
    },
}

#[derive(Debug, Args)]
struct Ls {
    /// Only of this namespace.
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "BLOCKS", default_value_t = 1000)]
    limit: usize,
}

#[derive(Debug, Args)]
struct Get {
    /// 64 hex digits as `kv ls` shows them, or the key that a RESP client uses.
    key: String,
    /// Whose block it is.
    #[arg(long, value_name = "NAME")]
    namespace: String,
    /// Where it is written; must not be there yet.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct Evict {
    /// 64 hex digits as `kv ls` shows them, or the key that a RESP client uses; absent: all of them.
    #[arg(requires = "namespace")]
    key: Option<String>,
    /// Whose blocks.
    #[arg(long, value_name = "NAME", required_unless_present = "everywhere")]
    namespace: Option<String>,
    /// All blocks of all namespaces.
    #[arg(long, conflicts_with_all = ["namespace", "key"])]
    everywhere: bool,
}

/// Does what was typed.
pub(super) fn run(global: &Global, asked: &Kv) -> Result<(), Failure> {
    let socket = asked.socket.as_path();
    match &asked.command {
        Command::Stats => stats(global, socket),
        Command::Ls(ls) => list(global, socket, ls),
        Command::Get(get) => copy(global, socket, get),
        Command::Evict(Evict { key: Some(key), namespace: Some(namespace), .. }) => {
            evict_one(global, socket, namespace, key)
        }
        Command::Evict(evict) => sweep(global, socket, evict.namespace.as_deref(), Sweep::Evict),
        Command::Verify { namespace } => sweep(global, socket, namespace.as_deref(), Sweep::Verify),
        Command::Drain { timeout_s } => drain(global, socket, Duration::from_secs(*timeout_s)),
    }
}

#[derive(Serialize)]
struct Stats {
    namespaces: Vec<NamespaceRow>,
    /// By name without the prefix, labels in braces.
    metrics: BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct NamespaceRow {
    name: String,
    ram_bytes: u64,
}

fn stats(global: &Global, socket: &Path) -> Result<(), Failure> {
    let stats = ask_stats(&mut dial(socket, "")?)?;
    print(global.output, &stats, |stats| {
        let mut namespaces = Table::new(["NAMESPACE", "RAM_BYTES"]);
        for row in &stats.namespaces {
            namespaces.row([row.name.clone(), row.ram_bytes.to_string()]);
        }
        let mut metrics = Table::new(["METRIC", "VALUE"]);
        for (name, value) in &stats.metrics {
            metrics.row([name.clone(), value.to_string()]);
        }
        if namespaces.is_empty() { metrics.to_string() } else { format!("{metrics}\n{namespaces}") }
    })
}

fn ask_stats(daemon: &mut Daemon) -> Result<Stats, Failure> {
    let Answer::Stats { lines } = ask(daemon, &Request::Stats)? else { return Err(unexpected()) };
    let mut stats = Stats { namespaces: Vec::new(), metrics: BTreeMap::new() };
    for (line, value) in lines {
        let name = line.strip_prefix(METRICS_PREFIX).unwrap_or(&line);
        match name.strip_prefix(NAMESPACE_GAUGE).and_then(|rest| rest.strip_suffix("\"}")) {
            Some(label) => {
                stats.namespaces.push(NamespaceRow { name: unescaped(label), ram_bytes: value });
            }
            None => {
                stats.metrics.insert(name.to_owned(), value);
            }
        }
    }
    Ok(stats)
}

/// A label's value as it was before Prometheus' text format. Names of namespaces hold no line feeds.
fn unescaped(label: &str) -> String {
    let (mut text, mut chars) = (String::with_capacity(label.len()), label.chars());
    while let Some(char) = chars.next() {
        text.push(if char == '\\' { chars.next().unwrap_or(char) } else { char });
    }
    text
}

/// A connection about `namespace`, which must be there: to open another would make it.
fn enter(socket: &Path, namespace: &str) -> Result<Daemon, Failure> {
    let stats = ask_stats(&mut dial(socket, "")?)?;
    let is_known = stats.namespaces.iter().any(|row| row.name == namespace);
    // As many lines as there may be: the rest was cut off.
    let is_cut = stats.namespaces.len() + stats.metrics.len() >= STATS_MAX;
    if !is_known && !is_cut {
        let known: Vec<&str> = stats.namespaces.iter().map(|row| row.name.as_str()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let text = format!("the daemon has no namespace `{namespace}`; it has {known}");
        return Err(Failure::NotFound(text));
    }
    dial(socket, namespace)
}

#[derive(Serialize)]
struct List {
    blocks: Vec<Row>,
    /// There are more than were asked for.
    is_cut: bool,
}

#[derive(Serialize)]
struct Row {
    namespace: String,
    name: String,
    tier: &'static str,
    bytes: u64,
    pinned: bool,
    label: String,
}

fn list(global: &Global, socket: &Path, asked: &Ls) -> Result<(), Failure> {
    let mut daemon = match &asked.namespace {
        Some(namespace) => enter(socket, namespace)?,
        None => dial(socket, "")?,
    };
    let namespaces = ask_stats(&mut daemon)?.namespaces;
    let names: BTreeMap<_, _> =
        namespaces.into_iter().map(|row| (kv::namespace_id(&row.name), row.name)).collect();
    let (mut list, mut cursor) = (List { blocks: Vec::new(), is_cut: false }, 0);
    loop {
        let left = asked.limit.saturating_sub(list.blocks.len());
        if left == 0 {
            list.is_cut = true;
            break;
        }
        let request = Request::List {
            everywhere: asked.namespace.is_none(),
            cursor,
            blocks_max: left.min(LIST_MAX) as u32,
        };
        let Answer::List { blocks, next } = ask(&mut daemon, &request)? else {
            return Err(unexpected());
        };
        list.blocks.extend(blocks.iter().map(|block| row(block, &names)));
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    print(global.output, &list, |list| {
        let mut table = Table::new(["NAMESPACE", "NAME", "TIER", "BYTES", "PINNED", "LABEL"]);
        for row in &list.blocks {
            let pinned = if row.pinned { "yes" } else { "no" }.to_owned();
            let (namespace, name, label) = (&row.namespace, &row.name, &row.label);
            let (tier, bytes) = (row.tier.to_owned(), row.bytes.to_string());
            table.row([namespace.clone(), name.clone(), tier, bytes, pinned, label.clone()]);
        }
        let more = if list.is_cut { "there may be more; see --limit\n" } else { "" };
        format!("{table}{more}")
    })
}

fn row(block: &Listed, names: &BTreeMap<[u8; kv::NAMESPACE_ID_BYTES], String>) -> Row {
    let (namespace, name) = &block.place;
    Row {
        namespace: names.get(namespace).cloned().unwrap_or_else(|| hex(namespace)),
        name: hex(name),
        tier: block.tier.as_str(),
        bytes: block.len,
        pinned: block.pinned,
        // Whatever a client wrote must not move the operator's cursor.
        label: String::from_utf8_lossy(&block.label).escape_debug().to_string(),
    }
}

fn copy(global: &Global, socket: &Path, asked: &Get) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Copied<'a> {
        file: &'a Path,
        bytes: u64,
    }
    let out = asked.out.as_path();
    let name = name_of(&asked.key);
    let mut daemon = enter(socket, &asked.namespace)?;
    // The bytes are what a user said, so the file is for its owner alone.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(out);
    let mut file = file.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Failure::Usage(format!(
            "{} is there already and is not overwritten; name another --out",
            out.display()
        )),
        _ => Failure::Usage(format!("{} cannot be written: {error}", out.display())),
    })?;
    let copied = daemon.copy(name, &mut file).map_err(|error| failure(&error));
    let copied = copied.and_then(|bytes| bytes.ok_or_else(|| missing(&asked.key)));
    if copied.is_err() {
        // Half a block is of no use, and its place would be taken.
        let _ = std::fs::remove_file(out);
    }
    print(global.output, &Copied { file: out, bytes: copied? }, |copied| {
        format!("{} bytes written to {}", copied.bytes, copied.file.display())
    })
}

#[derive(Serialize)]
struct Swept {
    /// Blocks looked at.
    seen: u64,
    /// Blocks forgotten: by `verify`, those that were damaged.
    dropped: u64,
}

fn evict_one(global: &Global, socket: &Path, namespace: &str, key: &str) -> Result<(), Failure> {
    let request = Request::Remove { names: vec![name_of(key)] };
    let Answer::Blocks { results } = ask(&mut enter(socket, namespace)?, &request)? else {
        return Err(unexpected());
    };
    match results.as_slice() {
        [Ok(true)] => {
            print(global.output, &Swept { seen: 1, dropped: 1 }, |_| "1 block forgotten".to_owned())
        }
        [Ok(false)] => Err(missing(key)),
        [Err(fault)] => Err(Failure::Failed(fault.to_string())),
        _ => Err(unexpected()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sweep {
    Verify,
    Evict,
}

fn sweep(
    global: &Global,
    socket: &Path,
    namespace: Option<&str>,
    what: Sweep,
) -> Result<(), Failure> {
    let mut daemon = match namespace {
        Some(namespace) => enter(socket, namespace)?,
        None => dial(socket, "")?,
    };
    let everywhere = namespace.is_none();
    let (mut sum, mut cursor) = (Swept { seen: 0, dropped: 0 }, 0);
    loop {
        let begun = Instant::now();
        let request = match what {
            Sweep::Verify => Request::Verify { everywhere, cursor, blocks_max: VERIFY_BLOCKS },
            Sweep::Evict => Request::Evict { everywhere, cursor, blocks_max: EVICT_BLOCKS },
        };
        let Answer::Swept { seen, dropped, next } = ask(&mut daemon, &request)? else {
            return Err(unexpected());
        };
        sum.seen += seen;
        sum.dropped += dropped;
        cursor = next;
        if cursor == 0 {
            break;
        }
        if what == Sweep::Verify {
            std::thread::sleep(begun.elapsed().min(VERIFY_REST_MAX));
        }
    }
    print(global.output, &sum, |sum| match what {
        Sweep::Verify => format!("{} blocks read, {} damaged and dropped", sum.seen, sum.dropped),
        Sweep::Evict => format!("{} blocks forgotten", sum.dropped),
    })?;
    match (what, sum.dropped) {
        (Sweep::Verify, 1..) => {
            Err(Failure::Failed("blocks were damaged; look at the disk and its log".to_owned()))
        }
        _ => Ok(()),
    }
}

fn drain(global: &Global, socket: &Path, limit: Duration) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Drained {
        ended: bool,
    }
    let mut daemon = dial(socket, "")?;
    let Answer::Draining = ask(&mut daemon, &Request::Drain)? else { return Err(unexpected()) };
    let ended = match limit.is_zero() {
        true => false,
        false => daemon.wait_for_end(limit).map_err(|error| failure(&error))?,
    };
    print(global.output, &Drained { ended }, |drained| {
        match drained.ended {
            true => {
                "drained: what is warm was written to disk, if there is one, and the daemon ended"
            }
            false => "it takes no more blocks and is writing down what is warm; it ends by itself",
        }
        .to_owned()
    })
}

/// A block's name: as hex, or of a RESP client's key.
fn name_of(key: &str) -> Name {
    let is_name = key.len() == 2 * NAME_BYTES && key.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_name {
        return kv::name_of_label(key.as_bytes());
    }
    let mut name = [0; NAME_BYTES];
    for (byte, digits) in name.iter_mut().zip(key.as_bytes().as_chunks::<2>().0) {
        let digit = |at: usize| char::from(digits[at]).to_digit(16).unwrap_or(0) as u8;
        *byte = digit(0) << 4 | digit(1);
    }
    name
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn missing(key: &str) -> Failure {
    let hint = "`cgnctl kv ls` shows what there is; 64 hex digits name a block of a native client";
    Failure::NotFound(format!("there is no block `{key}` in that namespace; {hint}"))
}

fn dial(socket: &Path, namespace: &str) -> Result<Daemon, Failure> {
    Daemon::dial(socket, namespace).map_err(|error| failure(&error))
}

fn ask(daemon: &mut Daemon, request: &Request) -> Result<Answer, Failure> {
    daemon.ask(request).map_err(|error| failure(&error))
}

fn unexpected() -> Failure {
    failure(&DaemonError::Unexpected)
}

fn failure(error: &DaemonError) -> Failure {
    match error {
        DaemonError::Connect { .. } => Failure::NoDaemon(error.to_string()),
        _ => Failure::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_name_in_hex_or_what_a_resp_client_calls_it() {
        let name: Name = std::array::from_fn(|at| at as u8 * 7);
        assert_eq!(name_of(&hex(&name)), name);
        assert_eq!(name_of(&hex(&name).to_uppercase()), name);
        assert_eq!(name_of("model@1@0@ab"), kv::name_of_label(b"model@1@0@ab"));
        let not_hex = "g".repeat(64);
        assert_eq!(name_of(&not_hex), kv::name_of_label(not_hex.as_bytes()));
    }

    #[test]
    fn labels_are_read_as_they_were_before_they_were_written() {
        assert_eq!(unescaped(r#"a\"b"#), "a\"b");
        assert_eq!(unescaped(r#"a\\"b"#), r#"a\"b"#);
        assert_eq!(unescaped("plain"), "plain");
    }
}
