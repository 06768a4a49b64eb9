//! What the daemon is told: `cgn-kvcached --config FILE`, section `[kv]`. Every limit has its name here.
//!
//! It reads and checks; it opens and takes nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use dataplane::config::{self, ConfigError};
use serde::Deserialize;

use crate::namespace::{Rules, WritePolicy};
use crate::peer::config::PeersConfig;
use crate::resp::config::RespConfig;

const GIB: f64 = (1u64 << 30) as f64;

/// The file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    kv: Config,
}

/// Section `[kv]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// RAM for blocks, in GiB, over all shards.
    pub ram_gib: f64,
    /// Shards, each a thread that owns a part of the blocks.
    #[serde(default = "one")]
    pub cores: usize,
    /// The CPUs the shards are pinned to, in order; empty: the scheduler chooses.
    #[serde(default)]
    pub cpus: Vec<usize>,
    /// Huge pages for the arena.
    #[serde(default)]
    pub huge_pages: HugePages,
    /// The Unix socket where native clients come in; absent: nowhere.
    #[serde(default)]
    pub uds: Option<PathBuf>,
    /// Permissions of that socket, as in `0o660`.
    #[serde(default = "uds_mode")]
    pub uds_mode: u32,
    /// Where RESP clients (LMCache, redis) come in; empty: nowhere.
    #[serde(default = "resp_listen")]
    pub resp_listen: Option<SocketAddr>,
    /// The RESP door's users, TLS and limits.
    #[serde(default)]
    pub resp: RespConfig,
    /// Where metrics and health are served.
    #[serde(default = "metrics_listen")]
    pub metrics_listen: SocketAddr,
    /// Directories, or block devices, that keep blocks beyond RAM; empty: none.
    #[serde(default)]
    pub ssd_dir: Vec<PathBuf>,
    /// Bytes the disk may use, in GiB, over all of `ssd_dir`.
    #[serde(default)]
    pub ssd_gib: f64,
    /// Where the index of the disk lies; absent: `index` in the first of `ssd_dir`.
    #[serde(default)]
    pub index_dir: Option<PathBuf>,
    /// File with the key that the disk is encrypted with; absent: it is not.
    #[serde(default)]
    pub disk_key_file: Option<PathBuf>,
    /// Size of a segment, in MiB: what the disk is written and given up in. Must hold the largest block.
    #[serde(default = "ssd_segment_mib")]
    pub ssd_segment_mib: u64,
    /// When blocks reach the disk, where the namespace says nothing else.
    #[serde(default)]
    pub write: WritePolicy,
    /// Namespaces with rules of their own, by name.
    #[serde(default)]
    pub namespaces: BTreeMap<String, NamespaceConfig>,
    /// Where other daemons come in, over QUIC; used once `[kv.peers]` names certificates.
    #[serde(default = "quic_listen")]
    pub quic_listen: SocketAddr,
    /// Other daemons.
    #[serde(default)]
    pub peers: PeersConfig,
    /// Every limit.
    #[serde(default)]
    pub limits: Limits,
}

/// Section `[kv.namespaces.NAME]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NamespaceConfig {
    /// RAM its blocks may fill, in GiB; absent: all of it.
    pub quota_gib: Option<f64>,
    /// When its blocks reach the disk; absent: as `kv.write` says.
    pub write: Option<WritePolicy>,
}

/// Whether the arena is made of huge pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HugePages {
    /// If the kernel's pool has enough of them; else plain pages and a warning.
    #[default]
    Auto,
    /// Or the daemon does not start.
    Require,
    /// Plain pages.
    Never,
}

/// Section `[kv.limits]`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest block, in MiB, up to 512.
    pub block_mib_max: u64,
    /// How long a write waits while all memory is leased, in milliseconds.
    pub reserve_wait_ms: u64,
    /// Bytes a second that may be written to disk, but for durable blocks, in MiB; absent: no limit.
    pub ssd_write_mib_s_max: Option<u64>,
    /// How long a stop may take to write RAM to disk, in seconds.
    pub stop_s_max: u64,
    /// Blocks on their way into RAM at once, for each shard.
    pub loads_max: usize,
    /// Namespaces the daemon knows at once.
    pub namespaces_max: usize,
    /// Native clients connected at once.
    pub clients_max: usize,
    /// Leases one native client may hold at once.
    pub leases_per_client_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            block_mib_max: 512,
            reserve_wait_ms: 1_000,
            ssd_write_mib_s_max: None,
            stop_s_max: 30,
            loads_max: 1_024,
            namespaces_max: 1_024,
            clients_max: 256,
            leases_per_client_max: 65_536,
        }
    }
}

