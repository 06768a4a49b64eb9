//! A control plane of one socket: it says what the workers are.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};

use dataplane::wire::{Capability, EngineKind, Snapshot, ToPlane, Worker, WorkerState, encode};

use super::ask::eventually;
use super::process::Router;
use super::speaker::Speaker;

pub struct Control {
    plane: UnixStream,
    version: u64,
    _folder: tempfile::TempDir,
}

impl Control {
    /// A router that follows it; `keys` come behind `control_socket`.
    pub fn start(keys: &str) -> (Control, Router) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let router =
            Router::spawn(&format!("control_socket = \"{}\"\n{keys}", socket.display()), "");
        let (plane, _) = listener.accept().unwrap();
        (Control { plane, version: 0, _folder: folder }, router)
    }

    /// Says so, and waits until the router knows.
    pub fn say(&mut self, router: &Router, workers: &[(&Speaker, WorkerState)]) {
        self.version += 1;
        let workers = workers.iter().map(|(engine, state)| worker(engine, *state)).collect();
        let snapshot = Snapshot { version: self.version, workers, weights: None };
        self.plane.write_all(&encode(&ToPlane::Snapshot(snapshot)).unwrap()).unwrap();
        let version = self.version as f64;
        eventually("the snapshot is taken", || {
            router.metric("cgn_router_snapshot_version") == version
        });
    }
}

pub fn worker_id(engine: &Speaker) -> String {
    format!("n/{}/0", engine.address.port())
}

fn worker(engine: &Speaker, state: WorkerState) -> Worker {
    Worker {
        id: worker_id(engine),
        node: "n".to_owned(),
        url: format!("http://{}", engine.address),
        model: "m".to_owned(),
        kind: EngineKind::OpenaiCompat,
        slots: 16,
        context_length_tokens: 0,
        kv_cache_tokens: 0,
        capabilities: vec![Capability::Chat],
        state,
        epoch: 1,
        power_watts: None,
        running_requests: None,
        kv_feed: None,
        kv_events: false,
        kv_block_tokens: 0,
        model_files: None,
    }
}
