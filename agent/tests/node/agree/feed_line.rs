//! Between the agent and its routers: passes frames on, not all as they should.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use dataplane::feed::{Decoder, FRAME_HEAD_BYTES, ToRouter, decode, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::trouble::{QUIET, Trouble};

/// Of every router that dialled, its part of the line.
pub type Troubles = Arc<Mutex<Vec<Arc<Mutex<Trouble<Vec<u8>>>>>>>;

/// Takes the place of the agent's socket at `path`, which lives on under another name. Of a hundred
/// frames to a router, `percent` are dropped, doubled or late.
pub fn take_over(runtime: &Runtime, path: &Path, percent: u64) -> Troubles {
    let moved = path.with_extension("agent");
    std::fs::rename(path, &moved).unwrap();
    let listener = {
        let _context = runtime.enter();
        UnixListener::bind(path).unwrap()
    };
    let troubles = Troubles::default();
    runtime.spawn(accept(listener, moved, percent, Arc::clone(&troubles)));
    troubles
}

async fn accept(listener: UnixListener, feed: PathBuf, percent: u64, troubles: Troubles) {
    for seed in 1.. {
        let (router, _) = listener.accept().await.unwrap();
        let (from_router, to_router) = router.into_split();
        let (from_agent, to_agent) = UnixStream::connect(&feed).await.unwrap().into_split();
        let trouble = Arc::new(Mutex::new(Trouble::new(seed, percent)));
        troubles.lock().unwrap().push(Arc::clone(&trouble));
        tokio::spawn(pass(from_router, to_agent));
        tokio::spawn(harm(from_agent, to_router, trouble));
    }
}

async fn pass(mut read: OwnedReadHalf, mut write: OwnedWriteHalf) {
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

async fn harm(
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
    trouble: Arc<Mutex<Trouble<Vec<u8>>>>,
) {
    let mut decoder = Decoder::default();
    let mut bytes = vec![0; 65_536];
    loop {
        let mut out = Vec::new();
        match timeout(QUIET, read.read(&mut bytes)).await {
            Ok(Ok(count)) if count > 0 => decoder.push(&bytes[..count]),
            Ok(_) => return,
            Err(_) => out = trouble.lock().unwrap().settle(),
        }
        while let Some(payload) = decoder.poll_payload().unwrap() {
            let message = decode::<ToRouter>(payload).unwrap();
            let frame = encode(&message);
            assert_eq!(&frame[FRAME_HEAD_BYTES..], payload);
            match message {
                // A line that loses this is dialled anew, and has lost nothing.
                ToRouter::Hello { .. } => out.push(frame),
                _ => out.extend(trouble.lock().unwrap().pass(frame)),
            }
        }
        if write.write_all(&out.concat()).await.is_err() {
            return;
        }
    }
}
