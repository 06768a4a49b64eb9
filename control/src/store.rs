//! What survives a restart of control: a small typed store over embedded RocksDB.
//!
//! It owns the folder `store` below `data_dir`; RocksDB's lock keeps a second process out. Each
//! value is a protobuf message, each write is synced before it is acknowledged, and what belongs
//! together is written in one batch. It decides nothing.

use std::path::{Path, PathBuf};

use prost::Message;
use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, IteratorMode, Options, WriteBatch, WriteOptions,
};

use dataplane::wire::ScoreWeights;

use crate::api::{self, AgentReport, Deployment};
use crate::cluster::{Cluster, Remembered};
use crate::place::ReplicaKey;
use crate::weights;

/// Layout of what is stored; another number is refused, not guessed at.
const FORMAT: &[u8] = b"1";
const KEY_FORMAT: &[u8] = b"format";
const KEY_PLACEMENT: &[u8] = b"placement";
const KEY_WEIGHTS: &[u8] = b"route_weights";

const DEPLOYMENTS: &str = "deployments";
const NODES: &str = "nodes";
const META: &str = "meta";

/// The store holds little; RocksDB's defaults are for gigabytes.
const WRITE_BUFFER_BYTES: usize = 4 << 20;
const OPEN_FILES_MAX: i32 = 64;
const INFO_LOG_BYTES_MAX: usize = 1 << 20;
const INFO_LOG_FILES_MAX: usize = 2;

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error(
        "{} is in use by another cgn-control; stop that one or set another [control] data_dir",
        .0.display()
    )]
    Locked(PathBuf),
    /// The folder cannot be made or written.
    #[error(
        "{} cannot be written: {reason}; make it writable or set another [control] data_dir",
        path.display()
    )]
    NotWritable {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// What is there cannot be read back.
    #[error(
        "{} cannot be read: {reason}; restore it from a backup, or move it away to start empty",
        path.display()
    )]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A write failed; it may be lost.
    #[error("a write failed: {0}; check the disk below [control] data_dir")]
    Write(#[source] rocksdb::Error),
}

/// Where each replica is, and the version counter, as stored.
#[derive(Clone, PartialEq, Message)]
struct StoredPlacement {
    #[prost(uint64, tag = "1")]
    revision: u64,
    #[prost(message, repeated, tag = "2")]
    replicas: Vec<StoredReplica>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredReplica {
    #[prost(string, tag = "1")]
    deployment: String,
    #[prost(uint32, tag = "2")]
    replica: u32,
    #[prost(string, tag = "3")]
    node: String,
}

#[derive(Clone, PartialEq, Message)]
struct StoredNode {
    #[prost(message, required, tag = "1")]
    report: AgentReport,
    #[prost(uint64, tag = "2")]
    seen_unix_ms: u64,
}

/// The open store. Dropping it releases the lock.
pub struct Store {
    db: DB,
    path: PathBuf,
}

impl Store {
    /// Opens or creates the store below `data_dir`.
    ///
    /// # Errors
    /// Any [`StoreError`] but [`StoreError::Write`].
    pub fn open(data_dir: &Path) -> Result<Store, StoreError> {
        let path = data_dir.join("store");
        std::fs::create_dir_all(&path).map_err(|error| StoreError::NotWritable {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        let families = [DEPLOYMENTS, NODES, META]
            .map(|name| ColumnFamilyDescriptor::new(name, family_options()));
        let db = DB::open_cf_descriptors(&database_options(), &path, families)
            .map_err(|error| why_not_open(&path, &error))?;
        let store = Store { db, path };
        store.check_format()?;
        Ok(store)
    }

    /// Everything that was written.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`].
    pub fn remembered(&self) -> Result<Remembered, StoreError> {
        let deployments = self.all::<Deployment>(DEPLOYMENTS)?;
        let nodes = self.all::<StoredNode>(NODES)?;
        let placement = match self.db.get_cf(self.family(META)?, KEY_PLACEMENT) {
            Ok(Some(bytes)) => self.decode::<StoredPlacement>(&bytes)?,
            Ok(None) => StoredPlacement::default(),
            Err(error) => return Err(self.unreadable(&error)),
        };
        let replicas = placement
            .replicas
            .into_iter()
            .map(|one| (ReplicaKey { deployment: one.deployment, replica: one.replica }, one.node));
        Ok(Remembered {
            deployments,
            placement: replicas.collect(),
            revision: placement.revision,
            nodes: nodes.into_iter().map(|node| (node.report, node.seen_unix_ms)).collect(),
            weights: self.weights()?,
        })
    }

    /// Makes the weights of all routers durable, or that there are none.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn put_weights(&self, weights: Option<ScoreWeights>) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        let family = self.family(META)?;
        match weights.map(weights::to_api) {
            Some(weights) => batch.put_cf(family, KEY_WEIGHTS, weights.encode_to_vec()),
            None => batch.delete_cf(family, KEY_WEIGHTS),
        }
        self.write(batch)
    }

    fn weights(&self) -> Result<Option<ScoreWeights>, StoreError> {
        let stored = self.db.get_cf(self.family(META)?, KEY_WEIGHTS);
        let Some(bytes) = stored.map_err(|error| self.unreadable(&error))? else {
            return Ok(None);
        };
        let weights = weights::of_api(&self.decode::<api::ScoreWeights>(&bytes)?);
        weights.map(Some).ok_or_else(|| self.unreadable(&"route weights do not sum to 1.0"))
    }

    /// Makes a deployment durable, with the placement that follows from it.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn put_deployment(&self, one: &Deployment, then: &Cluster) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        batch.put_cf(self.family(DEPLOYMENTS)?, &one.name, one.encode_to_vec());
        self.write_with_placement(batch, then)
    }

