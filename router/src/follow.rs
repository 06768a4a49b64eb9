//! Follows control over its Unix socket: takes its snapshots, answers its questions, and exchanges what
//! tenants used of their limits.
//!
//! Control may go away at any time and for ever: the last snapshot stays in force and the socket is
//! dialled again, with a pause that doubles up to [`RETRY_MAX`].
//!
//! Every [`USAGE_EVERY`] control is told this router's use and answers with that of the others
//! (`follow/usage.rs`), so what a router knows of another is at most two such intervals old, about a
//! second. By so much a limit of several routers can be passed, and not at all by requests that come
//! one after the other more slowly. While control is away nothing is exchanged: after
//! [`OTHERS_FRESH_MS`](crate::meter::OTHERS_FRESH_MS) each router applies the limits alone. No request
//! waits for any of it.

mod outbox;
mod usage;

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use dataplane::wire::{Decoder, FromPlane, ToPlane, WireError, encode};
use monoio::io::{OwnedReadHalf, OwnedWriteHalf, Splitable};
use monoio::net::UnixStream;

use crate::admit::unix_ms;
use crate::explain::explain;
use crate::shard::Shard;
use crate::socket::{read_more, write_all};
use crate::steering::Steering;
use outbox::Outbox;

/// First pause after control went away.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Between two reports of usage.
const USAGE_EVERY: Duration = Duration::from_millis(500);

/// Control's questions worked on at once: as many as it asks.
const QUESTIONS_MAX: usize = 16;

/// Why a connection to control ended.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("control closed the connection")]
    Closed,
    #[error("control asks, but does not read")]
    Stuck,
}

/// Follows the socket at `path` for ever.
pub async fn run(shard: Rc<Shard>, path: &Path) {
    // Its keys are random; process ids are not, among containers.
    let life = RandomState::new().hash_one(std::process::id());
    let mut pause = RETRY_MIN;
    loop {
        let mut got_snapshot = false;
        if let Err(error) = follow(&shard, path, life, &mut got_snapshot).await {
            if got_snapshot {
                pause = RETRY_MIN;
            }
            tracing::debug!(%error, socket = %path.display(), "control is away");
        }
        if got_snapshot {
            tracing::warn!("control is away; the last snapshot stays in force");
        }
        monoio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

/// One connection: reading, writing and reporting side by side, so that none waits for another. The
/// first that ends, ends all.
async fn follow(
    shard: &Rc<Shard>,
    path: &Path,
    life: u64,
    got_snapshot: &mut bool,
) -> Result<(), FollowError> {
    let mut stream = UnixStream::connect(path).await?;
    let hello = FromPlane::Hello {
        process: "cgn-router".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
    };
    write_all(&mut stream, &mut encode(&hello)?).await?;
    let (reader, writer) = stream.into_split();
    let outbox = Rc::new(Outbox::default());
    monoio::select! {
        ended = listen(shard, reader, &outbox, got_snapshot) => ended,
        ended = tell(writer, &outbox) => ended,
        ended = report_usage(shard, life, &outbox) => ended,
    }
}

async fn listen(
    shard: &Rc<Shard>,
    mut reader: OwnedReadHalf<UnixStream>,
    outbox: &Rc<Outbox>,
    got_snapshot: &mut bool,
) -> Result<(), FollowError> {
    let mut decoder = Decoder::default();
    let mut buffer = Vec::new();
    loop {
        while let Some(message) = decoder.poll_message::<ToPlane>()? {
            match message {
                ToPlane::Snapshot(snapshot) => {
                    // One a second under load, since engines report what they work on.
                    tracing::debug!(
                        version = snapshot.version,
                        workers = snapshot.workers.len(),
                        "new snapshot"
                    );
                    // What control calls ready was probed by its agent a moment ago.
                    shard.cluster.apply(snapshot, true);
                    *got_snapshot = true;
                }
                ToPlane::Explain { id, path, body, weights, temperature } => {
                    let steering = Steering { weights, temperature, ..Steering::default() };
                    answer(shard, outbox, id, path, body, steering)?;
                }
                ToPlane::Usage { routers, others } => {
                    usage::absorb(&shard.identity.tenants(), routers, &others, unix_ms());
                }
            }
        }
        buffer.clear();
        if read_more(&mut reader, &mut buffer, 64 << 10).await? == 0 {
            return Err(FollowError::Closed);
        }
        decoder.push(&buffer);
    }
}

/// Answers a question, beside what else goes on: tokenizing may take its time.
fn answer(
    shard: &Rc<Shard>,
    outbox: &Rc<Outbox>,
    id: u64,
    path: String,
    body: String,
    steering: Steering,
) -> Result<(), FollowError> {
    // Each question that is worked on holds the outbox.
    if Rc::strong_count(outbox) > QUESTIONS_MAX {
        let result = Err(format!("the router works on {QUESTIONS_MAX} questions; ask again"));
        let refused = outbox.push(encode(&FromPlane::Explained { id, result })?);
        return if refused { Ok(()) } else { Err(FollowError::Stuck) };
    }
    let (shard, outbox) = (Rc::clone(shard), Rc::clone(outbox));
    monoio::spawn(async move {
        let result = explain(&shard, &path, &body, &steering).await;
        match encode(&FromPlane::Explained { id, result }) {
            // Without room control does not read, and will hear nothing in any case.
            Ok(frame) => drop(outbox.push(frame)),
            Err(error) => tracing::warn!(%error, "a decision could not be explained"),
        }
    });
    Ok(())
}

async fn tell(mut writer: OwnedWriteHalf<UnixStream>, outbox: &Outbox) -> Result<(), FollowError> {
    loop {
        let mut frame = outbox.next().await;
        write_all(&mut writer, &mut frame).await?;
    }
}

async fn report_usage(shard: &Shard, life: u64, outbox: &Outbox) -> Result<(), FollowError> {
    loop {
        // Only the newest report is of use: none waits behind another.
        if outbox.is_empty()
            && let Some(report) = usage::report(&shard.identity.tenants(), life, unix_ms())
        {
            outbox.push(encode(&report)?);
        }
        monoio::time::sleep(USAGE_EVERY).await;
    }
}
