//! The configuration of `cgn-control`: one TOML file with one section, `[control]`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use dataplane::config::{ConfigError, load, require_loopback};
use serde::{Deserialize, Serialize};

use crate::cluster::Limits;

/// Longest path a Unix socket may have on Linux: 108 bytes with the final NUL.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// All there is.
    #[serde(default)]
    pub control: Control,
}

/// `[control]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// The control port (gRPC). Loopback only. Default 127.0.0.1:9090.
    pub listen: SocketAddr,
    /// Folder of what survives a restart. Default /var/lib/cognitora/control.
    pub data_dir: PathBuf,
    /// Unix socket for the data planes of this node. Default /run/cognitora/control.sock.
    pub socket: PathBuf,
    /// An agent that has not reported for so long is not attached. Default 15.
    pub node_timeout_s: u64,
    /// For so long after a node was lost its replicas are kept for it. Default 60.
    pub node_grace_s: u64,
    /// How long `cgnctl route explain` waits for the router. Default 5.
    pub explain_timeout_s: u64,
    /// Nodes known at once; beyond it the longest lost is forgotten. Default 1024.
    pub nodes_max: usize,
    /// Deployments at once. Default 1024.
    pub deployments_max: usize,
    /// Data planes connected at once. Default 64.
    pub planes_max: usize,
}

impl Default for Control {
    fn default() -> Self {
        Control {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)),
            data_dir: PathBuf::from("/var/lib/cognitora/control"),
            socket: PathBuf::from("/run/cognitora/control.sock"),
            node_timeout_s: 15,
            node_grace_s: 60,
            explain_timeout_s: 5,
            nodes_max: 1024,
            deployments_max: 1024,
            planes_max: 64,
        }
    }
}

impl Control {
    /// Reads and checks `path`.
    ///
    /// # Errors
    /// Any [`ConfigError`].
    pub fn load(path: &Path) -> Result<Control, ConfigError> {
        let control = load::<Config>(path)?.control;
        control.check(path)?;
        Ok(control)
    }

    /// What the pure parts need to know.
    pub fn limits(&self) -> Limits {
        Limits {
            node_timeout_ms: self.node_timeout_s * 1000,
            node_grace_ms: self.node_grace_s * 1000,
            nodes_max: self.nodes_max,
            deployments_max: self.deployments_max,
        }
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        require_loopback(path, "control.listen", self.listen)?;
        let ranges = [
            ("node_timeout_s", self.node_timeout_s, 3600),
            ("node_grace_s", self.node_grace_s, 86_400),
            ("explain_timeout_s", self.explain_timeout_s, 60),
            ("nodes_max", self.nodes_max as u64, 100_000),
            ("deployments_max", self.deployments_max as u64, 100_000),
            ("planes_max", self.planes_max as u64, 10_000),
        ];
        let wrong = |key: &str, message: String| {
            Err(ConfigError::Value {
                path: path.to_owned(),
                key: format!("control.{key}"),
                message,
            })
        };
        for (key, value, most) in ranges {
            if !(1..=most).contains(&value) {
                return wrong(key, format!("{value} is out of range; use 1 to {most}"));
            }
        }
        let bytes = self.socket.as_os_str().len();
        if !(1..=SOCKET_PATH_BYTES_MAX).contains(&bytes) {
            let message = format!(
                "a path of {bytes} bytes; Unix sockets take 1 to {SOCKET_PATH_BYTES_MAX}, use a shorter one"
            );
            return wrong("socket", message);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<(), String> {
        let path = Path::new("control.toml");
        let config: Config =
            dataplane::config::parse(path, text).map_err(|error| error.to_string())?;
        config.control.check(path).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        check("").unwrap();
        check("[control]\n").unwrap();
    }

    #[test]
    fn values_out_of_range_name_their_key() {
        assert!(check("[control]\nnode_timeout_s = 0\n").unwrap_err().contains("node_timeout_s"));
        assert!(check("[control]\nlisten = \"0.0.0.0:9090\"\n").unwrap_err().contains("loopback"));
        let long = format!("[control]\nsocket = \"/{}\"\n", "s".repeat(SOCKET_PATH_BYTES_MAX));
        assert!(check(&long).unwrap_err().contains("control.socket"));
    }

    /// `docs/CONFIGURATION.md` names every key, and with its default.
    #[test]
    fn the_documented_defaults_are_the_defaults() {
        let page = include_str!("../../docs/CONFIGURATION.md");
        let block =
            page.split("## cgn-control").nth(1).and_then(|part| part.split("```toml").nth(1));
        let block = block.and_then(|part| part.split("```").next()).unwrap();
        let documented: toml::Table = block.parse().unwrap();
        let defaults = toml::Table::try_from(Control::default()).unwrap();
        assert_eq!(documented["control"], toml::Value::Table(defaults));
    }
}
