//! The world around a soak: every epoch some models leave and others come, and all keys change.
//!
//! It plays control on a Unix socket (snapshots) and the operator (the key file). A key is valid for
//! three epochs and used in the middle one; a model is asked for only while it stays.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use dataplane::wire::{Capability, EngineKind, Snapshot, ToPlane, Worker, WorkerState, encode};

use crate::house::key_line;
use crate::stage::Stage;

/// Tenants with a key each.
pub const TENANTS: u64 = 500;
/// Models served at a time.
const MODELS: u64 = 50;
/// Of which so many leave with each epoch.
const MODELS_LEAVE: u64 = 5;

/// What clients need to know of it.
pub struct World {
    epoch: AtomicU64,
    ended: AtomicBool,
    engines: [u16; 2],
    keys: PathBuf,
    /// Where control listens.
    pub socket: PathBuf,
}

impl World {
    /// Epoch 0: the key file is written, control listens.
    pub fn begin(stage: &Stage, epoch: Duration) -> Result<Arc<Self>, String> {
        let world = Arc::new(World {
            epoch: AtomicU64::new(1),
            ended: AtomicBool::new(false),
            engines: stage.engine_ports(),
            keys: stage.path("soak-keys"),
            socket: stage.path("control.sock"),
        });
        world.write_keys()?;
        let listener = UnixListener::bind(&world.socket).map_err(|e| e.to_string())?;
        let control = Arc::clone(&world);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let control = Arc::clone(&control);
                std::thread::spawn(move || control.tell(stream));
            }
        });
        let clock = Arc::clone(&world);
        std::thread::spawn(move || {
            while !clock.ended.load(Relaxed) {
                std::thread::sleep(epoch);
                clock.epoch.fetch_add(1, Relaxed);
                if let Err(error) = clock.write_keys() {
                    eprintln!("the key file: {error}");
                }
            }
        });
        Ok(world)
    }

    /// How often it changed.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Relaxed)
    }

    /// Nothing changes any more.
    pub fn end(&self) {
        self.ended.store(true, Relaxed);
    }

    /// The key file in force.
    pub fn keys(&self) -> &PathBuf {
        &self.keys
    }

    /// A valid key.
    pub fn key(&self, random: u64) -> String {
        key(random % TENANTS, self.epoch())
    }

    /// A model that stays for a while.
    pub fn model(&self, random: u64) -> String {
        let stays = MODELS - 4 * MODELS_LEAVE;
        format!("model-{}", (self.epoch() + 2) * MODELS_LEAVE + random % stays)
    }

    fn write_keys(&self) -> Result<(), String> {
        let epoch = self.epoch();
        let mut text = String::new();
        for of in epoch.saturating_sub(1)..=epoch + 1 {
            for tenant in 0..TENANTS {
                text.push_str(&key_line(&key(tenant, of), &format!("tenant-{tenant}")));
            }
        }
        let fresh = self.keys.with_extension("new");
        std::fs::write(&fresh, text).map_err(|e| e.to_string())?;
        std::fs::rename(&fresh, &self.keys).map_err(|e| e.to_string())
    }

    fn tell(&self, mut stream: std::os::unix::net::UnixStream) {
        // The hello of the router; what it says does not matter here.
        let _ = stream.read(&mut [0; 1 << 10]);
        let mut told = 0;
        while !self.ended.load(Relaxed) {
            let epoch = self.epoch();
            if told != epoch {
                let Ok(frame) = encode(&ToPlane::Snapshot(self.snapshot(epoch))) else { return };
                if stream.write_all(&frame).is_err() {
                    return;
                }
                told = epoch;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn snapshot(&self, epoch: u64) -> Snapshot {
        let first = epoch * MODELS_LEAVE;
        let models = first..first + MODELS;
        let workers = models.flat_map(|model| {
            self.engines.into_iter().enumerate().map(move |(at, port)| worker(model, at, port))
        });
        Snapshot { version: epoch, workers: workers.collect(), weights: None }
    }
}

fn key(tenant: u64, epoch: u64) -> String {
    format!("sk-soak-{tenant}-{epoch}-0123456789abcdef")
}

fn worker(model: u64, at: usize, port: u16) -> Worker {
    Worker {
        id: format!("bench/model-{model}/{at}"),
        node: "bench".to_owned(),
        url: format!("http://127.0.0.1:{port}"),
        model: format!("model-{model}"),
        kind: EngineKind::OpenaiCompat,
        slots: 64,
        context_length_tokens: 0,
        kv_cache_tokens: 0,
        capabilities: vec![Capability::Chat, Capability::Completions],
        state: WorkerState::Ready,
        epoch: 1,
        power_watts: None,
        running_requests: None,
        kv_feed: None,
        kv_events: false,
        kv_block_tokens: 0,
        model_files: None,
    }
}
