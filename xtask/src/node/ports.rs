//! The ports of a node, and who holds one that is taken.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::failure::Failure;

/// A listener on this machine answers at once or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// Where the processes of a node listen, all on loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The OpenAI API.
    pub http: u16,
    /// The router's metrics and health.
    pub admin: u16,
    /// The control port.
    pub control: u16,
    /// The agent's metrics and health.
    pub agent: u16,
    /// The KV daemon's metrics and health.
    pub kvcached: u16,
    /// The KV daemon's RESP door.
    pub resp: u16,
    /// First port of the engines.
    pub engine_min: u16,
    /// Last port of the engines.
    pub engine_max: u16,
}

impl Ports {
    /// The default ports, each plus `offset`.
    pub fn at(offset: u16) -> Ports {
        Ports {
            http: 8080 + offset,
            admin: 9091 + offset,
            control: 9090 + offset,
            agent: 9093 + offset,
            kvcached: 9092 + offset,
            resp: 7080 + offset,
            engine_min: 18100 + offset,
            engine_max: 18199 + offset,
        }
    }

    /// Refuses when somebody listens on one of them. Engine ports are left to the agent, which
    /// takes the next free one.
    pub fn check_free(self, offset: u16) -> Result<(), Failure> {
        let ports = [self.http, self.admin, self.control, self.agent, self.kvcached, self.resp];
        for port in ports {
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                continue;
            }
            let who = holder(port).map_or(String::new(), |who| format!(" by {who}"));
            let next = if offset < 1000 { 1000 } else { offset.saturating_add(1000) % 40_000 };
            return Err(Failure::new(format!(
                "port {port} is taken{who}; stop that or run `cargo xtask up --port-offset {next}`"
            )));
        }
        Ok(())
    }
}

/// Whether somebody accepts connections on a port of this machine.
pub fn is_open(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).is_ok()
}

/// The process that listens on `port`, as far as `/proc` tells this user.
fn holder(port: u16) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).ok());
    let socket = tables.iter().flatten().find_map(|table| listener(table, port))?;
    let link = format!("socket:[{socket}]");
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let files = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let mut targets = files.filter_map(|file| fs::read_link(file.path()).ok());
        if targets.any(|target| target.as_os_str() == link.as_str()) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (pid {pid})", name.trim()));
        }
    }
    None
}

/// The inode of the socket in state LISTEN (0A) on `port`, from the text of `/proc/net/tcp`.
fn listener(table: &str, port: u16) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (_, local_port) = words.get(1)?.rsplit_once(':')?;
        let is_it = u16::from_str_radix(local_port, 16) == Ok(port) && *words.get(3)? == "0A";
        if is_it { words.get(9)?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_taken_port_is_named() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(is_open(port));
        let who = holder(port).unwrap();
        assert!(who.contains(&format!("pid {}", std::process::id())), "{who}");
        let ports = Ports { http: port, ..Ports::at(0) };
        let said = ports.check_free(0).unwrap_err().to_string();
        assert!(said.contains(&format!("port {port} is taken")), "{said}");
        assert!(said.contains("--port-offset 1000"), "{said}");
    }

    #[test]
    fn only_listeners_count() {
        let table = "  sl  local_address rem_address   st\n\
             0: 0100007F:1F90 00000000:0000 01 0:0 0:0 0 0 0 77 1\n\
             1: 0100007F:1F90 00000000:0000 0A 0:0 0:0 0 0 0 78 1\n";
        assert_eq!(listener(table, 8080), Some(78));
        assert_eq!(listener(table, 8081), None);
        assert_eq!(listener("", 1), None);
    }
}
