//! What the peers' thread counts.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// All metrics of peers.
#[derive(Clone, Debug)]
pub struct PeerStats {
    /// Peers connected.
    pub connected: IntGauge,
    /// Blocks fetched for a shard, by what came of it: `kept`, `missing`, `late`, `busy`, `failed`.
    pub fetched: IntCounterVec,
    /// Bytes of blocks fetched and kept.
    pub fetched_bytes: IntCounter,
    /// Blocks sent to peers.
    pub sent: IntCounter,
    /// Bytes of blocks sent to peers.
    pub sent_bytes: IntCounter,
    /// Blocks a second peer was asked for because the first was slow.
    pub hedged: IntCounter,
    /// Blocks whose bytes were not what their hash says.
    pub corrupt: IntCounter,
    /// Hot blocks offered to a peer.
    pub offered: IntCounter,
    /// Hot blocks that peers offered, by what came of it: `kept`, `here`, `again`, `busy`, `refused`, `lost`.
    pub copies: IntCounterVec,
    /// Connections sent away, by reason.
    pub refused: IntCounterVec,
    /// Changes of the index that were not told to peers because there were too many.
    pub untold: IntCounter,
    /// Blocks of peers in the directory.
    pub directory: IntGauge,
}

fn named(name: &str, help: &str) -> Opts {
    Opts::new(format!("cgn_kvcached_peer_{name}"), help)
}

impl PeerStats {
    /// Declares all of them in `registry`.
    ///
    /// # Errors
    /// What prometheus says of two metrics with one name.
    pub fn new(registry: &Registry) -> Result<PeerStats, prometheus::Error> {
        let counter = |name, help| {
            let counter = IntCounter::with_opts(named(name, help))?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let counters = |name, help, label| {
            let counters = IntCounterVec::new(named(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let gauge = |name, help| {
            let gauge = IntGauge::with_opts(named(name, help))?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        Ok(PeerStats {
            connected: gauge("connections", "Peers connected.")?,
            fetched: counters("fetches_total", "Blocks asked of peers, by outcome.", "outcome")?,
            fetched_bytes: counter("fetched_bytes_total", "Bytes of blocks fetched and kept.")?,
            sent: counter("blocks_sent_total", "Blocks sent to peers.")?,
            sent_bytes: counter("sent_bytes_total", "Bytes of blocks sent to peers.")?,
            hedged: counter(
                "hedges_total",
                "Blocks asked of a second peer, the first being slow.",
            )?,
            corrupt: counter("corruptions_total", "Blocks of peers that failed their hash.")?,
            offered: counter("hot_offered_total", "Hot blocks offered to a peer.")?,
            copies: counters(
                "hot_offers_total",
                "Hot blocks that peers offered, by outcome.",
                "outcome",
            )?,
            refused: counters("refusals_total", "Connections sent away, by reason.", "reason")?,
            untold: counter("untold_total", "Changes not told to peers: there were too many.")?,
            directory: gauge("directory_entries", "Blocks of peers in the directory.")?,
        })
    }
}
