//! What the daemon counts, declared once: name, unit, help, labels. Shared by all threads.
//!
//! Names follow `cgn_kvcached_<noun>_<unit>[_total]`, base units.

mod disk;

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{
    Encoder, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::disk::tier::Tier;
use disk::DiskMetrics;

/// All metrics of the process.
#[derive(Debug)]
pub struct Stats {
    registry: Registry,
    /// Blocks asked for, by the tier that had them, or `none`.
    pub lookups: IntCounterVec,
    ram_hits: IntCounter,
    stored: IntCounter,
    stored_bytes: IntCounter,
    served_bytes: IntCounter,
    /// Blocks that made room for others.
    pub evictions: IntCounter,
    /// Stores refused, by reason.
    pub refusals: IntCounterVec,
    /// Client connections open, by door.
    pub connections: IntGaugeVec,
    blocks: IntGaugeVec,
    used_bytes: IntGaugeVec,
    resident_bytes: IntGaugeVec,
    namespace_bytes: IntGaugeVec,
    /// Bytes of RAM that may be resident.
    pub budget_bytes: IntGauge,
    disk: Mutex<Option<Arc<Tier>>>,
    disk_metrics: DiskMetrics,
}

fn named(name: &str, help: &str) -> Opts {
    Opts::new(format!("cgn_kvcached_{name}"), help)
}

impl Stats {
    /// Declares all of them.
    ///
    /// # Errors
    /// What prometheus says of two metrics with one name: a fault of this file.
    pub fn new() -> Result<Stats, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name, help| {
            let counter = IntCounter::with_opts(named(name, help))?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let counters = |name, help, labels: &[&str]| {
            let counters = IntCounterVec::new(named(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let gauges = |name, help, labels: &[&str]| {
            let gauges = IntGaugeVec::new(named(name, help), labels)?;
            registry.register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        let budget_bytes = IntGauge::with_opts(named(
            "arena_budget_bytes",
            "Bytes of RAM that may be resident for blocks.",
        ))?;
        registry.register(Box::new(budget_bytes.clone()))?;
        let lookups =
            counters("lookups_total", "Blocks asked for, by the tier that had them.", &["tier"])?;
        Ok(Stats {
            ram_hits: lookups.with_label_values(&["ram"]),
            lookups,
            stored: counter("blocks_stored_total", "Blocks stored by clients.")?,
            stored_bytes: counter("stored_bytes_total", "Bytes of blocks stored by clients.")?,
            served_bytes: counter("served_bytes_total", "Bytes of blocks handed to clients.")?,
            evictions: counter("evictions_total", "Blocks that left RAM to make room.")?,
            refusals: counters("refusals_total", "Stores refused, by reason.", &["reason"])?,
            connections: gauges("connections", "Client connections open, by door.", &["door"])?,
            blocks: gauges("blocks", "Blocks known, by shard.", &["shard"])?,
            used_bytes: gauges(
                "arena_used_bytes",
                "Bytes of RAM in blocks, by shard.",
                &["shard"],
            )?,
            resident_bytes: gauges(
                "arena_resident_bytes",
                "Bytes of RAM in blocks or kept ready for the next, by shard.",
                &["shard"],
            )?,
            namespace_bytes: gauges(
                "namespace_bytes",
                "Bytes of RAM in blocks of a namespace.",
                &["namespace"],
            )?,
            budget_bytes,
            disk: Mutex::default(),
            disk_metrics: DiskMetrics::new(&registry)?,
            registry,
        })
    }

    /// The disk whose counters are shown too.
    pub fn watch_disk(&self, tier: Arc<Tier>) {
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = Some(tier);
    }

    /// The disk is about to be closed.
    pub fn forget_disk(&self) {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// A block of so many bytes was found in RAM.
    pub fn hit_in_ram(&self, bytes: u64) {
        self.ram_hits.inc();
        self.served_bytes.inc_by(bytes);
    }

    /// A block of so many bytes was found on disk.
    pub fn hit_on_disk(&self, bytes: u64) {
        self.lookups.with_label_values(&["disk"]).inc();
        self.served_bytes.inc_by(bytes);
    }

    /// A block of so many bytes came from a peer.
    pub fn hit_at_peer(&self, bytes: u64) {
        self.lookups.with_label_values(&["peer"]).inc();
        self.served_bytes.inc_by(bytes);
    }

    /// Where more metrics are declared.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A block of so many bytes was stored.
    pub fn stored(&self, bytes: u64) {
        self.stored.inc();
        self.stored_bytes.inc_by(bytes);
    }

    /// What one shard holds now.
    pub fn shard(&self, number: usize, blocks: u64, used_bytes: u64, resident_bytes: u64) {
        let shard = number.to_string();
        let set = |gauges: &IntGaugeVec, value: u64| {
            gauges.with_label_values(&[shard.as_str()]).set(value.try_into().unwrap_or(i64::MAX));
        };
        set(&self.blocks, blocks);
        set(&self.used_bytes, used_bytes);
        set(&self.resident_bytes, resident_bytes);
    }

    /// What one namespace holds now.
    pub fn namespace(&self, name: &str, bytes: u64) {
        let bytes = bytes.try_into().unwrap_or(i64::MAX);
        self.namespace_bytes.with_label_values(&[name]).set(bytes);
    }

    /// All of it in Prometheus' text format.
    pub fn exposition(&self) -> Vec<u8> {
        if let Some(tier) = &*self.disk.lock().unwrap_or_else(PoisonError::into_inner) {
            self.disk_metrics.read(tier);
        }
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be written");
        }
        text
    }
}
