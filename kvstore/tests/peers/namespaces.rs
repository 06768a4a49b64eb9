//! Two network namespaces with a wire between them.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Gone when dropped.
pub struct Wire {
    names: [String; 2],
}

/// The address at each end.
pub const ADDRESSES: [&str; 2] = ["10.78.0.1", "10.78.0.2"];

impl Wire {
    /// Lays it, or says why that cannot be done here.
    pub fn lay() -> Result<Wire, String> {
        static WIRES: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", std::process::id(), WIRES.fetch_add(1, Ordering::Relaxed));
        let wire = Wire { names: [format!("cgn-l-{id}"), format!("cgn-r-{id}")] };
        let [left, right] = &wire.names;
        sh(&format!("ip netns add {left} && ip netns add {right}"))?;
        sh(&format!("ip link add vl netns {left} type veth peer name vr netns {right}"))?;
        for (name, device, address) in [(left, "vl", ADDRESSES[0]), (right, "vr", ADDRESSES[1])] {
            sh(&format!(
                "ip -n {name} addr add {address}/24 dev {device} && ip -n {name} link set {device} up \
                 && ip -n {name} link set lo up"
            ))?;
        }
        Ok(wire)
    }

    /// A command that runs at one end.
    pub fn at(&self, end: usize, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[end], program]);
        command
    }

    /// Cuts it, or mends it.
    pub fn cut(&self, is_cut: bool) {
        let state = if is_cut { "down" } else { "up" };
        sh(&format!("ip -n {} link set vl {state}", self.names[0])).unwrap();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let [left, right] = &self.names;
        let _ = sh(&format!("ip netns del {left}; ip netns del {right}"));
    }
}

fn sh(command: &str) -> Result<(), String> {
    let out = Command::new("sh").args(["-c", command]).output().map_err(|e| e.to_string())?;
    match out.status.success() {
        true => Ok(()),
        false => Err(format!("{command}: {}", String::from_utf8_lossy(&out.stderr).trim())),
    }
}