impl Limits {
    /// Bytes a second that may be written to disk, but for durable blocks.
    pub fn ssd_write_bytes_per_s(&self) -> Option<u64> {
        self.ssd_write_mib_s_max.map(|mib| mib << 20)
    }
}

/// Largest `kv.limits.block_mib_max`: what redis allows for a value.
pub const BLOCK_MIB_MAX: u64 = 512;
/// Most shards: more threads than that only hand blocks to each other.
pub const CORES_MAX: usize = 64;

/// 1 GiB: twice the largest block there can be. A quarter of it is the most that a stop leaves unused.
fn ssd_segment_mib() -> u64 {
    1_024
}

fn one() -> usize {
    1
}

#[expect(clippy::unnecessary_wraps, reason = "the default of an optional key")]
fn resp_listen() -> Option<SocketAddr> {
    Some(SocketAddr::from(([127, 0, 0, 1], 7080)))
}

fn uds_mode() -> u32 {
    0o660
}

/// On every address: nobody without a certificate of the cluster gets a word.
fn quic_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 7091))
}

fn metrics_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9092))
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`], in words that name the key and the cure.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let file: File = config::load(path)?;
        file.kv.checked(path)
    }

    /// As [`Config::load`], from the text of a file.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
        let file: File = config::parse(path, text)?;
        file.kv.checked(path)
    }

    /// Whether its parts go together.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn checked(self, path: &Path) -> Result<Config, ConfigError> {
        let fault = |key: &str, message: String| {
            Err(ConfigError::Value { path: path.to_owned(), key: key.to_owned(), message })
        };
        if !(self.ram_gib.is_finite() && self.ram_gib > 0.0) {
            return fault("kv.ram_gib", format!("{} is no amount of memory", self.ram_gib));
        }
        if self.cores == 0 || self.cores > CORES_MAX {
            return fault("kv.cores", format!("{} is not in 1..={CORES_MAX}", self.cores));
        }
        if !self.cpus.is_empty() && self.cpus.len() != self.cores {
            let message =
                format!("{} CPUs for {} cores; name one each", self.cpus.len(), self.cores);
            return fault("kv.cpus", message);
        }
        let largest = self.limits.block_mib_max;
        if largest == 0 || largest > BLOCK_MIB_MAX {
            let message = format!("{largest} is not in 1..={BLOCK_MIB_MAX}");
            return fault("kv.limits.block_mib_max", message);
        }
        if self.block_bytes_max() > self.shard_bytes() {
            let message = format!(
                "{} GiB over {} cores is less than a block of kv.limits.block_mib_max = {largest} for each; raise one or lower the other",
                self.ram_gib, self.cores
            );
            return fault("kv.ram_gib", message);
        }
        self.check_disk(path)?;
        if let Err((key, message)) = self.peers.checked() {
            return fault(key, message);
        }
        for (name, namespace) in &self.namespaces {
            if namespace.quota_gib.is_some_and(|quota| !(quota.is_finite() && quota > 0.0)) {
                let key = format!("kv.namespaces.{name}.quota_gib");
                return fault(&key, "not an amount of memory".to_owned());
            }
        }
        if let Some(Err((key, message))) = self.resp_listen.map(|listen| self.resp.check(listen)) {
            return fault(key, message);
        }
        config::require_loopback(path, "kv.metrics_listen", self.metrics_listen)?;
        Ok(self)
    }

    fn check_disk(&self, path: &Path) -> Result<(), ConfigError> {
        let fault = |key: &str, message: String| {
            Err(ConfigError::Value { path: path.to_owned(), key: key.to_owned(), message })
        };
        if self.ssd_dir.is_empty() && self.disk_key_file.is_some() {
            let message = "there is no disk to encrypt; name one in kv.ssd_dir, or leave this out";
            return fault("kv.disk_key_file", message.to_owned());
        }
        if self.ssd_dir.is_empty() {
            let mut writes = self.namespaces.values().filter_map(|namespace| namespace.write);
            if self.write == WritePolicy::Through || writes.any(|w| w == WritePolicy::Through) {
                return fault(
                    "kv.ssd_dir",
                    "`write = \"through\"` needs a disk; name one".to_owned(),
                );
            }
            return Ok(());
        }
        if !(self.ssd_gib.is_finite() && self.ssd_gib > 0.0) {
            return fault("kv.ssd_gib", "say how much of kv.ssd_dir may be used".to_owned());
        }
        let is_device = self.ssd_dir.first().is_some_and(|first| first.exists() && !first.is_dir());
        if self.index_dir.is_none() && is_device {
            let message = "the first of kv.ssd_dir is no directory; name one for the index";
            return fault("kv.index_dir", message.to_owned());
        }
        if self.ssd_segment_mib <= self.limits.block_mib_max {
            let message = format!(
                "{} MiB do not hold a block of kv.limits.block_mib_max = {} and its header; raise one or lower the other",
                self.ssd_segment_mib, self.limits.block_mib_max
            );
            return fault("kv.ssd_segment_mib", message);
        }
        Ok(())
    }

    /// Bytes to use of each of `ssd_dir`; none if there is no disk.
    pub fn ssd_bytes_each(&self) -> Option<u64> {
        let count = self.ssd_dir.len() as u64;
        ((self.ssd_gib * GIB) as u64).checked_div(count).map(|bytes| bytes >> 12 << 12)
    }

    /// Where the index of the disk lies.
    pub fn index_dir(&self) -> PathBuf {
        let beside = || self.ssd_dir.first().map(|first| first.join("index"));
        self.index_dir.clone().or_else(beside).unwrap_or_default()
    }

    /// Size of a segment, in bytes.
    pub fn segment_bytes(&self) -> u64 {
        self.ssd_segment_mib << 20
    }

    /// RAM of one shard, in bytes, whole huge pages.
    pub fn shard_bytes(&self) -> u64 {
        let bytes = self.ram_gib * GIB / self.cores as f64;
        (bytes as u64) >> 21 << 21
    }

    /// Largest block, in bytes.
    pub fn block_bytes_max(&self) -> u64 {
        self.limits.block_mib_max << 20
    }

    /// Rules of the namespaces named, and of all others.
    pub fn rules(&self) -> (BTreeMap<String, Rules>, Rules) {
        let named = self.namespaces.iter().map(|(name, namespace)| {
            let quota_bytes = namespace.quota_gib.map(|gib| (gib * GIB) as u64);
            let write = namespace.write.unwrap_or(self.write);
            (name.clone(), Rules { quota_bytes, write })
        });
        (named.collect(), Rules { quota_bytes: None, write: self.write })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("kv.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn one_line_is_enough_and_the_rest_has_defaults() {
        let config = read("[kv]\nram_gib = 1\n").unwrap();
        assert_eq!(config.resp_listen, Some("127.0.0.1:7080".parse().unwrap()));
        assert_eq!(config.cores, 1);
        assert_eq!(config.shard_bytes(), 1 << 30);
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_key_and_the_cure() {
        let fault = |text: &str| read(text).unwrap_err();
        assert!(fault("[kv]\nram_gibs = 1\n").contains("nearest known key is `ram_gib`"));
        assert!(fault("[kv]\nram_gib = -1\n").starts_with("kv.toml: kv.ram_gib"));
        assert!(fault("[kv]\nram_gib = 0.1\n").contains("block_mib_max"));
        assert!(fault("[kv]\nram_gib = 1\ncores = 0\n").contains("kv.cores"));
        assert!(fault("[kv]\nram_gib = 4\ncores = 2\ncpus = [1]\n").contains("kv.cpus"));
        assert!(fault("[kv]\nram_gib = 1\nmetrics_listen = \"0.0.0.0:1\"\n").contains("loopback"));
        assert!(fault("[kv]\nram_gib = 1\n[kv.limits]\nblock_mib_max = 513\n").contains("513"));
        assert!(fault("[kv]\nram_gib = 1\nwrite = \"through\"\n").contains("kv.ssd_dir"));
        assert!(fault("[kv]\nram_gib = 1\nssd_dir = [\"/d\"]\n").contains("kv.ssd_gib"));
        assert!(fault("[kv]\nram_gib = 1\ndisk_key_file = \"/k\"\n").contains("kv.disk_key_file"));
    }

    #[test]
    fn a_namespace_without_a_word_on_writing_follows_the_whole() {
        let text = "[kv]\nram_gib = 1\nwrite = \"through\"\nssd_dir = [\"/d\"]\nssd_gib = 8\nssd_segment_mib = 1024\n\
                    [kv.namespaces.a]\nquota_gib = 0.5\n";
        let (named, rest) = read(text).unwrap().rules();
        let both = Rules { quota_bytes: Some(1 << 29), write: WritePolicy::Through };
        assert_eq!(named["a"], both);
        assert_eq!(rest.write, WritePolicy::Through);
    }
}