    /// Makes the end of a deployment durable, with the placement that follows from it.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn delete_deployment(&self, name: &str, then: &Cluster) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        batch.delete_cf(self.family(DEPLOYMENTS)?, name);
        self.write_with_placement(batch, then)
    }

    /// Makes a placement durable that changed because nodes came or went.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn put_placement(&self, cluster: &Cluster) -> Result<(), StoreError> {
        self.write_with_placement(WriteBatch::default(), cluster)
    }

    /// Makes a node's last report durable.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn put_node(&self, report: &AgentReport, seen_unix_ms: u64) -> Result<(), StoreError> {
        let node = StoredNode { report: report.clone(), seen_unix_ms };
        let mut batch = WriteBatch::default();
        batch.put_cf(self.family(NODES)?, &report.node_id, node.encode_to_vec());
        self.write(batch)
    }

    /// Forgets a node.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn delete_node(&self, node: &str) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        batch.delete_cf(self.family(NODES)?, node);
        self.write(batch)
    }

    fn write_with_placement(
        &self,
        mut batch: WriteBatch,
        cluster: &Cluster,
    ) -> Result<(), StoreError> {
        let replica = |(key, node): (&ReplicaKey, &String)| StoredReplica {
            deployment: key.deployment.clone(),
            replica: key.replica,
            node: node.clone(),
        };
        let stored = StoredPlacement {
            revision: cluster.revision(),
            replicas: cluster.placement().iter().map(replica).collect(),
        };
        batch.put_cf(self.family(META)?, KEY_PLACEMENT, stored.encode_to_vec());
        self.write(batch)
    }

    fn write(&self, batch: WriteBatch) -> Result<(), StoreError> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db.write_opt(batch, &options).map_err(StoreError::Write)
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let family = self.family(META)?;
        match self.db.get_cf(family, KEY_FORMAT) {
            Ok(Some(format)) if format == FORMAT => Ok(()),
            Ok(Some(format)) => Err(self.unreadable(&format!(
                "it has format {}, this version reads {}",
                String::from_utf8_lossy(&format),
                String::from_utf8_lossy(FORMAT)
            ))),
            Ok(None) => {
                let mut batch = WriteBatch::default();
                batch.put_cf(family, KEY_FORMAT, FORMAT);
                self.write(batch)
            }
            Err(error) => Err(self.unreadable(&error)),
        }
    }

    fn all<T: Message + Default>(&self, family: &str) -> Result<Vec<T>, StoreError> {
        let entries = self.db.iterator_cf(self.family(family)?, IteratorMode::Start);
        entries
            .map(|entry| match entry {
                Ok((_, bytes)) => self.decode(&bytes),
                Err(error) => Err(self.unreadable(&error)),
            })
            .collect()
    }

    fn decode<T: Message + Default>(&self, bytes: &[u8]) -> Result<T, StoreError> {
        T::decode(bytes).map_err(|error| self.unreadable(&error))
    }

    fn family(&self, name: &str) -> Result<&ColumnFamily, StoreError> {
        self.db
            .cf_handle(name)
            .ok_or_else(|| self.unreadable(&format!("column family {name} is missing")))
    }

    fn unreadable(&self, reason: &dyn std::fmt::Display) -> StoreError {
        StoreError::Unreadable { path: self.path.clone(), reason: reason.to_string() }
    }
}

