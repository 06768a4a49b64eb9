//! Follows control's snapshots over its Unix socket, and answers its questions.
//!
//! Control may go away at any time and for ever: the last snapshot stays in force and the socket is
//! dialled again, with a pause that doubles up to [`RETRY_MAX`].

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use dataplane::wire::{Decoder, FromPlane, ToPlane, WireError, encode};
use monoio::net::UnixStream;

use crate::explain::explain;
use crate::shard::Shard;
use crate::socket::{read_more, write_all};

/// First pause after control went away.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Why a connection to control ended.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("control closed the connection")]
    Closed,
}

/// Follows the socket at `path` for ever.
pub async fn run(shard: Rc<Shard>, path: &Path) {
    let mut pause = RETRY_MIN;
    loop {
        let mut got_snapshot = false;
        if let Err(error) = follow(&shard, path, &mut got_snapshot).await {
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

async fn follow(
    shard: &Rc<Shard>,
    path: &Path,
    got_snapshot: &mut bool,
) -> Result<(), FollowError> {
    let mut stream = UnixStream::connect(path).await?;
    let hello = FromPlane::Hello {
        process: "cgn-router".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
    };
    write_all(&mut stream, &mut encode(&hello)?).await?;
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
                ToPlane::Explain { id, path, body } => {
                    let result = explain(shard, &path, &body).await;
                    let answer = FromPlane::Explained { id, result };
                    write_all(&mut stream, &mut encode(&answer)?).await?;
                }
            }
        }
        buffer.clear();
        if read_more(&mut stream, &mut buffer, 64 << 10).await? == 0 {
            return Err(FollowError::Closed);
        }
        decoder.push(&buffer);
    }
}
