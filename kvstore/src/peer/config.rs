//! Section `[kv.peers]`: whom to connect to, as whom, and how much may leave.

use std::path::PathBuf;

use serde::Deserialize;

use super::directory::PLACES_MAX;
use super::limits::Rates;
use super::tls::Files;

/// Section `[kv.peers]`. Without certificates there are no peers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeersConfig {
    /// Daemons to connect to, `host:port`; others are heard of from them.
    pub connect: Vec<String>,
    /// Where others can dial this one, `host:port`; absent: a DNS name of its certificate, or the
    /// address its packets come from.
    pub advertise: Option<String>,
    /// The cluster's authority, PEM.
    pub ca_file: Option<PathBuf>,
    /// Authorities of other clusters, PEM.
    pub foreign_ca_file: Option<PathBuf>,
    /// This node's certificate, PEM.
    pub cert_file: Option<PathBuf>,
    /// Its key, PEM.
    pub key_file: Option<PathBuf>,
    /// Peers connected at a time, up to 64.
    pub peers_max: usize,
    /// MiB a second to all peers together; 0: no limit.
    pub egress_mib_s_max: u64,
    /// MiB a second to one peer; 0: no limit.
    pub peer_egress_mib_s_max: u64,
    /// MiB a second to one foreign cluster.
    pub foreign_egress_mib_s_max: u64,
    /// Blocks of all peers that are remembered, 40 bytes each.
    pub directory_entries_max: usize,
    /// Blocks that are on their way from peers at a time; more are not fetched.
    pub fetches_max: usize,
    /// How long a block is waited for where its asker names no deadline, in milliseconds.
    pub fetch_ms_max: u64,
    /// Times that peers fetch a block within 10 s before a peer that lacks it is offered a copy; 0: never.
    pub hot_fetches: u32,
    /// MiB a second of such copies, offered and taken each; 0: no limit.
    pub hot_mib_s_max: u64,
}

impl Default for PeersConfig {
    fn default() -> PeersConfig {
        PeersConfig {
            connect: Vec::new(),
            advertise: None,
            ca_file: None,
            foreign_ca_file: None,
            cert_file: None,
            key_file: None,
            peers_max: PLACES_MAX,
            egress_mib_s_max: 0,
            peer_egress_mib_s_max: 0,
            foreign_egress_mib_s_max: 64,
            directory_entries_max: 1_000_000,
            fetches_max: 4_096,
            fetch_ms_max: 5_000,
            hot_fetches: 8,
            hot_mib_s_max: 64,
        }
    }
}

impl PeersConfig {
    /// The certificate files; none if there are to be no peers.
    ///
    /// # Errors
    /// The key that is missing or wrong, and what to do.
    pub fn checked(&self) -> Result<Option<Files>, (&'static str, String)> {
        if self.peers_max == 0 || self.peers_max > PLACES_MAX {
            let message = format!("{} is not in 1..={PLACES_MAX}", self.peers_max);
            return Err(("kv.peers.peers_max", message));
        }
        let connect = self.connect.iter().map(|address| ("kv.peers.connect", address));
        let advertise = self.advertise.iter().map(|address| ("kv.peers.advertise", address));
        if let Some((key, address)) = connect.chain(advertise).find(|(_, text)| !is_address(text)) {
            return Err((key, format!("`{address}` is no address; write host:port")));
        }
        match (&self.ca_file, &self.cert_file, &self.key_file) {
            (None, None, None) if self.connect.is_empty() => Ok(None),
            (Some(ca), Some(cert), Some(key)) => Ok(Some(Files {
                ca: ca.clone(),
                foreign_ca: self.foreign_ca_file.clone(),
                cert: cert.clone(),
                key: key.clone(),
            })),
            _ => Err((
                "kv.peers",
                "ca_file, cert_file and key_file belong together; `cgnctl pki bootstrap` and \
                 `cgnctl pki issue` make them"
                    .to_owned(),
            )),
        }
    }

    /// What of hot blocks is offered and taken, in bytes a second.
    pub fn hot_bytes_s_max(&self) -> u64 {
        self.hot_mib_s_max << 20
    }

    /// What may leave.
    pub fn rates(&self) -> Rates {
        Rates {
            total_bytes_s: self.egress_mib_s_max << 20,
            peer_bytes_s: self.peer_egress_mib_s_max << 20,
            foreign_bytes_s: self.foreign_egress_mib_s_max << 20,
        }
    }
}

/// Whether `text` is a host, a colon and a port.
pub fn is_address(text: &str) -> bool {
    text.len() <= 255
        && text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_certificate_is_refused_and_none_means_no_peers() {
        let mut config = PeersConfig::default();
        assert_eq!(config.checked(), Ok(None));
        config.connect = vec!["gpu-02:7091".to_owned()];
        assert!(config.checked().is_err());
        config.ca_file = Some("ca.pem".into());
        config.cert_file = Some("node.pem".into());
        assert!(config.checked().is_err());
        config.key_file = Some("node.key".into());
        assert!(matches!(config.checked(), Ok(Some(_))));
        config.connect.push("gpu-03".to_owned());
        assert!(config.checked().is_err_and(|(_, message)| message.contains("host:port")));
        config.connect = vec!["[::1]:7091".to_owned()];
        config.peers_max = 65;
        assert!(config.checked().is_err_and(|(key, _)| key == "kv.peers.peers_max"));
    }
}
