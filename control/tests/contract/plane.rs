//! A data plane as control sees it: hello, snapshots, questions, over the real Unix socket.

use std::time::Duration;

use dataplane::wire::{Decoder, FromPlane, Snapshot, ToPlane, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::house::{House, PATIENCE};

/// One connected data plane.
pub(crate) struct Plane {
    stream: UnixStream,
    decoder: Decoder,
    last_version: u64,
}

impl Plane {
    /// Dials and says that it is `process`.
    pub(crate) async fn dial(house: &House, process: &str) -> Plane {
        let stream = UnixStream::connect(house.socket()).await.unwrap();
        let mut plane = Plane { stream, decoder: Decoder::default(), last_version: 0 };
        let (process, version) = (process.to_owned(), "test".to_owned());
        plane.say(&FromPlane::Hello { process, version, pid: 1 }).await;
        plane
    }

    pub(crate) async fn say(&mut self, message: &FromPlane) {
        self.stream.write_all(&encode(message).unwrap()).await.unwrap();
    }

    /// The next message; each snapshot must be newer than the one before.
    pub(crate) async fn hear(&mut self) -> ToPlane {
        let message = tokio::time::timeout(PATIENCE, self.next()).await.expect("nothing comes");
        if let ToPlane::Snapshot(snapshot) = &message {
            assert!(snapshot.version > self.last_version || self.last_version == 0);
            self.last_version = snapshot.version;
        }
        message
    }

    /// Waits for a snapshot that is as `wanted`.
    pub(crate) async fn see(&mut self, wanted: impl Fn(&Snapshot) -> bool) -> Snapshot {
        loop {
            match self.hear().await {
                ToPlane::Snapshot(snapshot) if wanted(&snapshot) => return snapshot,
                _ => {}
            }
        }
    }

    /// Whether nothing at all comes for `time`.
    pub(crate) async fn hears_nothing(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.next()).await.is_err()
    }

    /// Waits until control hangs up; gives what it still said.
    pub(crate) async fn hung_up(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await;
        drop(read.expect("control does not hang up"));
        rest
    }

    pub(crate) async fn say_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    async fn next(&mut self) -> ToPlane {
        let mut bytes = vec![0; 4096];
        loop {
            if let Some(message) = self.decoder.poll_message().unwrap() {
                return message;
            }
            let count = self.stream.read(&mut bytes).await.unwrap();
            assert!(count > 0, "control hung up");
            self.decoder.push(&bytes[..count]);
        }
    }
}
