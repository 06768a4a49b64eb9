//! Between one process of an engine and the agent: hears every batch of KV events, which is the truth,
//! and publishes them again, not all as they should.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use zeromq::{PubSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage};

use super::trouble::{QUIET, Trouble};
use crate::held_truth::Truth;

/// What the engine's own socket is called beyond the agent's.
const BESIDE: &str = "-true";
/// Between two attempts to reach an engine that is starting.
const DIAL_PAUSE: Duration = Duration::from_millis(20);

/// A script in the place of the engine: it binds its live socket beside where the agent listens. The
/// engine takes the script's process, so signals reach it.
pub fn engine_beside(folder: &Path, engine: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let text = format!(
        "#!/bin/sh\nfor word do\nshift\ncase \"$word\" in\nipc://*.kv) word=\"$word{BESIDE}\";;\nesac\n\
         set -- \"$@\" \"$word\"\ndone\nexec '{}' \"$@\"\n",
        engine.display()
    );
    let script = folder.join("engine");
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    script
}

/// The line of one process; it breaks when this is dropped.
pub struct EventsLine {
    heard: Arc<Heard>,
    replay: String,
    task: JoinHandle<()>,
}

struct Heard {
    truth: tokio::sync::Mutex<Truth>,
    trouble: Mutex<Trouble<ZmqMessage>>,
}

impl EventsLine {
    /// `live` is where the agent listens. Of a hundred batches, `percent` are dropped, doubled or late;
    /// the replay is not touched.
    pub fn start(runtime: &Runtime, live: &Path, seed: u64, percent: u64) -> EventsLine {
        let trouble = Mutex::new(Trouble::new(seed, percent));
        let heard = Arc::new(Heard { truth: tokio::sync::Mutex::default(), trouble });
        let replay = format!("ipc://{}", live.with_extension("kvr").display());
        let task = runtime.spawn(carry(live.to_owned(), replay.clone(), Arc::clone(&heard)));
        EventsLine { heard, replay, task }
    }

    /// Looks at what the engine has said by now.
    pub fn truth<T>(&self, runtime: &Runtime, look: impl FnOnce(&Truth) -> T) -> T {
        assert!(!self.task.is_finished(), "the line to an engine broke");
        runtime.block_on(async {
            let mut truth = self.heard.truth.lock().await;
            truth.catch_up(&self.replay).await;
            look(&truth)
        })
    }

    /// Batches that came live, and those of them that did not pass as they should.
    pub fn passed(&self) -> (u64, u64) {
        let trouble = self.heard.trouble.lock().unwrap();
        (trouble.seen, trouble.harmed)
    }
}

impl Drop for EventsLine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(live: PathBuf, replay: String, heard: Arc<Heard>) {
    let mut to_agent = PubSocket::new();
    // Of the line of the process before, or of a socket that the agent never heard.
    let _ = std::fs::remove_file(&live);
    to_agent.bind(&format!("ipc://{}", live.display())).await.unwrap();
    let mut from_engine = SubSocket::new();
    let beside = format!("ipc://{}{BESIDE}", live.display());
    while from_engine.connect(&beside).await.is_err() {
        sleep(DIAL_PAUSE).await;
    }
    from_engine.subscribe("").await.unwrap();
    loop {
        let out = match timeout(QUIET, from_engine.recv()).await {
            Ok(Ok(message)) => {
                hear(&message, &replay, &heard).await;
                heard.trouble.lock().unwrap().pass(message)
            }
            // The engine is gone; the line stands until it is dropped.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => heard.trouble.lock().unwrap().settle(),
        };
        for message in out {
            to_agent.send(message).await.unwrap();
        }
    }
}

async fn hear(message: &ZmqMessage, replay: &str, heard: &Heard) {
    let (number, payload) = (message.get(1).unwrap(), message.get(2).unwrap());
    let number = u64::from_be_bytes(number[..].try_into().unwrap());
    let mut truth = heard.truth.lock().await;
    if !truth.take(number, payload) {
        truth.catch_up(replay).await;
    }
}
