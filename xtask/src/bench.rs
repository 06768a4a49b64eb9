//! `cargo xtask bench [-- FLAG ...]`: the router against nginx, one core each, before the same engine.
//!
//! Installs what the benchmark needs and hands it the flags; `router/benches/proxy/main.rs` knows them.

mod peers;

use crate::cache::Cache;
use crate::failure::Failure;
use crate::{build, packages};

/// Runs it; it prints its own tables.
pub fn run(cache: &Cache, flags: &[String]) -> Result<(), Failure> {
    packages::ensure(cache, packages::NODE)?;
    let installed = packages::ensure(cache, packages::BENCH)?;
    if installed.contains(&"nginx") && packages::program("systemctl").is_some() {
        // Debian starts a web server with the package; the benchmark starts its own.
        let mut stop = packages::as_root(&["systemctl", "disable", "--now", "nginx"])?;
        if !stop.status().is_ok_and(|status| status.success()) {
            eprintln!("nginx was installed; its service could not be stopped: see systemctl");
        }
    }
    let mut command = cache.cargo();
    command.args(["bench", "--locked", "-p", "router", "--bench", "proxy", "--"]).args(flags);
    if flags.iter().any(|flag| flag == "--peers") {
        command.env("CGN_PEERS", peers::ensure(cache)?);
    }
    build::stage(&mut command)
}
