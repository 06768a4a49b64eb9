//! What of a changed configuration holds from now on, and what waits for a restart.
//!
//! Pure: two configurations in, one out. Making it so is `server/reload.rs`.

use crate::config::Config;

/// The configuration to go on with: `file`, but `running` in what cannot change while the daemon runs. And the
/// keys that differ there.
pub fn merge(running: &Config, mut file: Config) -> (Config, Vec<&'static str>) {
    let mut waiting = Waiting(Vec::new());
    let (old, new) = (running, &mut file);
    waiting.keep("kv.ram_gib", &old.ram_gib, &mut new.ram_gib);
    waiting.keep("kv.cores", &old.cores, &mut new.cores);
    waiting.keep("kv.cpus", &old.cpus, &mut new.cpus);
    waiting.keep("kv.huge_pages", &old.huge_pages, &mut new.huge_pages);
    waiting.keep("kv.uds", &old.uds, &mut new.uds);
    waiting.keep("kv.uds_mode", &old.uds_mode, &mut new.uds_mode);
    waiting.keep("kv.resp_listen", &old.resp_listen, &mut new.resp_listen);
    waiting.keep("kv.metrics_listen", &old.metrics_listen, &mut new.metrics_listen);
    waiting.keep("kv.ssd_dir", &old.ssd_dir, &mut new.ssd_dir);
    waiting.keep("kv.ssd_gib", &old.ssd_gib, &mut new.ssd_gib);
    waiting.keep("kv.index_dir", &old.index_dir, &mut new.index_dir);
    waiting.keep("kv.ssd_segment_mib", &old.ssd_segment_mib, &mut new.ssd_segment_mib);
    waiting.keep("kv.quic_listen", &old.quic_listen, &mut new.quic_listen);
    let (was, is) = (&old.limits, &mut new.limits);
    waiting.keep("kv.limits.block_mib_max", &was.block_mib_max, &mut is.block_mib_max);
    waiting.keep("kv.limits.clients_max", &was.clients_max, &mut is.clients_max);
    let key = "kv.limits.leases_per_client_max";
    waiting.keep(key, &was.leases_per_client_max, &mut is.leases_per_client_max);
    // A door that opened in clear text does not learn TLS, nor the other way round.
    if old.resp.tls.is_some() != new.resp.tls.is_some() {
        waiting.keep("kv.resp.tls", &old.resp.tls, &mut new.resp.tls);
    }
    // Without certificates there is no thread that could take them.
    if old.peers.ca_file.is_some() != new.peers.ca_file.is_some() {
        waiting.0.push("kv.peers.ca_file");
        new.peers = old.peers.clone();
    }
    let (was, is) = (&old.peers.directory_entries_max, &mut new.peers.directory_entries_max);
    waiting.keep("kv.peers.directory_entries_max", was, is);
    (file, waiting.0)
}

/// Keys that wait for a restart.
struct Waiting(Vec<&'static str>);

impl Waiting {
    fn keep<T: Clone + PartialEq>(&mut self, key: &'static str, running: &T, file: &mut T) {
        if file != running {
            self.0.push(key);
            file.clone_from(running);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(Path::new("kv.toml"), text).unwrap()
    }

    /// A file in which every key that waits for a restart is another.
    const ALL: &str = "[kv]\nram_gib = 3\ncores = 2\ncpus = [0, 1]\nhuge_pages = \"require\"\nuds = \"/u\"\n\
        uds_mode = 0\nresp_listen = \"127.0.0.1:1\"\nmetrics_listen = \"127.0.0.1:2\"\nssd_dir = [\"/d\"]\n\
        ssd_gib = 9\nindex_dir = \"/i\"\nssd_segment_mib = 999\nquic_listen = \"127.0.0.1:3\"\n\
        [kv.limits]\nblock_mib_max = 7\nclients_max = 1\nleases_per_client_max = 1\n\
        [kv.resp.tls]\ncert = \"c\"\nkey = \"k\"\n\
        [kv.peers]\nca_file = \"a\"\ncert_file = \"c\"\nkey_file = \"k\"\n";

    #[test]
    fn what_cannot_change_stays_and_is_named() {
        let running = config("[kv]\nram_gib = 1\n");
        let (merged, waiting) = merge(&running, config(ALL));
        assert_eq!(waiting.len(), 18, "{waiting:?}");
        assert_eq!(merged.shard_bytes(), running.shard_bytes());
        assert!(merged.peers.ca_file.is_none() && merged.resp.tls.is_none());
        assert!(merge(&running, merged).1.is_empty(), "what is said once is kept whole");
        // And back: none of them has gone over by half.
        assert_eq!(merge(&config(ALL), running.clone()).1.len(), 18);
    }

    #[test]
    fn what_can_change_does() {
        let running = config("[kv]\nram_gib = 1\n");
        let live = config(
            "[kv]\nram_gib = 1\n[kv.namespaces.a]\nquota_gib = 0.5\n[kv.limits]\nreserve_wait_ms = 7\n\
             loads_max = 3\nssd_write_mib_s_max = 5\nstop_s_max = 1\nnamespaces_max = 9\n\
             [kv.resp]\nidle_s = 4\n[kv.peers]\nhot_fetches = 3\nforeign_egress_mib_s_max = 1\n",
        );
        let (merged, waiting) = merge(&running, live.clone());
        assert_eq!(waiting, Vec::<&str>::new());
        assert_eq!((merged.limits, &merged.resp), (live.limits, &live.resp));
        assert_eq!(merged.rules(), live.rules());
        assert_eq!(merged.peers.rates(), live.peers.rates());
    }

    #[test]
    fn the_page_names_what_needs_a_restart() {
        let page = include_str!("../../docs/CONFIGURATION.md");
        let after = page.split("These need a restart:").nth(1).expect("the paragraph");
        let paragraph = after.split("\n\n").next().unwrap();
        for key in merge(&config("[kv]\nram_gib = 1\n"), config(ALL)).1 {
            assert!(paragraph.contains(&format!("`{}`", key.trim_start_matches("kv."))), "{key}");
        }
    }
}