fn database_options() -> Options {
    let mut options = family_options();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_max_log_file_size(INFO_LOG_BYTES_MAX);
    options.set_keep_log_file_num(INFO_LOG_FILES_MAX);
    options
}

fn family_options() -> Options {
    let mut options = Options::default();
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options
}

/// RocksDB says all of these as "IO error" and a text.
fn why_not_open(path: &Path, error: &rocksdb::Error) -> StoreError {
    let (path, reason) = (path.to_owned(), error.to_string());
    let is_lock = reason.contains("lock file") || reason.contains("lock hold");
    if is_lock && (reason.contains("temporarily unavailable") || reason.contains("lock hold")) {
        return StoreError::Locked(path);
    }
    match error.kind() {
        rocksdb::ErrorKind::IOError => StoreError::NotWritable { path, reason },
        _ => StoreError::Unreadable { path, reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::EngineSpec;
    use crate::cluster::Limits;

    const LIMITS: Limits =
        Limits { node_timeout_ms: 1, node_grace_ms: 1000, nodes_max: 9, deployments_max: 9 };

    fn deployment(name: &str) -> Deployment {
        let spec = EngineSpec {
            model: "sim".into(),
            kind: "sim".into(),
            slots: 1,
            context_length_tokens: 1,
            startup_timeout_s: 1,
            ..EngineSpec::default()
        };
        Deployment { name: name.into(), replicas: 2, spec: Some(spec) }
    }

    #[test]
    fn what_was_written_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let report = AgentReport { node_id: "n1".into(), cpu_cores: 2, ..AgentReport::default() };
        let store = Store::open(dir.path()).unwrap();
        let mut cluster = Cluster::restore(LIMITS, store.remembered().unwrap(), 0);
        cluster.report(report.clone(), 5).unwrap();
        store.put_node(&report, 5).unwrap();
        for name in ["a", "b/c"] {
            cluster.apply(deployment(name), 5).unwrap();
            store.put_deployment(&deployment(name), &cluster).unwrap();
        }
        cluster.delete("a", 5).unwrap();
        store.delete_deployment("a", &cluster).unwrap();
        drop(store);

        let remembered = Store::open(dir.path()).unwrap().remembered().unwrap();
        let expected = Remembered {
            deployments: vec![deployment("b/c")],
            placement: cluster.placement().clone(),
            revision: cluster.revision(),
            nodes: vec![(report, 5)],
            weights: None,
        };
        assert_eq!(remembered, expected);
        assert_eq!(remembered.placement.len(), 2);
    }

    #[test]
    fn weights_are_there_after_reopening_until_they_are_reset() {
        let dir = tempfile::tempdir().unwrap();
        let weights = ScoreWeights { kv: 0.1, load: 0.9, power: 0.0, capacity: 0.0 };
        for set in [Some(weights), None] {
            let store = Store::open(dir.path()).unwrap();
            store.put_weights(set).unwrap();
            drop(store);
            assert_eq!(Store::open(dir.path()).unwrap().remembered().unwrap().weights, set);
        }
    }

    #[test]
    fn a_forgotten_node_stays_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let report = AgentReport { node_id: "n1".into(), ..AgentReport::default() };
        store.put_node(&report, 5).unwrap();
        store.delete_node("n1").unwrap();
        assert!(store.remembered().unwrap().nodes.is_empty());
    }

    #[test]
    fn a_second_owner_is_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Store::open(dir.path()).unwrap();
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Locked(_))));
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Store::open(&file.path().join("data")).err().unwrap();
        assert!(matches!(&error, StoreError::NotWritable { .. }), "{error}");
        assert!(error.to_string().contains(&file.path().display().to_string()));
    }

    #[test]
    fn another_format_is_refused_not_guessed_at() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut batch = WriteBatch::default();
        batch.put_cf(store.family(META).unwrap(), KEY_FORMAT, b"2");
        store.write(batch).unwrap();
        drop(store);
        let error = Store::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("format 2, this version reads 1"), "{error}");
    }
}
