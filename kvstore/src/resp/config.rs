//! `[kv.resp]`: what the RESP door's configuration may say, and what it may not.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::tls::TlsFiles;
use super::wire::Pace;

/// `[kv.resp]`. The address itself is `kv.resp_listen`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RespConfig {
    /// The file of users. Without it only clients from loopback come in, and may do everything.
    pub users_file: Option<PathBuf>,
    /// With it the door speaks TLS.
    pub tls: Option<TlsFiles>,
    /// Clients at a time, over all cores.
    pub clients_max: usize,
    /// How long a client may take to log in.
    pub login_s: u64,
    /// How long a client may ask nothing; 0: for ever. What `clients_max` bounds are connections of
    /// engines, which ask nothing for days and do not come back when they are cut.
    pub idle_s: u64,
    /// How long nothing may move in the middle of a command, a value or a reply.
    pub stall_s: u64,
    /// What must move in the mean then, in KiB a second: a slow client keeps memory from others.
    pub pace_kib_per_s: u64,
}

impl Default for RespConfig {
    fn default() -> Self {
        Self {
            users_file: None,
            tls: None,
            clients_max: 10_000,
            login_s: 10,
            idle_s: 0,
            stall_s: 30,
            pace_kib_per_s: 1024,
        }
    }
}

impl RespConfig {
    /// Whether the door may open at `listen`.
    ///
    /// # Errors
    /// The key at fault and what to do.
    pub fn check(&self, listen: SocketAddr) -> Result<(), (&'static str, String)> {
        let has_client_ca = self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        if !listen.ip().is_loopback() && self.users_file.is_none() && !has_client_ca {
            let message = format!(
                "{listen} is not loopback, so clients must log in: set kv.resp.users_file or \
                 kv.resp.tls.client_ca"
            );
            return Err(("kv.resp_listen", message));
        }
        for (key, value) in [
            ("kv.resp.clients_max", self.clients_max as u64),
            ("kv.resp.login_s", self.login_s),
            ("kv.resp.stall_s", self.stall_s),
            ("kv.resp.pace_kib_per_s", self.pace_kib_per_s),
        ] {
            if value == 0 {
                return Err((key, "must be at least 1".to_owned()));
            }
        }
        Ok(())
    }

    /// How slow a client may be.
    pub fn pace(&self) -> Pace {
        Pace {
            stall: Duration::from_secs(self.stall_s),
            bytes_per_s: self.pace_kib_per_s.saturating_mul(1024),
        }
    }

    /// How long a client may ask nothing, if that is bounded.
    pub fn idle(&self) -> Option<Duration> {
        (self.idle_s > 0).then(|| Duration::from_secs(self.idle_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_nobody_comes_in_without_a_login() {
        let mut config = RespConfig::default();
        let (open, loopback) = ("0.0.0.0:7080".parse().unwrap(), "[::1]:7080".parse().unwrap());
        assert_eq!(config.check(loopback), Ok(()));
        let (key, message) = config.check(open).unwrap_err();
        assert_eq!(key, "kv.resp_listen");
        assert!(message.contains("users_file"), "{message}");
        let mut tls = TlsFiles { cert: "c".into(), key: "k".into(), client_ca: None };
        config.tls = Some(tls.clone());
        assert!(config.check(open).is_err());
        tls.client_ca = Some("a".into());
        config.tls = Some(tls);
        assert_eq!(config.check(open), Ok(()));
        let users_file = Some("u".into());
        assert_eq!(RespConfig { users_file, ..RespConfig::default() }.check(open), Ok(()));
    }

    #[test]
    fn the_documented_defaults_are_those_of_the_code() {
        let page = include_str!("../../../docs/CONFIGURATION.md");
        let section =
            page.split("[kv.resp]\n").nth(1).unwrap().split("# [kv.resp.tls]").next().unwrap();
        let path = std::path::Path::new("docs/CONFIGURATION.md");
        let documented: RespConfig = dataplane::config::parse(path, section).unwrap();
        assert_eq!(documented, RespConfig::default());
        let keys = section.lines().filter(|line| line.contains(" = "));
        assert_eq!(keys.count(), 6, "each key stands there, those without a default as comments");
    }

    #[test]
    fn a_limit_of_nothing_is_refused() {
        let config = RespConfig { stall_s: 0, ..RespConfig::default() };
        let listen = "127.0.0.1:0".parse().unwrap();
        assert_eq!(config.check(listen).unwrap_err().0, "kv.resp.stall_s");
    }
}
