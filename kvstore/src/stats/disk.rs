//! The disk's metrics: counters that its shards keep without prometheus, read when somebody asks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus::{IntCounter, IntGauge, Registry};

use super::named;
use crate::disk::tier::{Counters, Tier};

/// Where the number is.
type Field = fn(&Counters) -> &AtomicU64;
/// Name, help, and where the number is.
type Row = (&'static str, &'static str, Field);

const ROWS: &[Row] = &[
    ("disk_blocks_written_total", "Blocks of clients written to disk.", |all| &all.writes),
    ("disk_value_bytes_total", "Bytes of those blocks.", |all| &all.value_bytes),
    (
        "disk_written_bytes_total",
        "Bytes written to devices; over the values' this is write amplification.",
        |all| &all.written_bytes,
    ),
    ("disk_syncs_total", "Times that writes were made durable.", |all| &all.syncs),
    ("disk_blocks_read_total", "Blocks read and found right.", |all| &all.reads),
    ("disk_read_bytes_total", "Bytes of those blocks.", |all| &all.read_bytes),
    ("disk_write_errors_total", "Writes that a device refused.", |all| &all.write_errors),
    ("disk_read_errors_total", "Reads that a device refused.", |all| &all.read_errors),
    (
        "disk_corruptions_total",
        "Blocks that were not what had been written, and were dropped.",
        |all| &all.corruptions,
    ),
    ("disk_blocks_dropped_total", "Blocks given up to make room.", |all| &all.dropped),
    ("disk_blocks_moved_total", "Blocks written again to make room.", |all| &all.moved),
    (
        "disk_index_lags_total",
        "Changes the index did not take in time; the next start finds them in the segments.",
        |all| &all.index_lags,
    ),
    ("disk_writes_spared_total", "Writes not made, to spare the device.", |all| &all.spared),
];

/// What is shown of the disk.
#[derive(Debug)]
pub(super) struct DiskMetrics {
    counters: Vec<(IntCounter, Field)>,
    live_bytes: IntGauge,
    free_segments: IntGauge,
}

impl DiskMetrics {
    /// Declares them.
    ///
    /// # Errors
    /// Two have one name.
    pub(super) fn new(registry: &Registry) -> Result<DiskMetrics, prometheus::Error> {
        let mut counters = Vec::with_capacity(ROWS.len());
        for &(name, help, read) in ROWS {
            let counter = IntCounter::with_opts(named(name, help))?;
            registry.register(Box::new(counter.clone()))?;
            counters.push((counter, read));
        }
        let gauge = |name, help| {
            let gauge = IntGauge::with_opts(named(name, help))?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        Ok(DiskMetrics {
            counters,
            live_bytes: gauge("disk_live_bytes", "Bytes of blocks that are on disk.")?,
            free_segments: gauge("disk_free_segments", "Segments that hold nothing.")?,
        })
    }

    /// Takes the tier's numbers over.
    pub(super) fn read(&self, tier: &Tier) {
        for (counter, read) in &self.counters {
            let now = read(&tier.counters).load(Relaxed);
            // Two readers at once may count a step twice or not at all; the next look mends the latter.
            counter.inc_by(now.saturating_sub(counter.get()));
        }
        self.live_bytes.set(tier.ledger.all_live_bytes().try_into().unwrap_or(i64::MAX));
        self.free_segments.set(tier.ledger.free_segments(|_| true).try_into().unwrap_or(i64::MAX));
    }
}
