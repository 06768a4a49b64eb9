//! A certificate authority, daemons' peers on loopback, and a store of plain memory.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

use crate::key::{Key, Name, NamespaceId};
use crate::peer::blocks::{Blocks, Held, NotHad, NotKept};
use crate::peer::config::PeersConfig;
use crate::peer::stats::PeerStats;
use crate::peer::tls::Files;
use crate::peer::wire::BlockHead;
use crate::peer::{Peers, PeersThread};
use crate::store::Claim;

pub const NAMESPACE: &str = "model/tp0";

/// What is waited for comes within this time, or never.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn key(number: usize) -> Key {
    Key::new(NamespaceId::of(NAMESPACE), Name::of(&number.to_le_bytes()))
}

/// Bytes that differ from block to block.
pub fn content(number: usize, size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 31 + number * 7 + at / 251) as u8).collect()
}

/// Waits for what is so in the end.
pub fn eventually(mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "it did not come to this");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn run<T>(future: impl Future<Output = T>) -> T {
    futures_lite::future::block_on(future)
}

/// A cluster's authority and where certificates lie.
pub struct Cluster {
    name: &'static str,
    authority: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Cluster {
    pub fn new(name: &'static str) -> Cluster {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        Cluster { name, authority, folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Files of a member with the URI given, for loopback.
    pub fn member(&self, file: &str, uri: &str) -> Files {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        let path = |end: &str| self.folder.path().join(format!("{file}.{end}"));
        std::fs::write(path("pem"), certificate.pem()).unwrap();
        std::fs::write(path("key"), key.serialize_pem()).unwrap();
        Files {
            ca: self.folder.path().join("ca.pem"),
            foreign_ca: None,
            cert: path("pem"),
            key: path("key"),
        }
    }

    pub fn node(&self, name: &str) -> Files {
        self.member(name, &format!("cognitora://{}/node/{name}", self.name))
    }
}

#[derive(Clone)]
pub struct Kept {
    head: BlockHead,
    bytes: Bytes,
}

/// Plain memory, with limits a test can set.
#[derive(Clone, Default)]
pub struct Plain {
    blocks: Arc<Mutex<HashMap<Key, Kept>>>,
    rules: Arc<Mutex<(Option<u64>, Duration)>>,
    /// Told what came, as a shard tells them.
    peers: Arc<OnceLock<Peers>>,
}

impl Plain {
    pub fn allow(&self, bytes_max: u64) {
        self.rules.lock().unwrap().0 = Some(bytes_max);
    }

    pub fn answer_after(&self, wait: Duration) {
        self.rules.lock().unwrap().1 = wait;
    }

    pub fn drop_silently(&self, number: usize) {
        self.blocks.lock().unwrap().remove(&key(number));
    }
}

impl Held for Kept {
    fn head(&self) -> BlockHead {
        self.head.clone()
    }

    fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

impl Blocks for Plain {
    type Held = Kept;
    type Slot = Vec<u8>;

    async fn held(&self, key: Key) -> Result<Option<Kept>, NotHad> {
        let wait = self.rules.lock().unwrap().1;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        Ok(self.blocks.lock().unwrap().get(&key).cloned())
    }

    async fn welcomes(&self, _key: Key, bytes: u64) -> bool {
        self.rules.lock().unwrap().0.is_none_or(|bytes_max| bytes <= bytes_max)
    }

    async fn reserve(
        &self,
        _key: Key,
        head: &BlockHead,
        _claim: Claim,
    ) -> Result<Vec<u8>, NotKept> {
        match self.rules.lock().unwrap().0 {
            Some(bytes_max) if head.len > bytes_max => Err(NotKept),
            _ => Ok(vec![0; head.len as usize]),
        }
    }

    async fn commit(&self, slot: Vec<u8>, key: Key, head: BlockHead) -> Result<(), NotKept> {
        let kept = Kept { head, bytes: slot.into() };
        self.blocks.lock().unwrap().insert(key, kept);
        if let Some(peers) = self.peers.get() {
            peers.added(&key);
        }
        Ok(())
    }
}

/// The peers of one daemon.
pub struct Daemon {
    pub peers: Peers,
    pub store: Plain,
    pub address: SocketAddr,
    thread: Option<PeersThread>,
}

impl Daemon {
    pub fn start(
        cluster: &Cluster,
        name: &str,
        connect: &[&Daemon],
        change: impl FnOnce(&mut PeersConfig),
    ) -> Daemon {
        let connect = connect.iter().map(|daemon| daemon.address.to_string()).collect();
        let mut config = PeersConfig { connect, ..PeersConfig::default() };
        change(&mut config);
        Daemon::with(config, &cluster.node(name))
    }

    pub fn with(config: PeersConfig, files: &Files) -> Daemon {
        let stats = PeerStats::new(&prometheus::Registry::new()).unwrap();
        let store = Plain::default();
        let view = store.clone();
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let (peers, thread) = Peers::start(listen, config, files, stats, move || view).unwrap();
        let _ = store.peers.set(peers.clone());
        Daemon { peers, store, address: thread.address, thread: Some(thread) }
    }

    /// Puts a block into the store, as a client would.
    pub fn hold(&self, number: usize, size: usize) {
        let bytes = content(number, size);
        let head = BlockHead {
            len: size as u64,
            hash: *blake3::hash(&bytes).as_bytes(),
            parent: number.checked_sub(1).map(key),
            namespace: NAMESPACE.to_owned(),
            label: format!("block {number}").into_bytes().into(),
        };
        let kept = Kept { head, bytes: bytes.into() };
        self.store.blocks.lock().unwrap().insert(key(number), kept);
        self.peers.added(&key(number));
    }

    /// What the store has, all of it.
    pub fn held(&self, number: usize) -> Option<(BlockHead, Bytes)> {
        let blocks = self.store.blocks.lock().unwrap();
        blocks.get(&key(number)).map(|kept| (kept.head.clone(), kept.bytes.clone()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.stop();
        }
    }
}
