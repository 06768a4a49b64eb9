//! The engine's KV events as any subscriber gets them: live, and from the replay socket.

use std::time::Duration;

use hyper::body::Bytes;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage};

use crate::client;
use crate::real::Real;

const TOPIC: &str = "kv";
/// Guards against a hang.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one knock waits to be heard; then the next is made.
const HEARD_WITHIN: Duration = Duration::from_millis(500);

/// One message: (number, payload).
pub type Batch = (u64, Bytes);

/// Where one process of the engine publishes.
pub struct Feed {
    runtime: Runtime,
    live: String,
    replay: String,
}

/// A live subscription.
pub struct Live {
    socket: SubSocket,
}

impl Feed {
    /// As the engine itself says.
    pub fn of(real: &Real) -> Feed {
        let sources = client::get(real.engine_address(), "/kv_event_sources").unwrap().json();
        let source = &sources["0"];
        assert_eq!((&source["publisher"], &source["topic"]), (&"zmq".into(), &TOPIC.into()));
        let endpoint = |name: &str| {
            let endpoint = source[name].as_str().unwrap().to_owned();
            let run = real.house.dir.path().join("state/run/");
            assert!(endpoint.starts_with(&format!("ipc://{}", run.display())), "{endpoint}");
            endpoint
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Feed { runtime, live: endpoint("endpoint"), replay: endpoint("replay_endpoint") }
    }

    /// Subscribes. The subscription takes a moment to arrive; see [`Feed::heard`].
    pub fn subscribe(&self) -> Live {
        self.runtime.block_on(async {
            let mut socket = SubSocket::new();
            socket.connect(&self.live).await.unwrap();
            socket.subscribe(TOPIC).await.unwrap();
            Live { socket }
        })
    }

    /// The next live batch, if one comes at all soon.
    pub fn heard(&self, live: &mut Live) -> Option<Batch> {
        let message = self
            .runtime
            .block_on(async { timeout(HEARD_WITHIN, live.socket.recv()).await.ok()?.ok() });
        let frames = message?.into_vec();
        let [topic, number, payload] = frames.as_slice() else { panic!("{frames:?}") };
        assert_eq!(topic, TOPIC);
        Some((u64::from_be_bytes(number[..].try_into().unwrap()), payload.clone()))
    }

    /// All batches from number `from` on that were published so far.
    pub fn replayed(&self, from: u64) -> Vec<Batch> {
        self.runtime.block_on(async {
            timeout(PATIENCE, replayed(&self.replay, from)).await.expect("a replay")
        })
    }
}

async fn replayed(endpoint: &str, from: u64) -> Vec<Batch> {
    let mut dealer = DealerSocket::new();
    dealer.connect(endpoint).await.unwrap();
    let mut question = ZmqMessage::from(Bytes::new());
    question.push_back(Bytes::copy_from_slice(&from.to_be_bytes()));
    dealer.send(question).await.unwrap();
    let mut batches = Vec::new();
    loop {
        let frames = dealer.recv().await.unwrap().into_vec();
        let [empty, topic, number, payload] = frames.as_slice() else { panic!("{frames:?}") };
        assert!(empty.is_empty());
        if number[..] == [0xff; 8] {
            assert!(topic.is_empty() && payload.is_empty());
            return batches;
        }
        assert_eq!(topic, TOPIC);
        batches.push((u64::from_be_bytes(number[..].try_into().unwrap()), payload.clone()));
    }
}

/// The events of a batch; the envelope is checked.
pub fn events(payload: &[u8]) -> Vec<Value> {
    let batch: Value = rmp_serde::from_slice(payload).unwrap();
    assert!(batch[0].as_f64().unwrap() > 1.6e9, "seconds since 1970");
    assert_eq!(batch[2], 0, "the rank");
    batch[1].as_array().unwrap().clone()
}
